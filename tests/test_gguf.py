"""`llm import FILE.gguf`: the same model as from safetensors, blocks kept bit for bit, and no trust in the file."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_files import add_vocabulary, build, entry, fixture, tensor, text, write_folder, write_gguf
from llmcli import acquire, engine
from llmcli.backends.backend import Batch
from llmcli.errors import CorruptFile, ModelFileError, UnsupportedModel
from llmcli.models import architectures, metadata
from llmcli.weights import packed
from llmcli.weights.gguf import Checkpoint, File

SAME: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama-tied", {}),
    "llama-linear": ("llama-linear", {}),
    "llama-yarn": ("llama-yarn", {}),
    "mistral": ("mistral", {}),
    "mixtral": ("mixtral", {}),
    "qwen2": ("qwen2", {"use_sliding_window": False, "sliding_window": None, "layer_types": None}),
    "qwen3": ("qwen3", {"use_sliding_window": False, "sliding_window": None, "layer_types": None}),
    "gpt2": ("gpt2", {"scale_attn_by_inverse_layer_idx": False}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 12}),
    "gemma3": ("gemma3", {"query_pre_attn_scalar": 12, "sliding_window_pattern": 3}),
    "phi": ("phi", {}),
    "phi3": ("phi3", {}),
    "gpt_bigcode": ("gpt_bigcode", {}),
    "starcoder2": ("starcoder2", {}),
    "bloom": ("bloom", {}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 1, 1]}),
    **{name: (name, {}) for name in ("granite", "granitemoe", "granitemoeshared", "olmo", "olmo2", "cohere", "cohere-qk_norm")},
    "cohere2": ("cohere2", {"layer_types": None, "sliding_window_pattern": 4}),
    **{name: (name, {}) for name in ("stablelm", "stablelm-parallel", "falcon", "falcon-new", "falcon-new_one_norm")},
    "gpt_oss": ("gpt_oss", {"swiglu_limit": 7.0}),
    "mpt": ("mpt", {"attn_config": {"alibi": True, "alibi_bias_max": 8, "clip_qkv": 0.5, "softmax_scale": None}}),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neox-sequential": ("gpt_neox-sequential", {}),
}
"""What is asked for -> a tiny model of tests/fixtures/archs, and what its GGUF file cannot say and so must not be."""


def imported(source: Path, quant: str) -> Path:
    return acquire.import_model(source, quant, "tiny", path=source.parent / f"{source.name}-{quant}.safetensors")


def facts(path: Path, weights: bool = True) -> tuple[Any, dict[str, str]]:
    """A packed model's description, and the SHA-256 of its weights."""
    with packed.open(path) as file:
        return file.spec, {name: entry.sha256 for name, entry in file.entries.items() if entry.format != "file"}


def logits(path: Path, ids: list[int]) -> np.ndarray:
    with engine.opened(str(path), backend="reference") as model:
        return model.run(Batch.of(model.cache.sequence(), np.array(ids, np.int32), "all")).logits.copy()


@pytest.mark.parametrize("case", SAME)
def test_a_model_is_the_same_as_from_safetensors(case: str, tmp_path: Path) -> None:
    """Description and weights to the bit, so logits too: names, rearranged rows, experts, tied output, rotary scaling."""
    config, tensors = fixture(SAME[case][0], **SAME[case][1])
    wanted = facts(imported(write_folder(tmp_path / "folder", config, tensors), "int8"))
    found = facts(imported(write_gguf(tmp_path / "model.gguf", config, tensors), "int8"))
    assert found == wanted


@pytest.mark.parametrize(("variant", "layer"), [("qwen2_moe", "0"), ("qwen3_moe", "1")])
def test_models_all_of_whose_layers_have_experts(variant: str, layer: str, tmp_path: Path) -> None:
    """The tiny models have other layers too, which these files cannot say: one layer is taken."""
    changes = {"num_hidden_layers": 1, "mlp_only_layers": [], "decoder_sparse_step": 1, "layer_types": None}
    config, tensors = fixture(variant, **changes, use_sliding_window=False, sliding_window=None)
    one = {name.replace(f"layers.{layer}.", "layers.0."): x for name, x in tensors.items() if f"layers.{layer}." in name}
    one |= {name: x for name, x in tensors.items() if "layers." not in name}
    wanted = facts(imported(write_folder(tmp_path / "folder", config, one), "int8"))
    assert facts(imported(write_gguf(tmp_path / "model.gguf", config, one), "int8")) == wanted


def test_llama_3_scaling_comes_as_factors(tmp_path: Path) -> None:
    config, tensors = fixture("llama-llama3")
    folder, file = write_folder(tmp_path / "folder", config, tensors), write_gguf(tmp_path / "model.gguf", config, tensors)
    ids = list(range(40))
    np.testing.assert_allclose(logits(imported(file, "none"), ids), logits(imported(folder, "none"), ids), rtol=0, atol=2e-4)


