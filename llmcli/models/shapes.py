"""Shapes of well-known models, by size: what a model that exists only to be measured looks like.

All are of one family; `llm bench --shape config.json` takes the shape of any other. Sizes are those of SmolLM2 135M, TinyLlama 1.1B,
Llama 3.2 3B, Llama 3.1 8B and Qwen2.5 32B (without its biases).
"""

from __future__ import annotations

from llmcli.models.spec import Attention, Layer, Mlp, Norm, Rope, Spec


def _llama(
    vocab: int, hidden: int, layers: int, heads: int, kv_heads: int, head_size: int, inner: int, tied: bool, base: float, context: int
) -> Spec:
    attention = Attention(heads, kv_heads, head_size, scale=head_size**-0.5)
    layer = Layer(attention, Mlp(inner), rope=Rope(head_size, base))
    return Spec(vocab, hidden, context, Norm("rms", 1e-5), (layer,) * layers, tied)


SHAPES = {
    "135M": _llama(49152, 576, 30, 9, 3, 64, 1536, True, 1e5, 8192),
    "1B": _llama(32000, 2048, 22, 32, 4, 64, 5632, False, 1e4, 8192),
    "3B": _llama(128256, 3072, 28, 24, 8, 128, 8192, True, 5e5, 131072),
    "8B": _llama(128256, 4096, 32, 32, 8, 128, 14336, False, 5e5, 131072),
    "32B": _llama(152064, 5120, 64, 40, 8, 128, 27648, False, 1e6, 32768),
}
