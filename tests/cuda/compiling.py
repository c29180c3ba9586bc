"""Compiling kernels to PTX, and on with ptxas, for GPUs that need not be there. Needs `pip install 'llmcli[cuda]'`."""

from __future__ import annotations

import atexit
import functools
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from llmcli.backends import build

ARCHITECTURES = ((8, 0), (9, 0))
REGISTERS, SHARED_BYTES = 65536, 48 * 1024
"""Of a processor, for all threads of a block; of a block, unless it asks for more in another way."""


@dataclass(frozen=True)
class Usage:
    """What ptxas says of a kernel: registers of a thread, bytes of its stack and spilt registers, shared bytes of a block."""

    registers: int
    stack: int
    spills: int
    shared: int


def ptx(kernel: Any, signature: str, architecture: tuple[int, int]) -> str:
    """The PTX of a kernel, from the compiler process. signature: as of driver.signature."""
    return _compiler().compile(str(kernel.reference), [kernel.reference, signature, architecture]).decode()


@functools.cache
def _compiler() -> build.Compiler:
    root = str(Path(__file__).parents[2])
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), root)))):
        made = build.Compiler("tests.cuda.assembling")
    atexit.register(made.__exit__)
    return made


def assembler() -> str | None:
    """ptxas of the compiler's wheels: another one may not know their PTX."""
    import nvidia

    for folder in nvidia.__path__:
        for path in sorted(Path(folder).glob("*/bin/ptxas")):
            return str(path)
    return None


def assembled(code: str, architecture: tuple[int, int], folder: Path) -> Usage | None:
    """None where there is no ptxas."""
    program = assembler()
    if program is None:
        return None
    source = folder / "kernel.ptx"
    source.write_text(code)
    command = [program, "-v", f"-arch=sm_{architecture[0]}{architecture[1]}", str(source), "-o", str(folder / "kernel.cubin")]
    said = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stderr

    def number(pattern: str) -> int:
        match = re.search(pattern, said)
        return int(match[1]) if match else 0

    spills = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
    return Usage(number(r"Used (\d+) registers"), number(r"(\d+) bytes stack frame"), spills, number(r"(\d+) bytes smem"))
