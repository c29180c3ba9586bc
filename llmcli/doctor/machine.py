"""The machine: processor, threads, memory, graphics card. By the system's own files and the driver; no weights are loaded."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from llmcli import memory
from llmcli.doctor.default import default
from llmcli.doctor.rows import Row, size
from llmcli.errors import LlmError

MATTER = ("avx2", "fma", "f16c", "avxvnni", "avx512f", "avx512bw", "avx512vnni", "neon", "dotprod", "i8mm")
"""Features that decide how fast kernels are, where a CPU has them."""
DOT = {
    "avx512vnni": "by AVX-512 VNNI",
    "avxvnni": "by AVX-VNNI",
    "usdot": "by usdot",
    "sdot": "by sdot",
    "generic": "without an instruction of their own",
}
NVIDIA = Path("/proc/driver/nvidia")
LIBRARIES = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/lib/wsl/lib",
    "/usr/local/nvidia/lib64",
)


def cpu() -> Iterator[Row]:
    """What kernels are compiled for, and how they compute integer dot products."""
    from llmcli.backends.cpu import target

    features = [name for name in MATTER if name in target.features()]
    text = f"{_cpu_name() or target.architecture()} ({target.name()}): {' '.join(features) or 'no special features'}; "
    text += f"integer dot products {DOT.get(target.dot4_kind(), target.dot4_kind())}, {target.tile()} tokens at once"
    variables = [name for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES") if name in os.environ]
    if variables:
        yield Row("cpu", "note", text + f", because {' and '.join(variables)} say so", f"unset {' '.join(variables)}")
    elif target.is_x86() and not {"avx2", "fma", "f16c"} <= target.features():
        yield Row("cpu", "note", text + ". Without AVX2, FMA and F16C answers are right and slow")
    else:
        yield Row("cpu", "ok", text)


def _cpu_name() -> str:
    """What the processor calls itself; '' where the system does not say."""
    try:
        found = re.search(r"^(?:model name|Model)\s*: *(.+)$", Path("/proc/cpuinfo").read_text("utf-8", "replace"), re.MULTILINE)
    except OSError:
        return ""
    return " ".join(found[1].split()) if found else ""


def threads() -> Iterator[Row]:
    """How many threads compute without -t, and what limits them."""
    from llmcli.backends.cpu import threads

    usable, total = threads.usable(), os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total
    quota = threads.quota()
    text = f"{usable}: one for each physical core that may be used ({total} logical CPUs"
    text += f", {allowed} of them for this process" if allowed < total else ""
    text += f", cgroup quota {quota:.3g} CPUs)" if quota is not None else ", no cgroup quota)"
    if quota is not None and quota < 1:
        yield Row("threads", "note", text, "Give the container a CPU at least (docker run --cpus, Kubernetes: limits.cpu)")
    else:
        yield Row("threads", "ok", text)


def room() -> Iterator[Row]:
    """Memory that may still be taken, against what the default model takes."""
    limits = memory.limits()
    if not limits:
        yield Row("memory", "note", "how much there is cannot be told on this system, so nothing is refused ahead")
        return
    least = min(limits, key=lambda name: limits[name])
    text = f"{size(limits[least])} left by {least}"
    text += "".join(f", {size(left)} by {name}" for name, left in limits.items() if name != least)
    try:
        needed = default().memory
    except LlmError:  # the check of the models says why
        yield Row("memory", "ok", text)
        return
    text += f"; the default model takes {size(needed)} with a full context"
    if needed > limits[least]:
        yield Row("memory", "problem", text, "Close other programs, raise the limit, use a smaller context (-c) or another model (llm use)")
    else:
        yield Row("memory", "ok", text)


def gpu() -> Iterator[Row]:
    """What the NVIDIA driver says of its GPUs, whether kernels can be compiled for them, and what is missing."""
    from llmcli.backends.cuda import device

    try:
        found = device.gpus()
    except LlmError as error:
        if text := _driver_files():
            yield Row("gpu", "note", f"{text}; not used: {error.what}: {error.why}", error.todo)
        else:
            yield Row("gpu", "ok", "no NVIDIA driver found; llm computes on the CPU")
        return
    text = ", ".join(f"{gpu.name} ({size(gpu.memory)}, compute capability {gpu.capability[0]}.{gpu.capability[1]})" for gpu in found)
    if not device.simulated():
        version, made_for = device.driver().version(), device.compiler()
        text += f", driver for CUDA {version[0]}.{version[1]}"
        text += f", numba-cuda for CUDA {made_for}" if made_for else ""
    try:
        device.usable()
    except LlmError as error:
        yield Row("gpu", "note", f"{text}; not used: {error.what}: {error.why}", error.todo)
    else:
        yield Row("gpu", "ok", f"{text}; large models use it (--device auto)")


def _driver_files() -> str:
    """GPUs and driver by the kernel module's own files and the places where its library is; '' without either."""
    cards = [
        found[1].strip()
        for path in sorted(NVIDIA.glob("gpus/*/information"))
        if (found := re.search("^Model: *(.+)$", path.read_text(), re.MULTILINE))
    ]
    try:
        version = re.search(r"(?:Module|x86_64|aarch64)\s+([\d.]+)", (NVIDIA / "version").read_text())
    except OSError:
        version = None
    if not (cards or version or any((Path(folder) / "libcuda.so.1").exists() for folder in LIBRARIES)):
        return ""
    return (", ".join(cards) or "an NVIDIA driver") + (f", driver {version[1]}" if version else "")


def system() -> Iterator[Row]:
    """Whether it is one that is tested."""
    name, machine = os.uname().sysname, os.uname().machine
    text = f"{name} {os.uname().release}, {machine}"
    if sys.platform != "linux" or machine not in ("x86_64", "aarch64"):
        yield Row("system", "note", f"{text}: llm is tested on Linux on x86-64 and aarch64 only")
    else:
        yield Row("system", "ok", text)
