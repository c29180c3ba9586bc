"""Weight formats: the layout against loops that follow its description, the numbers against bounds, and GGUF's blocks bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from llmcli.errors import CorruptFile, NumericalError
from llmcli.formats import format as formats
from llmcli.formats import int4, int4_offset, int4_uniform, int8, iq4_nl, layout, search
from llmcli.formats.format import Bytes, Floats
from llmcli.weights import encodings
from llmcli.weights.checksum import FACTOR, MASK, STEP, checksum

NAMES = ["bf16", "f16", "f32", "int4", "int4_offset", "int4_uniform", "int8", "iq4_nl"]
INTEGERS = ["int4", "int4_offset", "int4_uniform", "int8", "iq4_nl"]
SIZES = [(1, 1), (1, 33), (3, 31), (16, 32), (17, 172), (31, 64), (33, 129), (48, 8), (127, 40)]
RELATIVE_ERROR = {
    "bf16": 0.0025,
    "f16": 0.0003,
    "f32": 0.0,
    "int4": 0.076,
    "int4_offset": 0.085,
    "int4_uniform": 0.095,
    "int8": 0.006,
    "iq4_nl": 0.08,
}
"""Root mean square error over root mean square, for normal numbers."""


def numbers(rows: int, columns: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def relative_error(values: Floats, found: Floats) -> float:
    return float(np.sqrt(((values - found) ** 2).mean() / (values**2).mean()))


def test_every_format_is_tested() -> None:
    assert list(formats.names()) == NAMES


@pytest.mark.parametrize("name", ["int5", "format", "../int8", "os", ""])
def test_unknown_formats_are_refused(name: str) -> None:
    with pytest.raises(CorruptFile):
        formats.get(name)


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_packed_comes_back(name: str, shape: tuple[int, int]) -> None:
    module, values = formats.get(name), numbers(*shape)
    data = module.pack(values)
    assert data.dtype == np.uint8 and data.ndim == 1 and len(data) == module.size(*shape) and len(data) % 64 == 0
    assert data.ctypes.data % 64 == 0, "a load of 64 bytes must not cross a cache line"
    found = module.unpack(data, *shape)
    assert found.dtype == np.float32 and found.shape == shape
    assert relative_error(values, found) <= 2 * RELATIVE_ERROR[name]
    if name not in INTEGERS:  # another scale may do as well
        assert np.array_equal(module.pack(found), data)


@pytest.mark.parametrize("name", NAMES)
def test_errors_are_within_bounds(name: str) -> None:
    module, values = formats.get(name), numbers(256, 512)
    assert relative_error(values, module.unpack(module.pack(values), *values.shape)) <= RELATIVE_ERROR[name]


@pytest.mark.parametrize("name", INTEGERS)
def test_errors_are_within_the_bounds_of_other_engines(name: str) -> None:
    """llama.cpp's test-quantize-fns: a cosine, its error norm over the count, and the error of a dot product."""
    count = 4096
    values = (0.1 + 2 * np.cos(np.arange(count, dtype=np.float32))).reshape(1, -1)
    other = (0.1 + 2 * np.cos(np.arange(count, dtype=np.float32) + 1)).reshape(1, -1)
    module = formats.get(name)
    found = module.unpack(module.pack(values), 1, count)
    assert np.linalg.norm(found - values) / count < 0.002
    assert abs(float((found * other).sum() - (values * other).sum())) / count < 0.02


