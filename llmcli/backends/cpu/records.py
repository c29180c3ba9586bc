"""The argument records that lowering fills and kernels read: one table, so that both sides agree. No Numba here.

A kernel is `(args: address, chunk, thread) -> nothing`. `args` is the address of int64 fields; a record names them
and gives each field's byte offset: `field(args, LINEAR.out)` reads one inside a kernel, `pack(LINEAR, out=...)` makes
the array outside. Field 0 of every record is the address of the step's HEADER. All values are addresses, counts or
strides in BYTES unless said otherwise; floats travel as the bits of a float64 (`bits(0.5)`).
"""

from __future__ import annotations

import struct
from collections import namedtuple
from typing import Any

import numpy as np
import numpy.typing as npt


def _record(name: str, fields: str) -> Any:
    names = fields.split()
    return namedtuple(name, names)(*range(0, 8 * len(names), 8))


HEADER = _record("HEADER", "tokens outputs token_ids positions owners tables table_stride output_rows error")
"""tokens T and outputs R of this step; addresses of i32 token_ids [T], positions [T], owners [T], block tables
[sequence][table_stride / 4] and output_rows [R]; error: address of the error word (i64: 0, or 1 + op number << 32 |
token, written once)."""

QUANTIZE = _record("QUANTIZE", "header outputs x x_stride columns codes scales sums")
"""f32 x [rows, columns] -> codes s8 [rows/M][K/32][8][M][4], scales f32 and sums i32 [rows/M][K/32][M], K = columns
padded to 32 (zeros), rows padded to M with zeros; sums = -128 * sum of the group's codes. outputs: 1 when rows are R
rows, 0 when T (so in every record). One chunk = one block of M rows."""

LINEAR = _record(
    "LINEAR",
    "header outputs x x_scales x_sums weights weight_scales weight_offsets codes bias out out_stride columns rows chunk_tiles add"
    " scratch scratch_bytes",
)
"""out [T, rows] = x @ weights.T + bias (bias 0: none); columns = real K, rows = real N; a chunk does row tiles
chunk * chunk_tiles ...; codes: address of 16 bytes (code + 128) of int4 formats. Float formats: x is f32 [T, ...] with
row stride x_scales. add: 1 adds to out instead of storing. scratch: scratch_bytes for each thread, at least 16 * K, K padded
to 32."""

NORM = _record("NORM", "header outputs x x_stride weight bias out out_stride columns heads eps op weight_step")
"""columns: of a row, all heads together; weight_step: 0 when all heads share one weight, else the bytes from one
head's weight to the next."""

ELEMENTWISE = _record("ELEMENTWISE", "header outputs a a_stride b b_stride out out_stride columns value")
ROPE = _record("ROPE", "header x x_stride heads head_size size frequencies factor")
"""frequencies: address of f64 [size/2]; the angle position * frequency is rounded to f32 (as models are
trained), its cos and sin are taken in f64."""
EMBED = _record("EMBED", "header weights weight_scales codes columns rows out out_stride")
POSITION = _record("POSITION", "header table columns offset x x_stride")
CACHE_WRITE = _record(
    "CACHE_WRITE", "header key key_stride value value_stride cache block_bytes head_bytes key_bytes kv_heads head_size op"
)
"""cache: address of block 0's part of this layer."""
ROPE_WRITE = _record("ROPE_WRITE", " ".join((*ROPE._fields, *(f"write_{name}" for name in CACHE_WRITE._fields))))
"""ROPE and, from write_header on, the CACHE_WRITE of what it has turned."""
ATTENTION = _record(
    "ATTENTION",
    "header query query_stride out out_stride cache block_bytes head_bytes key_bytes heads kv_heads head_size scale window "
    "softcap slopes sinks scratch scratch_bytes",
)
"""slopes, sinks: addresses of f32 [heads] or 0; scratch: scratch_bytes for each thread."""
SHARED_ATTENTION = _record("SHARED_ATTENTION", " ".join((*ATTENTION._fields, "shares", "parts", "parts_bytes", "counters")))
"""ATTENTION, and: shares: chunks for each (token, kv head); parts: memory for sums over blocks, parts_bytes for each
(token, kv head), which is AttentionTile.block_bytes (tiles.py) for each block of the longest sequence; counters: i64
[T, kv_heads], zero before and after."""
ROUTE = _record("ROUTE", "header logits logits_stride ids ids_stride weights weights_stride count chosen normalise scale")
"""ids: i32, chosen of them a token; normalise: 0 or 1. One chunk = one token."""

