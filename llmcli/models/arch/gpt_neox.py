"""GPT-NeoX (Pythia): layer norms, biases, a rotated part of each head, attention and MLP side by side."""

from llmcli.models import limits, rope
from llmcli.models.config import ACTIVATIONS, Config, head_size
from llmcli.models.names import copy, split_qkv
from llmcli.models.spec import Attention, Layer, Mlp, Norm, Spec

TYPES = {"gpt_neox": "GPTNeoXForCausalLM"}
PREFIX = "gpt_neox."
IGNORED = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")

_LAYER = "gpt_neox.layers.{i}"
_PLAIN = {
    "layers.{i}.attention_norm": f"{_LAYER}.input_layernorm",
    "layers.{i}.attention_out": f"{_LAYER}.attention.dense",
    "layers.{i}.mlp_norm": f"{_LAYER}.post_attention_layernorm",
    "layers.{i}.up": f"{_LAYER}.mlp.dense_h_to_4h",
    "layers.{i}.down": f"{_LAYER}.mlp.dense_4h_to_h",
    "final_norm": "gpt_neox.final_layer_norm",
}
NAMES = {
    "embedding": copy("gpt_neox.embed_in.weight"),
    "layers.{i}.qkv": split_qkv(f"{_LAYER}.attention.query_key_value.weight"),
    "layers.{i}.qkv_bias": split_qkv(f"{_LAYER}.attention.query_key_value.bias"),
    **{ours: copy(f"{theirs}.weight") for ours, theirs in _PLAIN.items()},
    **{f"{ours}_bias": copy(f"{theirs}.bias") for ours, theirs in _PLAIN.items()},
    "head": copy("embed_out.weight"),
}


def spec(cfg: Config) -> Spec:
    hidden = cfg.count("hidden_size", most=limits.WIDTH)
    heads = cfg.count("num_attention_heads", most=limits.HEADS)
    context = cfg.count("max_position_embeddings", most=limits.CONTEXT)
    size = head_size(hidden, heads)
    bias = cfg.flag("attention_bias", default=True)
    layer = Layer(
        Attention(heads, heads, size, scale=size**-0.5, bias=bias, out_bias=bias),
        Mlp(
            size=cfg.count("intermediate_size", most=limits.WIDTH),
            activation=cfg.word("hidden_act", choices=ACTIVATIONS, default="gelu"),
            gated=False,
            bias=True,
        ),
        rope=rope.read(cfg, size, context, portion=0.25),
        residual="parallel" if cfg.flag("use_parallel_residual", default=True) else "sequential",
    )
    return Spec(
        vocab=cfg.count("vocab_size", most=limits.VOCAB),
        hidden=hidden,
        context=context,
        norm=Norm("layer", cfg.number("layer_norm_eps", low=0, high=1, default=1e-5), bias=True),
        layers=(layer,) * cfg.count("num_hidden_layers", most=limits.LAYERS),
        tied=cfg.flag("tie_word_embeddings", default=False),
    )


_TINY = {
    "model_type": "gpt_neox",
    "architectures": ["GPTNeoXForCausalLM"],
    "hidden_size": 48,
    "intermediate_size": 52,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "vocab_size": 67,
    "max_position_embeddings": 40,
    "rotary_pct": 0.25,
    "rotary_emb_base": 500,
    "hidden_act": "gelu",
}
TINY = {
    "gpt_neox": {**_TINY, "tie_word_embeddings": False},
    "gpt_neox-sequential": {**_TINY, "tie_word_embeddings": False, "use_parallel_residual": False, "attention_bias": False},
}
