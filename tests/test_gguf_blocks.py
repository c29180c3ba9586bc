"""GGUF's blocks in a packed file: kept as they are where a format of ours holds them, else decoded and packed anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from gguf_files import fixture, write_gguf
from llmcli import acquire
from llmcli.errors import NumericalError, UnsupportedModel
from llmcli.formats import format as formats
from llmcli.formats import layout
from llmcli.weights import encodings, packed
from llmcli.weights.gguf import File


def imported(source: Path, quant: str) -> Path:
    return acquire.import_model(source, quant, "tiny", path=source.parent / f"{source.name}-{quant}.safetensors")


def wide(columns: int = 64) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A tiny Llama whose rows are whole blocks."""
    changes = {"hidden_size": columns, "intermediate_size": 2 * columns, "vocab_size": 80, "attention_bias": False, "mlp_bias": False}
    config, old = fixture("llama-linear", **changes)
    rng = np.random.default_rng(0)
    sizes = {40: columns, 52: 2 * columns, 67: 80}
    names = {name: tuple(sizes.get(size, size) for size in values.shape) for name, values in old.items()}
    return config, {name: rng.standard_normal(shape).astype(np.float32) for name, shape in names.items()}


def blocks(values: np.ndarray, kind: str) -> np.ndarray:
    """The bytes that the gguf package makes of rows."""
    return gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])


@pytest.mark.parametrize(("kind", "quant", "format", "bits"), [("Q4_0", "int4", "int4_uniform", 4), ("Q8_0", "int8", "int8", 8)])
def test_blocks_are_moved_bit_for_bit(kind: str, quant: str, format: str, bits: int, tmp_path: Path) -> None:
    config, tensors = wide()
    kinds = dict.fromkeys(("ffn_gate", "ffn_up", "ffn_down", "attn_q.w", "attn_k.w", "attn_v.w"), kind)
    file = write_gguf(tmp_path / "model.gguf", config, tensors, kinds)
    with packed.open(imported(file, quant)) as model:
        loaded = model.load()
        inner = "model.layers.1.mlp."
        parts = {
            "layers.1.down": [tensors[f"{inner}down_proj.weight"]],
            "layers.1.gate_up": [tensors[f"{inner}{x}_proj.weight"] for x in ("gate", "up")],
            "layers.1.qkv": [tensors[f"model.layers.1.self_attn.{x}_proj.weight"] for x in "qkv"],
        }
        for name, sources in parts.items():
            weight = loaded[name]
            assert weight.format == format
            rows, columns = weight.shape
            raw = np.concatenate([blocks(values, kind) for values in sources]).reshape(rows, columns // 32, -1)
            numbers, scales = (layout.unpack_nibbles if bits == 4 else layout.unpack_bytes)(weight.data, rows, columns)
            np.testing.assert_array_equal(scales[:rows].view(np.uint16), raw[..., :2].copy().view(np.uint16)[..., 0])
            codes = raw[..., 2:]
            stored = np.concatenate([codes & 15, codes >> 4], -1) if bits == 4 else codes.view(np.int8)
            np.testing.assert_array_equal(numbers[:rows], stored)
        assert loaded["layers.1.attention_out"].format == quant  # it came as f32


@pytest.mark.parametrize("quant", ["int8", "int4", "none"])
def test_other_blocks_are_decoded_and_packed_as_usual(quant: str, tmp_path: Path) -> None:
    config, tensors = wide()
    file = write_gguf(tmp_path / "model.gguf", config, tensors, {"ffn_down": "Q5_1"})
    values = tensors["model.layers.0.mlp.down_proj.weight"]
    plain = gguf.quants.dequantize(blocks(values, "Q5_1"), gguf.GGMLQuantizationType.Q5_1)
    with packed.open(imported(file, quant)) as model:
        down = model.load()["layers.0.down"]
        assert down.format == {"none": "f32"}.get(quant, quant)
        wanted = formats.get(down.format).pack(np.ascontiguousarray(plain, np.float32))
        np.testing.assert_array_equal(down.data[: len(wanted)], wanted)


@pytest.mark.parametrize(
    ("kinds", "label", "down"),
    [
        ({"ffn_": "Q4_1", "attn": "Q4_0"}, "int4", "int4_offset"),
        ({"ffn_": "Q8_0", "attn": "Q4_1"}, "int8", "int8"),
        ({"ffn_gate": "Q5_1", "ffn_up": "Q4_1", "ffn_down": "Q4_1", "attn": "Q4_1"}, "int4", "int4_offset"),
        ({}, "int8", "int8"),
    ],
)
def test_blocks_as_they_are(kinds: dict[str, str], label: str, down: str, tmp_path: Path) -> None:
    config, tensors = wide()
    parts = {"ffn_": ["ffn_gate.", "ffn_up.", "ffn_down."], "attn": ["attn_q.", "attn_k.", "attn_v.", "attn_output."]}
    chosen = {name: kind for part, kind in kinds.items() for name in parts.get(part, [f"{part}."])}
    file = write_gguf(tmp_path / "model.gguf", config, tensors, chosen)
    path = acquire.import_model(file, None, "tiny", path=tmp_path / "kept.safetensors")
    values = tensors["model.layers.0.mlp.down_proj.weight"]
    with packed.open(path) as model:
        assert model.quantization == label
        weight = model.load()["layers.0.down"]
        assert weight.format == down
        if down == "int4_offset":
            plain = gguf.quants.dequantize(blocks(values, "Q4_1"), gguf.GGMLQuantizationType.Q4_1)
            np.testing.assert_array_equal(formats.get(down).unpack(weight.data, *weight.shape), plain)
        assert model.load()["layers.0.gate_up"].format == ("int8" if "Q5_1" in kinds.values() or label == "int8" else "int4_offset")


def test_a_vector_of_blocks_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", *wide(), {"ffn_norm": "Q8_0"})
    with pytest.raises(UnsupportedModel, match=r"ffn_norm.*stored as Q8_0"):
        imported(path, "int8")


def test_every_type_that_the_package_decodes_is_read() -> None:
    known = {kind.name for kind in gguf.quants._type_traits} | {"F32", "F16", "BF16"}
    found = {kind.name for kind in gguf.GGMLQuantizationType if encodings.find(kind.name) is not None}
    assert found == known and len(found) > 20


def test_a_q8_0_code_of_minus_128_is_packed_anew() -> None:
    encoding = encodings.find("Q8_0")
    assert encoding is not None
    raw = blocks(np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32), "Q8_0")
    assert encoding.repack(lambda: raw, "int8") is not None
    assert encoding.repack(lambda: raw, "f32") is None
    raw[3, 7] = 0x80
    assert encoding.repack(lambda: raw, "int8") is None


def test_a_damaged_scale_is_reported_with_its_place(tmp_path: Path) -> None:
    config, tensors = wide()
    path = write_gguf(tmp_path / "model.gguf", config, tensors, {"ffn_down": "Q8_0"})
    with File(path) as file:
        start = file.tensors["blk.1.ffn_down.weight"].start
    data = bytearray(path.read_bytes())
    data[start + 34 * 4 * 5 : start + 34 * 4 * 5 + 2] = np.float16(np.nan).tobytes()
    path.write_bytes(data)
    with pytest.raises(NumericalError, match=r"blk\.1\.ffn_down\.weight.*\[5, 0\]"):
        imported(path, "int8")
