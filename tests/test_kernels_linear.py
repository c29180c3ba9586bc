"""Matrix products, quantizing, embedding and checksum of the CPU backend, against obvious NumPy on odd sizes.

Results are compared bit for bit: the oracle follows the engine's one order of arithmetic in float64, which holds the
products exactly. Outputs are poisoned first, and what lies outside of them must stay as it was.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kernel_calls import Kernel, address, call, factory, header, kernel, only_x86, pass_as, run_as
from llmcli.backends.cpu import target
from llmcli.backends.cpu.records import CHECKSUM, EMBED, LINEAR, QUANTIZE, pack

Array = npt.NDArray[Any]
F = np.float32
TABLE = np.array([-128, -99, -79, -63, -48, -35, -22, -10, 3, 15, 28, 42, 57, 75, 95, 127])
"""Codes of int4 with both extremes of a byte."""
HEIGHTS = [m for m in (1, 2, 4, 8) if m <= target.tile()]
FLOAT_SIZES = {"f32": 4, "f16": 2, "bf16": 2}
SHAPES = [(1, 1), (15, 3), (16, 31), (17, 32), (105, 33), (17, 127), (105, 172), (16, 256)]
"""Rows N, columns K."""
TOKENS = [1, 2, 3, 5, 8, 9, 17]


def padded(n: int, to: int) -> int:
    return -(-n // to) * to


def padded_to(array: Array, rows: int, columns: int) -> Array:
    """The matrix with zeros below and to the right."""
    return np.pad(array, ((0, padded(array.shape[0], rows) - array.shape[0]), (0, padded(array.shape[1], columns) - array.shape[1])))


def fma(x: Array, y: Array, z: Array) -> Array:
    """x * y + z in f32, as the target's instruction rounds."""
    product = x.astype(np.float64) * y if target.has_fma() else x * y
    return (product + z).astype(F)


# --- The oracle of activations


def quantized(x: Array) -> tuple[Array, Array]:
    """x f32 [T, K] -> codes i64 [T, G, 32], scales f32 [T, G]."""
    groups = padded_to(x, 1, 32).reshape(len(x), -1, 32)
    largest: Array = np.abs(groups).max(-1)
    with np.errstate(divide="ignore"):
        inverse = np.where(largest > 0, F(127) / largest, F(0))
    return np.rint(groups * inverse[..., None]).astype(np.int64), largest / F(127)


