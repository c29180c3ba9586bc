"""GGUF files for the tests: of tiny models, by the `gguf` package's writer and its table of tensor names, and by hand.

The package's names, keys and quantized blocks are another program's view of the format, which is what they are for.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import safetensors.numpy

from arch_models import ARCHS
from llmcli.text.decoding import _alphabet
from llmcli.weights import encodings
from llmcli.weights.safetensors import File
from tokenizers_made import byte_level

FAMILIES = {"llama": "llama", "mistral": "llama", "mixtral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
FAMILIES |= {"gpt2": "gpt2", "gpt_neox": "gptneox"}
"""model_type of config.json -> general.architecture."""


def fixture(variant: str, **changes: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The config (with changes) and the tensors, f32, of one of the tiny models."""
    config = {**json.loads((ARCHS / variant / "config.json").read_text()), **changes}
    tensors = {}
    for path in (ARCHS / variant).glob("*.safetensors"):
        with File(path) as file:
            for name, tensor in file.tensors.items():
                encoding = encodings.FLOATS[tensor.dtype]
                tensors[name] = encoding.decode(file.read(tensor.start, tensor.size)).reshape(tensor.shape)
    return config, tensors


def write_folder(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    """The same model in the Hub's layout."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_bytes(byte_level())
    safetensors.numpy.save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def write_gguf(path: Path, config: dict[str, Any], tensors: dict[str, np.ndarray], kinds: dict[str, str] | None = None) -> Path:
    """The model as a GGUF file. kinds: type of the tensors whose names contain this; the others are F32."""
    architecture = FAMILIES[config["model_type"]]
    writer = gguf.GGUFWriter(path, architecture)
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    heads = config.get("num_attention_heads", config.get("n_head"))
    kv_heads = config.get("num_key_value_heads", heads)
    hidden = config.get("hidden_size", config.get("n_embd"))
    size = config.get("head_dim") or hidden // heads
    rope = config.get("rope_parameters") or {}
    writer.add_block_count(layers)
    writer.add_head_count(heads)
    writer.add_embedding_length(hidden)
    writer.add_context_length(config.get("max_position_embeddings", config.get("n_positions")))
    writer.add_feed_forward_length(config.get("intermediate_size", config.get("n_inner")))
    if architecture in ("gpt2", "gptneox"):
        writer.add_layer_norm_eps(config.get("layer_norm_epsilon", config.get("layer_norm_eps")))
    else:
        writer.add_head_count_kv(kv_heads)
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_key_length(size)
        writer.add_value_length(size)
    if rope:
        writer.add_rope_freq_base(rope["rope_theta"])
        writer.add_rope_dimension_count(int(size * rope.get("partial_rotary_factor", 1.0)))
    if rope.get("rope_type") in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope.get("rope_type") == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_float32(f"{architecture}.rope.scaling.yarn_beta_fast", rope["beta_fast"])
        writer.add_float32(f"{architecture}.rope.scaling.yarn_beta_slow", rope["beta_slow"])
    if rope.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_factors(rope, size))
    if "use_parallel_residual" in config:
        writer.add_parallel_residual(config["use_parallel_residual"])
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    if "num_local_experts" in config:
        writer.add_expert_count(config["num_local_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
    add_vocabulary(writer, config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], layers)
    for name, tensor in _rearranged(architecture, tensors, heads, kv_heads).items():
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, name
        kind = next((kind for part, kind in (kinds or {}).items() if part in found), "F32")
        number = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(found, gguf.quants.quantize(np.ascontiguousarray(tensor), number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """A byte-level vocabulary of at most `size` tokens: two control tokens, a merged word, bytes."""
    tokens = ["<|start|>", "<|end|>", "a", "b", "ab", *(byte for byte in _alphabet() if byte not in "ab")][:size]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template("{{ messages[0].content }}")


def _rearranged(architecture: str, tensors: dict[str, np.ndarray], heads: int, kv_heads: int) -> dict[str, np.ndarray]:
    """The tensors as converters to GGUF write them."""
    found: dict[str, np.ndarray] = {}
    experts: dict[str, list[np.ndarray]] = {}
    for name, tensor in tensors.items():
        if architecture == "llama" and ".self_attn." in name and ("q_proj" in name or "k_proj" in name):
            count = heads if "q_proj" in name else kv_heads
            tensor = tensor.reshape(count, 2, -1, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)
        if architecture == "gpt2" and tensor.ndim == 2 and ".h." in name:
            tensor = tensor.T
        if "query_key_value" in name:
            tensor = tensor.reshape(heads, 3, -1, *tensor.shape[1:]).swapaxes(0, 1).reshape(tensor.shape)
        before, middle, after = name.partition(".experts.")
        if middle:
            experts.setdefault(f"{before}.experts.{after.partition('.')[2]}", []).append(tensor)
        else:
            found[name] = tensor
    return {**found, **{name: np.stack(parts) for name, parts in experts.items()}}


def _llama3_factors(rope: dict[str, Any], size: int) -> np.ndarray:
    """What each pair's frequency is divided by."""
    plain = rope["rope_theta"] ** -(np.arange(0, size, 2) / size)
    turns = rope["original_max_position_embeddings"] * plain / (2 * np.pi)
    kept = np.clip((turns - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"]), 0, 1)
    return (1 / (kept + (1 - kept) / rope["factor"])).astype(np.float32)


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def build(
    entries: list[bytes] | None = None, tensors: list[bytes] | None = None, data: bytes = b"", counts: tuple[int, int] | None = None
) -> bytes:
    """A GGUF file by hand, right or wrong. counts: of tensors and of entries, where they are not the true ones."""
    entries, tensors = entries or [], tensors or []
    header = b"GGUF" + struct.pack("<IQQ", 3, *(counts or (len(tensors), len(entries)))) + b"".join(entries + tensors)
    return header + bytes(-len(header) % 32) + data


def entry(name: str | bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str | bytes, sizes: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)
