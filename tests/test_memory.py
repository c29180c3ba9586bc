"""What a model is said to need, against what a process takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llmcli import acquire, library, memory
from llmcli import engine as engines
from llmcli.errors import OutOfMemory
from random_model import CONFIG, packed_file, tensors, write_folder

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


def with_experts(folder: Path, quantization: str) -> Path:
    """A packed Mixtral whose experts' activations are most of the memory that a step takes."""
    size, count = 1024, 16
    named = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": count, "num_experts_per_tok": 8}
    weights = {name: x for name, x in tensors().items() if ".mlp." not in name}
    shapes = {"w1": (size, 72), "w2": (72, size), "w3": (size, 72)}
    for block in (f"model.layers.{i}.block_sparse_moe" for i in range(2)):
        weights[f"{block}.gate.weight"] = np.random.default_rng(0).standard_normal((count, 72)).astype(np.float32)
        for part, shape in shapes.items():
            weights |= {f"{block}.experts.{e}.{part}.weight": np.full(shape, 0.01, np.float32) for e in range(count)}
    source = write_folder(folder / "source", {**CONFIG, **named, "intermediate_size": size}, weights)
    return acquire.import_model(source, quantization, "experts", path=folder / "experts.safetensors")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is known on Linux only")
@pytest.mark.parametrize("model", ["demo", "random", "experts"])
def test_the_estimate_is_the_peak_of_a_full_context(model: str, tmp_path: Path) -> None:
    name = "demo" if model == "demo" else str((with_experts if model == "experts" else packed_file)(tmp_path, "none"))
    engines.load(name).close()  # a process that compiles kernels needs more
    # Without pages of files: how many of a library's are resident depends on how the system happened to cache it.
    done = subprocess.run([sys.executable, "-c", FILL, name], capture_output=True, text=True, timeout=120, check=True)
    estimate, peak = library.describe(name)["memory_bytes"], int(done.stdout) * 1024
    assert peak <= estimate <= max(1.1 * peak, peak + 20e6)


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 10_000_000)
    with pytest.raises(OutOfMemory, match=r"not enough memory for demo: it needs \d+ MiB and 10 MiB are available\. Try a smaller context"):
        engines.load("demo")


def test_the_largest_context_that_fits_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = str(packed_file(tmp_path, "none"))
    needed = {context: library.describe(name, context)["memory_bytes"] for context in (256, 512, 640)}
    assert needed[256] < needed[512] < needed[640]
    monkeypatch.setattr(memory, "resident", lambda: 0)
    monkeypatch.setattr(memory, "available", lambda: needed[512])
    with pytest.raises(OutOfMemory, match=r"Try -c 512, which fits, or a smaller quantization"):
        engines.load(name)
    engines.load(name, context=512).close()
