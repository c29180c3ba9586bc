"""What a generation took: times, tokens a second, memory."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from llmcli import memory
from llmcli.cli.units import size

if TYPE_CHECKING:
    from llmcli.engine import Engine
    from llmcli.generate import Settings, Step
    from llmcli.text.thinking import Piece


class Stats:
    """What happened, for --stats and the JSON summary."""

    def __init__(self, engine: Engine, prompt: int) -> None:
        self.engine, self.prompt, self.generated = engine, prompt, 0
        self.texts: dict[str, list[str]] = {"answer": [], "thought": [], "marker": []}
        self.finish: str | None = None
        self.start = self.first = self.last = time.perf_counter()

    def count(self, step: Step, pieces: list[Piece]) -> None:
        """pieces: the step's text, by part."""
        self.last = time.perf_counter()
        if step.id is not None:
            self.generated += 1
            if self.generated == 1:
                self.first = self.last
        for part, text in pieces:
            self.texts[part].append(text)
        self.finish = step.finish or self.finish

    def summary(self, settings: Settings) -> dict[str, Any]:
        speed = {
            "load_seconds": self.engine.load_seconds,
            "compile_seconds": self.engine.compile_seconds,
            "prompt_seconds": self.first - self.start,
            "prompt_tokens_per_second": _rate(self.prompt, self.first - self.start),
            "generation_seconds": self.last - self.first,
            "generation_tokens_per_second": _rate(self.generated - 1, self.last - self.first),
            "peak_memory_bytes": memory.peak(),
        }
        return {
            "model": self.engine.name,
            "text": "".join(self.texts["answer"]),
            "thoughts": "".join(self.texts["thought"]),
            "finish": self.finish,
            "prompt_tokens": self.prompt,
            "generated_tokens": self.generated,
            "settings": settings,
            "stats": speed,
        }

    def lines(self, settings: Settings) -> str:
        speed = self.summary(settings)["stats"]
        rows = [
            ("model", f"{self.engine.name}, {size(self.engine.memory_bytes)}"),
            ("load", f"{speed['load_seconds']:.3f} s"),
            *([("compile", f"{speed['compile_seconds']:.1f} s, once on this machine")] if speed["compile_seconds"] else []),
            ("prompt", f"{self.prompt:,} tokens, {speed['prompt_seconds']:.3f} s, {_per_second(speed['prompt_tokens_per_second'])}"),
            (
                "generation",
                f"{self.generated:,} tokens, {speed['generation_seconds']:.3f} s, {_per_second(speed['generation_tokens_per_second'])}",
            ),
            ("memory", f"{size(speed['peak_memory_bytes'])} at most"),
            ("finish", f"{self.finish}, seed {settings.seed}"),
        ]
        return "\n".join(f"{name:<12}{value}" for name, value in rows)


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if tokens > 0 and seconds > 0 else None


def _per_second(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:,.1f} tokens/s"
