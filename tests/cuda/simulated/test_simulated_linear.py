"""Quantizing and matrix products on the GPU, in the simulator, against obvious NumPy in the same order of arithmetic: bit for bit.

Outputs are poisoned first and lie within wider rows, which must stay as they were. Rows of quantized activations behind the step's are
poison too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llmcli.backends.cuda import weights
from llmcli.backends.cuda.kernels import decode, embed, experts, linear, prompt, quantize
from llmcli.backends.cuda.kernels.platform import device
from llmcli.backends.cuda.launch import Launch
from llmcli.formats import format as formats
from llmcli.formats import layout
from llmcli.formats.format import PackedTensor

Array = npt.NDArray[Any]
F = np.float32
INTEGERS = ["int4", "int4_uniform", "iq4_nl", "int4_offset", "int8"]
FLOATS = ["f32", "f16", "bf16"]


def start(launch: Launch) -> None:
    launch.kernel[launch.grid, launch.block](*launch.args)


def fma(x: Array, y: Array, z: Array) -> Array:
    return (x.astype(np.float64) * y + z).astype(F)


def packed(format: str, values: Array) -> tuple[PackedTensor, Array]:
    """The tensor on disk and on the GPU. values: [N, K] or [E, N, K]."""
    module = formats.get(format)
    parts = [module.pack(part) for part in values.reshape(-1, *values.shape[-2:])]
    tensor = PackedTensor(format, values.shape, np.concatenate(parts))
    out = np.full(weights.size(tensor), 0xA5, np.uint8)
    weights.repack(tensor, out)
    return tensor, out


def quantize_here(x: Array, room: int) -> Array:
    """The kernel's records of x f32 [T, K], in a buffer with room for so many tokens."""
    tokens, columns = x.shape
    wide = np.full((tokens, columns + 3), np.nan, F)
    wide[:, 1 : columns + 1] = x
    codes = np.full(room * quantize.row_bytes(columns), 0xA5, np.uint8)
    kernel, grid, block = quantize.launch(tokens + 1, columns)
    start(Launch(kernel, grid, block, (np.array([tokens], np.int32), 0, wide.reshape(-1), 1, wide.shape[1], columns, codes)))
    return codes


