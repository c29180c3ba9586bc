"""A driver library (libcuda.so.1) made for one case, which says what the case wants: for whole commands, without a GPU.

    with the variables of `driver(folder, cuInit=100)`, `llm run --device cuda` meets a driver that finds no GPU
What it says comes from STUB_CUDA, "name=value ..."; a function that is named returns that code, from call number first_NAME on (1: the
first) and times_NAME times, the others do what a good GPU's would. Its memory is this machine's, `memory` bytes of it; every change is
written to STUB_CUDA_LOG. Copies happen at once. Kernels do nothing: what a GPU computes is not to be seen here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = r"""
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
typedef unsigned long long address;
static long said(const char *name, long otherwise) {
    const char *at = getenv("STUB_CUDA");
    size_t size = strlen(name);
    for (; at && *at; at = strchr(at, ' ') ? strchr(at, ' ') + 1 : "")
        if (!strncmp(at, name, size) && at[size] == '=') return atol(at + size + 1);
    return otherwise;
}
static int spoiled(const char *function, long *calls) {
    char first[99], times[99];
    long code = said(function, 0), number = ++*calls;
    sprintf(first, "first_%s", function), sprintf(times, "times_%s", function);
    long from = said(first, 1);
    return number >= from && number - from < said(times, 1L << 40) ? (int)code : 0;
}
#define SAYS(function, ...) int function { \
    static long calls; int code = spoiled(__func__, &calls); if (code) return code; __VA_ARGS__; return 0; }
static long held;
static void changed(const char *what, long size) {
    char line[99], *path = getenv("STUB_CUDA_LOG");
    int file = path ? open(path, O_WRONLY | O_APPEND | O_CREAT, 0600) : -1;
    held += size;
    if (file >= 0) {
        if (write(file, line, sprintf(line, "%s %ld %ld\n", what, size, held)) < 0) abort();
        close(file);
    }
}
static void *handle(void) { static char *last; return last += 8; }
SAYS(cuInit(unsigned flags))
SAYS(cuDriverGetVersion(int *out), *out = (int)said("version", 13000))
SAYS(cuDeviceGetCount(int *out), *out = (int)said("count", 1))
SAYS(cuDeviceGet(int *out, int number), *out = number)
SAYS(cuDeviceGetName(char *out, int size, int device), strncpy(out, "Stub\033[31m", size))
SAYS(cuDeviceTotalMem_v2(size_t *out, int device), *out = said("total", 8L << 30))
SAYS(cuDeviceGetAttribute(int *out, int which, int device), *out = (int)(which == 75 ? said("major", 9) : said("minor", 0)))
SAYS(cuDevicePrimaryCtxRetain(void **out, int device), *out = (void *)8)
SAYS(cuCtxPushCurrent_v2(void *context))
SAYS(cuCtxPopCurrent_v2(void **out), *out = (void *)8)
SAYS(cuMemGetInfo_v2(size_t *some, size_t *all), *some = said("free", 7L << 30) - held; *all = said("total", 8L << 30))
SAYS(cuMemAlloc_v2(address *out, size_t size),
     if (held + (long)size > said("memory", 8L << 30)) return 2;
     size_t *made = calloc(1, size + 64); *made = size; *out = (address)made + 64; changed("gives", size))
SAYS(cuMemFree_v2(address at), size_t *made = (size_t *)(at - 64); changed("takes", -(long)*made); free(made))
SAYS(cuMemHostAlloc(void **out, size_t size, unsigned flags), *out = calloc(1, size))
SAYS(cuMemFreeHost(void *at), free(at))
SAYS(cuMemcpyHtoDAsync_v2(address to, void *from, size_t size, void *stream), memmove((void *)to, from, size))
SAYS(cuMemcpyDtoHAsync_v2(void *to, address from, size_t size, void *stream), memmove(to, (void *)from, size))
SAYS(cuMemcpyDtoDAsync_v2(address to, address from, size_t size, void *stream), memmove((void *)to, (void *)from, size))
SAYS(cuStreamCreate(void **out, unsigned flags), *out = handle())
SAYS(cuStreamSynchronize(void *stream))
SAYS(cuStreamDestroy_v2(void *stream))
SAYS(cuEventCreate(void **out, unsigned flags), *out = handle())
SAYS(cuEventRecord(void *event, void *stream))
SAYS(cuEventSynchronize(void *event))
SAYS(cuEventElapsedTime(float *out, void *one, void *other), *out = 1)
SAYS(cuEventDestroy_v2(void *event))
SAYS(cuModuleLoadData(void **out, const char *image), *out = handle())
SAYS(cuModuleGetFunction(void **out, void *module, const char *name), *out = handle())
SAYS(cuLaunchKernel(void))
SAYS(cuStreamBeginCapture_v2(void *stream, int mode))
SAYS(cuStreamEndCapture(void *stream, void **out), *out = handle())
SAYS(cuGraphInstantiateWithFlags(void **out, void *graph, unsigned long long flags), *out = handle())
SAYS(cuGraphLaunch(void *graph, void *stream))
SAYS(cuGraphDestroy(void *graph))
SAYS(cuGraphExecDestroy(void *graph))
int cuGetErrorName(int code, const char **out) { *out = "CUDA_ERROR_OF_THE_STUB"; return 0; }
"""
KEEP = """
import json, sys
from llmcli.backends import build
from llmcli.cli.app import main

def compiled(module, requests, processes):
    for key, (name, request) in requests.items():
        assert module == "llmcli.backends.cuda.compile", name
        yield key, b"a kernel that does nothing"

build.compiled = compiled
for words in json.loads(sys.argv[1]):
    if code := main(words):
        sys.exit(code)
"""
"""Commands whose GPU kernels are compiled by nobody, but kept as if."""


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