def test_longrope_comes_as_two_tensors(tmp_path: Path) -> None:
    """Its factors are float32 there, so that it is not the same to the bit."""
    config, tensors = fixture("phi3-longrope")
    folder, file = write_folder(tmp_path / "folder", config, tensors), write_gguf(tmp_path / "model.gguf", config, tensors)
    ids = list(range(40))
    np.testing.assert_allclose(logits(imported(file, "none"), ids), logits(imported(folder, "none"), ids), rtol=0, atol=2e-4)


def test_the_largest_gemma_scales_queries_by_its_width() -> None:
    """GGUF does not say so; its number of layers does."""
    for layers, scale in ((46, 144**-0.5), (26, 128**-0.5)):
        sizes = {"block_count": layers, "embedding_length": 4608, "attention.head_count": 32, "attention.head_count_kv": 16}
        sizes |= {"attention.key_length": 128, "attention.value_length": 128, "context_length": 8192, "feed_forward_length": 36864}
        found = {f"gemma2.{name}": value for name, value in {**sizes, "attention.layer_norm_rms_epsilon": 1e-6}.items()}
        description = metadata.read(
            {"general.architecture": "gemma2", **found}, {"token_embd.weight": (256000, 4608)}, dict.fromkeys(metadata.FACTORS, [])
        )
        assert architectures.describe(description.config)[0].layers[0].attention.scale == scale