def stored(module: formats.FormatModule, data: Bytes, rows: int, columns: int, row: int, column: int) -> float:
    """One weight, read from the packed bytes as the description in formats/format.py says."""
    tile, lane = divmod(row, 16)
    bits = module.FORMAT.bits
    if module.FORMAT.activations == "f32":
        item = bits // 8
        at = ((tile * columns + column) * 16 + lane) * item
        raw = bytes(data[at : at + item])
        if module.FORMAT.name == "bf16":
            raw = b"\0\0" + raw
        return float(np.frombuffer(raw, np.float16 if module.FORMAT.name == "f16" else np.float32)[0])
    groups, tiles = -(-columns // 32), -(-rows // 16)
    group, k = divmod(column, 32)
    start = (tile * groups + group) * 16 * 32 * bits // 8
    if bits == 4:
        high, k = divmod(k, 16)
        byte = int(data[start + (k // 4) * 64 + lane * 4 + k % 4])
        code = module.FORMAT.codes[byte >> 4 if high else byte & 15]
    else:
        code = int(data[start + (k // 4) * 64 + lane * 4 + k % 4]) - 128
    at = tiles * groups * 16 * 32 * bits // 8 + ((tile * groups + group) * 16 + lane) * 2
    places = (at, at + tiles * groups * 16 * 2) if module.FORMAT.offset else (at,)
    scale, *offset = (float(np.frombuffer(bytes(data[place : place + 2]), np.float16)[0]) for place in places)
    return code * scale + sum(offset)


@pytest.mark.parametrize("shape", [(5, 40), (33, 100)])
@pytest.mark.parametrize("name", NAMES)
def test_the_layout_is_the_one_described(name: str, shape: tuple[int, int]) -> None:
    module, values = formats.get(name), numbers(*shape)
    data = module.pack(values)
    found = module.unpack(data, *shape)
    for row in range(shape[0]):
        for column in range(shape[1]):
            assert stored(module, data, *shape, row, column) == pytest.approx(found[row, column], rel=1e-6), (row, column)


@pytest.mark.parametrize("name", NAMES)
def test_a_matrix_packed_a_few_rows_at_a_time_is_the_same(name: str) -> None:
    module, values = formats.get(name), numbers(75, 100)
    sections = module.sections(*values.shape)
    out = np.full(module.size(*values.shape), 255, np.uint8)
    out[sum(sections) :] = 0
    for start in (48, 0, 16, 64):
        rows = values[start : {48: 64, 0: 16, 16: 48, 64: 75}[start]]
        layout.insert(out, sections, module.pack(rows), module.sections(start, 100), module.sections(len(rows), 100))
    assert np.array_equal(out, module.pack(values))


@pytest.mark.parametrize("name", NAMES)
def test_zeros_stay_zero(name: str) -> None:
    module, values = formats.get(name), numbers(20, 96)
    values[3] = 0
    values[:, 32:64] = 0
    values[7, 64:] = 1e-30  # its scale is zero in f16
    found = module.unpack(module.pack(values), 20, 96)
    assert not found[3].any() and not found[:, 32:64].any() and np.isfinite(found).all()
    assert not module.unpack(module.pack(np.zeros((16, 32), np.float32)), 16, 32).any()


@pytest.mark.parametrize("name", [*INTEGERS, "f16"])
def test_giants_are_refused(name: str) -> None:
    values = numbers(4, 64)
    values[2, 40] = 3e38
    with pytest.raises(NumericalError, match="too large"):
        formats.get(name).pack(values)


def test_every_bf16_number_survives_and_others_go_to_the_nearest() -> None:
    bits = np.arange(1 << 16, dtype=np.uint32)
    every = (bits[(bits & 0x7F80) != 0x7F80] << 16).view(np.float32).reshape(16, -1)
    bf16 = formats.get("bf16")
    assert np.array_equal(bf16.unpack(bf16.pack(every), *every.shape).view(np.uint32), every.view(np.uint32))
    values = numbers(16, 500)
    found = bf16.unpack(bf16.pack(values), 16, 500)
    neighbours = np.stack([(found.view(np.uint32) + np.uint32(step)).view(np.float32) for step in (0x10000, -0x10000 & 0xFFFFFFFF)])
    assert (np.abs(values - found) <= np.abs(values - neighbours).min(0)).all()
    halfway = np.array([[0x3F808000, 0x3F818000]], np.uint32).view(np.float32)
    assert bf16.unpack(bf16.pack(halfway), 1, 2).view(np.uint32).tolist() == [[0x3F800000, 0x3F820000]]


def test_the_search_is_better_than_one_scale() -> None:
    values = numbers(64, 1024)
    plain = relative_error(values, int4_uniform.unpack(int4_uniform.pack(values), *values.shape))
    groups = layout.groups(values)
    codes, scales = search.fit(groups.reshape(-1, 32), int4_uniform.CODES)
    searched = relative_error(groups.reshape(-1, 32), np.array(int4_uniform.CODES, np.float32)[codes] * scales[:, None].astype(np.float32))
    chosen = relative_error(values, int4.unpack(int4.pack(values), *values.shape))
    assert searched < 0.95 * plain and chosen < 0.86 * plain


def test_the_search_finds_nearly_the_best_scale() -> None:
    """Against 2,000 scales a group, tried one by one."""
    groups = np.random.default_rng(1).standard_t(6, (50, 32)).astype(np.float32)
    codes = np.array(int4.CODES, np.float32)
    chosen, scales = search.fit(groups, int4.CODES)
    mine = ((groups - codes[chosen] * scales[:, None].astype(np.float32)) ** 2).sum(1)
    best = np.full(50, np.inf)
    largest = np.abs(groups).max(1)
    for scale in np.linspace(0.6 / 127, 1.6 / 127, 1000):
        for sign in (1, -1):
            q = np.float32(sign * scale) * codes * largest[:, None]
            best = np.minimum(best, (np.abs(groups[:, :, None] - q[:, None]).min(2) ** 2).sum(1))
    assert mine.sum() < 1.02 * best.sum() and (mine >= best * 0.98).all()


def test_int4_uniform_holds_q4_0_bit_for_bit() -> None:
    values = numbers(32, 256)
    values[4, 32:64] = 0
    blocks = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_0).reshape(32, 8, 18)
    scales = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0]
    codes = np.concatenate([blocks[..., 2:] & 15, blocks[..., 2:] >> 4], axis=-1)
    assert np.array_equal(layout.pack_nibbles(codes, scales), int4_uniform.pack(values)), "our rule is Q4_0's rule"
    back, same = layout.unpack_nibbles(int4_uniform.pack(values), 32, 256)
    assert np.array_equal(back, codes) and np.array_equal(same, scales)
    meant = gguf.quants.dequantize(blocks.reshape(32, -1), gguf.GGMLQuantizationType.Q4_0)
    assert np.array_equal(int4_uniform.unpack(int4_uniform.pack(values), 32, 256), meant)


def test_int4_offset_is_packed_by_the_rule_of_q4_1() -> None:
    values = numbers(32, 256)
    values[4, 32:64] = 0.5
    rows = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_1).reshape(32, -1)
    encoding = encodings.find("Q4_1")
    assert encoding is not None
    assert np.array_equal(encoding.repack(lambda: rows, "int4_offset"), int4_offset.pack(values))


@pytest.mark.parametrize(("kind", "format", "bound"), [("Q4_0", "int4_uniform", 0), ("Q4_1", "int4_offset", 0), ("Q8_0", "int8", 0),
                                                       ("IQ4_NL", "iq4_nl", 0), ("Q4_K", "int4_offset", 0.001)])  # fmt: skip
def test_moved_blocks_mean_the_same(kind: str, format: str, bound: float) -> None:
    """Any bytes are codes; scales are normal numbers. bound: of the error, relative to a group's largest parts."""
    encoding = encodings.find(kind)
    assert encoding is not None and encoding.blocks is not None and encoding.blocks.format == format
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 256, (20, 3, encoding.size), np.uint8)
    halves = 2 if format == "int4_offset" else 1
    raw[..., : 2 * halves] = rng.standard_normal((20, 3, halves)).astype(np.float16).view(np.uint8)
    if kind == "Q8_0":
        raw[..., 2:][raw[..., 2:] == 128] = 1
    rows = raw.reshape(20, -1)
    moved = encoding.repack(lambda: rows, format)
    assert moved is not None and encoding.repack(lambda: rows, "f16") is None
    meant = encoding.decode(rows.ravel()).reshape(20, -1)
    found = formats.get(format).unpack(moved, *meant.shape)
    assert np.abs(found - meant).max() <= bound * np.abs(meant).max()
    raw[3, 1, :2] = 255  # a scale that is not a number
    assert encoding.repack(lambda: raw.reshape(20, -1), format) is None


def test_int8_holds_q8_0_bit_for_bit() -> None:
    values = numbers(32, 256)
    blocks = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0).reshape(32, 8, 34)
    scales = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0]
    codes = np.ascontiguousarray(blocks[..., 2:]).view(np.int8)
    data = layout.pack_bytes(codes, scales)
    back, same = layout.unpack_bytes(data, 32, 256)
    assert np.array_equal(back, codes) and np.array_equal(same, scales)
    meant = gguf.quants.dequantize(blocks.reshape(32, -1), gguf.GGMLQuantizationType.Q8_0)
    assert np.array_equal(int8.unpack(data, 32, 256), meant)
    assert relative_error(values, int8.unpack(int8.pack(values), 32, 256)) <= relative_error(values, meant) * 1.001


def test_int4_codes_are_what_kernels_expect() -> None:
    for module in (int4, int4_uniform, iq4_nl):
        codes = module.FORMAT.codes
        assert len(codes) == 16 and list(codes) == sorted(set(codes)) and min(codes) >= -127 and max(codes) <= 127


def naive_checksum(data: bytes) -> int:
    total = 0
    for i in range(len(data) // 8):
        x = (int.from_bytes(data[8 * i : 8 * i + 8], "little") + (i + 1) * STEP) & MASK
        for _ in range(2):
            x ^= x >> 32
            x = x * FACTOR & MASK
        total += x ^ x >> 32
    return total & MASK


def test_the_checksum_is_the_one_described_and_may_be_summed_in_parts() -> None:
    data = np.random.default_rng(0).integers(0, 256, 64 * 3000, dtype=np.uint8)
    assert checksum(data[:6400]) == naive_checksum(data[:6400].tobytes())
    cuts = [0, 64, 64 * 100, 64 * 2100, len(data)]
    parts = [checksum(data[a:b], a // 8) for a, b in zip(cuts, cuts[1:], strict=False)]
    assert sum(parts) & MASK == checksum(data)
    assert checksum(data[:0]) == 0


def test_the_checksum_notices_every_bit_and_every_exchange() -> None:
    data = np.random.default_rng(0).integers(0, 256, 640, dtype=np.uint8)
    right = checksum(data)
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        assert checksum(data) != right
        data[bit // 8] ^= 1 << bit % 8
    words = data.view(np.uint64).copy()
    words[[3, 7]] = words[[7, 3]]
    assert checksum(words.view(np.uint8)) != right
    assert checksum(np.zeros(64, np.uint8)) != checksum(np.zeros(128, np.uint8))
