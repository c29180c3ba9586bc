"""Kernels of matrix products compile to PTX, and assemble without spills, for sm_80 and sm_90. Needs the extra `cuda`, and no GPU."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if importlib.util.find_spec("numba_cuda") is None or importlib.util.find_spec("nvidia") is None:
    pytest.skip("kernels are not compiled to PTX: the extra `cuda` is not installed", allow_module_level=True)

from compiling import ARCHITECTURES, assembled, ptx  # noqa: E402
from test_cuda_attention_compiles import KERNELS  # noqa: E402

from llmcli.backends.cuda import driver, weights  # noqa: E402
from llmcli.backends.cuda.kernels import elementwise, embed, experts, groups, linear, prompt, quantize  # noqa: E402
from llmcli.backends.cuda.launch import Launch  # noqa: E402


def launches() -> Iterator[tuple[str, Launch]]:
    """One of every kernel, with arguments of the types that it gets."""
    step, u8 = np.zeros(1, np.int32), np.zeros(1, np.uint8)
    operand = np.zeros(1, np.float32), 0, 0
    ids = step, 0, 0
    for format in ("int4", "int4_offset", "int8", "f32", "f16", "bf16"):
        own, integer = weights.place(format, 64, 256), format.startswith("int")
        x: Any = u8 if integer else operand
        for tokens in (1, 8, 64) if integer else (1, 8):
            yield f"linear {format} {tokens}", linear.linear(format, own, tokens, step, 0, u8, x, operand, operand[0], True)
        yield f"embed {format}", embed.embed(format, own, 1, step, 0, u8, operand)
        if integer:
            yield f"experts {format} 64", experts.by_group(format, own, 64, 2, 8, 2, step, u8, x, step, operand, operand[0])
        yield f"experts {format}", experts.linear(format, own, 1, 2, 2, step, u8, x, ids, operand, operand[0])
    yield "groups", groups.group(64, 2, 8, step, ids, step)
    kernel, grid, block = quantize.launch(1, 256)
    yield "quantize", Launch(kernel, grid, block, (step, 0, *operand, 256, u8))
    yield "quantize choices", experts.quantize_rows(1, 2, step, operand, 256, u8)
    yield "activate", experts.activate(elementwise.relu, True, 1, 2, step, operand, 64, 7.0, 1.0)
    yield "combine", experts.combine(1, 2, step, operand, ids, operand, operand, 64)


LAUNCHES = dict(launches())


@pytest.mark.parametrize("name", LAUNCHES)
def test_kernels_compile(name: str, tmp_path: Path) -> None:
    launch = LAUNCHES[name]
    code = ptx(launch.kernel, driver.signature(launch.args))
    is_prompt = name.endswith(" 64")
    assert ("mma.sync.aligned.m16n8k32" in code) == is_prompt
    if name.startswith("linear int") and not is_prompt:
        assert "dp4a" in code and "cp.async.cg" in code and ".local" not in code
    for architecture in ARCHITECTURES:
        used = assembled(code, architecture, tmp_path, prompt.REGISTERS if is_prompt else 0)
        assert used is None or max(used.stored, used.loaded) <= (64 if is_prompt else 0), used
        print(f"{name} sm_{architecture[0]}{architecture[1]}: {used}")


ALL = {
    **{name: (launch.kernel, driver.signature(launch.args)) for name, launch in LAUNCHES.items()},
    **{name: (kernel, " ".join(signature)) for name, (kernel, _, signature) in KERNELS.items()},
}
SOME = {"linear int8 64", "linear f16 8", "prompt of 4 heads of 128 in f16", "norm rms"}


@pytest.mark.parametrize("name", [name if name in SOME else pytest.param(name, marks=pytest.mark.long) for name in ALL])
def test_both_generations_get_the_same_code(name: str) -> None:
    """But for what it is for, and names, which Numba numbers, and by which variables are sorted: so what is compiled for one of them is
    assembled for both."""
    own, found = re.compile(r"^\.target .*$|_Z\w+|_?cudapy_\w+", re.MULTILINE), []
    for architecture in ARCHITECTURES:
        lines = own.sub("", ptx(*ALL[name], architecture)).splitlines()
        variables = [line for line in lines if line.startswith(".") and line.endswith(";")]
        found.append((sorted(variables), [line for line in lines if line not in variables]))
    assert found[0] == found[1] and len(found[0][1]) > 20
