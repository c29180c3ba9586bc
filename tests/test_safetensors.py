"""The trust boundary: what a safetensors file may be, against the format's own library and an oracle written separately."""

from __future__ import annotations

import json
import os
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkpoints import build
from llmcli.errors import CorruptFile, LlmError, NotFound
from llmcli.weights.safetensors import BITS, MOST_TENSORS, File, check_header, shown

GOOD = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "b": {"dtype": "BF16", "shape": [5], "data_offsets": [24, 34]}}


def dumps(header: Any) -> bytes:
    return json.dumps(header).encode()


def opened(path: Path, content: bytes) -> File:
    path.write_bytes(content)
    return File(path)


def test_a_good_file_is_read(tmp_path: Path) -> None:
    arrays = {"x": np.arange(12, dtype=np.float32).reshape(3, 4), "empty": np.zeros((0, 5), np.float16), "one": np.array(7, np.int64)}
    safetensors.numpy.save_file(arrays, tmp_path / "m.safetensors", {"format": "np"})
    with File(tmp_path / "m.safetensors") as file:
        assert file.metadata == {"format": "np"} and file.tensors.keys() == arrays.keys()
        for name, array in arrays.items():
            tensor = file.tensors[name]
            assert tensor.shape == array.shape
            assert file.read(tensor.start, tensor.size).tobytes() == array.tobytes()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "too few"),
        (b"1234567", "too few"),
        (b"\0" * 8, "header length is 0"),
        (struct.pack("<Q", 1) + b"{", "header length is 1"),
        (struct.pack("<Q", 1 << 63) + b"{}", "header length"),
        (struct.pack("<Q", 100_000_001) + b"{}", "header length"),
        (struct.pack("<Q", 1000) + b"{}", "cut off"),
        (build(b"[]"), "start with {"),
        (build(b' {"a": 1}'), "start with {"),
        (build(b'{"a": \xff}'), "UTF-8"),
        (build(b'{"a": }'), "not JSON"),
        (build(b"{}garbage"), "not JSON"),
        (build(b"{}", b"tail"), "longer than its tensors"),
        (build(dumps(GOOD), b"x" * 33), "cut off"),
        (build(dumps(GOOD), b"x" * 35), "longer"),
        (b"\x80\x02}q\x00." * 20, "header length"),
    ],
)
def test_broken_files_are_refused_at_once(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    start = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(CorruptFile) as caught:
            File(path)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()
    assert says in str(caught.value) and str(path) in str(caught.value) and caught.value.code == 3
    assert time.process_time() - start < 1


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        File(tmp_path / "none.safetensors")
    with pytest.raises(CorruptFile, match="not a regular file"):
        File(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CorruptFile, match="not a regular file"):
        File(tmp_path / "pipe")
    with pytest.raises(CorruptFile):
        File(tmp_path / "nul\0byte")


def entry(dtype: Any = "F32", shape: Any = (2,), begin: Any = 0, end: Any = 8) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "header",
    [
        {"x": entry(begin=-8, end=0)},
        {"x": entry(begin=8, end=0)},
        {"x": entry(begin=0.0, end=8.0)},
        {"x": entry(begin="0", end="8")},
        {"x": entry(begin=True, end=8)},
        {"x": entry(begin=0, end=1 << 64)},
        {"x": entry(shape=[2.0])},
        {"x": entry(shape=["2"])},
        {"x": entry(shape=[True, 2])},
        {"x": entry(shape=[-2])},
        {"x": entry(shape=2)},
        {"x": entry(shape=None)},
        {"x": entry(shape=[3])},
        {"x": entry(shape=[1 << 62, 1 << 62, 0], end=0)},
        {"x": entry(shape=[(1 << 64) + 2])},
        {"x": entry(shape=[1] * 70 + [2])},
        {"x": entry(dtype="F33")},
        {"x": entry(dtype="f32")},
        {"x": entry(dtype=32)},
        {"x": entry(dtype=None)},
        {"x": entry(dtype="F4", shape=[15])},
        {"x": {"dtype": "F32", "shape": [2]}},
        {"x": {**entry(), "more": 1}},
        {"x": {**entry(), "data_offsets": [0, 8, 16]}},
        {"x": []},
        {"x": "F32"},
        {"x": entry(), "y": entry()},
        {"x": entry(), "y": entry(begin=4, end=12)},
        {"x": entry(), "y": entry(begin=12, end=20)},
        {"x": entry(begin=4, end=12)},
        {"x" * 5000: entry()},
        {"x": entry(), "__metadata__": {"a": 1}},
        {"x": entry(), "__metadata__": ["a"]},
        {"x": entry(), "__metadata__": None},
        {"\ud800": entry()},
    ],
)
def test_impossible_entries_are_refused(header: dict[str, Any]) -> None:
    sizes = [e["data_offsets"][-1] for e in header.values() if isinstance(e, dict) and "data_offsets" in e]
    ends = [size for size in sizes if isinstance(size, int) and 0 <= size < 1000]
    with pytest.raises(CorruptFile) as caught:
        check_header(dumps(header), max(ends, default=0), "m.safetensors")
    message = str(caught.value)
    assert message.startswith("m.safetensors: ") and "\n" not in message
    assert (
        '"x' in message or '"y"' in message or "__metadata__" in message or "half a character" in message or "5,000 characters" in message
    )


