"""What a query of attention sees: its position, its blocks of the cache, and its scores where not every key counts as it is."""

from __future__ import annotations

import numpy as np

from llmcli.backends.cpu.kernels.instructions import inline
from llmcli.backends.cpu.kernels.mathematics import tanh
from llmcli.backends.cpu.kernels.vectors import (
    as_f64,
    choose,
    field,
    fma,
    greater_i32,
    lane_numbers,
    load_f32,
    load_i32,
    splat,
    splat_i32,
    to_f32,
)
from llmcli.backends.cpu.records import ATTENTION, HEADER
from llmcli.backends.cpu.tiles import BLOCK

F = np.float32
MINUS_INFINITY = F(-np.inf)


@inline
def position_of(args, token):
    return load_i32(field(field(args, ATTENTION.header), HEADER.positions) + token * 4)


@inline
def owner_of(args, token):
    return load_i32(field(field(args, ATTENTION.header), HEADER.owners) + token * 4)


@inline
def first_seen(args, position):
    """The first position that a query at `position` sees."""
    window = field(args, ATTENTION.window)
    return max(position + 1 - window, 0) if window else 0


@inline
def block_address(args, owner, block, kv_head):
    """Where a sequence's block of one head starts."""
    header = field(args, ATTENTION.header)
    number = load_i32(field(header, HEADER.tables) + owner * field(header, HEADER.table_stride) + block * 4)
    return field(args, ATTENTION.cache) + number * field(args, ATTENTION.block_bytes) + kv_head * field(args, ATTENTION.head_bytes)


@inline
def sees_nothing(args, position, base):
    """No position of the block at base."""
    return base > position or base + BLOCK <= first_seen(args, position)


@inline
def sees_all(args, position, start, end):
    """All positions in [start, end)."""
    return start >= first_seen(args, position) and end <= position + 1


@inline
def plain(args):
    """Scores are taken as they are: no softcap, no slopes."""
    return not field(args, ATTENTION.softcap) and not field(args, ATTENTION.slopes)


@inline
def bend(args, head, position, start, score):
    """16 scores of keys from `start` on, soft-capped and with the head's slope."""
    softcap, slopes = field(args, ATTENTION.softcap), field(args, ATTENTION.slopes)
    if softcap:
        cap = splat(F(as_f64(softcap)))
        score = cap * tanh(score / cap)
    if slopes:
        score = fma(splat(load_f32(slopes + head * 4)), to_f32(lane_numbers() + splat_i32(start - position)), score)
    return score


@inline
def hide(args, position, start, score):
    """16 scores of keys from `start` on: minus infinity where the query may not look."""
    key = lane_numbers() + splat_i32(start)
    seen = greater_i32(key, splat_i32(first_seen(args, position) - 1)) & greater_i32(splat_i32(position + 1), key)
    return choose(seen, score, splat(MINUS_INFINITY))
