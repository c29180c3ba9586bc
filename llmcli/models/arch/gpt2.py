"""GPT-2: layer norms, learned positions, biases everywhere, weights stored transposed, tied output."""

from llmcli.models import limits
from llmcli.models.config import ACTIVATIONS, Config, head_size
from llmcli.models.names import copy, transpose
from llmcli.models.spec import Attention, Layer, Mlp, Norm, Spec

TYPES = {"gpt2": "GPT2LMHeadModel"}
PREFIX = "transformer."
IGNORED = (".attn.bias", ".attn.masked_bias")

_LAYER = "transformer.h.{i}"
_MATRICES = {"qkv": "attn.c_attn", "attention_out": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"}
_NORMS = {"layers.{i}.attention_norm": f"{_LAYER}.ln_1", "layers.{i}.mlp_norm": f"{_LAYER}.ln_2", "final_norm": "transformer.ln_f"}
NAMES = {
    "embedding": copy("transformer.wte.weight"),
    "position": copy("transformer.wpe.weight"),
    **{f"layers.{{i}}.{ours}": transpose(f"{_LAYER}.{theirs}.weight") for ours, theirs in _MATRICES.items()},
    **{f"layers.{{i}}.{ours}_bias": copy(f"{_LAYER}.{theirs}.bias") for ours, theirs in _MATRICES.items()},
    **{ours: copy(f"{theirs}.weight") for ours, theirs in _NORMS.items()},
    **{f"{ours}_bias": copy(f"{theirs}.bias") for ours, theirs in _NORMS.items()},
    "head": copy("lm_head.weight"),
}


def spec(cfg: Config) -> Spec:
    hidden = cfg.count("n_embd", "hidden_size", most=limits.WIDTH)
    heads = cfg.count("n_head", "num_attention_heads", most=limits.HEADS)
    context = cfg.count("n_positions", "max_position_embeddings", most=limits.CONTEXT)
    size = head_size(hidden, heads)
    scale = size**-0.5 if cfg.flag("scale_attn_weights", default=True) else 1.0
    by_layer = cfg.flag("scale_attn_by_inverse_layer_idx", default=False)
    cfg.flag("reorder_and_upcast_attn", default=False)  # the same numbers in float32
    mlp = Mlp(
        size=cfg.count("n_inner", most=limits.WIDTH, default=4 * hidden),
        activation=cfg.word("activation_function", choices=ACTIVATIONS, default="gelu_new"),
        gated=False,
        bias=True,
    )

    def layer(number: int) -> Layer:
        return Layer(Attention(heads, heads, size, scale / (number + 1 if by_layer else 1), bias=True, out_bias=True), mlp)

    return Spec(
        vocab=cfg.count("vocab_size", most=limits.VOCAB),
        hidden=hidden,
        context=context,
        norm=Norm("layer", cfg.number("layer_norm_epsilon", low=0, high=1, default=1e-5), bias=True),
        layers=tuple(layer(i) for i in range(cfg.count("n_layer", "num_hidden_layers", most=limits.LAYERS))),
        tied=cfg.flag("tie_word_embeddings", default=True),
        positions=context,
    )


TINY = {
    "gpt2": {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": 36,
        "n_head": 3,
        "n_layer": 2,
        "n_inner": 52,
        "n_positions": 40,
        "vocab_size": 67,
        "scale_attn_by_inverse_layer_idx": True,
    }
}
