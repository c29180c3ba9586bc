"""From a checkpoint's tensors to the plan's weights: transforms, refusals before anything is made, and memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from checkpoints import save
from llmcli.errors import CorruptFile, NumericalError, UnsupportedModel
from llmcli.models.names import TRANSFORMS, Source
from llmcli.plan import Weight
from llmcli.weights import convert
from llmcli.weights.folder import Checkpoint
from llmcli.weights.safetensors import File

RNG = np.random.default_rng(0)
Q, K, V = (RNG.standard_normal((6, 5)).astype(np.float32) for _ in range(3))
EXPERTS = RNG.standard_normal((3, 4, 5)).astype(np.float32)
UPS = RNG.standard_normal((3, 2, 5)).astype(np.float32)
HEADS = 3
BLOCKS = RNG.integers(0, 256, (3, 4, 2, 16), np.uint8)
SCALES = RNG.integers(100, 140, (3, 4, 2), np.uint8)


def four_bits(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """What they mean, number by number: a sign, two bits of exponent, one of mantissa; subnormal where the exponent is 0."""
    out = np.empty((*scales.shape[:2], 64), np.float32)
    for at in np.ndindex(out.shape):
        group, place = at[2] // 32, at[2] % 32
        code = int(blocks[at[0], at[1], group, place // 2]) >> 4 * (place % 2) & 15
        exponent, mantissa = code >> 1 & 3, code & 1
        size = (1 + mantissa / 2) * 2 ** (exponent - 1) if exponent else mantissa / 2
        out[at] = (-size if code >> 3 else size) * 2.0 ** (int(scales[at[0], at[1], group]) - 127)
    return out


CASES: dict[str, tuple[Weight, Source, dict[str, Any], Any]] = {
    "copy": (Weight("w", (6, 5), "matrix"), Source("copy", ("q",)), {"q": Q}, [Q]),
    "copy vector": (Weight("w", (6,), "vector"), Source("copy", ("q",)), {"q": Q[:, 0].copy()}, [Q[:, :1]]),
    "copy experts": (Weight("w", (3, 4, 5), "experts"), Source("copy", ("e",)), {"e": EXPERTS}, EXPERTS),
    "transpose": (Weight("w", (6, 5), "matrix"), Source("transpose", ("q",)), {"q": Q.T.copy()}, [Q]),
    "concat": (Weight("w", (18, 5), "matrix"), Source("concat", ("q", "k", "v")), {"q": Q, "k": K, "v": V}, [np.concatenate([Q, K, V])]),
    "concat bias": (
        Weight("w", (12,), "vector"),
        Source("concat", ("q", "k")),
        {"q": Q[:, 0].copy(), "k": K[:, 0].copy()},
        [np.concatenate([Q, K])[:, :1]],
    ),
    "plus_one": (Weight("w", (6,), "vector"), Source("plus_one", ("q",)), {"q": Q[:, 0].copy()}, [Q[:, :1] + np.float32(1)]),
    "split_qkv": (
        Weight("w", (18, 5), "matrix"),
        Source("split_qkv", ("qkv",), HEADS, HEADS),
        # Each head's rows are its own q, k and v, one after the other.
        {"qkv": np.concatenate([np.concatenate([x[2 * h : 2 * h + 2] for x in (Q, K, V)]) for h in range(HEADS)])},
        [np.concatenate([Q, K, V])],
    ),
    "split_qkv with grouped heads": (
        Weight("w", (24, 5), "matrix"),
        Source("split_qkv", ("qkv",), 4, 2),  # D = 3: each key head's rows are its two queries, k and v
        {
            "qkv": np.concatenate(
                [np.concatenate([EXPERTS.reshape(12, 5)[6 * g : 6 * g + 6], *(x[3 * g : 3 * g + 3] for x in (K, V))]) for g in (0, 1)]
            )
        },
        [np.concatenate([EXPERTS.reshape(12, 5), K, V])],
    ),
    "stack": (
        Weight("w", (3, 4, 5), "experts"),
        Source("stack", ("e0", "e1", "e2")),
        {f"e{i}": EXPERTS[i] for i in range(3)},
        EXPERTS,
    ),
    "reshape": (Weight("w", (30,), "vector"), Source("reshape", ("q",)), {"q": Q}, [Q.reshape(30, 1)]),
    "reshape to a row": (Weight("w", (1, 6), "router"), Source("reshape", ("q",)), {"q": Q[:, 0].copy()}, [Q[:, :1].T]),
    "transpose_each": (Weight("w", (3, 4, 5), "experts"), Source("transpose_each", ("e",)), {"e": EXPERTS.swapaxes(1, 2).copy()}, EXPERTS),
    "transpose_alternating": (
        Weight("w", (3, 4, 5), "experts"),
        Source("transpose_alternating", ("e",)),
        {"e": EXPERTS[:, [0, 2, 1, 3]].swapaxes(1, 2).copy()},
        EXPERTS,
    ),
    "alternating": (Weight("w", (6, 4), "vector"), Source("alternating", ("q",)), {"q": Q[:, :4].copy()}, [Q[:, [0, 2, 1, 3]]]),
    "mxfp4": (Weight("w", (3, 4, 64), "experts"), Source("mxfp4", ("b", "s")), {"b": BLOCKS, "s": SCALES}, four_bits(BLOCKS, SCALES)),
    "mxfp4_alternating": (
        Weight("w", (3, 4, 64), "experts"),
        Source("mxfp4_alternating", ("b", "s")),
        {"b": BLOCKS, "s": SCALES},
        four_bits(BLOCKS, SCALES)[:, [0, 2, 1, 3]],
    ),
    "stack_concat": (
        Weight("w", (3, 6, 5), "experts"),
        Source("stack_concat", ("e0", "u0", "e1", "u1", "e2", "u2")),
        {**{f"e{i}": EXPERTS[i] for i in range(3)}, **{f"u{i}": UPS[i] for i in range(3)}},
        np.concatenate([EXPERTS, UPS], axis=1),
    ),
}


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Any]:
    files: list[File] = []

    def make(**tensors: Any) -> Checkpoint:
        safetensors.numpy.save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, tmp_path / "m.safetensors")
        files.append(File(tmp_path / "m.safetensors"))
        return Checkpoint(files[-1:])

    yield make
    for file in files:
        file.close()


def test_every_transform_is_tested() -> None:
    assert {source.transform for _, source, _, _ in CASES.values()} == set(TRANSFORMS)


@pytest.mark.parametrize("case", CASES)
def test_transforms(case: str, reader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, source, tensors, wanted = CASES[case]
    checkpoint = reader(**tensors)
    convert.check({"w": weight}, {"w": source}, checkpoint.tensors)
    for widest in (1, 11, 1 << 20):
        monkeypatch.setattr(convert, "WIDEST", widest)
        found = [np.concatenate([rows for _, rows in convert.chunks(m, 1)]) for m in convert.matrices(weight, source, checkpoint)]
        assert len(found) == len(wanted)
        assert all(np.array_equal(a, b) and a.dtype == np.float32 for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    ("columns", "blocks", "why"),
    [(64, BLOCKS.astype(np.float32), "is F32, not U8"), (70, BLOCKS, "do not divide 70 columns"), (96, BLOCKS, r"not \[3, 4, 3, 16\]")],
)
def test_blocks_that_do_not_fit_are_refused(columns: int, blocks: np.ndarray, why: str, reader: Any) -> None:
    checkpoint = reader(b=blocks, s=SCALES)
    with pytest.raises(CorruptFile, match=why):
        convert.check({"w": Weight("w", (3, 4, columns), "experts")}, {"w": Source("mxfp4", ("b", "s"))}, checkpoint.tensors)


def test_a_scale_that_is_not_a_number_is_refused(reader: Any) -> None:
    scales = SCALES.copy()
    scales[1, 2, 0] = 255
    weight, source = Weight("w", (3, 4, 64), "experts"), Source("mxfp4", ("b", "s"))
    matrices = convert.matrices(weight, source, reader(b=BLOCKS, s=scales))
    matrices[0].read(0, 4)
    with pytest.raises(NumericalError, match=r'tensor "s": it holds nan at \[1, 2, 0\]'):
        matrices[1].read(0, 4)


@pytest.mark.parametrize("case", CASES)
def test_tensors_are_read_once_and_rows_in_chunks(case: str, reader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, source, tensors, _ = CASES[case]
    checkpoint = reader(**tensors)
    seen: dict[str, int] = {}
    real = checkpoint.read

    def read(name: str, start: int, size: int) -> Any:
        seen[name] = seen.get(name, 0) + size
        return real(name, start, size)

    monkeypatch.setattr(checkpoint, "read", read)
    monkeypatch.setattr(convert, "WIDEST", 10)
    for matrix in convert.matrices(weight, source, checkpoint):
        list(convert.chunks(matrix, 1))
    assert seen == {name: array.nbytes for name, array in tensors.items()}


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_floats_of_every_type_are_widened_exactly(dtype: str, tmp_path: Path) -> None:
    values = RNG.standard_normal((7, 3)).astype(np.float16).astype(np.float32)
    values.view(np.uint32)[...] &= 0xFFFF0000
    raw = {"F32": values, "F16": values.astype(np.float16), "BF16": (values.view(np.uint32) >> 16).astype(np.uint16)}[dtype]
    save(tmp_path / "m.safetensors", x=(dtype, (7, 3), raw.tobytes()))
    with File(tmp_path / "m.safetensors") as file:
        checkpoint, source = Checkpoint([file]), Source("copy", ("x",))
        (matrix,) = convert.matrices(Weight("w", (7, 3), "matrix"), source, checkpoint)
        assert np.array_equal(matrix.read(2, 6), values[2:6])
        assert convert.float_format(source, checkpoint.tensors) == dtype.lower()


MODEL = {
    "embedding": (Weight("embedding", (10, 4), "embedding"), Source("copy", ("embed",))),
    "qkv": (Weight("qkv", (8, 4), "matrix"), Source("concat", ("q", "k", "v"))),
    "down": (Weight("down", (4, 6), "matrix"), Source("transpose", ("down",))),
    "experts": (Weight("experts", (2, 6, 4), "experts"), Source("stack_concat", ("e0", "u0", "e1", "u1"))),
}
SHAPES = {"embed": (10, 4), "q": (4, 4), "k": (2, 4), "v": (2, 4), "down": (6, 4), "e0": (3, 4), "u0": (3, 4), "e1": (3, 4), "u1": (3, 4)}


def check(reader: Any, shapes: dict[str, tuple[int, ...]], ignored: tuple[str, ...] = ()) -> None:
    tensors = reader(**{name: np.zeros(shape, np.float32) for name, shape in shapes.items()}).tensors
    convert.check({n: w for n, (w, _) in MODEL.items()}, {n: s for n, (_, s) in MODEL.items()}, tensors, ignored)


def test_a_fitting_checkpoint_is_accepted(reader: Any) -> None:
    check(reader, SHAPES)
    check(reader, {**SHAPES, "rotary.inv_freq": (3,)}, ignored=("inv_freq",))


@pytest.mark.parametrize("name", SHAPES)
def test_each_tensor_dropped_renamed_or_turned_is_refused_by_name(name: str, reader: Any) -> None:
    rest = {other: shape for other, shape in SHAPES.items() if other != name}
    with pytest.raises(CorruptFile, match=f'"{name}" is missing'):
        check(reader, rest)
    with pytest.raises(CorruptFile, match=f'"{name}" is missing; "other" is not part of the model'):
        check(reader, {**rest, "other": SHAPES[name]})
    for shape in (SHAPES[name][::-1], (1, *SHAPES[name]), (SHAPES[name][0] + 1, SHAPES[name][1]), SHAPES[name][:1]):
        if shape != SHAPES[name]:
            with pytest.raises(CorruptFile, match="the weights do not fit config.json"):
                check(reader, {**SHAPES, name: shape})


def test_only_five_faults_are_listed(reader: Any) -> None:
    with pytest.raises(CorruptFile) as caught:
        check(reader, {})
    assert str(caught.value).count("missing") == 5 and "and 4 more" in str(caught.value)


def test_types_that_are_no_floats_of_ours_are_refused(reader: Any) -> None:
    tensors = reader(**{name: np.zeros(shape, np.int8 if name == "down" else np.float32) for name, shape in SHAPES.items()}).tensors
    with pytest.raises(UnsupportedModel, match='"down": it is stored as I8'):
        convert.check({n: w for n, (w, _) in MODEL.items()}, {n: s for n, (_, s) in MODEL.items()}, tensors)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("transform", "place"), [("copy", "[37, 3]"), ("transpose", "[37, 3]")])
def test_a_weight_that_is_no_number_is_named_with_its_place(
    transform: str, place: str, bad: float, reader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.zeros((50, 4), np.float16)
    values[37, 3] = bad
    shape = (50, 4) if transform == "copy" else (4, 50)
    monkeypatch.setattr(convert, "WIDEST", 64)
    (matrix,) = convert.matrices(Weight("w", shape, "matrix"), Source(transform, ("layer.up",)), reader(**{"layer.up": values}))
    with pytest.raises(NumericalError) as caught:
        list(convert.chunks(matrix, 1))
    assert caught.value.code == 9 and "layer.up" in str(caught.value) and f"{bad} at {place}" in str(caught.value)


IMPORT = """
import resource, sys
from pathlib import Path
import numpy as np
from llmcli.models.names import Source
from llmcli.plan import Weight
from llmcli.weights import folder, writer
from llmcli.weights.safetensors import File
with File(Path(sys.argv[1])) as file:
    checkpoint = folder.Checkpoint([file])
    weights = {name: Weight(name, t.shape, "matrix") for name, t in checkpoint.tensors.items()}
    sources = {name: Source("copy", (name,)) for name in weights}
    texts = {"name": "m", "source": "", "revision": "", "spec": "{}"}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    writer.write_model(Path(sys.argv[2]), weights, sources, checkpoint, "int8", texts, {})
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_is_one_packed_tensor_and_a_constant(tmp_path: Path) -> None:
    """Six tensors of 32 MiB in bf16 (64 in float32): the model has 192 MiB, a packed tensor 17."""
    save(tmp_path / "m.safetensors", **{f"t{i}": ("BF16", (2**14, 2**10), bytes(2**25)) for i in range(6)})
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, tmp_path / "m.safetensors", tmp_path / "out.safetensors"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert int(done.stdout) < 90 << 10, "peak resident memory in KiB"
