"""Compiling kernels to PTX, and on with ptxas, for GPUs that need not be there. Needs `pip install 'llmcli[cuda]'`.

PTX is kept beside the compiled kernels, by what it is made of, so that tests, files and runs share it. A kernel is compiled for the
older of two generations and assembled for both: test_cuda_ptx.py compares that PTX with the newer one's own.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from llmcli import places
from llmcli.backends import build, kept
from llmcli.backends.cuda import objects

ARCHITECTURES = ((8, 0), (9, 0))
REGISTERS, SHARED_BYTES = 65536, 48 * 1024
"""Of a processor, for all threads of a block; of a block, unless it asks for more in another way."""


@dataclass(frozen=True)
class Usage:
    """What ptxas says of a kernel: registers of a thread, bytes of its stack and of registers put there and read back (spills), shared
    bytes of a block."""

    registers: int
    stack: int
    stored: int
    loaded: int
    shared: int


def ptx(kernel: Any, signature: str, architecture: tuple[int, int] = ARCHITECTURES[0]) -> str:
    """The PTX of a kernel, from the compiler process. signature: as of driver.signature."""
    key = kernel.reference, signature
    folder = kept.folder((places.kernels(), places.kernels() / f"ptx-{objects.maker()}"), kept.warn)
    assert folder is not None
    name, identity = objects.name(key)[:80], objects.identity(key, architecture)
    path = folder / f"{name}-{hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()}.ptx"
    code = kept.kernel(path, identity, kept.warn)
    if code is None:
        code = _compiler().compile(str(kernel.reference), [*key, architecture])
        kept.keep_kernel(path, identity, code, kept.warn)
    return code.decode()


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


def assembled(code: str, architecture: tuple[int, int], folder: Path, registers: int = 0) -> Usage | None:
    """What ptxas makes of PTX for a GPU of this generation; None where there is no ptxas. registers: what a thread is limited to."""
    program, target = assembler(), "sm_{}{}".format(*architecture)
    if program is None:
        return None
    source = folder / "kernel.ptx"
    source.write_text(re.sub(r"^\.target sm_\d+", f".target {target}", code, flags=re.MULTILINE))
    command = [program, "-v", f"-arch={target}", str(source), "-o", str(folder / "kernel.cubin")]
    command += ["-maxrregcount", str(registers)] if registers else []
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr

    def number(pattern: str) -> int:
        match = re.search(pattern, done.stderr)
        return int(match[1]) if match else 0

    spills = number(r"(\d+) bytes spill stores"), number(r"(\d+) bytes spill loads")
    return Usage(number(r"Used (\d+) registers"), number(r"(\d+) bytes stack frame"), *spills, number(r"(\d+) bytes smem"))
