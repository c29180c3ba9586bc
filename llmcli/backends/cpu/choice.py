"""Which kernel computes an operation: names and parameters, before there is any memory."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from llmcli.backends.cpu import target, threads
from llmcli.backends.cpu.objects import Key
from llmcli.backends.fuse import Numbered, fuse
from llmcli.formats import format as formats
from llmcli.formats.format import integers
from llmcli.plan import Op, Plan

PLAIN = {
    "position_add": "position.add",
    "multiply": "elementwise.multiply",
    "add": "elementwise.add",
    "scale": "elementwise.scale",
    "softcap": "elementwise.softcap",
    "clip": "elementwise.clip",
    "scale_rows": "elementwise.scale_rows",
    "select_rows": "select.rows",
    "top": "top.rows",
}
"""Operations with one kernel."""
OTHERS = {"embed", "norm", "linear", "rope", "cache_write", "attention", "activation", "route", "experts"}
QUERIES = 48
"""Queries that one chunk of attention takes together: a few tokens' heads that share their keys."""
WHOLE = 1 << 40
"""A divisor that makes one of any number of rows: chunks come from the columns alone."""
CHUNK_BYTES = 16384
"""Weights that a chunk of a product with one row should read at least: a few microseconds of work."""
CHUNKS = 8
"""Chunks of a product for each thread, where there is enough to do."""


def supports(op: str, format: str) -> str:
    """See backends.backend."""
    if op not in PLAIN and op not in OTHERS:
        return f"the cpu backend does not compute {op} yet"
    if format and format not in formats.names():
        return f"there is no format {format}"
    if op == "embed" and format and formats.get(format).FORMAT.offset:
        return "tables are not looked up in formats with offsets"
    return ""


@functools.cache
def heights() -> tuple[int, ...]:
    """Tile heights: how many tokens a matrix product takes at once."""
    return tuple(height for height in (1, 2, 4, 8) if height <= target.tile())


def height(rows: int) -> int:
    """The tile height for so many rows."""
    return next((h for h in heights() if rows <= h), heights()[-1])


def family(format: str) -> str:
    """What kernels call a weight format: 'int4', 'int4_offset' and 'int8' whatever the codes mean, or the float type."""
    record = formats.get(format).FORMAT
    return f"int{record.bits}{'_offset' if record.offset else ''}" if integers(format) else record.name


def tokens_together(group: int) -> int:
    """Tokens in a chunk of attention; group: query heads that share a kv head."""
    return max(1, QUERIES // group)


def chunk_tiles(tiles: int, matrix_bytes: int, height: int, threads: int) -> int:
    """How many of a matrix's tiles of 16 rows are one chunk of a product with `height` rows at once."""
    # One row: no smaller than worth claiming. Many rows make any tile worth it.
    least = -(-CHUNK_BYTES // (matrix_bytes // tiles)) if height == 1 else 1
    return max(least, tiles // (CHUNKS * threads), 1)


def operations(plan: Plan, formats: Mapping[str, str]) -> list[Numbered]:
    """What this backend computes for a plan. formats: of each weight."""
    return fuse(plan, lambda name: integers(formats[name]), turns=True)


def kernel(op: Op, height: int, formats: Mapping[str, str], cache: str) -> Key:
    """The kernel of an operation from `fuse`, for rows in tiles of `height`. formats: of each weight; cache: its dtype."""
    name = op.weights[0] if op.weights else None
    kind = str(op.params.get("kind", ""))
    match op.kind:
        case "quantize":
            return "quantize.rows", (height,)
        case "linear":
            return f"linear.{family(formats[str(name)])}", (height,)
        case "embed":
            return f"embed.{family(formats[str(name)])}", ()
        case "norm":
            return f"norm.{kind}", ()
        case "activation":
            return f"elementwise.{kind}" + ("_multiply" if len(op.inputs) == 2 else ""), ()
        case "rope":
            return f"rope.{pairs(op)}", ()
        case "cache_write":
            return ("cache.rope_write", (cache, pairs(op))) if "frequencies" in op.params else ("cache.write", (cache,))
        case "attention":
            return attention(op, height, cache)
        case "route":
            return f"route.{op.params['softmax']}", ()
    if op.kind.startswith("experts_"):
        return experts(op, height, formats)
    return PLAIN[op.kind], ()


def pairs(op: Op) -> str:
    """Which columns a rope turns together (kernels/rope.py)."""
    return "interleaved" if op.params["interleaved"] else "half"


def attention(op: Op, height: int, cache: str) -> Key:
    """One token: the threads share each head's past, however long it is. More: they share tokens and heads."""
    head_size, group = op.integer("head_size"), op.integer("heads") // op.integer("kv_heads")
    if height == 1:
        return "attention.shared", (head_size, cache, group)
    return "attention.rows", (head_size, cache, group, tokens_together(group))


def experts(op: Op, height: int, formats: Mapping[str, str]) -> Key:
    """The kernel of one of the steps of `experts`."""
    up, down = (formats[str(name)] for name in op.weights[:2])
    match op.kind:
        case "experts_group":
            return "experts.group", ()
        case "experts_place":
            return "experts.place", ()
        case "experts_up" | "experts_down":
            return f"experts.{family(up if op.kind == 'experts_up' else down)}", (height,)
        case "experts_activate":
            return "experts.activate", (str(op.params["activation"]), bool(op.params["gated"]), bool(op.params["limit"]))
    return "experts.combine", ()


def kernels(ops: list[Numbered], formats: Mapping[str, str], cache: str) -> list[Key]:
    """Every kernel that steps of these operations may call, and those that run steps."""
    chosen = (kernel(op, h, formats, cache) for _, op in ops for h in heights())
    return list(dict.fromkeys((*threads.KERNELS, *chosen)))
