"""What CPU kernels are compiled for: Numba's own choice, asked without importing Numba, or LLVM where it has answered before (host.py).

Numba takes the host's name and features unless NUMBA_CPU_NAME or NUMBA_CPU_FEATURES say otherwise; the name alone
keeps the host's features. Every choice between instructions is made here, so that the two variables move all of it.
"""

from __future__ import annotations

import functools
import os

from llmcli.backends.cpu import host

# What a CPU's name alone promises, for names that are useful without the host's features. A name that is not here
# promises nothing: kernels are then correct, and slower than they could be.
_V2 = frozenset("ssse3 sse4.1 sse4.2 popcnt".split())
_V3 = _V2 | frozenset("avx avx2 bmi bmi2 f16c fma lzcnt movbe".split())
_V4 = _V3 | frozenset("avx512f avx512bw avx512cd avx512dq avx512vl".split())
_DOT = frozenset({"neon", "dotprod"})
_I8MM = _DOT | {"i8mm"}
_IMPLIED = {"nehalem": _V2, "x86-64-v2": _V2, "haswell": _V3, "x86-64-v3": _V3, "skylake-avx512": _V4, "x86-64-v4": _V4}
_IMPLIED |= {"cortex-a76": _DOT, "neoverse-n1": _DOT, "apple-m1": _DOT}
_IMPLIED |= {"neoverse-v1": _I8MM, "neoverse-n2": _I8MM, "neoverse-v2": _I8MM, "apple-m2": _I8MM}


_DOT4 = {"avxvnni": "avxvnni", "i8mm": "usdot", "dotprod": "sdot"}


@functools.cache
def name() -> str:
    """The CPU's name as LLVM knows it."""
    return os.environ.get("NUMBA_CPU_NAME") or host.answer()[0]


@functools.cache
def features_text() -> str:
    """The features as given to LLVM: '+avx2,-sse4a,...'; may be empty."""
    given = os.environ.get("NUMBA_CPU_FEATURES")
    if given is not None:
        return given
    return "" if name() == "generic" else host.answer()[1]


@functools.cache
def features() -> frozenset[str]:
    """The features that kernels may count on: those given and those that the CPU's name implies."""
    known = set(_IMPLIED.get(name(), ()))
    for entry in filter(None, (e.strip() for e in features_text().split(","))):
        if entry.startswith("-"):
            known.discard(entry[1:])
        else:
            known.add(entry.lstrip("+"))
    return frozenset(known)


@functools.cache
def architecture() -> str:
    """'x86_64', 'aarch64', or whatever else the process runs on."""
    return os.uname().machine.replace("arm64", "aarch64")


def is_x86() -> bool:
    return architecture() == "x86_64"


def has_fma() -> bool:
    """A fused multiply-add is an instruction (without it LLVM would call libm)."""
    return not is_x86() or "fma" in features()


def has_masks() -> bool:
    """Loading and storing some lanes of a vector is as quick as all of them."""
    return "avx512f" in features()


def has_f16() -> bool:
    """Conversions between f16 and f32 are instructions (without them LLVM would call a run-time library)."""
    return architecture() == "aarch64" or "f16c" in features()


def has_rint() -> bool:
    """Rounding to an integral float is an instruction."""
    return architecture() == "aarch64" or "sse4.1" in features()


def dot4_kind() -> str:
    """Which instructions add four u8 x s8 products to an i32: 'avx512vnni', 'avxvnni'; on Arm 'usdot' or, of s8 x s8, 'sdot'; or
    'generic'."""
    if {"avx512vnni", "avx512bw"} <= features():
        return "avx512vnni"
    return next((kind for feature, kind in _DOT4.items() if feature in features()), "generic")


def registers() -> int:
    """Vector registers: 32 with AVX-512 or on Arm, else 16."""
    return 32 if architecture() == "aarch64" or {"avx512f", "avx512vl"} <= features() else 16


def tile() -> int:
    """Tokens in the tallest tile of a matrix product: its accumulators must fit the registers."""
    return 8 if registers() == 32 and is_x86() else 4
