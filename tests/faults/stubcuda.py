"""A driver library (libcuda.so.1) made for one case, which says what the case wants: for whole commands, without a GPU.

    with the variables of `driver(folder, cuInit=100)`, `llm run --device cuda` meets a driver that finds no GPU
What it says comes from STUB_CUDA, "name=value ..."; a function that is named returns that code, the others say what a good GPU would.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = r"""
#include <stdlib.h>
#include <string.h>
static long said(const char *name, long otherwise) {
    const char *at = getenv("STUB_CUDA");
    size_t size = strlen(name);
    for (; at && *at; at = strchr(at, ' ') ? strchr(at, ' ') + 1 : "")
        if (!strncmp(at, name, size) && at[size] == '=') return atol(at + size + 1);
    return otherwise;
}
#define SAYS(function, ...) int function { __VA_ARGS__; return (int)said(__func__, 0); }
SAYS(cuInit(unsigned flags), (void)flags)
SAYS(cuDriverGetVersion(int *out), *out = (int)said("version", 13000))
SAYS(cuDeviceGetCount(int *out), *out = (int)said("count", 1))
SAYS(cuDeviceGet(int *out, int number), *out = number)
SAYS(cuDeviceGetName(char *out, int size, int device), (void)device; strncpy(out, "Stub\033[31m", size))
SAYS(cuDeviceTotalMem_v2(size_t *out, int device), (void)device; *out = said("total", 8L << 30))
SAYS(cuDeviceGetAttribute(int *out, int which, int device),
     (void)device; *out = (int)(which == 75 ? said("major", 9) : said("minor", 0)))
SAYS(cuDevicePrimaryCtxRetain(void **out, int device), (void)device; *out = (void *)1)
SAYS(cuCtxPushCurrent_v2(void *context), (void)context)
SAYS(cuCtxPopCurrent_v2(void **out), *out = (void *)1)
SAYS(cuMemGetInfo_v2(size_t *some, size_t *all), *some = said("free", 7L << 30); *all = said("total", 8L << 30))
int cuGetErrorName(int code, const char **out) { (void)code; *out = "CUDA_ERROR_OF_THE_STUB"; return 0; }
"""


def driver(folder: Path, packages: str = "13", **said: int) -> dict[str, str]:
    """The variables under which a command finds such a driver, and numba-cuda for this version of CUDA ('': not installed).
    Skips, counted, where there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("cc is not installed")
    folder.mkdir(exist_ok=True)
    library = folder / "libcuda.so.1"
    if not library.exists():
        (folder / "stub.c").write_text(SOURCE)
        subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", library, folder / "stub.c"], check=True, timeout=60)
    paths = [*sys.path]
    if packages:
        site = folder / f"site-{packages}"
        (site / "numba_cuda").mkdir(parents=True, exist_ok=True)
        (site / "numba_cuda" / "__init__.py").write_text("raise ImportError('only a name')\n")
        (site / f"cuda_bindings-{packages}.0.0.dist-info").mkdir(exist_ok=True)
        (site / f"cuda_bindings-{packages}.0.0.dist-info" / "METADATA").write_text(f"Name: cuda-bindings\nVersion: {packages}.0.0\n")
        paths.insert(0, str(site))
    words = " ".join(f"{name}={value}" for name, value in said.items())
    return {"LD_LIBRARY_PATH": str(folder), "STUB_CUDA": words, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
