"""What a model is said to need, against what a process takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llmcli import acquire, estimate, library, memory
from llmcli import engine as engines
from llmcli.backends.cpu import build
from llmcli.errors import OutOfMemory
from llmcli.models import architectures, decoder
from llmcli.weights import packed, store
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
    with pytest.raises(
        OutOfMemory, match=r"for demo:int8: it needs \d+ MiB and \d+ MiB are available\. No smaller form of it fits"
    ) as caught:
        engines.load("demo")
    assert caught.value.instead == ()


def test_the_largest_context_that_fits_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = str(packed_file(tmp_path, "none"))
    needed = {context: library.describe(name, context)["memory_bytes"] for context in (256, 512, 640)}
    assert needed[256] < needed[512] < needed[640]
    monkeypatch.setattr(memory, "resident", lambda: 0)
    monkeypatch.setattr(estimate, "MARGIN", 0)
    monkeypatch.setattr(build, "_processes", lambda: 1)  # kernels may still have to be compiled, with the memory that there is
    for room, context in ((needed[512], 512), (needed[512] - 1, 256)):
        monkeypatch.setattr(memory, "available", lambda room=room: room)
        with pytest.raises(OutOfMemory, match=rf"Try -c {context}, which fits$"):
            engines.load(name)
        engines.load(name, context=context).close()
    monkeypatch.setattr(memory, "available", lambda: needed[256] - 1)
    with pytest.raises(OutOfMemory, match=r"Try --kv int16 -c 256, which fits$"):
        engines.load(name)
    engines.load(name, context=256, kv="int16").close()


MADE = {"hidden_size": 288, "num_attention_heads": 12, "num_key_value_heads": 12, "intermediate_size": 800}


def test_the_table_of_what_would_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row is true: it loads in that memory, once its command has been run; what is missing from the table does not."""
    monkeypatch.setenv("LLMCLI_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(memory, "resident", lambda: 0)
    monkeypatch.setattr(estimate, "MARGIN", 0)
    monkeypatch.setattr(build, "_processes", lambda: 1)
    source = write_folder(tmp_path / "tiny", {**CONFIG, **MADE})
    acquire.import_model(source, "none", "tiny")
    whole = library.describe("tiny")
    for room in (whole["memory_bytes"] - 4_000_000, whole["memory_bytes"] - whole["memory_by_use"]["weights"] // 2):
        monkeypatch.setattr(memory, "available", lambda room=room: room)
        with pytest.raises(OutOfMemory) as caught:
            engines.load("tiny:none")
        heading, *rows = caught.value.instead
        assert heading[:4] == ("model", "--kv", "-c", "memory") and {row[0] for row in rows} >= {"tiny:int8", "tiny:int4"}
        for model, kind, context, size, how in rows:
            if how:
                assert how == f"llm quantize tiny --quant {model[-4:]}"
                if model[-4:] not in store.quantizations("tiny"):
                    library.quantize("tiny", model[-4:])
            context = int(context)
            loaded = engines.load(model, context=context, kv=kind)
            loaded.close()
            with packed.open(store.find(model)) as file:
                plan = engines.read_plan(file, context)[1]
                assert size == f"{sum(engines.memory_of(file, plan, kind).values()) / 2**20:,.0f} MiB"
            if context < whole["memory_context"]:
                with pytest.raises(OutOfMemory):
                    engines.load(model, context=context + 1, kv=kind)
        library.remove("tiny:int8")
        library.remove("tiny:int4")
    library.quantize("tiny", "int4")
    with pytest.raises(OutOfMemory) as caught:
        engines.load("tiny:none")
    assert {row[4] for row in caught.value.instead if row[0] == "tiny:int4"} == {""}, "what is here needs no command"


def test_the_table_of_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of `llm pull` are commands too; a model that fits raises nothing."""
    spec = architectures.describe(CONFIG)[0]
    model = estimate.Model(decoder.plan(spec, 640), tokenizer=1000)
    wanted = estimate.Variant("a/b:int8", "int8", 50 << 20)
    other = estimate.Variant("a/b:int4", "int4", 30 << 20, "llm pull a/b --quant int4")
    monkeypatch.setattr(memory, "resident", lambda: 0)
    monkeypatch.setattr(memory, "available", lambda: sum(model.needed(50 << 20, "int16").values()))
    estimate.require(model, wanted, "int16", list, least=1)
    monkeypatch.setattr(memory, "available", lambda: sum(model.needed(30 << 20, "int16").values()) + estimate.MARGIN)
    with pytest.raises(OutOfMemory, match=r"Try -m a/b:int4 -c 640, which fits \(llm pull a/b --quant int4 makes it\)$"):
        estimate.require(model, wanted, "int16", lambda: [other], least=1)
    monkeypatch.setattr(memory, "available", lambda: None)
    estimate.require(model, wanted, "int16", list)
