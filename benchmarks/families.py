"""Prompts and tokens one by one for random 1B-shape models of five structurally different families, as shares of the machine.

    python benchmarks/families.py [--quant int4] [--prompt 512] [--gen 64]
Prints a Markdown table. Weights are random, made in memory: nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": (
        "sequential, grouped queries, gated MLP",
        {
            "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
            "intermediate_size": 5632, "vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
        },
    ),
    "GPT-NeoX": (
        "parallel, own keys for every head, biases, a plain MLP",
        {
            "model_type": "gpt_neox", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 16,
            "intermediate_size": 8192, "vocab_size": 32000, "max_position_embeddings": 4096, "layer_norm_eps": 1e-5,
            "rotary_pct": 0.25, "use_parallel_residual": True, "hidden_act": "gelu", "tie_word_embeddings": False,
        },
    ),
    "Falcon": (
        "parallel under one norm, one key head for all",
        {
            "model_type": "falcon", "hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32, "multi_query": True,
            "parallel_attn": True, "new_decoder_architecture": False, "bias": False, "alibi": False, "vocab_size": 32000,
            "max_position_embeddings": 4096, "layer_norm_epsilon": 1e-5,
        },
    ),
    "Gemma 2": (
        "norms on both sides, soft-capping, windows in every other layer, heads of 256",
        {
            "model_type": "gemma2", "hidden_size": 2048, "num_hidden_layers": 18, "num_attention_heads": 8, "num_key_value_heads": 4,
            "head_dim": 256, "intermediate_size": 6144, "vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
            "sliding_window": 256, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256,
            "hidden_activation": "gelu_pytorch_tanh",
        },
    ),
    "Mixtral-like": (
        "8 experts, 2 of them a token",
        {
            "model_type": "mixtral", "hidden_size": 1024, "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 4,
            "intermediate_size": 2560, "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 32000,
            "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        },
    ),
}  # fmt: skip
"""Name -> (what it is for, a config.json)."""


def measured(config: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """The answer of `llm bench --json`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config))
        words = ["--shape", str(path), "--quant", options.quant, "--prompt", str(options.prompt), "--gen", str(options.gen)]
        command = [sys.executable, "-m", "llmcli", "bench", *words, "--repeat", str(options.repeat), "--json", "-q"]
        found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quant", default="int4")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--gen", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    print(f"| family | | parameters | prompt of {options.prompt}, tokens/s | of int8 | one by one, tokens/s | of read |")
    print("|---|---|---|---|---|---|---|")
    for name, (about, config) in FAMILIES.items():
        found = measured(config, options)
        prompt, gen = found["records"]
        print(
            f"| {name} | {about} | {prompt['model_n_params'] / 1e9:.2f} B | {prompt['median_ts']:.0f} | {prompt['dot_share']:.0%} |"
            f" {gen['median_ts']:.1f} | {gen['read_share']:.0%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
