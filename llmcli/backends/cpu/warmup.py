"""Compiling ahead what common quantized models need: `llm warmup`. What else a model needs is compiled at its first run."""

from __future__ import annotations

from llmcli.backends.backend import Notify
from llmcli.backends.cpu import choice, objects, threads
from llmcli.backends.cpu.objects import Key, Progress

SHAPES = ((64, 1), (64, 2), (64, 3), (64, 4), (64, 7), (64, 8), (128, 1), (128, 2), (128, 3), (128, 4), (128, 6), (128, 7))
"""Head size, and heads that share a key head: the demo model, SmolLM2, TinyLlama, Llama, Mistral, Qwen2 and Qwen3 up to 8
billion parameters."""
PRODUCTS = ("int4", "int8")
CACHE = "int16"
PLAIN = (
    "embed.int8",
    "norm.rms",
    "elementwise.silu_multiply",
    "select.rows",
    "top.rows",
    "checksum.sum",
    "pack.int4",
    "pack.int8",
)
TAPS = ("elementwise.scale", "rope.half")
"""What copies for those who look inside, and what it keeps apart."""


def warmup(progress: Progress | None = None, notify: Notify | None = None) -> None:
    """Compiles and keeps kernels; `notify` hears where they cannot be kept."""
    objects.load(_keys(), notify, progress)


def count() -> int:
    """How many they are."""
    return len(set(_keys()))


def _keys() -> list[Key]:
    keys: list[Key] = [
        *threads.KERNELS,
        *((name, ()) for name in PLAIN + TAPS),
        ("cache.write", (CACHE,)),
        ("cache.rope_write", (CACHE, "half")),
    ]
    for height in choice.heights():
        keys += [("quantize.rows", (height,)), *((f"linear.{name}", (height,)) for name in PRODUCTS)]
    for head_size, group in SHAPES:
        keys.append(("attention.shared", (head_size, CACHE, group)))
        keys.append(("attention.rows", (head_size, CACHE, group, choice.tokens_together(group))))
    return keys
