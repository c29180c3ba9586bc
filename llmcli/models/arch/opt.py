"""OPT: GPT-3's block with ReLU: layer norms, biases, learned positions that start at row 2 of their table."""

from llmcli.models import limits
from llmcli.models.config import ACTIVATIONS, Config, head_size
from llmcli.models.names import both, concat, copy
from llmcli.models.spec import Attention, Layer, Mlp, Norm, Spec

TYPES = {"opt": "OPTForCausalLM"}
PREFIX = "model."
IGNORED = ()
OFFSET = 2
"""Rows of the position table before that of the first token."""

_LAYER = "model.decoder.layers.{i}"
NAMES = {
    "embedding": copy("model.decoder.embed_tokens.weight"),
    "position": copy("model.decoder.embed_positions.weight"),
    **both("layers.{i}.attention_norm", f"{_LAYER}.self_attn_layer_norm"),
    "layers.{i}.qkv": concat(*(f"{_LAYER}.self_attn.{x}_proj.weight" for x in "qkv")),
    "layers.{i}.qkv_bias": concat(*(f"{_LAYER}.self_attn.{x}_proj.bias" for x in "qkv")),
    **both("layers.{i}.attention_out", f"{_LAYER}.self_attn.out_proj"),
    **both("layers.{i}.mlp_norm", f"{_LAYER}.final_layer_norm"),
    **both("layers.{i}.up", f"{_LAYER}.fc1"),
    **both("layers.{i}.down", f"{_LAYER}.fc2"),
    **both("final_norm", "model.decoder.final_layer_norm"),
    "head": copy("lm_head.weight"),
}


def spec(cfg: Config) -> Spec:
    hidden = cfg.count("hidden_size", most=limits.WIDTH)
    cfg.expect("do_layer_norm_before", True)
    cfg.expect("_remove_final_layer_norm", False)
    cfg.expect("layer_norm_elementwise_affine", True)
    cfg.expect("word_embed_proj_dim", hidden)
    heads = cfg.count("num_attention_heads", most=limits.HEADS)
    context = cfg.count("max_position_embeddings", most=limits.CONTEXT - OFFSET)
    size, bias = head_size(hidden, heads), cfg.flag("enable_bias", default=True)
    layer = Layer(
        Attention(heads, heads, size, scale=size**-0.5, bias=bias, out_bias=bias),
        Mlp(
            size=cfg.count("ffn_dim", most=limits.WIDTH),
            activation=cfg.word("activation_function", choices=ACTIVATIONS, default="relu"),
            gated=False,
            bias=bias,
        ),
    )
    return Spec(
        vocab=cfg.count("vocab_size", most=limits.VOCAB),
        hidden=hidden,
        context=context,
        norm=Norm("layer", 1e-5, bias=True),
        layers=(layer,) * cfg.count("num_hidden_layers", most=limits.LAYERS),
        tied=cfg.flag("tie_word_embeddings", default=True),
        positions=context + OFFSET,
        position_offset=OFFSET,
    )


TINY = {
    "opt": {
        "model_type": "opt",
        "architectures": ["OPTForCausalLM"],
        "hidden_size": 36,
        "num_attention_heads": 3,
        "num_hidden_layers": 2,
        "ffn_dim": 52,
        "max_position_embeddings": 40,
        "word_embed_proj_dim": 36,
        "vocab_size": 67,
    }
}