@pytest.mark.parametrize(
    "text",
    [
        '{"x": %s, "x": %s}',
        '{"x": %s, "\\u0078": %s}',
        '{"x": {"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}',
        '{"__metadata__": {"a": "1", "a": "2"}, "x": %s}',
        '{"__metadata__": {"a": "1"}, "__metadata__": {"a": "1"}, "x": %s}',
    ],
)
def test_nothing_may_be_there_twice(text: str) -> None:
    header = text.replace("%s", json.dumps(entry())).encode()
    with pytest.raises(CorruptFile, match="twice"):
        check_header(header, 8, "m")


def test_names_cannot_speak_to_the_terminal() -> None:
    name = "../../etc/x\x1b]0;title\x07\u202e"
    with pytest.raises(CorruptFile) as caught:
        check_header(dumps({name: entry(shape=[3])}), 8, "m")
    assert str(caught.value).isascii() and str(caught.value).isprintable()
    assert len(shown("x" * 10_000)) < 100


@pytest.mark.parametrize(
    "header",
    [
        b"{" + b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(MOST_TENSORS + 1)) + b"}",
        b'{"a":' + b"[" * 30_000_000,
        b'{"a":' + b'{"a":' * 900_000 + b"1" + b"}" * 900_001,
        b'{"' + b"x" * 10_000_000 + b'":1}',
        b'{"__metadata__":{' + b",".join(b'"%d":""' % i for i in range(1_100_000)) + b"}}",
        b'{"a":{"dtype":"F32","shape":[' + b"0," * 5_000_000 + b'0],"data_offsets":[0,0]}}',
        b'{"a":' + b"9" * 5_000_000 + b"}",
    ],
    ids=["tensors", "lists", "objects", "name", "metadata", "shape", "number"],
)
def test_bombs_are_refused_quickly(header: bytes) -> None:
    start = time.process_time()  # other processes may keep the machine busy
    with pytest.raises(CorruptFile):
        check_header(header, 0, "m")
    assert time.process_time() - start < 2


def oracle(header: dict[str, Any], data_size: int) -> bool:
    """Whether a file may be so: by claiming each byte of the data, one by one."""
    owners = [0] * data_size
    borders, empty = {0}, set()
    for name, tensor in header.items():
        if name == "__metadata__":
            if type(tensor) is not dict or any(type(text) is not str for text in tensor.values()):
                return False
            continue
        if type(tensor) is not dict or sorted(tensor) != ["data_offsets", "dtype", "shape"]:
            return False
        dims, where, bits = tensor["shape"], tensor["data_offsets"], BITS.get(str(tensor["dtype"]))
        if bits is None or type(dims) is not list or type(where) is not list or len(where) != 2:
            return False
        if any(type(n) is not int or n < 0 for n in dims + where) or where[0] > where[1] or where[1] > data_size:
            return False
        count = 1
        for n in dims:
            count *= n
        if count * bits != 8 * (where[1] - where[0]):
            return False
        for byte in range(*where):
            owners[byte] += 1
        (borders if count else empty).add(where[1])
    return all(owner == 1 for owner in owners) and empty <= borders  # an empty tensor stands between two others


