"""Fixtures every test may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import llmcli

ROOT = Path(__file__).resolve().parent.parent


def pytest_xdist_auto_num_workers() -> int | None:
    """One more than there are processors: tests wait for other processes, clocks and terminals a sixth of their time."""
    return None if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ else (os.cpu_count() or 1) + 1


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real models and texts (LLMCLI_TEST_DATA); skips, counted, where it is missing."""
    path = Path(os.environ.get("LLMCLI_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no test data at {path}: set LLMCLI_TEST_DATA")
    return path


@pytest.fixture(scope="session", autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests never touch the user's models or settings. Kernel objects are shared over runs: they are keyed by source."""
    saved = {name: os.environ.get(name) for name in ("LLMCLI_HOME", "LLMCLI_KERNELS", "LLMCLI_MODEL", "PYTHONPATH")}
    os.environ.setdefault("LLMCLI_KERNELS", str(ROOT / ".kernels"))
    os.environ["LLMCLI_HOME"] = str(tmp_path_factory.mktemp("home"))
    os.environ.pop("LLMCLI_MODEL", None)
    if Path(llmcli.__file__).parent.parent == ROOT:  # commands that tests start run the copy that tests import
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), saved["PYTHONPATH"])))
    yield
    for name, value in saved.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
