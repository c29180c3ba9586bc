"""The kernel that packs int4, against the search in NumPy: the same bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kernel_calls import Kernel, factory, only_x86, run_as
from llmcli.backends.cpu import pack, target
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


@pytest.mark.parametrize("format", ["int4", "iq4_nl"])
def test_the_bytes_are_those_of_the_search(format: str) -> None:
    assert pack.searched(format)
    for number, (rows, columns) in enumerate(SHAPES):
        values = weights(rows, columns, number)
        want = formats.get(format).pack(values)
        np.testing.assert_array_equal(pack.int4(format, values), want, err_msg=f"{rows=} {columns=}")
        wide = np.full((rows, columns + 9), np.nan, np.float32)
        wide[:, 4 : 4 + columns] = values
        np.testing.assert_array_equal(pack.int4(format, wide[:, 4 : 4 + columns]), want)


def test_other_formats_and_giants_are_packed_by_their_own_code() -> None:
    assert not any(pack.searched(name) for name in ("int8", "int4_uniform", "f32"))
    values = weights(20, 40)
    np.testing.assert_array_equal(pack.Packer()("int8", values), formats.get("int8").pack(values))
    values[3, 4] = -1e9
    with pytest.raises(NumericalError, match="too large"):
        pack.int4("int4", values)
    values[3, 4] = 2e6  # large, but f16 holds its scale
    np.testing.assert_array_equal(pack.int4("int4", values), formats.get("int4").pack(values))


def test_a_kernel_is_compiled_where_there_is_enough_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = []
    monkeypatch.setattr(pack.objects, "ready", lambda key: None)
    monkeypatch.setattr(pack, "int4", lambda format, values: packed.append(values.size))
    monkeypatch.setattr(pack, "WORTH", 1500)
    packer = pack.Packer()
    for _ in range(3):
        packer("int4", weights(16, 32))
    assert packed == [512]


def test_the_kernel_calls_nothing() -> None:
    assert Kernel(factory("pack.int4")()).calls() == []


@only_x86
@pytest.mark.parametrize("cpu", ["haswell", "x86-64"])
def test_other_cpus_pack_the_same_bytes(cpu: str) -> None:
    if cpu == "haswell" and "avx2" not in target.features():
        pytest.skip("this CPU has no AVX2")
    run_as(cpu, "", "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", __file__, "-k", "bytes and int4 and not cpu")
