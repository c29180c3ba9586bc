"""A kernel's Python function becomes an image that needs neither Python nor Numba, nor a linker."""

from __future__ import annotations

from collections.abc import Callable

import llvmlite.binding as llvm
import numba
from numba import types
from numba.core.registry import cpu_target

from llmcli.backends.cpu import target
from llmcli.backends.cpu.kernels import link

SIGNATURE = types.void(types.intp, types.intp, types.intp)


def image(function: Callable[[int, int, int], None], symbol: str) -> bytes:
    """The image of a kernel (args, chunk, thread), called `symbol` while it is made. Raises RuntimeError when it would
    need anything from outside but link.FUNCTIONS."""
    return linked(optimized(function), symbol)


def optimized(function: Callable[[int, int, int], None]):
    """Numba's result for a kernel: its `library` has the optimized LLVM code, and assembly for who wants to read it."""
    # Else what counts references to objects, of which kernels have none, is linked into each function and compiled with it.
    cpu_target.target_context.post_lowering = lambda module, library: None
    options = {"nogil": True, "error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return next(iter(numba.njit(SIGNATURE, **options)(function).overloads.values()))


def linked(compiled, symbol: str) -> bytes:
    """The image of what `optimized` gave."""
    # Numba's own name is unique only within one process; the same source should give the same bytes.
    module = llvm.parse_assembly(compiled.library.get_llvm_str())
    module.get_function(compiled.fndesc.llvm_func_name).name = symbol
    for other in module.global_variables:
        other.linkage = "internal"
    machine = _machine()
    passes = llvm.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options()))
    return link.image(bytes(machine.emit_object(module)), symbol)


def _machine() -> llvm.TargetMachine:
    """The machine that Numba compiles for, but with code that may lie anywhere."""
    triple = llvm.Target.from_triple(llvm.get_process_triple())
    return triple.create_target_machine(cpu=target.name(), features=target.features_text(), opt=3, reloc="pic", codemodel="small", jit=True)
