"""BLOOM: ALiBi instead of positions, a norm of the embeddings, layer norms and biases as in GPT-2."""

from llmcli.models import alibi, limits
from llmcli.models.config import Config, head_size
from llmcli.models.names import both, copy, split_qkv
from llmcli.models.spec import Attention, Layer, Mlp, Norm, Spec

TYPES = {"bloom": "BloomForCausalLM"}
PREFIX = "transformer."
IGNORED = ()

_LAYER = "transformer.h.{i}"
NAMES = {
    "embedding": copy("transformer.word_embeddings.weight"),
    **both("embedding_norm", "transformer.word_embeddings_layernorm"),
    **both("layers.{i}.attention_norm", f"{_LAYER}.input_layernorm"),
    "layers.{i}.qkv": split_qkv(f"{_LAYER}.self_attention.query_key_value.weight"),
    "layers.{i}.qkv_bias": split_qkv(f"{_LAYER}.self_attention.query_key_value.bias"),
    **both("layers.{i}.attention_out", f"{_LAYER}.self_attention.dense"),
    **both("layers.{i}.mlp_norm", f"{_LAYER}.post_attention_layernorm"),
    **both("layers.{i}.up", f"{_LAYER}.mlp.dense_h_to_4h"),
    **both("layers.{i}.down", f"{_LAYER}.mlp.dense_4h_to_h"),
    **both("final_norm", "transformer.ln_f"),
    "head": copy("lm_head.weight"),
}


def spec(cfg: Config) -> Spec:
    cfg.expect("apply_residual_connection_post_layernorm", False)
    hidden = cfg.count("hidden_size", "n_embed", most=limits.WIDTH)
    heads = cfg.count("n_head", "num_attention_heads", most=limits.HEADS)
    size = head_size(hidden, heads)
    cfg.expect("n_inner", 4 * hidden)
    layer = Layer(
        Attention(heads, heads, size, scale=size**-0.5, bias=True, out_bias=True, alibi=alibi.slopes(heads)),
        Mlp(4 * hidden, "gelu_tanh", gated=False, bias=True),
    )
    return Spec(
        vocab=cfg.count("vocab_size", most=limits.VOCAB),
        hidden=hidden,
        context=cfg.count("seq_length", most=limits.CONTEXT, default=2048),
        norm=Norm("layer", cfg.number("layer_norm_epsilon", low=0, high=1, default=1e-5), bias=True),
        layers=(layer,) * cfg.count("n_layer", "num_hidden_layers", most=limits.LAYERS),
        tied=cfg.flag("tie_word_embeddings", default=True),
        embedding_norm=True,
    )


TINY = {
    "bloom": {
        "model_type": "bloom",
        "architectures": ["BloomForCausalLM"],
        "hidden_size": 36,
        "n_head": 3,
        "n_layer": 2,
        "vocab_size": 67,
        "seq_length": 64,
    }
}
