"""CPU kernels compiled for Arm, whatever this CPU is: `run_as("neoverse-n1", "", arm.__file__, "linear.int4 8")` prints their assembly
as JSON. They are not run. Only in a process of its own: Numba has one target."""

from __future__ import annotations

import json
import sys

import llvmlite.binding as llvm

from kernel_calls import factory
from llmcli.backends.cpu import target
from llmcli.backends.cpu.kernels import emit


def assembly(name: str, *params: str) -> str:
    function = factory(name)(*(int(p) if p.isdigit() else p for p in params))
    return str(emit.optimized(function).library.get_asm_str())


def main(kernels: list[str]) -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.get_process_triple = lambda: "aarch64-unknown-linux-gnu"
    target.architecture = lambda: "aarch64"  # type: ignore[assignment]
    json.dump({kernel: assembly(*kernel.split()) for kernel in kernels}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
