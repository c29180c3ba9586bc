"""What kernels become on Arm CPUs: compiled for them, not run on them."""

from __future__ import annotations

import json
import re

import pytest

import arm
from kernel_calls import run_as

PRODUCT, ATTENTION, QUANTIZE, WRITE = "linear.int4 4", "attention.rows 64 int16 3 8", "quantize.rows 4", "cache.rope_write int16 half"
DOTS = {"usdot", "sdot", "smull", "smlal"}
"""Instructions for several products: of u8 x s8, of s8 x s8, of s16 x s16."""
KINDS = {"neoverse-v1": {"usdot"}, "neoverse-n1": {"sdot"}, "cortex-a72": {"smull", "smlal"}}
"""For each CPU those that multiply int8."""


@pytest.mark.parametrize("cpu", KINDS)
def test_each_cpu_gets_its_instructions(cpu: str) -> None:
    found: dict[str, str] = json.loads(run_as(cpu, "", arm.__file__, PRODUCT, ATTENTION, QUANTIZE, WRITE))
    used = {kernel: re.findall(r"^\s+([a-z]\w*)\s+(\S*)", assembly, re.MULTILINE) for kernel, assembly in found.items()}
    for lines in used.values():
        assert not {word for word, _ in lines} & {"bl", "blr"}  # nothing outside is needed
        vectors = [word for word, operand in lines if re.fullmatch(r"v\d+\.\w+,", operand)]
        assert not {"mul", "mla", "madd"} & set(vectors)  # products of integers are widening ones
    counted = {kernel: {dot: [word for word, _ in lines].count(dot) for dot in DOTS} for kernel, lines in used.items()}
    four_tokens = sum(counted[PRODUCT].values())
    assert {dot for dot in DOTS if counted[PRODUCT][dot]} == KINDS[cpu]
    assert four_tokens == 4 * 4 * (4 if cpu == "cortex-a72" else 1)  # tokens x registers of 16 rows (x bytes of four)
    assert {"tbl", "fmla", "fcvtl"} <= {word for word, _ in used[PRODUCT]}
    # tiles of scores (two of their sizes) and of values: queries x vectors x registers x the two numbers of a pair
    assert counted[ATTENTION]["smlal"] + counted[ATTENTION]["smull"] == 3 * (2 + 1 + 2) * 4 * 2
    assert not counted[WRITE]["smull"] and "st1" in {word for word, _ in used[WRITE]}
