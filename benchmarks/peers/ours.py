"""This project's engine, for compare.py. MODEL: a name of `llm list` or a packed file."""

from __future__ import annotations

import time

import serve

import llmcli
from llmcli import benchmark


class Engine:
    version = llmcli.__version__

    def __init__(self, model: str, threads: int, context: int) -> None:
        self.subject = benchmark.load(model, context, threads=threads)

    def prompt(self, tokens: int) -> float:
        with self.subject.text(0) as sequence:
            batch = self.subject.batch(sequence, tokens)
            start = time.perf_counter()
            self.subject.runner.run(batch)
            return time.perf_counter() - start

    def decode(self, tokens: int, depth: int) -> float:
        with self.subject.text(depth) as sequence:
            if not depth:
                self.subject.runner.run(self.subject.batch(sequence, 1))
            start = time.perf_counter()
            for _ in range(tokens):
                self.subject.runner.run(self.subject.batch(sequence, 1))
            return time.perf_counter() - start


if __name__ == "__main__":
    serve.main(Engine)
