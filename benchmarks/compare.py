"""This project beside llama.cpp and OpenVINO GenAI: the same model, the same weights, in turns, in one run.

    python benchmarks/compare.py --work DIR --gguf MODEL.gguf [--shape 1B] --llama-python VENV/bin/python \\
        --openvino-python VENV/bin/python [--llama-bench 'PROGRAM FLAGS'] [--kind Q4_0] [--rounds 5] [--threads 2] \\
        [--tests decode,...] [--json F] [--markdown F]

llama.cpp comes as the package llama-cpp-python (built with the compiler of the machine), OpenVINO as openvino-genai, each in an
environment of its own that also has numpy; an engine whose Python is not given is left out. `llama-bench` is measured where it is on the
path or given by --llama-bench (for relatives of llama.cpp, too); it has no test `start`. --gguf: a model, rewritten with its matrices
in --kind; with --shape, a random model of that shape with its tokenizer. Ours imports the same file: Q4_0 and Q8_0 are kept bit for
bit. Every engine is a process that keeps its model loaded (peers/); after a warm-up a round asks each for each test, the order turning
from round to round. Ratios are taken within a round, then their median. What each test is, is in TESTS.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf_models

from llmcli.backends.cpu import measure, threads

HERE = Path(__file__).resolve().parent
CONTEXT = 4096 + 256
PAUSE = 0.3
"""Seconds between two measurements: threads of an engine that has answered still look for work for a while."""
OURS = "ours"
BENCH = "llama-bench"
QUANTS = {"Q4_0": "int4", "Q8_0": "int8"}
PROMPT = "Once upon a time there"


@dataclass(frozen=True)
class Test:
    """kind: 'prompt' or 'decode', asked of loaded engines; or 'start', a whole process up to its first token. busy: beside a process
    that keeps one core busy."""

    kind: str
    tokens: int = 0
    depth: int = 0
    busy: bool = False


TESTS = {
    "decode": Test("decode", 128),
    "prompt-512": Test("prompt", 512),
    "prompt-4096": Test("prompt", 4096),
    "decode-at-4096": Test("decode", 32, 4096),
    "decode-busy": Test("decode", 64, busy=True),
    "start": Test("start"),
}
WARM = (Test("prompt", 512), Test("decode", 16))


class Engine:
    """A program of peers/ with a model in it."""

    def __init__(self, name: str, python: str, model: str, count: int, environment: dict[str, str]) -> None:
        script = {OURS: "ours", "llama.cpp": "llamacpp", "OpenVINO": "genai", BENCH: "llamabench"}[name]
        self.name, self._environment = name, environment
        self._command = [python, str(HERE / "peers" / f"{script}.py"), model, "--threads", str(count), "--context", str(CONTEXT)]
        self._once = [*self._command, "--once"]
        if name == OURS:
            words = ["run", PROMPT, "-m", model, "-n", "1", "--temp", "0", "--raw", "--no-stdin", "-q", "-t", str(count)]
            self._once = [python, "-m", "llmcli", *words]

    def start(self) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=self._environment, text=True)
        self.version = self._answer()["version"]

    def can(self, test: Test) -> bool:
        """Whether this program has such a test."""
        return self.name != BENCH or test.kind != "start"

    def ask(self, test: Test) -> float:
        """Tokens a second."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"kind": test.kind, "tokens": test.tokens, "depth": test.depth}) + "\n")
        self.process.stdin.flush()
        return test.tokens / self._answer()["seconds"]

    def once(self) -> tuple[float, float]:
        """Seconds and peak memory in bytes of a process that computes one token."""
        command = [sys.executable, "-S", "-E", str(HERE / "peers" / "launch.py"), *self._once]
        found = json.loads(subprocess.run(command, env=self._environment, stdout=subprocess.PIPE, check=True).stdout)
        if found["status"]:
            raise SystemExit(f"{self.name} ended with status {found['status']}:\n{' '.join(self._once)}")
        return found["seconds"], found["bytes"]

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended early; run it alone to see why:\n{' '.join(self._command)}")
        found: dict[str, Any] = json.loads(line)
        return found