# --- what is refused


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("general.architecture", "rwkv", "gpt-oss, gpt2, gptneox, granite, granitemoe, llama,"),
        ("llama.surprise", 1, "llama.surprise"),
        ("split.count", 3, "one part"),
        ("llama.rope.scaling.type", "spiral", "spiral"),
        ("llama.attention.head_count", [4, 2], "differs between layers"),
        ("tokenizer.ggml.model", "bert", "byte-level BPE"),
        ("tokenizer.ggml.pre", "unheard-of", "unheard-of"),
    ],
)
def test_what_llm_does_not_run_is_refused(key: str, value: Any, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, tensors = fixture("llama-tied")
    path = write_gguf(tmp_path / "model.gguf", config, tensors)
    true = File._read_header

    def changed(self: File, cursor: Any) -> None:
        true(self, cursor)
        self.metadata[key] = value

    monkeypatch.setattr(File, "_read_header", changed)
    with pytest.raises(UnsupportedModel, match=why):
        imported(path, "int8")
    assert not list(tmp_path.glob("*.safetensors"))


def test_what_is_not_known_may_be_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A field of config.json, and an entry of a GGUF file."""
    config, tensors = fixture("llama-tied")
    folder = write_folder(tmp_path / "folder", {**config, "logit_spice": 3}, tensors)
    file = write_gguf(tmp_path / "model.gguf", config, tensors)
    true = metadata.read
    monkeypatch.setattr(metadata, "read", lambda found, *rest: true({**found, "llama.surprise": 3}, *rest))
    for source, name in ((folder, "logit_spice"), (file, "llama.surprise")):
        with pytest.raises(UnsupportedModel, match=f"{name}.*--allow-config"):
            acquire.import_model(source, "int8", path=tmp_path / "out.safetensors")
        acquire.import_model(source, "int8", path=tmp_path / "out.safetensors", allow=[name])


def test_a_vocabulary_alone_is_no_model(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "vocab.gguf", "llama")
    add_vocabulary(writer, 100)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    with pytest.raises(CorruptFile, match="vocabulary"):
        acquire.import_model(tmp_path / "vocab.gguf", "int8", path=tmp_path / "out.safetensors")


def test_more_tokens_than_embeddings_are_refused(tmp_path: Path) -> None:
    config, tensors = fixture("llama-tied")
    path = write_gguf(tmp_path / "model.gguf", {**config, "vocab_size": 68}, tensors)
    with pytest.raises(CorruptFile, match="68 tokens and embeddings for 67"):
        imported(path, "int8")


def test_experts_are_counted(tmp_path: Path) -> None:
    """One entry of a header may stand for 10,000 tensors."""
    few = [tensor("a_exps.weight", (1, 10_000)), tensor("b_exps.weight", (1, 5), 0, 40_000)]
    with opened(tmp_path / "few.gguf", build(tensors=few, data=bytes(40_032))) as file:
        assert len(Checkpoint(file, {}).tensors) == 10_005
    names = [f"x{i}_exps.weight" for i in range(11)]
    data = [tensor(name, (1, 10_000), 0, i * 40_000) for i, name in enumerate(names)]
    with opened(tmp_path / "many.gguf", build(tensors=data, data=bytes(440_000))) as file, pytest.raises(CorruptFile, match="experts"):
        Checkpoint(file, {})


# --- the header as a trust boundary

GOOD = build(
    [entry("general.alignment", 4, struct.pack("<I", 32)), entry("names", 9, struct.pack("<IQ", 8, 2) + text("a") + text("b"))],
    [tensor("one", (8,)), tensor("two", (4, 2), 1, 32)],
    bytes(48),
)
LONG = struct.pack("<Q", 2**63)
BAD = {
    "empty": b"",
    "seven bytes": GOOD[:7],
    "other magic": b"GGML" + GOOD[4:],
    "version 1": GOOD[:4] + struct.pack("<I", 1) + GOOD[8:],
    "big-endian": GOOD[:4] + struct.pack(">I", 3) + GOOD[8:],
    "too many tensors": build(counts=(2**63, 0)),
    "too many entries": build(counts=(0, 2**63)),
    "more entries than there are": build(counts=(0, 5)),
    "a name without end": build([LONG + b"name"]),
    "a name of a megabyte": build([entry("n" * 2**20, 0, b"\0")]),
    "a name that is no text": build([entry(b"\xff\xfe", 0, b"\0")]),
    "a name with control characters": build([entry("a\x1b[2J", 0, b"\0")]),
    "a name twice": build([entry("a", 0, b"\0"), entry("a", 0, b"\0")]),
    "a text without end": build([entry("a", 8, LONG)]),
    "a text longer than the file": build([entry("a", 8, struct.pack("<Q", 2**23))]),
    "an unknown type": build([entry("a", 13, b"\0")]),
    "two for true": build([entry("a", 7, b"\2")]),
    "an array without end": build([entry("a", 9, struct.pack("<I", 10) + LONG)]),
    "an array longer than the file": build([entry("a", 9, struct.pack("<IQ", 10, 2**22))]),
    "texts longer than the file": build([entry("a", 9, struct.pack("<IQ", 8, 2**22))]),
    "an array of arrays": build([entry("a", 9, struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 9, 1))]),
    "an alignment of 0": build([entry("general.alignment", 4, bytes(4))]),
    "an alignment of 3": build([entry("general.alignment", 4, struct.pack("<I", 3))]),
    "an alignment in words": build([entry("general.alignment", 8, text("32"))]),
    "no dimensions": build(tensors=[tensor("a", ())]),
    "five dimensions": build(tensors=[tensor("a", (1, 1, 1, 1, 1))], data=bytes(4)),
    "2^32 dimensions": build(tensors=[text("a") + struct.pack("<I", 2**32 - 1)]),
    "a size of 0": build(tensors=[tensor("a", (0, 4))]),
    "a product that overflows": build(tensors=[tensor("a", (2**32, 2**32))]),
    "an unknown tensor type": build(tensors=[tensor("a", (4,), 255)], data=bytes(16)),
    "half a block": build(tensors=[tensor("a", (31,), 8)], data=bytes(34)),
    "a tensor twice": build(tensors=[tensor("a", (8,)), tensor("a", (8,), 0, 32)], data=bytes(64)),
    "overlapping tensors": build(tensors=[tensor("a", (8,)), tensor("b", (8,), 0, 0)], data=bytes(64)),
    "a hole": build(tensors=[tensor("a", (8,)), tensor("b", (8,), 0, 64)], data=bytes(96)),
    "an odd offset": build(tensors=[tensor("a", (8,)), tensor("b", (8,), 0, 33)], data=bytes(96)),
    "an offset past the end": build(tensors=[tensor("a", (8,), 0, 2**63)], data=bytes(32)),
    "a tensor past the end": build(tensors=[tensor("a", (2**30,))], data=bytes(32)),
    "bytes of no tensor": build(tensors=[tensor("a", (8,))], data=bytes(200)),
}


def opened(path: Path, data: bytes) -> File:
    path.write_bytes(data)
    return File(path)


def test_a_good_header(tmp_path: Path) -> None:
    with opened(tmp_path / "good.gguf", GOOD) as file:
        assert file.metadata == {"general.alignment": 32, "names": ["a", "b"]}
        assert {name: (t.dtype, t.shape, t.size) for name, t in file.tensors.items()} == {
            "one": ("F32", (8,), 32),
            "two": ("F16", (2, 4), 16),
        }


@pytest.mark.parametrize("case", BAD)
def test_a_bad_header_is_refused_at_once(case: str, tmp_path: Path) -> None:
    start = time.process_time()
    with pytest.raises(ModelFileError) as caught:
        opened(tmp_path / "bad.gguf", BAD[case])
    assert time.process_time() - start < 1
    assert "\x1b" not in str(caught.value)


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    for size in range(len(GOOD)):
        with pytest.raises(CorruptFile):
            opened(tmp_path / "cut.gguf", GOOD[:size])


def test_a_bomb_of_items_is_refused(tmp_path: Path) -> None:
    """Each empty text takes 8 bytes of the file and 60 of memory."""
    bomb = entry("a", 9, struct.pack("<IQ", 8, 10_000_000))
    with pytest.raises(CorruptFile, match="items"):
        opened(tmp_path / "bomb.gguf", build([bomb]) + bytes(1000))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_bytes_never_do_harm(tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]) -> None:
    data = bytearray(GOOD)
    for place, value in changes:
        data[place] = value
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    try:
        opened(path, bytes(data)).close()
    except ModelFileError:
        pass
