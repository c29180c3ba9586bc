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
FAMILIES |= {"gpt2": "gpt2", "gpt_neox": "gptneox", "gpt_bigcode": "starcoder", "starcoder2": "starcoder2", "bloom": "bloom", "mpt": "mpt"}
FAMILIES |= {"gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3", "phi": "phi2", "phi3": "phi3"}
FAMILIES |= {
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "granitemoeshared": "granitemoe",
    "cohere": "command-r",
    "gpt_oss": "gpt-oss",
}
FAMILIES |= {name: name for name in ("smollm3", "granite", "granitemoe", "olmo", "olmo2", "cohere2", "stablelm", "falcon")}
"""model_type of config.json -> general.architecture."""
PERMUTED = ("llama", "smollm3", "granite", "granitemoe", "olmo")
"""Architectures whose queries and keys have the halves of each head interleaved."""
ENTRIES = {
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
    "logit_scale": "logit_scale",
    "clip_qkv": "attention.clamp_kqv",
    "num_experts": "expert_count",
    "num_local_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
    "shared_intermediate_size": "expert_shared_feed_forward_length",
}
"""Fields of config.json that are an entry of the architecture's."""


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
    layers = first(config, "num_hidden_layers", "n_layer", "n_layers")
    heads = first(config, "num_attention_heads", "n_head", "n_heads")
    kv_heads = first(config, "num_key_value_heads", "num_kv_heads", default=heads)
    if architecture == "falcon" and config["multi_query"] and not config["new_decoder_architecture"]:
        kv_heads = 1
    hidden = first(config, "hidden_size", "n_embd", "d_model")
    size = config.get("head_dim") or hidden // heads
    rope = config.get("rope_parameters") or {}
    if "full_attention" in rope:
        writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
        writer.add_sliding_window_pattern(config["sliding_window_pattern"])
        rope = rope["full_attention"]
    writer.add_block_count(layers)
    writer.add_head_count(heads)
    writer.add_embedding_length(hidden)
    writer.add_context_length(first(config, "max_position_embeddings", "n_positions", "seq_length", "max_seq_len"))
    writer.add_feed_forward_length(first(config, "intermediate_size", "n_inner", "ffn_hidden_size", default=4 * hidden))
    if architecture not in ("gpt2", "gptneox"):
        writer.add_head_count_kv(kv_heads)
    if "rms_norm_eps" not in config:
        writer.add_layer_norm_eps(first(config, "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", default=1e-5))
    else:
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
    if rope.get("rope_type") == "longrope":
        longer = config["max_position_embeddings"] / config["original_max_position_embeddings"]
        writer.add_rope_scaling_orig_ctx_len(config["original_max_position_embeddings"])
        magnitude = np.log(longer) / np.log(config["original_max_position_embeddings"])
        writer.add_rope_scaling_attn_factors(float(np.sqrt(1 + magnitude)))
        for length in ("short", "long"):
            writer.add_tensor(f"rope_factors_{length}.weight", np.array(rope[f"{length}_factor"], np.float32))
    if architecture in ("gemma2", "gemma3"):
        for field in ("attn_logit_softcapping", "final_logit_softcapping"):
            if config[field]:
                writer.add_float32(f"{architecture}.{field}", config[field])
    if "attn_config" in config:
        writer.add_clamp_kqv(config["attn_config"]["clip_qkv"])
        writer.add_max_alibi_bias(config["attn_config"]["alibi_bias_max"])
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    for field, entry in ENTRIES.items():
        if config.get(field) is not None:
            add_number = writer.add_uint32 if isinstance(config[field], int) else writer.add_float32
            add_number(f"{architecture}.{entry}", config[field])
    if architecture == "gpt-oss":
        writer.add_expert_feed_forward_length(config["intermediate_size"])
    add_vocabulary(writer, config["vocab_size"])
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, layers)
    for name, tensor in _rearranged(architecture, tensors, heads, kv_heads).items():
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        found = found or names.get_name(name.removeprefix("transformer."), try_suffixes=(".weight", ".bias"))
        found = found or (name if name.startswith("blk.") else None)
        assert found is not None, name
        kind = next((kind for part, kind in (kinds or {}).items() if part in found), "F32")
        number = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(found, gguf.quants.quantize(np.ascontiguousarray(tensor), number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def first(config: dict[str, Any], *names: str, default: Any = None) -> Any:
    """The first of these fields that says something."""
    return next((config[name] for name in names if config.get(name) is not None), default)


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
    for name, tensor in sorted(tensors.items(), key=lambda item: [int(x) if x.isdigit() else 0 for x in item[0].split(".")]):
        if architecture in PERMUTED and ".self_attn." in name and ("q_proj" in name or "k_proj" in name):
            count = heads if "q_proj" in name else kv_heads
            tensor = tensor.reshape(count, 2, -1, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)
        if architecture == "gpt2" and tensor.ndim == 2 and ".h." in name:
            tensor = tensor.T
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            tensor = tensor + np.float32(1)
        if "query_key_value" in name:
            parts = tensor.reshape(kv_heads, heads // kv_heads + 2, -1, *tensor.shape[1:])
            tensor = np.concatenate([x.reshape(-1, *tensor.shape[1:]) for x in (parts[:, :-2], parts[:, -2], parts[:, -1])])
        if ".input_linear." in name or "experts.gate_up_proj" in name:
            found.update(_gate_and_up(name, tensor))
            continue
        if architecture == "gpt-oss" and name.endswith("experts.down_proj"):
            name, tensor = f"blk.{name.split('.')[2]}.ffn_down_exps.weight", tensor.swapaxes(1, 2)
        if name.endswith("experts.down_proj_bias"):
            name = f"blk.{name.split('.')[2]}.ffn_down_exps.bias"
        name = f"{name}.weight" if name.endswith("sinks") else name
        tensor = tensor[0] if "shared_expert_gate" in name else tensor
        before, middle, after = name.partition(".norms.")
        if middle:  # a norm of each head
            experts.setdefault(f"{before}.weight", []).append(tensor)
            continue
        before, middle, after = name.partition(".experts.")
        if middle:
            experts.setdefault(f"{before}.experts.{after.partition('.')[2]}", []).append(tensor)
        else:
            found[name] = tensor
    return {**found, **{name: np.stack(parts) for name, parts in experts.items()}}


def _gate_and_up(name: str, tensor: np.ndarray) -> dict[str, np.ndarray]:
    """The two halves of what the original joins: one after the other, or, in GPT-OSS, alternating and transposed."""
    half, kind = tensor.shape[-2] // 2, "shexp" if "shared" in name else "exps"
    if "gate_up_proj" in name:
        tensor = tensor if name.endswith("bias") else tensor.swapaxes(1, 2)
        parts = (tensor[:, ::2], tensor[:, 1::2])
    else:
        parts = (tensor[..., :half, :], tensor[..., half:, :])
    ending = "bias" if name.endswith("bias") else "weight"
    return {f"blk.{name.split('.')[2]}.ffn_{x}_{kind}.{ending}": part for x, part in zip(("gate", "up"), parts, strict=True)}


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