@contextlib.contextmanager
def spinning(wanted: bool) -> Iterator[None]:
    """Beside a process that keeps one core busy."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if wanted else None
    try:
        if process:
            time.sleep(PAUSE)
        yield
    finally:
        if process:
            process.kill()
            process.wait()


def measured(engines: list[Engine], tests: dict[str, Test], rounds: int) -> dict[str, dict[str, list[float]]]:
    """what -> engine -> a figure a round. `start` becomes two: seconds and bytes."""
    found: dict[str, dict[str, list[float]]] = {}

    def note(what: str, engine: Engine, value: float) -> None:
        found.setdefault(what, {}).setdefault(engine.name, []).append(value)

    for engine in engines:  # what is done for the first time takes longer
        for test in WARM:
            engine.ask(test)
        if any(engine.can(test) and test.kind == "start" for test in tests.values()):
            engine.once()
    for number in range(rounds):
        turn = number % len(engines)
        for name, test in tests.items():
            for engine in (one for one in engines[turn:] + engines[:turn] if one.can(test)):
                time.sleep(PAUSE)
                with spinning(test.busy):
                    values = engine.once() if test.kind == "start" else (engine.ask(test),)
                for part, value in zip((" (s)", " (bytes)") if test.kind == "start" else ("",), values, strict=True):
                    note(name + part, engine, value)
                print(f"round {number + 1} {name:<16}{engine.name:<12}{values[0]:.4g}", file=sys.stderr, flush=True)
    return found


def summary(found: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """A row for each figure: ratios of ours to each other engine's (median of the rounds'), medians, samples."""
    rows = []
    for what, samples in found.items():
        ours = samples.get(OURS, [])
        ratios = {
            name: statistics.median(a / b for a, b in zip(ours, theirs, strict=True)) for name, theirs in samples.items() if name != OURS
        }
        medians = {name: statistics.median(values) for name, values in samples.items()}
        rows.append({"what": what, "ratios": ratios, "medians": medians, "samples": samples})
    return rows


def markdown(title: str, rows: list[dict[str, Any]], engines: list[Engine]) -> str:
    """Ratios first. Tokens a second, unless it says otherwise."""
    others = [engine.name for engine in engines if engine.name != OURS]
    heads = [title, *(f"ours / {name}" for name in others), OURS, *others]
    lines = [heads, ["---"] * len(heads)]
    for row in rows:
        ratios = [f"{row['ratios'][name]:.2f}" if name in row["ratios"] else "" for name in others]
        figures = [_figure(row["what"], row["samples"][name]) if name in row["samples"] else "" for name in (OURS, *others)]
        lines.append([row["what"], *ratios, *figures])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _figure(what: str, values: list[float]) -> str:
    """The median, and how far the rounds lie apart."""
    median = statistics.median(values)
    shown = f"{median / 1e6:,.0f} MB" if "bytes" in what else f"{median:.2f}" if "(s)" in what else f"{median:,.1f}"
    return f"{shown} ±{(max(values) - min(values)) / 2 / median:.0%}"


def prepared(options: argparse.Namespace) -> tuple[str, Path, str, dict[str, str]]:
    """(title, GGUF file, our name for it, environment): made once in the working folder."""
    title = f"{options.shape or options.gguf.stem.split('.')[0]}-{options.kind}"
    path = options.work / f"{title}.gguf"
    if not path.exists():
        part = path.with_suffix(".part")
        if options.shape:
            gguf_models.random(options.shape, options.gguf, part, options.kind)
        else:
            gguf_models.requantized(options.gguf, part, options.kind)
        part.replace(path)
    search = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    # An installed package has its bytecode, as the others' have: without this, a process that may not keep it compiles all modules.
    own = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment = {**own, "LLMCLI_HOME": str(options.work / "home"), "PYTHONPATH": search}
    quant = QUANTS[options.kind]
    if not list((options.work / "home").rglob(f"{title}-{quant}.safetensors")):
        command = [sys.executable, "-m", "llmcli", "import", str(path), "--quant", quant, "--name", title, "-q"]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return title, path, f"{title}:{quant}", environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder for models and kernels; kept, so that the next run finds them")
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--shape")
    parser.add_argument("--kind", choices=QUANTS, default="Q4_0")
    parser.add_argument("--llama-python")
    parser.add_argument("--openvino-python")
    parser.add_argument("--llama-bench", default=shutil.which("llama-bench") or "", help="the program, with flags of its own")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=threads.usable())
    parser.add_argument("--tests", default=",".join(TESTS), help=f"of {', '.join(TESTS)}")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the engines' processes end with this one
    options.work.mkdir(parents=True, exist_ok=True)
    tests = {name: TESTS[name] for name in options.tests.split(",")}
    title, path, name, environment = prepared(options)
    load = os.getloadavg()[0]
    plain = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    engines = [Engine(OURS, sys.executable, name, options.threads, environment)]
    for peer, python in (("llama.cpp", options.llama_python), ("OpenVINO", options.openvino_python)):
        if python:
            engines.append(Engine(peer, python, str(path), options.threads, plain))
    if options.llama_bench:
        engines.append(Engine(BENCH, sys.executable, str(path), options.threads, {**plain, "LLAMA_BENCH": options.llama_bench}))
    with contextlib.ExitStack() as stack:
        for engine in engines:
            engine.start()
            stack.callback(engine.stop)
        rows = summary(measured(engines, tests, options.rounds))
    versions = {engine.name: engine.version for engine in engines}
    table = markdown(title, rows, engines)
    names = ", ".join(f"{name} {version}" for name, version in versions.items())
    about = f"{names}; {measure.cpu_name()}, {options.threads} threads, median of {options.rounds} rounds, load before {load:.1f}\n\n"
    print(about + table, end="")
    if options.markdown:
        options.markdown.write_text(about + table)
    if options.json:
        facts = {"model": title, "gguf_bytes": path.stat().st_size, "cpu": measure.cpu_name(), "threads": options.threads}
        options.json.write_text(
            json.dumps({**facts, "rounds": options.rounds, "versions": versions, "load_before": load, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
