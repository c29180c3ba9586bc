"""Model folders in the Hub's layout with random weights, awkward sizes and the demo's tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from llmcli import acquire, places
from llmcli.weights import packed

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 72,
    "intermediate_size": 172,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "vocab_size": 4096,
    "max_position_embeddings": 640,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}


def tensors(config: dict[str, Any] = CONFIG, seed: int = 0) -> dict[str, np.ndarray]:
    """All tensors that the config asks for, f32."""
    rng = np.random.default_rng(seed)
    hidden, inner, size = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    wide, narrow = config["num_attention_heads"] * size, config["num_key_value_heads"] * size

    def matrix(rows: int, columns: int) -> np.ndarray:
        return rng.normal(0, columns**-0.5, (rows, columns)).astype(np.float32)

    found = {"model.embed_tokens.weight": matrix(config["vocab_size"], hidden) * 3, "model.norm.weight": np.ones(hidden, np.float32)}
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        found |= {p + f"{x}_layernorm.weight": np.ones(hidden, np.float32) for x in ("input", "post_attention")}
        found |= {p + f"self_attn.{x}_proj.weight": matrix(wide if x == "q" else narrow, hidden) for x in "qkv"}
        found[p + "self_attn.o_proj.weight"] = matrix(hidden, wide)
        found |= {p + f"mlp.{x}_proj.weight": matrix(inner, hidden) for x in ("gate", "up")}
        found[p + "mlp.down_proj.weight"] = matrix(hidden, inner)
    return found


def write_folder(folder: Path, config: dict[str, Any] = CONFIG, weights: dict[str, np.ndarray] | None = None) -> Path:
    """The folder, with config.json, model.safetensors, tokenizer.json and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(tensors(config) if weights is None else weights, folder / "model.safetensors")
    with packed.open(next(places.demo().glob("*.safetensors"))) as demo:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_bytes(demo.file(name))
    return folder


def packed_file(folder: Path, quantization: str) -> Path:
    """A packed random model."""
    source = write_folder(folder / "source")
    return acquire.import_model(source, quantization, "random", path=folder / f"random-{quantization}.safetensors")