small = st.integers(-1, 6)
junk = st.one_of(st.none(), st.booleans(), st.floats(allow_nan=False), st.text(max_size=3), st.lists(small, max_size=2))


@st.composite
def headers(draw: st.DrawFn) -> tuple[dict[str, Any], int]:
    """A correct header with some things changed."""
    header: dict[str, Any] = {}
    at = 0
    for number in range(draw(st.integers(0, 4))):
        dtype, shape = draw(st.sampled_from(["F32", "U8", "F4", "BF16", "I64"])), draw(st.lists(st.integers(0, 4), max_size=3))
        size = int(np.prod(shape)) * BITS[dtype] // 8
        header[f"t{number}"] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    if draw(st.booleans()):
        header["__metadata__"] = draw(
            st.dictionaries(st.text(max_size=3), st.one_of(st.text(max_size=3), st.text(max_size=3), junk), max_size=2)
        )
    tensors = [name for name in header if name != "__metadata__"]
    for _ in range(draw(st.integers(0, 2)) if tensors else 0):
        tensor = header[draw(st.sampled_from(tensors))]
        match draw(st.sampled_from(["dtype", "shape", "offset", "both", "entry", "drop"])):
            case "dtype":
                tensor["dtype"] = draw(st.one_of(st.sampled_from([*BITS, "X"]), junk))
            case "shape":
                tensor["shape"] = draw(st.one_of(st.lists(small, max_size=3), junk))
            case "offset":
                tensor["data_offsets"] = draw(st.one_of(st.lists(st.integers(-1, at + 2), min_size=1, max_size=3), junk))
            case "both":
                step = draw(st.integers(-4, 4))
                where = tensor.get("data_offsets")
                if isinstance(where, list) and all(type(x) is int for x in where):
                    tensor["data_offsets"] = [x + step for x in where]
            case "entry":
                tensor[draw(st.sampled_from(["dtype", "more"]))] = draw(junk)
            case "drop":
                tensor.pop(draw(st.sampled_from(["dtype", "shape", "data_offsets"])), None)
    return header, max(0, at + draw(st.sampled_from([0, 0, 0, 0, -1, 1])))


@settings(max_examples=800, deadline=None, derandomize=True)
@given(headers())
def test_we_accept_what_the_format_allows_and_nothing_else(case: tuple[dict[str, Any], int]) -> None:
    header, size = case
    text = dumps(header)
    try:
        check_header(text, size, "m")
        accepted = True
    except CorruptFile:
        accepted = False
    assert accepted == oracle(header, size)
    if accepted:
        assert len(safetensors.deserialize(build(text, bytes(size)))) == len(header) - ("__metadata__" in header)


def harmless(path: Path, content: bytes) -> bool:
    """Opens and reads everything; True where that works. Whatever else happens must be a clear error of ours."""
    try:
        with opened(path, content) as file:
            for tensor in file.tensors.values():
                file.read(tensor.start, tensor.size)
        return True
    except LlmError as error:
        assert error.code == 3 and "\n" not in str(error)
        return False


def test_cut_anywhere_and_flipped_anywhere(tmp_path: Path) -> None:
    content = build(dumps({**GOOD, "__metadata__": {"k": "v"}}), bytes(34))
    path = tmp_path / "m.safetensors"
    assert harmless(path, content)
    for size in range(len(content)):
        assert not harmless(path, content[:size])
    rng = np.random.default_rng(0)
    for _ in range(400):
        changed = bytearray(content)
        changed[rng.integers(len(content) - 34)] ^= 1 << int(rng.integers(8))
        harmless(path, bytes(changed))


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_random_bytes(tmp_path: Path, data: bytes) -> None:
    harmless(tmp_path / "m.safetensors", data)
    harmless(tmp_path / "m.safetensors", build(data))


def test_a_file_cut_off_while_open_is_an_error_and_no_signal(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with opened(path, build(dumps(GOOD), bytes(34))) as file:
        os.truncate(path, len(build(dumps(GOOD))) + 10)
        with pytest.raises(CorruptFile, match="cut off"):
            file.read(file.tensors["b"].start, 10)
