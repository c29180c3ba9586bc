"""The compiler process: `python -m llmcli.backends.cuda.compile`, started by backends/build.py.

Reads lines of JSON [kernel's name, types of its arguments, compute capability]; answers each with a line that says how many bytes of cubin
follow, 0 when the kernel does not compile (then standard error says why). Ends with its input. Needs no GPU.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from llmcli.backends.cuda import kernels
from llmcli.backends.cuda.objects import ENTRY

HOME = "llmcli.backends.cuda.kernels"


def main(answer: Callable[[Any, str, tuple[int, int]], bytes]) -> None:
    """Answers requests with what this makes of them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business, and it ends us
    with contextlib.suppress(ImportError):  # what its .pth file does in site-packages, and nobody in another folder of the import path
        importlib.import_module("_numba_cuda_redirector")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing else may get into the answers
    for line in sys.stdin:
        reference, signature, capability = json.loads(line)
        try:
            code = answer(reference, signature, (capability[0], capability[1]))
        except Exception:
            traceback.print_exc()
            code = b""
        answers.write(b"%d\n" % len(code) + code)
        answers.flush()


def cubin(reference: Any, signature: str, capability: tuple[int, int]) -> bytes:
    """A kernel's code for GPUs of this capability. Of a GPU that the compiler does not know: that for the closest it knows before, which
    runs there where the first number is the same; else the assembly (PTX), which the driver makes code of."""
    from cuda.bindings import nvjitlink

    assembly, registers = ptx(reference, signature, capability)
    (target,) = re.findall(r"^\.target sm_(\d+)", assembly, re.MULTILINE)
    if int(target) // 10 != capability[0]:
        return assembly.encode() + b"\0"
    limit = [f"-maxrregcount={registers}"] if registers else []
    options = [f"-arch=sm_{target}", *limit]
    linker = nvjitlink.create(len(options), options)
    data = assembly.encode()
    nvjitlink.add_data(linker, nvjitlink.InputType.PTX, data, len(data), "kernel")
    nvjitlink.complete(linker)
    code = bytearray(nvjitlink.get_linked_cubin_size(linker))
    nvjitlink.get_linked_cubin(linker, code)
    nvjitlink.destroy(linker)
    return bytes(code)


def ptx(reference: Any, signature: str, capability: tuple[int, int]) -> tuple[str, int]:
    """A kernel's PTX, its entry named ENTRY, and how many registers it is limited to (0: not)."""
    from numba import types

    cuda: Any = importlib.import_module("numba.cuda")
    dispatcher: Any = importlib.import_module("numba.cuda.dispatcher")

    # Device functions ask for the GPU that they are compiled for: they are told of one.
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=capability)
    arrays: dict[str, Any] = {
        "u1": types.uint8,
        "u2": types.uint16,
        "i4": types.int32,
        "i8": types.int64,
        "f4": types.float32,
        "f8": types.float64,
    }
    numbers = {"int": types.int64, "float": types.float64}
    arguments = tuple(numbers[kind] if kind in numbers else arrays[kind][::1] for kind in signature.split())
    kernel = _find(reference)
    text, _ = cuda.compile(kernel.py_func, arguments, cc=capability, output="ptx", device=False, abi="numba")
    (entry,) = re.findall(r"\.entry (\w+)", text)
    return text.replace(entry, ENTRY.decode()), kernel.targetoptions.get("max_registers") or 0


def _find(reference: Any) -> Any:
    """The kernel or device function of this name (kernels/named.py)."""
    kernels.COMPILING = True
    (module, name), parameters = reference[0].split("."), reference[1]
    found = getattr(importlib.import_module(f"{HOME}.{module}"), name)
    return found if parameters is None else found(*(_find(p) if isinstance(p, list) else p for p in parameters))


if __name__ == "__main__":
    main(cubin)
