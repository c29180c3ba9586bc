"""Falcon: attention and MLP side by side (7B: one key head and one norm; the new decoder: grouped heads and two norms), or,
in the RW models, one after the other with ALiBi."""

from dataclasses import replace

from llmcli.errors import UnsupportedModel
from llmcli.models import alibi, limits, rope
from llmcli.models.config import ACTIVATIONS, Config, head_size
from llmcli.models.names import Source, both, copy, split_qkv
from llmcli.models.spec import Attention, Layer, Mlp, Norm, Spec

TYPES = {"falcon": "FalconForCausalLM"}
PREFIX = "transformer."
IGNORED = (".rotary_emb.inv_freq",)

_LAYER = "transformer.h.{i}"


def _either(name: str, other: str) -> dict[str, Source]:
    """A norm of a layer, that has one of two names."""
    first, second = both("weight", f"{_LAYER}.{name}"), both("weight", f"{_LAYER}.{other}")
    return {part: replace(source, otherwise=second[part]) for part, source in first.items()}


_ATTENTION_NORM, _MLP_NORM = _either("input_layernorm", "ln_attn"), _either("post_attention_layernorm", "ln_mlp")
NAMES = {
    "embedding": copy("transformer.word_embeddings.weight"),
    "layers.{i}.attention_norm": _ATTENTION_NORM["weight"],
    "layers.{i}.attention_norm_bias": _ATTENTION_NORM["weight_bias"],
    "layers.{i}.qkv": split_qkv(f"{_LAYER}.self_attention.query_key_value.weight"),
    "layers.{i}.qkv_bias": split_qkv(f"{_LAYER}.self_attention.query_key_value.bias"),
    **both("layers.{i}.attention_out", f"{_LAYER}.self_attention.dense"),
    "layers.{i}.mlp_norm": _MLP_NORM["weight"],
    "layers.{i}.mlp_norm_bias": _MLP_NORM["weight_bias"],
    **both("layers.{i}.up", f"{_LAYER}.mlp.dense_h_to_4h"),
    **both("layers.{i}.down", f"{_LAYER}.mlp.dense_4h_to_h"),
    **both("final_norm", "transformer.ln_f"),
    "head": copy("lm_head.weight"),
}


def spec(cfg: Config) -> Spec:
    hidden = cfg.count("hidden_size", "n_embed", most=limits.WIDTH)
    heads = cfg.count("num_attention_heads", "n_head", most=limits.HEADS)
    context = cfg.count("max_position_embeddings", most=limits.CONTEXT, default=2048)
    size = head_size(hidden, heads)
    new, parallel = cfg.flag("new_decoder_architecture", default=False), cfg.flag("parallel_attn", default=True)
    one_key = cfg.flag("multi_query", default=True) and not new
    grouped = cfg.count("num_kv_heads", "n_head_kv", most=limits.HEADS, default=heads)
    norms = cfg.count("num_ln_in_parallel_attn", most=2, default=2 if new else 1)
    if new and not parallel or norms == 2 and not new:
        raise UnsupportedModel("config.json", "num_ln_in_parallel_attn and parallel_attn do not fit new_decoder_architecture")
    cfg.expect("apply_residual_connection_post_layernorm", False)
    bias, scale, biased_scores = cfg.flag("bias", default=False), size**-0.5, cfg.flag("alibi", default=False)
    rotary = rope.read(cfg, size, context)  # also there where nothing is rotated
    # the slopes are added before the scores are scaled
    slopes = tuple(scale * slope for slope in alibi.slopes(heads)) if biased_scores else ()
    layer = Layer(
        Attention(heads, 1 if one_key else grouped if new else heads, size, scale, bias, bias, alibi=slopes),
        Mlp(
            size=cfg.count("ffn_hidden_size", most=limits.WIDTH, default=4 * hidden),
            activation=cfg.word("activation", choices=ACTIVATIONS, default="gelu"),
            gated=False,
            bias=bias,
        ),
        rope=None if biased_scores else rotary,
        residual="parallel" if parallel else "sequential",
        shared_norm=parallel and norms == 1,
    )
    return Spec(
        vocab=cfg.count("vocab_size", most=limits.VOCAB),
        hidden=hidden,
        context=context,
        norm=Norm("layer", cfg.number("layer_norm_epsilon", low=0, high=1, default=1e-5), bias=True),
        layers=(layer,) * cfg.count("num_hidden_layers", "n_layer", most=limits.LAYERS),
        tied=cfg.flag("tie_word_embeddings", default=True),
    )


_TINY = {
    "model_type": "falcon",
    "architectures": ["FalconForCausalLM"],
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "ffn_hidden_size": 52,
    "vocab_size": 67,
    "max_position_embeddings": 40,
    "rope_theta": 500.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TINY = {
    "falcon": {**_TINY, "hidden_size": 36, "num_attention_heads": 3, "torch_dtype": "bfloat16"},
    "falcon-new": {**_TINY, "new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon-new_one_norm": {**_TINY, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    "falcon-alibi": {**_TINY, "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True, "tie_word_embeddings": False},
}
