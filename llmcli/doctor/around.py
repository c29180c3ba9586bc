"""What surrounds llm: Python and the packages it uses, other programs of its name, variables, network, terminal."""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import locale
import os
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import llmcli
from llmcli.doctor.rows import Row

VARIABLES = (
    "LLMCLI_MODEL",
    "LLMCLI_HOME",
    "LLMCLI_KERNELS",
    "LLMCLI_OFFLINE",
    "LLMCLI_TEST_DATA",
    "HF_ENDPOINT",
    "HF_TOKEN",
    "HF_TOKEN_PATH",
    "HF_HUB_OFFLINE",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "HF_HOME",
    "HF_HUB_DOWNLOAD_TIMEOUT",
    "XDG_DATA_HOME",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "https_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "NO_COLOR",
    "TERM",
    "PAGER",
    "VISUAL",
    "EDITOR",
    "CUDA_VISIBLE_DEVICES",
    "NUMBA_ENABLE_CUDASIM",
    "NUMBA_CPU_NAME",
    "NUMBA_CPU_FEATURES",
)
"""What llm, or what it is made of, reads; docs/environment.md says what for."""
ON = ("1", "true", "yes", "on")


def packages() -> Iterator[Row]:
    """Python and the packages that llm needs, against the versions that it is tested with."""
    yield Row("llm", "ok", f"{llmcli.__version__} in {Path(llmcli.__file__).parent}, Python {sys.version.split()[0]} ({sys.executable})")
    versions = {}
    for requirement in _requirements():
        name, *limits = re.split(r"(?=[<>=!~])", requirement.partition(";")[0].strip(), maxsplit=1)
        wanted = "".join(limits)
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Row("packages", "problem", f"{name} is not installed", f"pip install '{name}{wanted}'")
            continue
        versions[name] = version
        if not within(version, wanted):
            yield Row("packages", "note", f"{name} {version} is not tested: llm is made for {wanted}", f"pip install '{name}{wanted}'")
    yield Row("packages", "ok", ", ".join(f"{name} {version}" for name, version in versions.items()))


def _requirements() -> list[str]:
    """What the package says it needs, without extras; from a checkout that is not installed, its pyproject.toml."""
    project = Path(llmcli.__file__).parent.parent / "pyproject.toml"
    if project.is_file():
        found: list[str] = tomllib.loads(project.read_text("utf-8"))["project"]["dependencies"]
        return found
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return [line for line in importlib.metadata.requires("llmcli") or [] if "extra ==" not in line]
    return []


def within(version: str, limits: str) -> bool:
    """Whether a version keeps to limits such as '>=0.68,<0.69' (only >= and <, as we write them)."""
    own = _numbers(version)
    for limit in filter(None, limits.split(",")):
        edge = _numbers(limit)
        if (limit.startswith(">=") and own < edge) or (limit.startswith("<") and own >= edge):
            return False
    return True


def _numbers(version: str) -> list[int]:
    return ([int(part) for part in re.findall(r"\d+", version)] + [0, 0])[:3]


def command() -> Iterator[Row]:
    """Which program answers to `llm`: there is a well-known other one."""
    found = [path for folder in os.get_exec_path() if os.access(path := Path(folder) / "llm", os.X_OK) and path.is_file()]
    others = [path for path in found if not _ours(path)]
    own = next((path for path in found if _ours(path)), None)
    aside = "llmcli and python -m llmcli are always this program"
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        theirs = importlib.metadata.distribution("llm")
        text = f"the package llm {theirs.version} is installed in this environment too and both install the command llm"
        yield Row("command", "note", text, f"Use one environment for each (pipx); {aside}")
    if not found:
        yield Row("command", "note", f"no llm in PATH; {aside}", f"Add {Path(sys.executable).parent} to PATH, or activate the environment")
    elif not _ours(found[0]):
        fix = (
            f"Call llmcli, or put {own.parent} first in PATH" if own else f"Call {shutil.which('llmcli') or f'{sys.executable} -m llmcli'}"
        )
        yield Row("command", "note", f"llm in this PATH is another program: {found[0]}", fix)
    elif others:
        yield Row("command", "ok", f"llm is {found[0]}; another program of this name comes later in PATH: {others[0]}")
    else:
        yield Row("command", "ok", f"llm is {found[0]}")


def _ours(path: Path) -> bool:
    """Whether a program starts this package: installers write its name into a short script."""
    try:
        with path.open("rb") as file:
            return b"llmcli" in file.read(4096)
    except OSError:
        return False


def variables() -> Iterator[Row]:
    """What is set of what we read, without secrets; and what looks like ours and is read by nobody."""
    known = [name for name in VARIABLES if os.environ.get(name)]
    yield Row("variables", "ok", ", ".join(f"{name}={_shown(name)}" for name in known) or "none set")
    for name in sorted(os.environ):
        if name.startswith("LLMCLI_") and name not in VARIABLES:
            near = difflib.get_close_matches(name, VARIABLES, n=1)
            yield Row("variables", "note", f"{name} is set and nothing reads it", f"Did you mean {near[0]}?" if near else f"unset {name}")


def _shown(name: str) -> str:
    """A value for a report that strangers may read: no token, no password in an address."""
    if name == "HF_TOKEN":
        return "(set, not shown)"
    return re.sub(r"(?<=//)[^/@]*@", "***@", os.environ[name])


def network() -> Iterator[Row]:
    """Whether llm pull may use it. No connection is tried."""
    off = [name for name in ("LLMCLI_OFFLINE", "HF_HUB_OFFLINE") if os.environ.get(name, "").lower() in ON]
    if off:
        yield Row("network", "note", f"never used: {' and '.join(off)} set", f"unset {' '.join(off)}, before llm pull")
    else:
        yield Row("network", "ok", "used by llm pull only (not tried here); --offline forbids it")


def terminal() -> Iterator[Row]:
    """Whether characters and colours arrive as they are meant."""
    encoding = (sys.stdout.encoding if sys.stdout else None) or locale.getpreferredencoding(False)
    variable = next((name for name in ("LC_ALL", "LC_CTYPE", "LANG") if os.environ.get(name)), "")
    setting = f"{variable}={os.environ[variable]}" if variable else "no LANG set"
    if sys.stdout is None or not sys.stdout.isatty():
        yield Row("terminal", "ok", f"standard output is no terminal, {setting}; answers are UTF-8 all the same")
        return
    columns = shutil.get_terminal_size().columns
    text = f"{os.environ.get('TERM') or 'TERM is not set'}, {columns} columns, {setting}"
    if (encoding or "").lower().replace("-", "") != "utf8":
        yield Row("terminal", "note", f"{text}: it asks for {encoding}, and answers are UTF-8", "export LANG=C.UTF-8")
    else:
        yield Row("terminal", "ok", text)
