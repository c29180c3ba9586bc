"""GGUF files that every engine reads, so that all of them compute the same weights in the same bytes.

Matrices are in the wanted type; embedding and head are Q8_0, as in our files and in llama.cpp's own of models whose rows are no
multiple of 256. `requantized` makes one of another GGUF file, `random` one of a shape of models/shapes.py with random weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import dequantize, quantize

from llmcli.models.shapes import SHAPES
from llmcli.models.spec import Spec

KINDS = {"Q4_0": gguf.GGMLQuantizationType.Q4_0, "Q8_0": gguf.GGMLQuantizationType.Q8_0}
FILE_TYPES = {"Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0, "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}
EIGHT_BITS = ("token_embd.weight", "output.weight")
DRAWN = 1 << 20
"""Random numbers drawn for a file; they are repeated."""


def requantized(source: Path, target: Path, kind: str) -> Path:
    """The model of a GGUF file in another type."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, _value(reader, "general.architecture"))
    _copy_metadata(reader, writer, kind)
    for tensor in reader.tensors:
        wanted = KINDS["Q8_0" if tensor.name in EIGHT_BITS else kind]
        if tensor.tensor_type in (gguf.GGMLQuantizationType.F32, wanted):
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        else:
            writer.add_tensor(tensor.name, quantize(dequantize(tensor.data, tensor.tensor_type), wanted), raw_dtype=wanted)
    return _write(writer, target)


def random(shape: str, tokenizer: Path, target: Path, kind: str) -> Path:
    """A model of a shape with random weights, and the first tokens of another GGUF file's byte-level tokenizer."""
    spec = SHAPES[shape]
    writer = gguf.GGUFWriter(target, "llama")
    _describe(writer, spec, kind)
    _tokenizer(writer, gguf.GGUFReader(tokenizer), spec.vocab)
    normal = np.random.default_rng(0).standard_normal(DRAWN, np.float32)

    def matrix(name: str, rows: int, columns: int) -> None:
        wanted = KINDS["Q8_0" if name in EIGHT_BITS else kind]
        items, size = gguf.GGML_QUANT_SIZES[wanted]
        drawn = quantize((normal * columns**-0.5).reshape(-1, items), wanted)
        writer.add_tensor(name, np.resize(drawn, (rows, columns // items * size)), raw_dtype=wanted)

    def vector(name: str, size: int) -> None:
        writer.add_tensor(name, 1 + normal[:size] / 10)

    matrix("token_embd.weight", spec.vocab, spec.hidden)
    for number, layer in enumerate(spec.layers):
        a, name = layer.attention, f"blk.{number}"
        assert layer.mlp
        vector(f"{name}.attn_norm.weight", spec.hidden)
        matrix(f"{name}.attn_q.weight", a.heads * a.head_size, spec.hidden)
        matrix(f"{name}.attn_k.weight", a.kv_heads * a.head_size, spec.hidden)
        matrix(f"{name}.attn_v.weight", a.kv_heads * a.head_size, spec.hidden)
        matrix(f"{name}.attn_output.weight", spec.hidden, a.heads * a.head_size)
        vector(f"{name}.ffn_norm.weight", spec.hidden)
        matrix(f"{name}.ffn_gate.weight", layer.mlp.size, spec.hidden)
        matrix(f"{name}.ffn_up.weight", layer.mlp.size, spec.hidden)
        matrix(f"{name}.ffn_down.weight", spec.hidden, layer.mlp.size)
    vector("output_norm.weight", spec.hidden)
    if not spec.tied:
        matrix("output.weight", spec.vocab, spec.hidden)
    return _write(writer, target)


def _describe(writer: gguf.GGUFWriter, spec: Spec, kind: str) -> None:
    layer = spec.layers[0]
    assert layer.mlp and layer.rope
    writer.add_name("random")
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(len(spec.layers))
    writer.add_context_length(spec.context)
    writer.add_embedding_length(spec.hidden)
    writer.add_feed_forward_length(layer.mlp.size)
    writer.add_head_count(layer.attention.heads)
    writer.add_head_count_kv(layer.attention.kv_heads)
    writer.add_rope_freq_base(layer.rope.base)
    writer.add_rope_dimension_count(layer.rope.size)
    writer.add_layer_norm_rms_eps(spec.norm.eps)
    writer.add_vocab_size(spec.vocab)


def _tokenizer(writer: gguf.GGUFWriter, reader: gguf.GGUFReader, vocab: int) -> None:
    """The tokenizer's first `vocab` tokens, padded with unused ones: ids of a BPE are in the order of its merges."""
    known = _value(reader, "tokenizer.ggml.tokens")[:vocab]
    merges = _value(reader, "tokenizer.ggml.merges")
    tokens = known + [f"<unused{number}>" for number in range(vocab - len(known))]
    there = set(known)
    writer.add_tokenizer_model(_value(reader, "tokenizer.ggml.model"))
    writer.add_tokenizer_pre(_value(reader, "tokenizer.ggml.pre"))
    writer.add_token_list(tokens)
    writer.add_token_types((_value(reader, "tokenizer.ggml.token_type") + [5] * vocab)[: len(known)] + [5] * (vocab - len(known)))
    writer.add_token_merges([merge for merge in merges if merge.replace(" ", "") in there])
    writer.add_bos_token_id(_value(reader, "tokenizer.ggml.bos_token_id"))
    writer.add_eos_token_id(_value(reader, "tokenizer.ggml.eos_token_id"))
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)


def _copy_metadata(reader: gguf.GGUFReader, writer: gguf.GGUFWriter, kind: str) -> None:
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], inner)
    writer.add_file_type(FILE_TYPES[kind])


def _value(reader: gguf.GGUFReader, name: str) -> Any:
    return reader.fields[name].contents()


def _write(writer: gguf.GGUFWriter, target: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
