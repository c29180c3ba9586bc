"""Everything that a machine with an NVIDIA GPU is asked once it is there, in one run and without a network.

    PYTHONPATH=. python benchmarks/gpu.py [--json gpu.json] [--stages tests,peaks,...] [--budget 480] [--dry]
    PYTHONPATH=. python benchmarks/gpu.py --compile sm_90        before that, anywhere: its kernels, for .kernels here

Stages, each a process with a share of the budget; one that fails or takes too long is noted and the next one begins:
    tests     pytest -m gpu tests/cuda
    peaks     bandwidth of a copy in the GPU's memory; the bf16 matrix rate (with PyTorch)
    kernels   each kernel as a share of those
    models    tokens one by one and prompts, of random models from 135M to 32B, int4 and int8
    parity    the same text on CPU and GPU: likeliest tokens, and how far logits are apart
    start     a process from its start to the first token
    torch     the same shapes in PyTorch (bf16), and its int4 product
The JSON file is written after every row. --dry: the smallest of everything in Numba's simulator, to test this program; no figure counts.
What is measured how is said at the head of each file in gpu_stages/, what the figures mean in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
KERNELS = ROOT / ".kernels"
"""Where compiled kernels are kept, unless LLMCLI_KERNELS says another folder."""
BUDGET = 480.0
SHARES = {"tests": 120, "peaks": 15, "kernels": 85, "models": 120, "parity": 70, "start": 30, "torch": 40}
"""Seconds of the budget; what a stage leaves is divided among the ones behind it."""
MODULES = {"torch": "peer"}
NEEDS = {
    "numpy": tuple(SHARES),
    "numba": tuple(SHARES)[:-1],
    "numba_cuda": tuple(SHARES)[:-1],
    "llvmlite": tuple(SHARES)[:-1],
    "cuda.bindings": tuple(SHARES)[:-1],
    "tokenizers": ("models", "parity", "start"),
    "pytest": ("tests",),
    "torch": ("torch",),
}
"""Package -> the stages that cannot do without it."""
NOT_SIMULATED = ("numba_cuda", "cuda.bindings")
PARALLEL = 6
"""Processes for the tests, which mostly compile, where pytest-xdist is installed."""
GRACE = 5.0
"""Seconds after a stage's time until it is ended."""
TAIL, LINES = 3000, 300
"""Characters of what a failed stage said last; lines that are kept of the tests."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default=",".join(SHARES), help="which, separated by commas")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="where figures go")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all")
    parser.add_argument("--dry", action="store_true", help="test this program in the simulator")
    parser.add_argument("--compile", metavar="sm_NN", help="only compile all kernels, for such a GPU, which need not be here")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    os.environ.setdefault("LLMCLI_KERNELS", str(KERNELS))
    if asked.compile:
        from gpu_stages import ahead

        ahead.compile_all(asked.compile)
        return 0
    if asked.child:
        return child(json.loads(asked.child))
    wanted = asked.stages.split(",")
    if unknown := set(wanted) - set(SHARES):
        parser.error(f"no stage {', '.join(sorted(unknown))}; there are {', '.join(SHARES)}")
    return Run(asked.json, asked.budget, asked.dry).all([name for name in SHARES if name in wanted])


class Run:
    def __init__(self, path: Path, budget: float, dry: bool) -> None:
        self.path, self.dry, self.end = path, dry, time.monotonic() + budget
        self.environment = {**os.environ, "PYTHONPATH": search_path()}
        if dry:
            self.environment["NUMBA_ENABLE_CUDASIM"] = "1"
        self.known: dict[str, float] = {}
        self.lock = threading.Lock()  # of `found`, which a stage's reader fills
        self.found: dict[str, Any] = {"simulated": dry, "budget_s": budget, "machine": machine(), "stages": {}}

    def all(self, stages: list[str]) -> int:
        missing = {name for name in NEEDS if not here(name) and not (self.dry and name in NOT_SIMULATED)}
        for name in sorted(missing):
            costs = [stage for stage in NEEDS[name] if stage in stages]
            print(f"{name} is not installed" + (f": no {', '.join(costs)}" if costs else ""))
        self.found["missing"] = sorted(missing)
        print(json.dumps(self.found["machine"]))
        if "no_gpu" in self.found["machine"] and not self.dry:
            print("nothing to measure")
            self.write()
            return 1
        for folder in (KERNELS, *KERNELS.glob("cuda-*")):
            with contextlib.suppress(OSError):  # brought along, with rights that make them useless (backends/kept.py), perhaps
                folder.chmod(0o700)
        with tempfile.TemporaryDirectory() as home:
            self.environment["LLMCLI_HOME"] = home
            for number, name in enumerate(stages):
                lacking = sorted(package for package in missing if name in NEEDS[package])
                if lacking:
                    self.found["stages"][name] = {"state": "left out", "note": f"not installed: {', '.join(lacking)}", "rows": []}
                else:
                    left = self.end - GRACE - time.monotonic()
                    self.stage(name, max(left * SHARES[name] / sum(SHARES[later] for later in stages[number:]), 1.0))
                self.write()
        for line in table(self.found):
            print(line)
        return int(any(stage["state"] == "failed" for stage in self.found["stages"].values()))

    def stage(self, name: str, limit: float) -> None:
        """One stage: its rows, and how it ended."""
        own = self.found["stages"][name] = {"state": "running", "limit_s": round(limit, 1), "rows": []}
        print(f"{name}: up to {limit:.0f} s", flush=True)
        start = time.monotonic()
        with tempfile.TemporaryFile("w+", errors="replace") as errors:
            process = subprocess.Popen(
                self.command(name, limit), cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, stderr=errors, text=True,
                errors="replace", start_new_session=True,
            )  # fmt: skip
            reader = threading.Thread(target=self.read, args=(name, process), daemon=True)
            reader.start()
            try:
                code = process.wait(limit + GRACE)
                ended = {"state": "done"} if code == 0 else {"state": "failed", "code": code}
            except subprocess.TimeoutExpired:
                end(process)
                ended = {"state": "abandoned", "note": f"ended after {limit + GRACE:.0f} s"}
            reader.join(GRACE)
            if ended["state"] != "done":
                ended["said"] = tail(errors)
                if ended["state"] == "failed":
                    ended["error"] = (ended["said"].strip() or "no word").rpartition("\n")[2]
        with self.lock:
            own |= ended | {"seconds": round(time.monotonic() - start, 1)}
        print(f"{name}: {own['state']} after {own['seconds']} s {own.get('error', own.get('note', ''))}", flush=True)

    def command(self, name: str, limit: float) -> list[str]:
        if name == "tests":
            return tests(self.dry)
        told = {"stage": name, "limit": limit, "dry": self.dry, "known": self.known}
        return [sys.executable, "-X", "faulthandler", str(HERE / "gpu.py"), "--child", json.dumps(told)]

    def read(self, name: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            self.take(name, lines)

    def take(self, name: str, lines: Iterable[str]) -> None:
        own = self.found["stages"][name]
        for line in lines:
            with self.lock:
                if name == "tests":  # in pytest's own words
                    own["output"] = [*own.get("output", []), line.rstrip()][-LINES:]
                    if text := line.strip():
                        own["rows"] = [{"what": "pytest", "line": text}]
                else:
                    self.add(own, line)
            self.write()

    def add(self, own: dict[str, Any], line: str) -> None:
        try:
            row = json.loads(line)
        except ValueError:  # half a line, of a stage that was ended
            return
        own["rows"].append(row)
        for what, figure in (("copy", "bytes_per_s"), ("bf16", "flop_per_s")):
            if row["what"] == what:
                self.known[what] = row[figure]

    def write(self) -> None:
        """All of the file or nothing."""
        with self.lock:
            new = self.path.with_name(self.path.name + ".new")
            new.write_text(json.dumps(self.found, indent=1))
            new.replace(self.path)


def tests(dry: bool) -> list[str]:
    """What the GPU's tests are started with. Other packages' warnings are not errors there; dry: tests that need no GPU."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-W",
        "default",
        "--no-header",
        "-rN",
        "--tb=short",
        "-o",
        "addopts=",
        "-p",
        "gpu_stages.telling",
    ]
    if dry:
        return [*command, "tests/test_cuda_device.py"]
    parallel = ["-n", str(min(PARALLEL, os.cpu_count() or 1))] if here("xdist") else []
    return [*command, *parallel, "-m", "gpu", "tests/cuda"]