def quantize(x: Array, height: int) -> tuple[Array, Array, Array]:
    """What the kernel makes of x, with a row stride wider than x and NaN between rows."""
    tokens, columns = x.shape
    blocks, groups = -(-tokens // height), -(-columns // 32)
    wide = np.full((tokens, columns + 5), np.nan, F)
    wide[:, :columns] = x
    codes = np.full((blocks, groups, 8, height, 4), 77, np.int8)
    scales, sums = np.full((blocks, groups, height), np.nan, F), np.full((blocks, groups, height), 77, np.int32)
    head = header(tokens=tokens)
    args = pack(
        QUANTIZE, header=address(head), outputs=0, x=address(wide), x_stride=wide.strides[0], columns=columns,
        codes=address(codes), scales=address(scales), sums=address(sums),
    )  # fmt: skip
    call(kernel("quantize.rows", height), args, range(blocks))
    return codes, scales, sums


def by_token(blocks: Array, tokens: int) -> Array:
    """[blocks, G, M] -> [T, G]."""
    return blocks.swapaxes(1, 2).reshape(-1, blocks.shape[1])[:tokens]


# --- The oracle of weights


def random_matrix(format: str, rows: int, columns: int, rng: np.random.Generator) -> dict[str, Array]:
    """codes and scales (integers) or values (floats) as a product needs them, and data, scale_data as packed."""
    if format in FLOAT_SIZES:
        values: Array = rng.standard_normal((rows, columns)).astype(F)
        data: Array = values
        if format == "f16":
            values.flat[:3] = [1e-7, 65504, -6e-5][: values.size]  # subnormal, largest
            data = values.astype(np.float16)
            values = data.astype(F)
        elif format == "bf16":
            data = (values.view(np.uint32) >> 16).astype(np.uint16)
            values = (data.astype(np.uint32) << 16).view(F)
        tiles = padded_to(data, 16, 1).reshape(-1, 16, columns).swapaxes(1, 2)
        return {"values": values, "data": np.ascontiguousarray(tiles)}
    groups, nibbles = padded(columns, 32) // 32, format.startswith("int4")
    chosen = rng.integers(0, 16, (rows, columns)) if nibbles else rng.integers(-127, 128, (rows, columns))
    chosen[: rows // 3] = (15 if nibbles else 127) * rng.choice([0, 1] if nibbles else [-1, 1], (rows // 3, columns))
    codes = TABLE[chosen] if nibbles else chosen
    scales = rng.uniform(0.5, 2, (rows, groups)).astype(np.float16)
    scales[-1] = 0
    zero = 8 if nibbles else 0  # any nibble will do where the activations are 0
    full = np.full((padded(rows, 16), groups * 32), zero)
    full[:rows, :columns] = chosen
    tiles = full.reshape(-1, 16, groups, 8, 4).transpose(0, 2, 3, 1, 4)  # [N/16, G, 8, 16, 4]
    data = (tiles[:, :, :4] | tiles[:, :, 4:] << 4 if nibbles else tiles + 128).astype(np.uint8)

    def by_tiles(numbers: Array) -> Array:
        return np.ascontiguousarray(padded_to(numbers, 16, 1).reshape(-1, 16, groups).swapaxes(1, 2))

    offsets = rng.standard_normal((rows, groups)).astype(np.float16)
    more = {"offsets": offsets.astype(F), "offset_data": by_tiles(offsets)} if format == "int4_offset" else {}
    return {
        "codes": padded_to(codes, 1, 32).reshape(rows, groups, 32),
        "scales": scales.astype(F),
        "data": np.ascontiguousarray(data),
        "scale_data": by_tiles(scales),
        **more,
    }


def product(matrix: dict[str, Array], x: Array) -> Array:
    """x @ matrix.T in the engine's order of arithmetic: f32 [T, N]."""
    if "values" in matrix:
        acc = np.zeros((len(x), len(matrix["values"])), F)
        for k in range(x.shape[1]):
            acc = fma(matrix["values"][:, k], x[:, k, None], acc)
        return acc
    codes, scales = quantized(x)
    acc = np.zeros((len(x), len(matrix["codes"])), F)
    for g in range(scales.shape[1]):
        exact = codes[:, g] @ matrix["codes"][:, g].T
        acc = fma(exact.astype(F), matrix["scales"][:, g] * scales[:, g, None], acc)
        if "offsets" in matrix:
            total = codes[:, g].sum(-1, dtype=np.int32).astype(F)
            acc = fma(matrix["offsets"][:, g], (total * scales[:, g])[:, None], acc)
    return acc


# --- Calling the product

CODES = (TABLE + 128).astype(np.uint8)


def linear(
    format: str,
    height: int,
    matrix: dict[str, Array],
    x: Array,
    rows: int,
    chunk_tiles: int = 1,
    bias: Array | None = None,
    before: Array | None = None,
    used: Kernel | None = None,
) -> Array:
    """The kernel's x @ matrix.T + bias (+ before), written into the middle of a wider buffer whose rest must not change."""
    tokens, columns = x.shape
    room = padded(tokens, height)
    margin = 3
    out = np.full((room, rows + 2 * margin), np.nan, F)
    if before is not None:
        out[:tokens, margin : margin + rows] = before
    sums: Array | None = None
    if format in FLOAT_SIZES:
        wide = np.full((room, columns + 7), np.nan, F)
        wide[:tokens, :columns] = x
        codes, scales, step = wide, None, wide.strides[0]
    else:
        codes, scales, sums = quantize(x, height)
        step = address(scales)
    scratch = np.full(2 * 16 * padded(columns, 32) + 64, 77, np.uint8)
    head = header(tokens=99, outputs=tokens)
    args = pack(
        LINEAR, header=address(head), outputs=1, x=address(codes), x_scales=step, x_sums=address(sums),
        weights=address(matrix["data"]), weight_scales=address(matrix.get("scale_data")),
        weight_offsets=address(matrix.get("offset_data")), codes=address(CODES), bias=address(bias),
        out=address(out) + 4 * margin, out_stride=out.strides[0], columns=columns, rows=rows,
        chunk_tiles=chunk_tiles, add=int(before is not None), scratch=address(scratch), scratch_bytes=len(scratch) // 2 - 32,
    )  # fmt: skip
    chunks = -(-padded(rows, 16) // 16 // chunk_tiles)
    for chunk in reversed(range(chunks)):
        (used or kernel(f"linear.{format}", height))(args, chunk, chunk % 2)
    assert np.isnan(out[:, :margin]).all() and np.isnan(out[:, margin + rows :]).all() and (scratch[-64:] == 77).all()
    return out[:tokens, margin : margin + rows].copy()


# --- Quantizing


@pytest.mark.parametrize("height", HEIGHTS)
def test_activations_are_quantized_in_groups(height: int) -> None:
    rng = np.random.default_rng(1)
    for tokens, columns in ((1, 1), (2, 31), (3, 32), (5, 33), (8, 172), (9, 256), (17, 127)):
        x = (rng.standard_normal((tokens, columns)) * 10.0 ** rng.integers(-9, 9, (tokens, 1))).astype(F)
        x[tokens // 2, :32] = 0
        codes, scales, sums = quantize(x, height)
        expected, expected_scales = quantized(x)
        got = codes.transpose(0, 3, 1, 2, 4).reshape(-1, expected.shape[1], 32)
        np.testing.assert_array_equal(got[:tokens], expected)
        np.testing.assert_array_equal(by_token(scales, tokens), expected_scales)
        np.testing.assert_array_equal(by_token(sums, tokens), -128 * expected.sum(-1))
        assert not got[tokens:].any() and not by_token(scales, len(got))[tokens:].any() and not by_token(sums, len(got))[tokens:].any()


def test_halves_round_to_even_and_tiny_groups_are_zero() -> None:
    x = np.zeros((1, 96), F)
    x[0, :8] = [127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -127]
    x[0, 32:34] = [1e-38, -3e-37]  # 127 / 3e-37 is beyond f32
    x[0, 64:66] = [4e-37, -1e-37]
    codes, scales, _ = quantize(x, 1)
    groups = codes.reshape(3, 32)
    assert groups[0, :8].tolist() == [127, 0, 2, 2, 0, -2, -2, -127]
    assert not groups[1].any() and scales.flat[1] == 0
    assert groups[2, 0] == 127 and scales.flat[2] > 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_a_number_reaches_the_product(bad: float) -> None:
    x = np.ones((1, 64), F)
    x[0, 40] = bad
    matrix = random_matrix("int8", 16, 64, np.random.default_rng(2))
    assert not np.isfinite(linear("int8", 1, matrix, x, 16)[:, :15]).any()


# --- Products


@pytest.mark.parametrize("format", ["int4", "int4_offset", "int8", "f32", "f16", "bf16"])
def test_products_have_the_same_bits_for_all_sizes(format: str) -> None:
    """Every shape, number of tokens, tile height and chunk size gives the oracle's bits."""
    rng = np.random.default_rng(3)
    for i, (rows, columns) in enumerate(SHAPES):
        matrix = random_matrix(format, rows, columns, rng)
        x = rng.standard_normal((max(TOKENS), columns)).astype(F)
        x[1, :33] = 0
        expected = product(matrix, x)
        for height in HEIGHTS:
            for tokens in TOKENS:
                got = linear(format, height, matrix, x[:tokens], rows, chunk_tiles=(1, 2, 3, 100)[(i + tokens) % 4])
                np.testing.assert_array_equal(got, expected[:tokens], err_msg=f"{rows=} {columns=} {height=} {tokens=}")


@pytest.mark.parametrize("format", ["int4", "int4_offset", "int8", "f16"])
def test_bias_then_addition(format: str) -> None:
    rng = np.random.default_rng(4)
    rows, columns, tokens = 41, 70, 5
    matrix, x = random_matrix(format, rows, columns, rng), rng.standard_normal((tokens, columns)).astype(F)
    bias, before = rng.standard_normal(rows).astype(F), rng.standard_normal((tokens, rows)).astype(F)
    for height in HEIGHTS:
        got = linear(format, height, matrix, x, rows, bias=bias)
        np.testing.assert_array_equal(got, product(matrix, x) + bias)
        got = linear(format, height, matrix, x, rows, bias=bias, before=before)
        np.testing.assert_array_equal(got, before + (product(matrix, x) + bias))


@pytest.mark.parametrize("format", ["int4", "int8"])
def test_extreme_codes_do_not_saturate(format: str) -> None:
    """All codes at the ends of their range: the largest sums a group can have."""
    rows, columns = 16, 64
    matrix = random_matrix(format, rows, columns, np.random.default_rng(5))
    for nibble, byte in ((0, 1), (15, 255)):  # int4: codes -128 and 127; int8: -127 and 127
        matrix["data"][:] = nibble * 17 if format == "int4" else byte
        matrix["codes"][:] = TABLE[nibble] if format == "int4" else byte - 128
        for sign in (1, -1):
            x = np.full((1, columns), sign, F)
            np.testing.assert_array_equal(linear(format, 1, matrix, x, rows), product(matrix, x))


def test_plain_lowering_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a CPU without any of the instructions gets: shifts and multiplications, nibbles by comparing, f16 by integers."""
    monkeypatch.setattr(target, "architecture", lambda: "another")
    monkeypatch.setattr(target, "features", frozenset)
    rng = np.random.default_rng(6)
    x = rng.standard_normal((3, 70)).astype(F)
    for format in ("int4", "f16"):
        matrix = random_matrix(format, 33, 70, rng)
        plain = Kernel(factory(f"linear.{format}")(2))
        np.testing.assert_array_equal(linear(format, 2, matrix, x, 33, used=plain), product(matrix, x))


# --- Embedding


@pytest.mark.parametrize("format", ["int4", "int8", "f32", "f16", "bf16"])
def test_embedding_rows(format: str) -> None:
    rng = np.random.default_rng(7)
    rows = 35
    tokens = np.array([0, 34, 15, 16, 17, 0, 31], np.int32)
    for columns in (1, 3, 16, 31, 32, 33, 70, 172):
        matrix = random_matrix(format, rows, columns, rng)
        out = np.full((len(tokens), columns + 1), np.nan, F)
        head = header(tokens=len(tokens), token_ids=address(tokens))
        args = pack(
            EMBED, header=address(head), weights=address(matrix["data"]), weight_scales=address(matrix.get("scale_data")),
            codes=address(CODES), columns=columns, rows=rows, out=address(out), out_stride=out.strides[0],
        )  # fmt: skip
        call(kernel(f"embed.{format}"), args, range(len(tokens)))
        values = matrix.get("values")
        if values is None:
            values = (matrix["codes"] * matrix["scales"][..., None]).astype(F).reshape(rows, -1)[:, :columns]
        np.testing.assert_array_equal(out[:, :-1], values[tokens])
        assert np.isnan(out[:, -1]).all()


# --- Checksum


def checksum(data: Array, start: int = 0, into: int = 0) -> int:
    out = np.array([into], np.int64)
    args = pack(CHECKSUM, header=0, data=address(data), size=data.nbytes, start=start, out=address(out))
    call(kernel("checksum.sum"), args, reversed(range(-(-data.nbytes // 2**20))))
    return int(out.view(np.uint64)[0])


def test_checksum_is_the_documented_one_in_any_pieces() -> None:
    data = np.random.default_rng(8).integers(0, 256, 5 * 2**19 + 64, np.uint8)
    words = data.view("<u8")
    with np.errstate(over="ignore"):
        x = words + np.arange(1, len(words) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        for _ in range(2):
            x = (x ^ (x >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
        expected = int((x ^ (x >> np.uint64(32))).sum(dtype=np.uint64))
    assert checksum(data) == expected
    cut = 64 * 12345
    first = checksum(data[:cut])
    second = checksum(data[cut:], start=cut // 8, into=int(np.uint64(first).astype(np.int64)))
    assert second == expected
    assert checksum(np.zeros(0, np.uint8)) == 0
    data[2**20 + 3] ^= 1
    assert checksum(data) != expected


# --- Object code, and other CPUs


def test_kernels_call_nothing() -> None:
    """No libm, no Python, no run-time library: the object code stands alone."""
    names = [("quantize.rows", max(HEIGHTS)), ("checksum.sum",), *((f"embed.{f}",) for f in ("int4", "f16"))]
    names += [(f"linear.{f}", max(HEIGHTS)) for f in ("int4", "int4_offset", "int8", "f32", "f16", "bf16")]
    assert {name: kernel(*name).calls() for name in names} == {name: [] for name in names}


FOR_OTHERS = [("haswell", "int4 or int8 or quantized"), ("x86-64", "int4 or f16 and not bf16")]


@only_x86
@pytest.mark.parametrize(("cpu", "chosen"), FOR_OTHERS, ids=list(dict(FOR_OTHERS)))
def test_other_cpus_pass_these_tests(cpu: str, chosen: str) -> None:
    pass_as(cpu, f"({chosen}) and not cpu", __file__)


@only_x86
@pytest.mark.parametrize(
    ("cpu", "features", "wanted", "forbidden"),
    [
        ("x86-64-v4", "+avx512vnni", "vpdpbusd zmm vpshufb vfmadd vcvtph2ps", "vpmaddwd"),
        ("haswell", "+avxvnni", "vpdpbusd ymm vpshufb vfmadd vcvtph2ps", "vpmaddwd zmm"),
        ("haswell", "", "vpmaddwd ymm vpshufb vfmadd vcvtph2ps", "vpdpbusd zmm"),
        ("x86-64", "", "pmaddwd xmm", "ymm pshufb vfmadd vcvtph2ps"),
    ],
)
def test_each_cpu_gets_its_instructions(cpu: str, features: str, wanted: str, forbidden: str) -> None:
    """Compiled for that CPU, not run on it."""
    assembly = run_as(cpu, features, "-c", "from kernel_calls import kernel; print(kernel('linear.int4', 1).assembly)")
    assert {word: word in assembly for word in wanted.split()} == dict.fromkeys(wanted.split(), True)
    assert {word: word in assembly for word in forbidden.split()} == dict.fromkeys(forbidden.split(), False)
