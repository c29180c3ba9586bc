"""A kernel's Python function becomes object code that needs neither Python nor Numba."""

from __future__ import annotations

import struct
from collections.abc import Callable

import llvmlite.binding as llvm
import numba
from numba import types

from llmcli.backends.cpu import target

SIGNATURE = types.void(types.intp, types.intp, types.intp)
ALLOWED = {"sched_yield", "clock_gettime", "memset", "memcpy", "memmove"}
"""The only functions that kernels may call outside of themselves: LLVM makes the last three out of loops."""


def object_code(function: Callable[[int, int, int], None], symbol: str) -> bytes:
    """The object file of a kernel (args, chunk, thread) under the name `symbol`. Raises RuntimeError when it would
    need anything from outside but ALLOWED."""
    options = {"nogil": True, "error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    compiled = next(iter(numba.njit(SIGNATURE, **options)(function).overloads.values()))
    # Numba's own name is unique only within one process, so objects of two could clash: name and emit it ourselves.
    module = llvm.parse_assembly(compiled.library.get_llvm_str())
    module.get_function(compiled.fndesc.llvm_func_name).name = symbol
    for other in module.global_variables:
        other.linkage = "internal"
    machine = _machine()
    passes = llvm.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options()))
    code = bytes(machine.emit_object(module))
    foreign = undefined_symbols(code) - ALLOWED
    if foreign:
        raise RuntimeError(f"{symbol} calls {', '.join(sorted(foreign))}")
    return code


def _machine() -> llvm.TargetMachine:
    """The machine that Numba compiles for, as Numba sets it up."""
    relocation = "static" if target.is_x86() else "default"
    triple = llvm.Target.from_triple(llvm.get_process_triple())
    return triple.create_target_machine(
        cpu=target.name(), features=target.features_text(), opt=3, reloc=relocation, codemodel="jitdefault", jit=True
    )


def undefined_symbols(code: bytes) -> set[str]:
    """The names that a 64-bit little-endian ELF object needs from outside. Other kinds of objects: none are known."""
    if code[:6] != b"\x7fELF\x02\x01":
        return set()
    (table,) = struct.unpack_from("<Q", code, 40)
    size, count = struct.unpack_from("<HH", code, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", code, table + i * size) for i in range(count)]
    found = set()
    for _, kind, _, _, offset, length, link, _, _, _ in sections:
        if kind != 2:  # SHT_SYMTAB
            continue
        names = sections[link][4]
        for at in range(offset, offset + length, 24):
            name, _, _, section = struct.unpack_from("<IBBH", code, at)
            if name and section == 0:
                found.add(code[names + name : code.index(b"\0", names + name)].decode())
    return found