def child(told: dict[str, Any]) -> int:
    """One stage, in this process. Rows go to standard output, everything else to standard error."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from gpu_stages.stage import Stage, quicker_simulator

    if told["dry"]:
        quicker_simulator()
    else:
        from llmcli.backends.cuda import device

        device.usable()
    stage = Stage(out, told["limit"], told["dry"], told["known"])
    importlib.import_module(f"gpu_stages.{MODULES.get(told['stage'], told['stage'])}").run(stage)
    return 0


def search_path() -> str:
    """Where stages find modules: ours, then where this process was told to look, as in a folder of packages that were brought along."""
    told = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return os.pathsep.join((str(ROOT), str(HERE), *map(os.path.abspath, told)))


def here(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def machine() -> dict[str, Any]:
    """What the figures belong to."""
    found: dict[str, Any] = {"python": sys.version.split()[0], "cores": os.cpu_count()}
    for package in ("numpy", "numba", "llvmlite", "numba-cuda", "cuda-bindings", "torch"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    from llmcli.backends.cuda import device
    from llmcli.errors import LlmError

    try:
        found["driver"] = ".".join(map(str, device.driver().version()))
        found["gpus"] = [{"name": gpu.name, "capability": gpu.capability, "memory": gpu.memory} for gpu in device.gpus()]
        device.usable()
    except LlmError as error:
        found["no_gpu"] = str(error)
    return found


def end(process: subprocess.Popen[str]) -> None:
    """The process and what it has started, which is a group of its own."""
    for signal in (15, 9):
        try:
            os.killpg(process.pid, signal)
            process.wait(GRACE)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
        return


def tail(file: Any) -> str:
    file.seek(0)
    return str(file.read()[-TAIL:])


COLUMNS = {
    "of copy": ("device_share_of_copy", "share_of_copy"),
    "of bf16": ("share_of_bf16",),
    "gpu tok/s": ("device_tokens_per_s",),
    "tok/s": ("tokens_per_s",),
    "us": ("us",),
}
"""Heading -> the figure, or another one where there is none."""
LABELS = ("shape", "model", "quantization", "format", "kind", "rows", "columns", "depth", "tokens", "piece", "on_gpu", "device", "attempt")
SAID = (
    "same_top",
    "largest_logit_error",
    "loaded_s",
    "first_token_s",
    "second_token_s",
    "bytes_per_s",
    "flop_per_s",
    "line",
    "item",
    "needs",
)


def table(found: dict[str, Any]) -> list[str]:
    """A short table: shares of the machine's rates first."""
    lines = [f"{'':58}" + "".join(f"{name:>11}" for name in COLUMNS)]
    for stage, own in found["stages"].items():
        lines.append(f"{stage}: {own['state']}" + "".join(f"; {own[key]}" for key in ("note", "error") if key in own))
        for row in own["rows"]:
            label = " ".join(f"{row[name]}" for name in LABELS if row.get(name) is not None)
            figures = [next((row[name] for name in names if row.get(name) is not None), None) for names in COLUMNS.values()]
            said = (
                "" if any(figure is not None for figure in figures) else "".join(f"  {n} {row[n]}" for n in SAID if row.get(n) is not None)
            )
            cells = "".join(f"{'' if figure is None else format(figure, ',.4g'):>11}" for figure in figures)
            lines.append(f"  {row['what'] + ' ' + label:56}{cells}".rstrip() + said)
    if found["simulated"]:
        lines.append("simulated: no figure counts")
    return lines


if __name__ == "__main__":
    sys.exit(main())