def quantized(x: Array, room: int) -> Array:
    """The same records, made by NumPy."""
    codes, scales, sums = activations(x)
    chunks = -(-scales.shape[1] // 8)
    records = np.full((room, chunks, quantize.RECORD), 0xA5, np.uint8)

    def part(numbers: Array) -> Array:
        padded = np.pad(numbers, ((0, 0), (0, chunks * 8 - numbers.shape[1]), *[(0, 0)] * (numbers.ndim - 2)))
        return padded.reshape(len(x), chunks, -1).view(np.uint8)

    records[: len(x)] = np.concatenate([part(codes.astype(np.int8)), part(scales), part(sums)], -1)
    return records.reshape(-1)


def activations(x: Array) -> tuple[Array, Array, Array]:
    """x -> codes i64 [T, G, 32], scales f32 [T, G], sums f32 [T, G], as the formats define them."""
    groups = np.pad(x, ((0, 0), (0, -x.shape[1] % 32))).reshape(len(x), -1, 32)
    largest = np.abs(groups).max(-1)
    with np.errstate(divide="ignore"):
        inverse = np.where(largest > 0, F(127) / largest, F(0))
    codes = np.rint(groups * inverse[..., None]).astype(np.int64)
    scales = largest / F(127)
    return codes, scales, codes.sum(-1).astype(F) * scales


def product(tensor: PackedTensor, x: Array) -> Array:
    """f32 [T, N] in the kernels' order: segments of whole chunks, groups (columns) ascending, then segments ascending."""
    rows, columns = tensor.shape
    total = np.zeros((len(x), rows), F)
    if tensor.format in FLOATS:
        values, width = formats.get(tensor.format).unpack(tensor.data, rows, columns), 4 if tensor.format == "f32" else 8
        units = -(-columns // width)
        length = -(-units // decode.SEGMENTS) * width
        for begin in range(0, columns, length):
            acc = np.zeros_like(total)
            for k in range(begin, min(begin + length, columns)):
                acc = fma(values[:, k], x[:, k, None], acc)
            total += acc
        return total
    own = weights.place(tensor.format, rows, columns)
    codes, scales, sums = activations(x)
    offsets = np.zeros((rows, own.groups), np.float16)
    if tensor.format == "int8":
        numbers, w_scales = layout.unpack_bytes(tensor.data, rows, columns)
    else:
        found = layout.unpack_nibbles(tensor.data, rows, columns, 2 if tensor.format == "int4_offset" else 1)
        numbers, w_scales = np.array(formats.get(tensor.format).FORMAT.codes)[found[0]], found[1]
        offsets = found[2] if tensor.format == "int4_offset" else offsets
    length = decode.span(own.chunks) * 8
    for begin in range(0, own.groups, length):
        acc = np.zeros_like(total)
        for g in range(begin, min(begin + length, own.groups)):
            exact = codes[:, g] @ numbers[:rows, g].astype(np.int64).T
            acc = fma(exact.astype(F), w_scales[:rows, g].astype(F) * scales[:, g, None], acc)
            if tensor.format == "int4_offset":
                acc = fma(offsets[:rows, g].astype(F), sums[:, g, None], acc)
        total += acc
    return total


def multiply(tensor: PackedTensor, data: Array, x: Array, tokens: int, bias: Array | None = None, before: Array | None = None) -> Array:
    rows, columns = tensor.shape
    out = np.full((len(x), rows + 5), np.nan, F)
    if before is not None:
        out[:, 2 : rows + 2] = before
    room = -(-tokens // linear.ROOM) * linear.ROOM
    if tensor.format in FLOATS:
        wide = np.full((room, columns + 3), np.nan, F)
        wide[: len(x), 1 : columns + 1] = x
        source: Any = wide.reshape(-1), 1, columns + 3
    else:
        source = quantized(x, room)
    flat, step = out.reshape(-1), np.array([99, len(x)], np.int32)
    own = weights.place(tensor.format, rows, columns)
    start(linear.linear(tensor.format, own, tokens, step, 1, data, source, (flat, 2, rows + 5), bias, before is not None))
    assert np.isnan(out[:, :2]).all() and np.isnan(out[:, rows + 2 :]).all()
    return out[:, 2 : rows + 2]


# --- Weights and activations


@pytest.mark.parametrize("format", INTEGERS + FLOATS)
def test_repacked_weights_hold_the_same_numbers(format: str) -> None:
    rng = np.random.default_rng(1)
    for rows, columns in ((1, 1), (16, 33), (40, 300), (65, 256), (33, 7)):
        values = rng.standard_normal((2, rows, columns)).astype(F)
        tensor, data = packed(format, values)
        own, module = weights.place(format, rows, columns), formats.get(format)
        for number in range(2):
            part = data[number * own.size : (number + 1) * own.size]
            expected = module.unpack(tensor.data[number * module.size(rows, columns) :][: module.size(rows, columns)], rows, columns)
            np.testing.assert_array_equal(read(format, own, part)[:rows, :columns], expected)


def read(format: str, own: weights.Place, part: Array) -> Array:
    """The matrix that repacked bytes stand for, element by element as weights.py describes them."""
    tall = -(-own.rows // 32)
    if format in FLOATS:
        kind = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}[format]
        width = 16 // np.dtype(kind).itemsize
        columns = -(-own.columns // width) * width
        numbers = part[: tall * 32 * columns * np.dtype(kind).itemsize].view(kind).reshape(tall, -1, 32, width)
        values = numbers.astype(F) if format != "bf16" else (numbers.astype(np.uint32) << 16).view(F)
        return values.transpose(0, 2, 1, 3).reshape(tall * 32, columns)
    if format == "int8":
        halves = part[: tall * own.groups * 1024].view(np.int8).reshape(tall, own.groups, 2, 32, 16)
        codes = halves.transpose(0, 3, 1, 2, 4).reshape(tall * 32, own.groups, 32).astype(F)
    else:
        lanes = part[: tall * own.groups * 512].reshape(tall, own.groups, 32, 16).transpose(0, 2, 1, 3)
        nibbles = np.stack([lanes & 15, lanes >> 4], -1).reshape(tall * 32, own.groups, 32)
        codes = np.array(formats.get(format).FORMAT.codes, F)[nibbles]

    def numbers_at(at: int) -> Array:
        found = part[at : at + tall * own.chunks * 512].view(np.float16).reshape(tall, own.chunks, 32, 8)
        return found.transpose(0, 2, 1, 3).reshape(tall * 32, -1)[:, : own.groups, None].astype(F)

    values = codes * numbers_at(own.scales)
    return (values + numbers_at(own.offsets) if format == "int4_offset" else values).reshape(tall * 32, -1)


def test_activations_are_quantized_as_on_the_cpu() -> None:
    rng = np.random.default_rng(2)
    for tokens, columns in ((1, 1), (3, 257), (2, 320)):
        x = (rng.standard_normal((tokens, columns)) * 10.0 ** rng.integers(-9, 9, (tokens, 1))).astype(F)
        x[0, :32] = 0
        records = quantize_here(x, 4).reshape(4, -1, quantize.RECORD)
        codes, scales, sums = activations(x)
        groups = scales.shape[1]
        got = records[:tokens, :, :256].view(np.int8).reshape(tokens, -1, 32)
        np.testing.assert_array_equal(got[:, :groups], codes)
        assert not got[:, groups:].any() and (records[tokens:] == 0xA5).all()
        for at, expected in ((quantize.SCALES, scales), (quantize.SUMS, sums)):
            found = np.ascontiguousarray(records[:tokens, :, at : at + 32]).view(F).reshape(tokens, -1)
            np.testing.assert_array_equal(found[:, :groups], expected)
            assert not found[:, groups:].any()


def test_tiny_groups_are_zero_and_what_is_no_number_is_seen() -> None:
    x = np.zeros((1, 128), F)
    x[0, :8] = [127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -127]
    x[0, 32:34] = [1e-38, -3e-37]  # 127 / 3e-37 is beyond f32
    x[0, 64:66], x[0, 96:98] = [np.nan, 1], [np.inf, 1]
    record = quantize_here(x, 1)
    assert record[:8].view(np.int8).tolist() == [127, 0, 2, 2, 0, -2, -2, -127]
    assert not record[32:256].any()
    scales = record[quantize.SCALES :][:16].view(F)
    assert scales[0] == 1 and scales[1] == 0 and np.isnan(scales[2]) and np.isinf(scales[3])


# --- Products


@pytest.mark.parametrize("format", INTEGERS + FLOATS)
def test_products_have_the_same_bits_for_one_token_and_many(format: str) -> None:
    rng = np.random.default_rng(3)
    many = prompt.TOKENS + 1 if format in ("int4", "int4_offset", "int8", "f16") else 2  # the others share their kernels
    for rows, columns, most in ((5, 40, 3), (33, 300, many)):
        tensor, data = packed(format, rng.standard_normal((rows, columns)).astype(F))
        x = rng.standard_normal((most, columns)).astype(F)
        x[-1, :33] = 0
        expected = product(tensor, x)
        for tokens in sorted({1, most}):
            np.testing.assert_array_equal(
                multiply(tensor, data, x[:tokens], tokens), expected[:tokens], err_msg=f"{rows} {columns} {tokens}"
            )


@pytest.mark.parametrize("format", ["int4", "int8", "f16"])
def test_bias_then_addition_for_fewer_tokens_than_were_planned(format: str) -> None:
    rng = np.random.default_rng(4)
    tensor, data = packed(format, rng.standard_normal((41, 70)).astype(F))
    for most in (4, 2 * prompt.TOKENS):
        x = rng.standard_normal((3, 70)).astype(F)
        bias, before = rng.standard_normal(41).astype(F), rng.standard_normal((3, 41)).astype(F)
        np.testing.assert_array_equal(multiply(tensor, data, x, most, bias), product(tensor, x) + bias)
        np.testing.assert_array_equal(multiply(tensor, data, x, most, bias, before), before + (product(tensor, x) + bias))


# --- Rows of a matrix


@pytest.mark.parametrize("format", INTEGERS + FLOATS)
def test_embedding_rows(format: str) -> None:
    rng = np.random.default_rng(5)
    for columns in (7, 300):
        tensor, data = packed(format, rng.standard_normal((70, columns)).astype(F))
        tokens = [69, 0, 31, 32]
        out = np.full((5, columns + 2), np.nan, F)
        step = np.array([len(tokens), 0, *tokens, 99], np.int32)
        own = weights.place(format, 70, columns)
        start(embed.embed(format, own, 5, step, 2, data, (out.reshape(-1), 1, columns + 2)))
        expected = formats.get(format).unpack(tensor.data, 70, columns)[tokens]
        np.testing.assert_array_equal(out[:4, 1 : columns + 1], expected)
        assert np.isnan(out[4]).all() and np.isnan(out[:, [0, -1]]).all()


# --- Experts


@device
def relu(a, b, value):
    return F(0) if a < F(0) else a


@pytest.mark.parametrize("format", ["int4", "f16"])
def test_experts(format: str) -> None:
    rng = np.random.default_rng(6)
    hidden, size, count, chosen, tokens = 40, 35, 4, 2, 2
    up, up_data = packed(format, rng.standard_normal((count, 2 * size, hidden)).astype(F))
    down, down_data = packed(format, rng.standard_normal((count, hidden, size)).astype(F))
    up_bias, down_bias = rng.standard_normal((count, 2 * size)).astype(F), rng.standard_normal((count, hidden)).astype(F)
    x, shares = rng.standard_normal((tokens, hidden)).astype(F), rng.uniform(0.1, 1, (tokens, chosen)).astype(F)
    ids = np.array([9, 3, 1, 0, 3], np.int32)
    step = np.array([tokens], np.int32)
    integer = format not in FLOATS

    def run(tensor: PackedTensor, data: Array, per_row: int, rows_in: Array, bias: Array) -> Array:
        own = weights.place(format, *tensor.shape[-2:])
        out = np.full((tokens * chosen + 1, own.rows), np.nan, F)
        source: Any = rows_in.reshape(-1), 0, rows_in.shape[1]
        if integer:
            records = np.full(len(rows_in) * quantize.row_bytes(rows_in.shape[1]), 0xA5, np.uint8)
            each = len(rows_in) // tokens
            start(experts.quantize_rows(tokens, each, step, source, rows_in.shape[1], records))
            np.testing.assert_array_equal(records, quantized(rows_in, len(rows_in)))
            source = records
        to = out.reshape(-1), 0, own.rows
        start(experts.linear(format, own, tokens + 1, chosen, per_row, step, data, source, (ids, 1, chosen), to, bias.reshape(-1)))
        assert np.isnan(out[-1]).all()
        return out[:-1]

    def one(tensor: PackedTensor, expert: int, row: Array, bias: Array) -> Array:
        bytes_ = formats.get(format).size(*tensor.shape[-2:])
        part = PackedTensor(format, tensor.shape[1:], tensor.data[expert * bytes_ : (expert + 1) * bytes_])
        return product(part, row[None])[0] + bias[expert]

    inner = run(up, up_data, chosen, x, up_bias)
    expected = np.array([one(up, ids[1 + c], x[c // chosen], up_bias) for c in range(tokens * chosen)])
    np.testing.assert_array_equal(inner, expected)
    start(experts.activate(relu, True, tokens + 1, chosen, step, (inner.reshape(-1), 0, 2 * size), size, 0.7, 1.0))
    gate, other = np.minimum(expected[:, :size], F(0.7)), np.clip(expected[:, size:], F(-0.7), F(0.7))
    np.testing.assert_array_equal(inner[:, :size], np.maximum(gate, F(0)) * (other + F(1)))
    said = run(down, down_data, 1, np.ascontiguousarray(inner[:, :size]), down_bias)
    np.testing.assert_array_equal(said[3], one(down, 3, inner[3, :size], down_bias))
    out = np.full((tokens + 1, hidden), np.nan, F)
    operands = (said.reshape(-1), 0, hidden), (ids, 1, chosen), (shares.reshape(-1), 0, chosen), (out.reshape(-1), 0, hidden)
    start(experts.combine(tokens + 1, chosen, step, *operands, hidden))
    for token, order in ((0, (1, 0)), (1, (0, 1))):  # the first token chose 3, then 1
        total = np.zeros(hidden, F)
        for i in order:
            total = fma(shares[token, i], said[token * chosen + i], total)
        np.testing.assert_array_equal(out[token], total)
    assert np.isnan(out[tokens]).all()
