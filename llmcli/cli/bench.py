"""`llm bench`: how fast a model runs here, and what share of the machine that is."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from llmcli.cli.console import Console, open_answer
from llmcli.cli.options import MODEL, CacheType, Common, Counts, Json, ModelName, NoVerify, Threads, count, counts, option
from llmcli.cli.progress import progress
from llmcli.cli.render import SCHEMA, to_line
from llmcli.cli.table import table
from llmcli.cli.units import amount, size
from llmcli.errors import UsageError

if TYPE_CHECKING:
    from llmcli.benchmark import Subject, Test

WHAT = "What is measured"
MOST = 2**20

ABOUT = """
Measures tokens a second: of prompts of several lengths, and of tokens one after the other, also deep in a text. What the machine can
do is measured in the same run with the same threads, so each figure comes with its share of that limit. Tokens are random and
nothing is sampled; the median of some measurements counts.

--shape measures random weights of a model's real shape: nothing has to be here for it.
"""

EXAMPLE = """
llm bench                                     # the default model
llm bench --prompt 128,512 --gen 64 --depth 0,2048
llm bench --shape 1B --quant int4 --ops       # random weights, and the time of each kind of operation
llm bench --json
"""

KINDS = ("int8", "int16", "f32")
"""Kinds of operations that are counted."""


@dataclass(frozen=True, kw_only=True)
class Options(Json, Common):
    model: ModelName = None
    shape: Annotated[
        str | None,
        option("--shape", section=MODEL, metavar="SHAPE", help="random weights instead: 135M, 1B, 3B, 8B, 32B, or a config.json"),
    ] = None
    quant: Annotated[
        Literal["int8", "int4", "none"] | None,
        option("--quant", section=MODEL, metavar="TYPE", help="how random weights are stored: int8, int4 (default), none"),
    ] = None
    threads: Threads = None
    kv: CacheType = "auto"
    no_verify: NoVerify = False
    prompt: Annotated[
        Counts | None, option("--prompt", section=WHAT, metavar="N,...", parser=counts(0, MOST), help="tokens of a prompt; 0: none (512)")
    ] = None
    gen: Annotated[
        Counts | None, option("--gen", section=WHAT, metavar="N,...", parser=counts(0, MOST), help="tokens one by one; 0: none (128)")
    ] = None
    depth: Annotated[
        Counts | None, option("--depth", section=WHAT, metavar="N,...", parser=counts(0, MOST), help="tokens before them, not timed (0)")
    ] = None
    repeat: Annotated[
        int, option("--repeat", section=WHAT, metavar="R", parser=count(1, 1000), help="measurements; the median counts (5)")
    ] = 5
    logits: Annotated[
        Literal["last", "all"], option("--logits", section=WHAT, metavar="WHICH", help="of a prompt: last, or all as scoring needs")
    ] = "last"
    ops: Annotated[bool, option("--ops", section=WHAT, help="also the time of each kind of operation")] = False


def execute(options: Options, console: Console) -> int:
    from llmcli import benchmark

    tests = _tests(options)
    subject = _subject(options, max(test.depth + test.tokens for test in tests), console)
    with contextlib.closing(subject), progress(console) as report:
        records, machine = benchmark.records(subject, tests, options.repeat, options.ops, report, console.note)
    with open_answer() as answer:
        if options.json:
            answer.write(to_line({"schema": SCHEMA, "machine": machine, "records": records}))
        else:
            answer.write(_shown(records, machine))
    return 0


def _tests(options: Options) -> list[Test]:
    """A test for each number of tokens and depth, prompts first."""
    from llmcli.benchmark import Test

    depths = options.depth or (0,)
    found = [Test(n, 0, depth, options.logits) for n in options.prompt or (512,) if n for depth in depths]
    found += [Test(0, n, depth) for n in options.gen or (128,) if n for depth in depths]
    if not found:
        raise UsageError("nothing to measure", "--prompt and --gen are both 0", "Leave one of them out")
    return found


def _subject(options: Options, context: int, console: Console) -> Subject:
    from llmcli import benchmark

    if options.shape is None:
        if options.quant is not None:
            raise UsageError("--quant", "it is for random weights", "Use it with --shape, or name the model NAME:TYPE")
        return benchmark.load(
            options.model, context, threads=options.threads, kv=options.kv, verify=not options.no_verify, notify=console.note
        )
    if options.model is not None:
        raise UsageError("--model and --shape", "a model is measured, or a shape", "Leave one of them out")
    name, spec = benchmark.shape(options.shape)
    return benchmark.random(name, spec, options.quant or "int4", context, threads=options.threads, kv=options.kv, notify=console.note)


def _shown(records: list[dict[str, Any]], machine: dict[str, Any]) -> str:
    """For people."""
    first = records[0]
    giga, model = 1e9, size(machine["model_bytes"])
    lines = [
        ("model", f"{first['model_type']}, {amount(first['model_n_params'])} parameters, {size(first['model_size'])}"),
        ("machine", f"{machine['cpu']}, {machine['threads']} threads, {machine['dot4']} dot products"),
        (
            "reads",
            f"{machine['memory_read'] / giga:.1f} GB/s from memory, {machine['model_read'] / giga:.1f} GB/s over {model}",
        ),
        (
            "computes",
            f"{machine['int8_operations'] / giga:,.0f} GOP/s in int8, {machine['int16_operations'] / giga:,.0f} in int16, "
            f"{machine['f32_operations'] / giga:,.0f} in float32",
        ),
        ("memory", f"{size(first['peak_memory_bytes'])} at most"),
    ]
    text = "".join(f"{name:<10}{value}\n" for name, value in lines)
    rows = [("TEST", "DEPTH", "TOKENS/S", "SPREAD", "MB/TOKEN", "GOP/TOKEN", "OF READ", "OF INT8")]
    for record in records:
        rows.append(
            (
                _name(record),
                f"{record['n_depth']:,}",
                f"{record['median_ts']:,.1f}",
                f"{record['spread']:.1%}",
                f"{record['bytes_per_token'] / 1e6:,.1f}",
                f"{sum(record[f'{kind}_operations_per_token'] for kind in KINDS) / giga:,.2f}",
                f"{record['read_share']:.0%}",
                f"{record['dot_share']:.0%}",
            )
        )
    text += "\n" + table(rows, right=range(1, 8))
    for record in records:
        if "ops" in record:
            depth = f" at depth {record['n_depth']:,}" if record["n_depth"] else ""
            text += f"\n{_name(record)}{depth}, by operation\n{_operations(record['ops'])}"
    return text


def _name(record: dict[str, Any]) -> str:
    if not record["n_prompt"]:
        return f"generate {record['n_gen']:,}"
    return f"prompt {record['n_prompt']:,}" + (", all logits" if record["logits"] == "all" else "")


def _operations(ops: list[dict[str, Any]]) -> str:
    rows = [("OPERATION", "SHARE", "US/TOKEN", "CALLS", "GB/S", "GOP/S")]
    for op in ops:
        operations = sum(op[f"{kind}_operations_per_second"] for kind in KINDS)
        rows.append(
            (
                f"{op['kind']} {op['part']}".strip(),
                f"{op['share']:.1%}",
                f"{op['seconds_per_token'] * 1e6:,.2f}",
                f"{op['calls']:,}",
                f"{op['bytes_per_second'] / 1e9:,.1f}" if op["bytes_per_second"] else "",
                f"{operations / 1e9:,.0f}" if operations else "",
            )
        )
    return table(rows, right=range(1, 6))
