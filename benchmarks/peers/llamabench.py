"""llama-bench, a program of llama.cpp and of what grew from it, for compare.py. MODEL: a GGUF file.

LLAMA_BENCH in the environment says which program, with flags of its own (`llama-bench -rtr 1`). Each measurement is a process, which
loads the model, warms up and times itself; the clock is its own.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess

import serve

BATCH, MICRO = 2048, 512


class Engine:
    def __init__(self, model: str, threads: int, context: int) -> None:
        program = shlex.split(os.environ["LLAMA_BENCH"])
        sizes = ["-b", str(BATCH), "-ub", str(MICRO)]
        self._command = [*program, "-m", model, "-t", str(threads), "-r", "1", "-o", "json", *sizes]
        words = subprocess.run([program[0], "--help"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
        self._depth = "--n-depth" in words
        self.version = str(self._run("-p", "8", "-n", "0")["build_commit"])

    def prompt(self, tokens: int) -> float:
        return self._seconds("-p", str(tokens), "-n", "0")

    def decode(self, tokens: int, depth: int) -> float:
        if not depth:
            return self._seconds("-p", "0", "-n", str(tokens))
        if self._depth:
            return self._seconds("-p", "0", "-n", str(tokens), "-d", str(depth))
        # The other way to say it; the time is of the generated tokens alone.
        return self._seconds("-p", "0", "-n", "0", "-gp", f"{depth},{tokens}")

    def first(self, ids: list[int]) -> int:
        raise SystemExit("llama-bench does not say when its first token is there")

    def _seconds(self, *words: str) -> float:
        return float(self._run(*words)["avg_ns"]) / 1e9

    def _run(self, *words: str) -> dict[str, object]:
        found = subprocess.run([*self._command, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True).stdout
        (row,) = json.loads(found)
        return dict(row)


if __name__ == "__main__":
    serve.main(Engine)
