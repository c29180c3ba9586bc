"""Makes tests/fixtures/perplexity.json: what transformers says of random texts under the tiny models of tests/fixtures/archs.

    python -m venv venv && venv/bin/pip install torch==2.13.0 transformers==5.23.0 safetensors numpy
    PYTHONPATH=. venv/bin/python tools/make_golden_perplexity.py

For each variant: `ids`, four contexts long, and `perplexity` of its first context (`whole`), and of all of it in windows of a context
that are half a context apart (`windows`), each scoring the tokens that no window before it did. In float32; the loss is the model's own.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import torch
import transformers

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
VARIANTS = ("llama", "gpt2", "qwen2")


@torch.no_grad()
def perplexity(model: torch.nn.Module, ids: torch.Tensor, window: int, stride: int) -> float:
    """e to the mean loss of all tokens but the first. ids: i64 [1, T]."""
    total, scored = 0.0, 1
    for start in range(0, ids.shape[1], stride):
        part = ids[:, start : start + window]
        labels = part.clone()
        labels[:, : max(1, scored - start)] = -100  # what the loss leaves out
        fresh = int((labels != -100).sum())
        total += fresh * float(model(part, labels=labels, use_cache=False).loss)
        scored = start + part.shape[1]
        if scored == ids.shape[1]:
            break
    return math.exp(total / (ids.shape[1] - 1))


def main() -> None:
    torch.set_num_threads(1)
    found = {}
    for variant in VARIANTS:
        folder = FIXTURES / "archs" / variant
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        context = model.config.max_position_embeddings
        generator = torch.Generator().manual_seed(zlib.crc32(variant.encode()))
        ids = torch.randint(0, model.config.vocab_size, (1, 4 * context), generator=generator)
        found[variant] = {
            "ids": ids[0].tolist(),
            "whole": perplexity(model, ids[:, :context], context, context),
            "windows": perplexity(model, ids, context, context // 2),
        }
    (FIXTURES / "perplexity.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
