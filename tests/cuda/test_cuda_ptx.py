"""Kernels of matrix products compile to PTX, and assemble without spills, for sm_80 and sm_90. Needs the extra `cuda`, and no GPU."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if importlib.util.find_spec("numba_cuda") is None or importlib.util.find_spec("nvidia") is None:
    pytest.skip("kernels are not compiled to PTX: the extra `cuda` is not installed", allow_module_level=True)

from compiling import assembler, ptx  # noqa: E402

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


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)], ids=["sm_80", "sm_90"])
@pytest.mark.parametrize("name", LAUNCHES)
def test_kernels_compile(name: str, capability: tuple[int, int], tmp_path: Path) -> None:
    launch = LAUNCHES[name]
    code = ptx(launch.kernel, driver.signature(launch.args), capability)
    is_prompt = name.endswith(" 64")
    assert ("mma.sync.aligned.m16n8k32" in code) == is_prompt
    if name.startswith("linear int") and not is_prompt:
        assert "dp4a" in code and "cp.async.cg" in code and ".local" not in code
    program = assembler()
    if program is None:
        return
    source, target = tmp_path / "kernel.ptx", "sm_{}{}".format(*capability)
    source.write_text(code)
    command = [str(program), "-v", f"-arch={target}", str(source), "-o", str(tmp_path / "kernel.cubin")]
    if is_prompt:
        command += ["-maxrregcount", str(prompt.REGISTERS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    spilled = [int(found) for found in re.findall(r"(\d+) bytes spill", done.stderr)]
    assert max(spilled) <= (64 if is_prompt else 0), done.stderr
    print(f"{name} {target}: {done.stderr}")
