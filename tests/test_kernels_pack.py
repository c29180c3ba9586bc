"""The kernels that pack int4 and int8, against the formats in NumPy: the same bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kernel_calls import Kernel, factory, only_x86, pass_as
from llmcli.backends.cpu import pack
from llmcli.errors import NumericalError
from llmcli.formats import format as formats

SHAPES = ((1, 1), (15, 3), (16, 32), (17, 33), (105, 172), (64, 96))


def weights(rows: int, columns: int, seed: int = 0) -> npt.NDArray[Any]:
    """Rows of very different sizes, one of them zero, one with a single weight; with NaN around them."""
    rng = np.random.default_rng(seed)
    values = (rng.standard_t(4, (rows, columns)) * 10.0 ** rng.integers(-44, 3, (rows, 1))).astype(np.float32)
    values[rows // 2] = 0
    values[rows // 3] = 0
    values[rows // 3, columns // 2] = -0.37
    return values


@pytest.mark.parametrize("format", ["int4", "iq4_nl", "int8"])
def test_the_bytes_are_those_of_the_format(format: str) -> None:
    assert pack.kernel_of(format)
    for number, (rows, columns) in enumerate(SHAPES):
        values = weights(rows, columns, number)
        want = formats.get(format).pack(values)
        np.testing.assert_array_equal(pack.packed(format, values), want, err_msg=f"{rows=} {columns=}")
        wide = np.full((rows, columns + 9), np.nan, np.float32)
        wide[:, 4 : 4 + columns] = values
        np.testing.assert_array_equal(pack.packed(format, wide[:, 4 : 4 + columns]), want)


def test_other_formats_and_giants_are_packed_by_their_own_code() -> None:
    assert not any(pack.kernel_of(name) for name in ("int4_uniform", "int4_offset", "f32", "bf16"))
    values = weights(20, 40)
    np.testing.assert_array_equal(pack.Packer()("f32", values), formats.get("f32").pack(values))
    values[3, 4] = -1e9
    with pytest.raises(NumericalError, match="too large"):
        pack.packed("int4", values)
    values[3, 4] = 2e6  # large, but f16 holds its scale
    for format in ("int4", "int8"):
        np.testing.assert_array_equal(pack.packed(format, values), formats.get(format).pack(values))


def test_int8_rounds_as_the_format_does() -> None:
    """Ties between two codes, scales that f16 holds in few bits or not at all, and codes that a rounded scale puts beyond 127."""
    values = np.concatenate([np.arange(-127, 129) / 2 * scale for scale in (1.0, 2.0**-14, 2.0**-20, 2.0**-24, 2.0**-26, 3e-8 / 127)])
    values = np.stack([values, np.roll(values, 5), values[::-1]]).astype(np.float32)
    np.testing.assert_array_equal(pack.packed("int8", values), formats.get("int8").pack(values))


def test_a_kernel_is_compiled_where_there_is_enough_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = []
    monkeypatch.setattr(pack.objects, "ready", lambda key: None)
    monkeypatch.setattr(pack, "packed", lambda format, values: packed.append((format, values.size)))
    monkeypatch.setattr(pack, "WORTH", {pack.INT4: 1500, pack.INT8: 600})
    packer = pack.Packer()
    for format in ("int4", "int8", "int4", "int8", "int4"):
        packer(format, weights(16, 32))
    assert packed == [("int8", 512), ("int4", 512)]


@pytest.mark.parametrize("name", ["pack.int4", "pack.int8"])
def test_the_kernels_call_nothing(name: str) -> None:
    assert Kernel(factory(name)()).calls() == []


@only_x86
@pytest.mark.parametrize("cpu", ["haswell", "x86-64"])
def test_other_cpus_pack_the_same_bytes(cpu: str) -> None:
    pass_as(cpu, "(bytes or rounds) and not cpu and not iq4", __file__)
