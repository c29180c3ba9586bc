"""Gemma 2: Gemma with norms before and behind attention and MLP, capped logits, and windows in every other layer."""

from dataclasses import replace

from llmcli.models import limits
from llmcli.models.arch import gemma, llama
from llmcli.models.config import Config
from llmcli.models.names import copy
from llmcli.models.spec import Spec

TYPES = {"gemma2": "Gemma2ForCausalLM"}
PREFIX, IGNORED = llama.PREFIX, llama.IGNORED
_LAYER = "model.layers.{i}"
NAMES = gemma.counted_from_one(
    {
        **llama.NAMES,
        "layers.{i}.attention_post_norm": copy(f"{_LAYER}.post_attention_layernorm.weight"),
        "layers.{i}.mlp_norm": copy(f"{_LAYER}.pre_feedforward_layernorm.weight"),
        "layers.{i}.mlp_post_norm": copy(f"{_LAYER}.post_feedforward_layernorm.weight"),
    }
)


def spec(cfg: Config) -> Spec:
    cfg.defaults(num_key_value_heads=4, sliding_window=4096, attn_logit_softcapping=50.0, final_logit_softcapping=30.0)
    softcap = cfg.number("attn_logit_softcapping", low=0, high=1e6, default=0.0)
    plain = llama.with_attention(sandwiched(cfg), softcap=softcap)
    window = cfg.count("sliding_window", most=limits.CONTEXT, default=0)
    count = len(plain.layers)
    listed = cfg.words("layer_types", choices={"full_attention": 0, "sliding_attention": window}, count=count)
    layers = zip(plain.layers, listed or [0 if i % 2 else window for i in range(count)], strict=True)
    return replace(plain, layers=tuple(replace(x, attention=replace(x.attention, window=w)) for x, w in layers))


def sandwiched(cfg: Config) -> Spec:
    """What Gemma 2 and 3 have in common."""
    plain = llama.with_attention(gemma.spec(cfg), scale=cfg.number("query_pre_attn_scalar", low=1e-6, high=1e9, default=256.0) ** -0.5)
    cap = cfg.number("final_logit_softcapping", low=0, high=1e6, default=0.0)
    return replace(plain, layers=tuple(replace(x, post_norms=True) for x in plain.layers), logit_softcap=cap)


_NAMED = {
    "model_type": "gemma2",
    "architectures": ["Gemma2ForCausalLM"],
    "hidden_act": None,
    "torch_dtype": "float16",
    "tie_word_embeddings": True,
}
_SIZES = {"head_dim": 12, "num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 42, "num_hidden_layers": 3}
_OWN = {"query_pre_attn_scalar": 20, "attn_logit_softcapping": 4.0, "final_logit_softcapping": 6.0, "sliding_window": 7}
TINY = {"gemma2": {**llama.TINY["llama-tied"], **_NAMED, **_SIZES, **_OWN}}
