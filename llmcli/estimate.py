"""What a model takes of memory, known before its weights are read, and what of it would fit where there is less.

A process that has loaded a model and filled its context takes weights + cache + buffers + tokenizer + program: sizes that follow
from shapes, and two constants that were measured. `require` refuses what is not available, with a table of what is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from llmcli import memory
from llmcli.errors import OutOfMemory
from llmcli.kv import BLOCK, DTYPES, KVCache
from llmcli.memory import MIB
from llmcli.plan import Op, Plan

MOST_TOKENS = 256
"""Tokens of a prompt that the CPU computes at once: enough to be bound by arithmetic, few enough for its caches. GPUs: offload/steps.py."""
RUNTIME = 18 << 20
"""Bytes of Python, NumPy, the tokenizers library and a model's kernels, beside their code: measured. Code, some 20 MiB, lies in files, and
the system takes its pages back when it needs them."""
TOKENIZER = 22
"""Bytes of a tokenizer in memory for each byte of its file: measured."""

MARGIN = 1 << 20
"""Bytes that what is available varies by from one moment to the next: what is said to fit now fits then."""


@dataclass(frozen=True)
class Variant:
    """A model in one quantization. name: what `-m` takes; weights: their bytes; how: the command that makes it, '' where it is here."""

    name: str
    quantization: str
    weights: int
    how: str = ""


@dataclass(frozen=True)
class Model:
    """What the memory of a model depends on, beside its quantization. tokenizer: bytes of its file; texts: how many full contexts
    the cache has room for; more: bytes for what parts on several devices hand on."""

    plan: Plan
    tokenizer: int
    texts: int = 1
    more: int = 0

    def needed(self, weights: int, kind: str, blocks: int | None = None) -> dict[str, int]:
        """Bytes by use. kind: type of the KV cache; blocks: of one text (None: those of the full context)."""
        plan, count = self.plan, self.texts * (self.blocks if blocks is None else blocks)
        rows = sum(buffer.width for buffer in plan.buffers if buffer.rows == "tokens")
        once = sum(buffer.width for buffer in plan.buffers if buffer.rows == "outputs")
        experts = max((_experts(op) for op in plan.ops if op.kind == "experts"), default=0)
        return {
            "weights": weights,
            "cache": count * KVCache.bytes_per_block(plan.cache, kind),
            "buffers": 4 * (2 * rows * MOST_TOKENS + 8 * once) + experts + self.more,
            "tokenizer": TOKENIZER * self.tokenizer,
            "program": RUNTIME,
        }

    @property
    def blocks(self) -> int:
        """Blocks of the KV cache that a full context takes."""
        return blocks(self.plan)

    def fits(self, have: int, weights: int, kind: str) -> tuple[int, int]:
        """The most tokens of context, up to the plan's, for which `have` bytes are enough, and the bytes they take; 0 tokens if none."""
        empty = sum(self.needed(weights, kind, 0).values())
        most = max(0, have - empty) // max(1, self.texts * KVCache.bytes_per_block(self.plan.cache, kind))
        count = min(self.blocks, most)
        return min(self.plan.context, count * BLOCK), sum(self.needed(weights, kind, count).values())


def cache_type(quantization: str, wanted: str = "auto") -> str:
    """The type of the KV cache: what is wanted, or, where nobody chooses one, f32 for unquantized weights, else int16."""
    return wanted if wanted != "auto" else "f32" if quantization == "none" else "int16"


def blocks(plan: Plan) -> int:
    """Blocks of the KV cache that a full context takes."""
    return -(-plan.context // BLOCK)


def require(model: Model, wanted: Variant, kind: str, others: Callable[[], Iterable[Variant]], least: int | None = None) -> None:
    """Raises OutOfMemory, with a table of what would fit, where `wanted` does not.

    kind: type of its KV cache; others: what may be tried instead, asked for only then; least: blocks of a text that must be there
    (None: those of the full context).
    """
    needed, have = sum(model.needed(wanted.weights, kind, least).values()), room()
    if have is None or needed <= have:
        return
    variants = [wanted, *others()]
    rows = table(model, variants, kind, have - MARGIN)
    why = f"it needs {needed / MIB:,.0f} MiB and {have / MIB:,.0f} MiB are available"
    raise OutOfMemory(f"not enough memory for {wanted.name}", why, _advice(variants, kind, rows), instead=tuple(rows))


def room() -> int | None:
    """Bytes that a process may take in all, with what this one has of RUNTIME already; None if unknown."""
    have = memory.available()
    return None if have is None else have + min(memory.resident(), RUNTIME)


def table(model: Model, variants: Sequence[Variant], kind: str, have: int) -> list[tuple[str, ...]]:
    """What would fit into so many bytes: a heading and rows (model, --kv, -c, memory, what makes it), the nearest to what is
    wanted first. Each row has the largest context of its variant, up to the plan's. [] where nothing fits."""
    rows = []
    for variant in variants:
        default = cache_type(variant.quantization)
        first = kind if variant is variants[0] or DTYPES[kind].itemsize <= DTYPES[default].itemsize else default
        # One type of each smaller size: the last one is the better one.
        smaller = {dtype.itemsize: name for name, dtype in DTYPES.items() if dtype.itemsize < DTYPES[first].itemsize}
        for other in (first, *(smaller[size] for size in sorted(smaller, reverse=True))):
            context, size = model.fits(have, variant.weights, other)
            if context:
                rows.append((variant.name, other, str(context), f"{size / MIB:,.0f} MiB", variant.how))
    return [("model", "--kv", "-c", "memory", ""), *rows] if rows else []


def _advice(variants: Sequence[Variant], kind: str, rows: Sequence[tuple[str, ...]]) -> str:
    """What to try first: the row that is nearest to what was wanted."""
    if not rows:
        return "No smaller form of it fits: close other programs, or use a smaller model"
    name, other, context, _, how = rows[1]
    chosen = next(variant for variant in variants if variant.name == name)
    own = chosen is variants[0]
    words = [] if own else ["-m", name]
    words += [] if other == (kind if own else cache_type(chosen.quantization)) else ["--kv", other]
    return f"Try {' '.join([*words, '-c', context])}, which fits{f' ({how} makes it)' if how else ''}"


def _experts(op: Op) -> int:
    """Bytes that a layer's experts work in: what each choice of MOST_TOKENS tokens reads, computes and says, also in int8."""
    count, chosen, size = (op.integer(name) for name in ("count", "chosen", "size"))
    inner, hidden = size * (2 if op.params["gated"] else 1), op.out[0].width
    rows = MOST_TOKENS * chosen + 8 * min(count, MOST_TOKENS * chosen)
    return rows * (4 * (hidden + inner) + 2 * max(hidden, inner))
