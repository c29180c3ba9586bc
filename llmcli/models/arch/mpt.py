"""MPT: ALiBi instead of positions, no biases at all (layer norms too), queries, keys and values clipped."""

from llmcli.models import alibi, limits
from llmcli.models.config import Config, head_size
from llmcli.models.names import copy
from llmcli.models.spec import Attention, Layer, Mlp, Norm, Spec

TYPES = {"mpt": "MptForCausalLM"}
PREFIX = "transformer."
IGNORED = ()

_LAYER = "transformer.blocks.{i}"
NAMES = {
    "embedding": copy("transformer.wte.weight"),
    "layers.{i}.attention_norm": copy(f"{_LAYER}.norm_1.weight"),
    "layers.{i}.qkv": copy(f"{_LAYER}.attn.Wqkv.weight"),
    "layers.{i}.attention_out": copy(f"{_LAYER}.attn.out_proj.weight"),
    "layers.{i}.mlp_norm": copy(f"{_LAYER}.norm_2.weight"),
    "layers.{i}.up": copy(f"{_LAYER}.ffn.up_proj.weight"),
    "layers.{i}.down": copy(f"{_LAYER}.ffn.down_proj.weight"),
    "final_norm": copy("transformer.norm_f.weight"),
    "head": copy("lm_head.weight"),
}
_NORMS = {"low_precision_layernorm": "layer", "layernorm": "layer"}


def spec(cfg: Config) -> Spec:
    cfg.expect("no_bias", True)
    cfg.flag("learned_pos_emb", default=True)  # not with ALiBi
    hidden = cfg.count("d_model", "hidden_size", most=limits.WIDTH)
    heads = cfg.count("n_heads", "num_attention_heads", most=limits.HEADS)
    size = head_size(hidden, heads)
    own = cfg.section("attn_config")
    own.expect("attn_type", "multihead_attention")
    own.expect("alibi", True)
    for name in ("prefix_lm", "qk_ln", "attn_uses_sequence_id", "is_encoder_decoder"):
        own.expect(name, False)
    attention = Attention(
        heads=heads,
        kv_heads=heads,
        head_size=size,
        scale=own.number("softmax_scale", low=1e-6, high=1e6, default=size**-0.5),
        alibi=alibi.slopes(heads, own.number("alibi_bias_max", low=1e-3, high=100, default=8.0)),
        clip=own.number("clip_qkv", low=0, high=1e6, default=0.0),
    )
    return Spec(
        vocab=cfg.count("vocab_size", most=limits.VOCAB),
        hidden=hidden,
        context=cfg.count("max_seq_len", most=limits.CONTEXT, default=2048),
        norm=Norm(
            kind=cfg.word("norm_type", choices=_NORMS, default="low_precision_layernorm"),
            eps=cfg.number("layer_norm_epsilon", low=0, high=1, default=1e-5),
        ),
        layers=(Layer(attention, Mlp(cfg.count("expansion_ratio", most=64, default=4) * hidden, "gelu", gated=False)),)
        * cfg.count("n_layers", "num_hidden_layers", most=limits.LAYERS),
        tied=cfg.flag("tie_word_embeddings", default=True),
    )


TINY = {
    "mpt": {
        "model_type": "mpt",
        "architectures": ["MPTForCausalLM"],
        "d_model": 36,
        "n_heads": 3,
        "n_layers": 2,
        "expansion_ratio": 4,
        "max_seq_len": 64,
        "vocab_size": 67,
        "learned_pos_emb": True,
        "attn_config": {"alibi": True, "clip_qkv": 0.8, "attn_impl": "torch", "softmax_scale": 0.4},
    }
}
