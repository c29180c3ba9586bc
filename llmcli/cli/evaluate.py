"""`llm eval KIND FILE`: how well a model predicts a text, or how many questions it answers rightly, with intervals."""

from __future__ import annotations

import contextlib
import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llmcli.cli.console import Console, open_answer
from llmcli.cli.options import OUTPUT, Common, Model, Output, count, option
from llmcli.cli.progress import Report, progress
from llmcli.cli.render import SCHEMA, to_line
from llmcli.errors import UsageError
from llmcli.intervals import Series, wilson
from llmcli.text.input import read_text

if TYPE_CHECKING:
    from llmcli.engine import Engine

WHAT = "What is measured"

ABOUT = """
Measures a model on a file. perplexity: how well it predicts a text, in windows. lambada: how often it finds the last word of a passage.
hellaswag: how often the right one of several endings is the likeliest, as a whole and by character. Each figure has a 95% interval.

For questions, a line of the file is a JSON object: {"context", "continuation"} for lambada, {"query", "choices", "gold"} for hellaswag.
"""

EXAMPLE = """
llm eval lambada lambada.jsonl --limit 100
llm eval hellaswag hellaswag.jsonl -m NAME:int4 --json
llm eval perplexity story.txt --window 512 --stride 256
"""


@dataclass(frozen=True, kw_only=True)
class Options(Output, Model, Common):
    kind: Annotated[Literal["perplexity", "lambada", "hellaswag"], typer.Argument(metavar="KIND", help="perplexity, lambada or hellaswag")]
    file: Annotated[str, typer.Argument(metavar="FILE", help="a text; questions, a JSON object a line; -: standard input")]
    limit: Annotated[
        int | None, option("--limit", section=WHAT, metavar="N", parser=count(1, 10**9), help="only the first N questions or tokens")
    ] = None
    window: Annotated[
        int | None,
        option("--window", section=WHAT, metavar="N", parser=count(2, 2**24), help="perplexity: tokens read at once (the context)"),
    ] = None
    stride: Annotated[
        int | None,
        option("--stride", section=WHAT, metavar="N", parser=count(1, 2**24), help="perplexity: between windows (half of --window)"),
    ] = None
    json: Annotated[bool, option("--json", section=OUTPUT, help="a JSON object")] = False


def execute(options: Options, console: Console) -> int:
    if options.kind != "perplexity" and (options.window or options.stride):
        raise UsageError("--window and --stride", "they are for perplexity", "Leave them out")
    text = _read(options.file)
    engine = options.load(console)
    with contextlib.closing(engine), open_answer(options.output) as answer, progress(console) as report:
        found = _perplexity(engine, text, options, report) if options.kind == "perplexity" else _questions(engine, text, options, report)
        record = {"schema": SCHEMA, "model": engine.name, "kind": options.kind, **found}
        answer.write(to_line(record) if options.json else _lines(record))
    return 0


def _read(path: str) -> str:
    if path == "-":
        return read_text(sys.stdin.buffer, "standard input")
    with open(path, "rb") as file:
        return read_text(file, path)


def _perplexity(engine: Engine, text: str, options: Options, report: Report) -> dict[str, Any]:
    from llmcli import scoring
    from llmcli.text.tokenizer import Stream

    ids = engine.tokenizer.encode(text)[: options.limit]
    window, stride = scoring.windows(engine, options.window, options.stride)
    totals, surprise, stream = scoring.Totals(), Series(), Stream(engine.tokenizer)
    for token in scoring.score(engine, ids, 0, window, stride):
        totals.add(token, len(stream.feed_bytes(token.id)[0]))
        if token.rank:
            surprise.add((-token.logprob,))
        if token.position % 256 == 255 or token.position + 1 == len(ids):
            report("scoring", token.position + 1, len(ids))
    mean, half = surprise.mean, surprise.half
    return {
        "tokens": totals.tokens,
        "scored_tokens": totals.scored,
        "perplexity": totals.perplexity,
        "perplexity_interval": [_exp(mean - half), _exp(mean + half)],
        "bits_per_byte": totals.bits_per_byte,
        "window": window,
        "stride": stride,
    }


def _questions(engine: Engine, text: str, options: Options, report: Report) -> dict[str, Any]:
    from llmcli import evaluation

    asked = evaluation.questions(options.kind, text)[: options.limit]
    found = []
    for one in evaluation.ask(engine, asked):
        found.append(one)
        report("asking", len(found), len(asked))
    count, right = len(found), sum(one.right for one in found)
    record = {"questions": count, "right": right, "accuracy": right / count, "accuracy_interval": wilson(right, count)}
    record |= dict.fromkeys(("right_normalised", "accuracy_normalised", "accuracy_normalised_interval", "answer_perplexity"))
    if found[0].right_normalised is None:
        record["answer_perplexity"] = _exp(-math.fsum(one.logprob for one in found) / count)
    else:
        normalised = sum(bool(one.right_normalised) for one in found)
        record |= {"right_normalised": normalised, "accuracy_normalised": normalised / count}
        record["accuracy_normalised_interval"] = wilson(normalised, count)
    return record | {"cut": sum(one.cut for one in found)}


def _exp(mean: float) -> float:
    return math.exp(mean) if mean < 700 else math.inf if mean == mean else math.nan


def _lines(found: dict[str, Any]) -> str:
    """For people."""
    if found["kind"] == "perplexity":
        low, high = found["perplexity_interval"]
        interval = f"  (95%: {low:.4g} to {high:.4g})" if low == low else "  (too short for an interval)"
        lines = [f"perplexity     {found['perplexity']:.4g}{interval}", f"bits per byte  {found['bits_per_byte']:.4f}"]
        lines += [
            f"{found['scored_tokens']:,} tokens scored in windows of {found['window']:,}, stride {found['stride']:,}, {found['model']}"
        ]
        return "\n".join(lines) + "\n"
    lines = [_share("accuracy                ", found["accuracy"], found["accuracy_interval"])]
    if found["accuracy_normalised"] is None:
        lines.append(f"perplexity of an answer   {found['answer_perplexity']:.4g}")
    else:
        lines.append(_share("accuracy, per character ", found["accuracy_normalised"], found["accuracy_normalised_interval"]))
    cut = f", {found['cut']:,} of them cut to fit into the context" if found["cut"] else ""
    return "\n".join([*lines, f"{found['questions']:,} questions of {found['kind']}{cut}, {found['model']}"]) + "\n"


def _share(name: str, share: float, interval: tuple[float, float]) -> str:
    return f"{name}  {100 * share:.2f}%  (95%: {100 * interval[0]:.2f}% to {100 * interval[1]:.2f}%)"
