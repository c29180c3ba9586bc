"""Cohere Command-R: PaLM's block, attention and gated MLP side by side under one norm, without biases; scaled logits."""

from dataclasses import replace

from llmcli.models.arch import llama
from llmcli.models.config import Config
from llmcli.models.names import reshape
from llmcli.models.spec import Norm, Spec

TYPES = {"cohere": "CohereForCausalLM"}
PREFIX, IGNORED = llama.PREFIX, llama.IGNORED
NAMES = {
    **llama.NAMES,
    "layers.{i}.query_norm": reshape("model.layers.{i}.self_attn.q_norm.weight"),
    "layers.{i}.key_norm": reshape("model.layers.{i}.self_attn.k_norm.weight"),
}


def spec(cfg: Config) -> Spec:
    cfg.defaults(rope_theta=500000.0, use_qk_norm=False)
    return llama.with_attention(parallel(cfg), qk_norm="each" if cfg.flag("use_qk_norm", default=False) else "")


def parallel(cfg: Config) -> Spec:
    """What all of Cohere's models have in common."""
    cfg.defaults(tie_word_embeddings=True, logit_scale=0.0625, max_position_embeddings=8192)
    cfg.skip("model_max_length")  # of the tokenizer
    plain = llama.spec(cfg)
    layers = [
        replace(x, residual="parallel", shared_norm=True, rope=replace(x.rope, interleaved=True) if x.rope else None) for x in plain.layers
    ]
    return replace(
        plain,
        layers=tuple(layers),
        norm=Norm("layer", cfg.number("layer_norm_eps", low=0, high=1, default=1e-5)),
        logit_scale=cfg.number("logit_scale", low=1e-6, high=1e6),
    )


_NAMED = {"model_type": "cohere", "architectures": ["CohereForCausalLM"], "rms_norm_eps": None, "head_dim": None, "hidden_size": 48}
_OWN = {"num_attention_heads": 4, "num_key_value_heads": 2, "logit_scale": 0.4, "num_hidden_layers": 2, "tie_word_embeddings": True}
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_PLAIN = {**llama.TINY["llama-tied"], **_NAMED, **_OWN, **_IDS}
TINY = {"cohere": _PLAIN, "cohere-qk_norm": {**_PLAIN, "use_qk_norm": True, "torch_dtype": "bfloat16"}}
