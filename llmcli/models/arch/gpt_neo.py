"""GPT-Neo: GPT-2 with every other layer's attention banded (the pattern of GPT-3), logits not scaled down, split matrices."""

from dataclasses import replace

from llmcli.models import limits
from llmcli.models.config import ACTIVATIONS, Config, head_size
from llmcli.models.names import both, concat, copy
from llmcli.models.spec import Attention, Layer, Mlp, Norm, Spec

TYPES = {"gpt_neo": "GPTNeoForCausalLM"}
PREFIX = "transformer."
IGNORED = (".attn.attention.bias", ".attn.attention.masked_bias")

_LAYER = "transformer.h.{i}"
NAMES = {
    "embedding": copy("transformer.wte.weight"),
    "position": copy("transformer.wpe.weight"),
    **both("layers.{i}.attention_norm", f"{_LAYER}.ln_1"),
    "layers.{i}.qkv": concat(*(f"{_LAYER}.attn.attention.{x}_proj.weight" for x in "qkv")),
    **both("layers.{i}.attention_out", f"{_LAYER}.attn.attention.out_proj"),
    **both("layers.{i}.mlp_norm", f"{_LAYER}.ln_2"),
    **both("layers.{i}.up", f"{_LAYER}.mlp.c_fc"),
    **both("layers.{i}.down", f"{_LAYER}.mlp.c_proj"),
    **both("final_norm", "transformer.ln_f"),
    "head": copy("lm_head.weight"),
}


def spec(cfg: Config) -> Spec:
    hidden = cfg.count("hidden_size", most=limits.WIDTH)
    heads = cfg.count("num_heads", "num_attention_heads", most=limits.HEADS)
    count = cfg.count("num_layers", "num_hidden_layers", most=limits.LAYERS)
    context = cfg.count("max_position_embeddings", most=limits.CONTEXT)
    choices = {"global": 0, "local": cfg.count("window_size", most=limits.CONTEXT, default=256)}
    windows = cfg.runs("attention_types", choices=choices, count=count)
    listed = cfg.words("attention_layers", choices=choices, count=count)  # the same, written out
    mlp = Mlp(
        size=cfg.count("intermediate_size", most=limits.WIDTH, default=4 * hidden),
        activation=cfg.word("activation_function", choices=ACTIVATIONS, default="gelu_new"),
        gated=False,
        bias=True,
    )
    layer = Layer(Attention(heads, heads, head_size(hidden, heads), scale=1.0, out_bias=True), mlp)
    each = windows or listed or tuple(choices["local" if i % 2 else "global"] for i in range(count))
    return Spec(
        vocab=cfg.count("vocab_size", most=limits.VOCAB),
        hidden=hidden,
        context=context,
        norm=Norm("layer", cfg.number("layer_norm_epsilon", low=0, high=1, default=1e-5), bias=True),
        layers=tuple(replace(layer, attention=replace(layer.attention, window=w)) for w in each),
        tied=cfg.flag("tie_word_embeddings", default=True),
        positions=context,
    )


TINY = {
    "gpt_neo": {
        "model_type": "gpt_neo",
        "architectures": ["GPTNeoForCausalLM"],
        "hidden_size": 36,
        "num_heads": 3,
        "num_layers": 4,
        "attention_types": [[["global", "local"], 1], [["local"], 2]],
        "attention_layers": ["global", "local", "local", "local"],
        "intermediate_size": 52,
        "window_size": 7,
        "max_position_embeddings": 40,
        "vocab_size": 67,
    }
}
