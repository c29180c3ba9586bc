"""Makes tests/fixtures/archs: tiny random models with the logits that the original implementation gives for them.

    python -m venv venv && venv/bin/pip install torch==2.13.0 transformers==5.23.0 safetensors numpy
    PYTHONPATH=. venv/bin/python tools/make_golden.py [VARIANT ...]

For each variant in an architecture file's TINY: config.json as transformers writes it, model.safetensors (or shards
with an index) in the variant's dtype, and golden.npz with `ids` i32 [T] and `logits` f32 [T, V], computed in float32
from the stored weights. Weights are random but lively: no norm is all ones, no bias zero, and the attention is sharp
enough for a wrong mask or rotation to show, yet not so sharp that rounding does. tests/test_archs.py compares.
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.integrations import mxfp4

from llmcli.models import architectures

PLACE = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "archs"
TOKENS = 40
"""Tokens of a text, where the model's context is not longer: then the text fills it."""
LENGTHS = {"phi3-shortrope": 16}
"""Variants with a shorter text than that."""
SHARDED = {"mixtral": "60kB"}
"""Variants saved in several files, and the size of one."""
GAINS = {
    "router": 2.0,
    "q_proj": 1.25,
    "k_proj": 1.25,
    "query_key_value": 1.4,
    "c_attn": 1.4,
    ".gate.": 2.0,
    "embed_tokens": 2.0,
    "wte": 2.0,
}
"""Part of a matrix's name -> how much larger than 1 / sqrt(columns) its numbers are: sharp attention, clear routing."""


ATTENTION = {"falcon-alibi": "sdpa"}
"""Variants that are not computed by the plain "eager" attention: Falcon's adds the ALiBi slopes twice."""


@torch.no_grad()
def enliven(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Random weights under which every part of the model matters."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("bias"):
            parameter.copy_(0.2 * noise)
        elif parameter.ndim == 1:
            parameter.add_(0.3 * noise)  # around 1, or 0 where 1 is added
        else:
            gain = next((gain for part, gain in GAINS.items() if part in name), 1.0)
            parameter.copy_(gain * noise * parameter.shape[-1] ** -0.5)


@torch.no_grad()
def in_four_bits(model: torch.nn.Module) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Rounds the experts' matrices [E, K, N] to MXFP4, as the original reads it. Returns their blocks [E, N, K / 32, 16] and scales."""
    found = {}
    for name, parameter in model.named_parameters():
        if name.endswith(("gate_up_proj", "down_proj")):
            groups = parameter.transpose(1, 2).unflatten(-1, (-1, 32))
            powers = torch.floor(torch.log2(groups.abs().amax(-1))) - 2
            values = torch.tensor(mxfp4.FP4_VALUES)
            codes = (groups[..., None] / 2 ** powers[..., None, None] - values).abs().argmin(-1).to(torch.uint8)
            blocks, scales = codes[..., ::2] | codes[..., 1::2] << 4, (powers + 127).to(torch.uint8)
            parameter.copy_(mxfp4.convert_moe_packed_tensors(blocks, scales, dtype=torch.float32))
            found[name] = blocks.contiguous(), scales.contiguous()
    return found


def make(variant: str, config: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(zlib.crc32(variant.encode()))
    dtype = getattr(torch, config.get("torch_dtype", "float32"))
    packed = config.get("quantization_config")
    settings = {n: value for n, value in config.items() if (value is not None or n == "sliding_window") and n != "quantization_config"}
    described = transformers.AutoConfig.for_model(**{**settings, "torch_dtype": "float32"})
    attention = ATTENTION.get(variant, "eager")
    model = transformers.AutoModelForCausalLM.from_config(described, attn_implementation=attention).eval()
    enliven(model, generator)
    blocks = in_four_bits(model) if packed else {}
    place = PLACE / variant
    place.mkdir(parents=True, exist_ok=True)
    for old in place.iterdir():
        old.unlink()
    model.to(dtype).save_pretrained(place, max_shard_size=SHARDED.get(variant, "1GB"))
    (place / "generation_config.json").unlink(missing_ok=True)
    # Read back rather than widened: `to(dtype)` rounds the rotary frequencies too, which no file holds.
    model = transformers.AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, attn_implementation=attention).eval()
    if packed:
        tensors = {name: tensor for name, tensor in load_file(place / "model.safetensors").items() if name not in blocks}
        for name, (codes, powers) in blocks.items():
            tensors |= {f"{name}_blocks": codes, f"{name}_scales": powers}
        save_file(tensors, place / "model.safetensors")
        written = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps({**written, "quantization_config": packed}, indent=2) + "\n")
    length = LENGTHS.get(variant) or max(TOKENS, getattr(described, "max_position_embeddings", TOKENS))
    ids = torch.randint(0, described.vocab_size, (1, length), generator=generator)
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[0].float()
    np.savez_compressed(place / "golden.npz", ids=ids[0].numpy().astype(np.int32), logits=logits.numpy())
    size = sum(file.stat().st_size for file in place.iterdir())
    print(f"{variant:22s} {length:4d} tokens, logits std {logits.std():.2f}, {size / 1000:.0f} kB")


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    wanted = set(sys.argv[1:])
    for module in architectures.every():
        for variant, config in module.TINY.items():
            if not wanted or variant in wanted:
                make(variant, config)


if __name__ == "__main__":
    main()
