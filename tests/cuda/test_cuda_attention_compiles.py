"""Attention, `top` and what is small are PTX for two generations of GPUs, and fit them: no spilt registers, no stack, and a block's
threads and shared memory are not more than a processor has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from compiling import ARCHITECTURES, REGISTERS, SHARED_BYTES, assembled, ptx

pytest.importorskip("numba_cuda", reason="kernels are compiled with numba-cuda: pip install 'llmcli[cuda]'")


def _kernels() -> dict[str, tuple[Any, int, tuple[str, ...]]]:
    """Name -> kernel, threads of a block, types of arguments (driver.signature)."""
    from llmcli.backends.cuda.kernels import (
        attention,
        attention_decode,
        attention_prompt,
        cache,
        elementwise,
        norm,
        position,
        rope,
        rope_cache,
        route,
        select,
        top,
    )

    n, d = "int", "float"
    ints, longs, floats, doubles = "i4", "i8", "f4", "f8"
    operand, place = (floats, n, n), ("u1", n, n, n)
    query = (ints, *operand, *place, d, n, d, floats, n)
    found: dict[str, tuple[Any, int, tuple[str, ...]]] = {}
    for size, dtype, group in ((128, "f16", 4), (64, "f16", 9), (80, "f16", 1), (256, "f16", 4), (256, "f32", 8), (128, "int8", 4)):
        kernel = attention_decode.attention_decode(size, dtype, 1, 1, group, 1)[0]
        found[f"decode of {group} heads of {size} in {dtype}"] = kernel, attention.THREADS, (*query, floats, floats, n)
        kernel = attention_prompt.attention_prompt(size, dtype, 1, 1, group)[0]
        found[f"prompt of {group} heads of {size} in {dtype}"] = kernel, attention.THREADS, (*query, floats, n, *operand)
    merge, kept = (ints, floats, floats, n, *operand, n, n, floats, n), (n, "u1")
    found["merge"] = attention_decode.merge, attention.THREADS, merge
    found["merge and quantize"] = attention_decode.merge_quantize, attention.THREADS, (*merge, *kept)
    for dtype, view in (("f16", "u2"), ("f32", floats), ("int8", "u1")):
        place = (*operand, view, n, n)
        found[f"cache_write in {dtype}"] = cache.write(80, dtype), cache.THREADS, (ints, longs, n, *operand, *place)
        for name, interleaved in (("half", False), ("interleaved", True)):
            kernel = rope_cache.rows(80, 32, dtype, interleaved)
            found[f"rope {name} and cache_write in {dtype}"] = (
                kernel, cache.THREADS, (ints, longs, n, *operand, n, floats, d, *place, n)
            )  # fmt: skip
    normed = (ints, n, longs, n, *operand, floats, n, floats, n, *operand, n, d)
    for kind in ("rms", "layer"):
        found[f"norm {kind}"] = norm.ROWS[kind], norm.BLOCK, normed
        found[f"norm {kind} and quantize"] = norm.QUANTIZED[kind], norm.BLOCK, (*normed, *kept)
        found[f"norm {kind} of heads"] = norm.HEADS[kind], norm.HEAD_BLOCK, (*normed, n, n)
    for name, kernel in rope.KERNELS.items():
        found[f"rope {name}"] = kernel, rope.BLOCK, (ints, *operand, n, n, n, floats, d)
    each = (ints, n, *operand, *operand, *operand, n, d)
    for name, kernel in elementwise.KERNELS.items():
        found[name] = kernel, elementwise.BLOCK, each
    for name in ("silu_multiply", "gelu_multiply", "gelu_tanh_multiply", "relu2"):
        kernel, _, threads = elementwise.elementwise_quantize(name, 1, 256)
        found[f"{name} and quantize"] = kernel, threads, (*each, *kept)
    for name, kernel in route.KERNELS.items():
        found[f"route {name}"] = kernel, 32, (ints, *operand, ints, n, n, *operand, n, n, n, d)
    found["position_add"] = position.add_positions, position.BLOCK, (ints, *operand, floats, n, n)
    found["select_rows"] = select.select, select.BLOCK, (ints, *operand, *operand, n)
    found["top parts"] = top.parts, top.BLOCK, (ints, *operand, n, n, longs, doubles)
    found["top whole"] = top.whole, top.WHOLE_BLOCK, (ints, longs, doubles, n, n, ints, floats, doubles)
    return found


KERNELS = _kernels()


@pytest.mark.parametrize("name", KERNELS)
def test_compiles(name: str, tmp_path: Path) -> None:
    kernel, threads, signature = KERNELS[name]
    code = ptx(kernel, " ".join(signature))
    assert ".entry" in code and "call" not in code
    assert not re.search(r"mul(\.ftz)?\.f32|ex2", code)  # without .rn a product may be fused with a sum, here and not there
    if name.startswith(("decode", "prompt")):
        assert "ld.shared.v4.f32" in code and "ld.global.nc.v4" in code and "fma.rn.f32" in code
        halves = name.endswith("f16") and "of 256" not in name
        assert ("mma.sync.aligned.m16n8k16.row.col.f32.f16" in code) == halves
    for architecture in ARCHITECTURES:
        used = assembled(code, architecture, tmp_path)
        if used is not None:
            assert used.stack == used.stored == used.loaded == 0, used
            assert -(-used.registers // 8) * 8 * threads <= REGISTERS and used.shared <= SHARED_BYTES, used
