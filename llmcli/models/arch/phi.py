"""Phi-1 and Phi-2: attention and MLP side by side behind one layer norm, biases everywhere, a rotated part of each head."""

from llmcli.models import limits, rope
from llmcli.models.config import ACTIVATIONS, Config, head_size
from llmcli.models.names import both, concat, copy
from llmcli.models.spec import Attention, Layer, Mlp, Norm, Spec

TYPES = {"phi": "PhiForCausalLM"}
PREFIX = "model."
IGNORED = (".rotary_emb.inv_freq",)

_LAYER = "model.layers.{i}"
NAMES = {
    "embedding": copy("model.embed_tokens.weight"),
    **both("layers.{i}.attention_norm", f"{_LAYER}.input_layernorm"),
    "layers.{i}.qkv": concat(*(f"{_LAYER}.self_attn.{x}_proj.weight" for x in "qkv")),
    "layers.{i}.qkv_bias": concat(*(f"{_LAYER}.self_attn.{x}_proj.bias" for x in "qkv")),
    **both("layers.{i}.attention_out", f"{_LAYER}.self_attn.dense"),
    **both("layers.{i}.up", f"{_LAYER}.mlp.fc1"),
    **both("layers.{i}.down", f"{_LAYER}.mlp.fc2"),
    **both("final_norm", "model.final_layernorm"),
    **both("head", "lm_head"),
}


def spec(cfg: Config) -> Spec:
    cfg.expect("qk_layernorm", False)
    hidden = cfg.count("hidden_size", most=limits.WIDTH)
    heads = cfg.count("num_attention_heads", most=limits.HEADS)
    context = cfg.count("max_position_embeddings", most=limits.CONTEXT, default=2048)
    size = head_size(hidden, heads)
    kv_heads = cfg.count("num_key_value_heads", most=limits.HEADS, default=heads)
    layer = Layer(
        Attention(heads, kv_heads, size, scale=size**-0.5, bias=True, out_bias=True),
        Mlp(
            size=cfg.count("intermediate_size", most=limits.WIDTH),
            activation=cfg.word("hidden_act", choices=ACTIVATIONS, default="gelu_new"),
            gated=False,
            bias=True,
        ),
        rope=rope.read(cfg, size, context, portion=0.5),
        residual="parallel",
        shared_norm=True,
    )
    return Spec(
        vocab=cfg.count("vocab_size", most=limits.VOCAB),
        hidden=hidden,
        context=context,
        norm=Norm("layer", cfg.number("layer_norm_eps", low=0, high=1, default=1e-5), bias=True),
        layers=(layer,) * cfg.count("num_hidden_layers", most=limits.LAYERS),
        tied=cfg.flag("tie_word_embeddings", default=False),
        head_bias=True,
    )


TINY = {
    "phi": {
        "model_type": "phi",
        "architectures": ["PhiForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 52,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 67,
        "max_position_embeddings": 40,
        "rope_theta": 500.0,
        "partial_rotary_factor": 0.4,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
}
