"""What a model is said to need, against what a process takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llmcli import engine as engines
from llmcli import library, memory
from llmcli.errors import OutOfMemory
from random_model import packed_file

FILL = """
import sys
from pathlib import Path
import numpy as np
from llmcli import engine
from llmcli.backends.backend import Batch
with engine.opened(sys.argv[1]) as model:
    model.run(Batch.of(model.cache.sequence(), np.arange(model.context, dtype=np.int32)))
    print(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is known on Linux only")
@pytest.mark.parametrize("model", ["demo", "random"])
def test_the_estimate_is_the_peak_of_a_full_context(model: str, tmp_path: Path) -> None:
    name = "demo" if model == "demo" else str(packed_file(tmp_path, "none"))
    engines.load(name).close()  # a process that compiles kernels needs more
    # Without pages of files: how many of a library's are resident depends on how the system happened to cache it.
    done = subprocess.run([sys.executable, "-c", FILL, name], capture_output=True, text=True, timeout=120, check=True)
    estimate, peak = library.describe(name)["memory_bytes"], int(done.stdout) * 1024
    assert peak <= estimate <= max(1.1 * peak, peak + 20e6)


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 10_000_000)
    with pytest.raises(OutOfMemory, match=r"not enough memory for demo: it needs \d+ MiB and 10 MiB are available"):
        engines.load("demo")