# Experts. A token and one of its choices are a row; rows are in groups of one expert each, experts ascending, that begin
# at a block of M rows. places: i32 [T, chosen], the row of each choice; slots: i32 [experts used][SLOT]: an
# expert, its first block, its number of blocks; used: address of how many there are (i64).
SLOT = 4
EXPERTS_GROUP = _record("EXPERTS_GROUP", "header ids ids_stride count chosen counts slots used places height")
"""counts: scratch, i32 [count]; height: M."""
EXPERTS_PLACE = _record("EXPERTS_PLACE", "header x x_stride columns chosen places out out_stride codes scales sums height")
"""x [T, columns] -> rows: where height is 0 f32 at out, else codes, scales and sums as QUANTIZE
has them, height = M. One chunk = one row."""
EXPERTS_LINEAR = _record("EXPERTS_LINEAR", " ".join((*LINEAR._fields, "slots", "used", "slot_chunks", "matrix_bytes", "bias_bytes")))
"""LINEAR on rows, each group with its own of the matrices, which are matrix_bytes apart, and of the biases, bias_bytes
apart. chunk = slot * slot_chunks + piece of the matrix."""
EXPERTS_ACTIVATE = _record("EXPERTS_ACTIVATE", "header inner inner_stride size chosen places codes scales sums limit shift height")
"""inner, rows [gate | up] or [up]: the first `size` columns become the activation's result, and its codes where height is not 0."""
EXPERTS_COMBINE = _record("EXPERTS_COMBINE", "header weights weights_stride chosen places said said_stride out out_stride columns")
"""out [T, columns] = sum of weight * row of said, in the order of the rows. One chunk = one token."""

SELECT = _record("SELECT", "header x x_stride out out_stride columns")
TOP = _record("TOP", "header logits logits_stride vocab keep ids values stats")
"""ids i32 and values f32 [R, keep]; stats f64 [R, 2]: log-sum-exp, entropy in nats. Two chunks a row: its stats, and the rest."""
CHECKSUM = _record("CHECKSUM", "header data size start out")
CLOCK = _record("CLOCK", "header clock out")
"""clock: the number of a POSIX clock; out: address of a timespec, i64 seconds and i64 nanoseconds."""
READ = _record("READ", "header data chunk_bytes out")
"""One chunk reads chunk_bytes, a multiple of 512; out: THREAD_BYTES for each thread, so that nothing is left out."""
LIMIT = _record("LIMIT", "header steps out")
"""One chunk does `steps` steps of products in registers; out: as in READ."""
PACK = _record("PACK", "header x x_stride columns rows codes scales tables")
"""f32 x [rows, columns] -> an int4 or int8 matrix: codes and scales as the format has them. tables, of int4: for each bin of 16 halves of a
code's unit, counted from the lowest code on, i32 [32] the last place before its border, f32 [32] the codes below and above it,
i32 [32] the number of the one below; then f32 [16] what the candidate scales put the extreme value on, twice the lowest
code, and the last place. One chunk = 16 rows."""

STEP = _record("STEP", "header table rows ticket done stop asleep woken threads spins yields")
"""What the threads that compute a step share. table: address of the step's ROWs, `rows` of them; ticket, done, stop:
addresses of words that threads write (kernels/step.py), each in cache lines of its own; asleep: address of a word for
each thread, THREAD_BYTES apart; woken: address of i64 [threads], 1 where a sleeping thread has to be woken; spins,
yields: how often an idle thread looks for work before it gives way, and before it returns."""
OVER = ((1 << 20) - 1) << 20
"""The ticket of a step that is over."""
THREAD_BYTES = 128
"""Bytes from one thread's word to the next: two cache lines, because CPUs fetch them in pairs."""

ROW = _record("ROW", "kernel args rows divisor columns")
"""One operation of a step: ceil(n / divisor) * columns chunks, n = 1, T or R as `rows` says (ROWS_*)."""
ROW_BYTES = 8 * len(ROW)
ROWS_ONE, ROWS_TOKENS, ROWS_OUTPUTS = range(3)


def pack(record: Any, **values: int) -> npt.NDArray[np.int64]:
    """The record's fields as an int64 array (64-byte aligned is not needed). Every field must be given."""
    missing = set(record._fields) ^ set(values)
    if missing:
        raise TypeError(f"{type(record).__name__}: fields {sorted(missing)} missing or unknown")
    return np.array([values[name] for name in record._fields], np.int64)


def bits(value: float) -> int:
    """The int64 with the bits of a float64."""
    return int(struct.unpack("<q", struct.pack("<d", value))[0])
