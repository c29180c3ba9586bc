"""GPT-BigCode (SantaCoder, StarCoder): GPT-2 whose queries share one key and value head, weights not transposed."""

from llmcli.models.arch import gpt2, llama
from llmcli.models.config import Config
from llmcli.models.names import copy, split_qkv
from llmcli.models.spec import Spec

TYPES = {"gpt_bigcode": "GPTBigCodeForCausalLM"}
PREFIX, IGNORED = gpt2.PREFIX, gpt2.IGNORED
NAMES = {
    **{ours: copy(source.names[0]) for ours, source in gpt2.NAMES.items()},
    "layers.{i}.qkv": split_qkv("transformer.h.{i}.attn.c_attn.weight"),
    "layers.{i}.qkv_bias": split_qkv("transformer.h.{i}.attn.c_attn.bias"),
}


def spec(cfg: Config) -> Spec:
    cfg.expect("scale_attn_by_inverse_layer_idx", False)
    cfg.defaults(activation_function="gelu_pytorch_tanh")
    plain = gpt2.spec(cfg)
    kv_heads = 1 if cfg.flag("multi_query", default=True) else plain.layers[0].attention.heads
    cfg.expect("num_key_value_heads", kv_heads)
    return llama.with_attention(plain, kv_heads=kv_heads)


_NAMED = {"model_type": "gpt_bigcode", "architectures": ["GPTBigCodeForCausalLM"], "scale_attn_by_inverse_layer_idx": None}
TINY = {
    "gpt_bigcode": {**gpt2.TINY["gpt2"], **_NAMED, "n_inner": None},
    "gpt_bigcode-multihead": {**gpt2.TINY["gpt2"], **_NAMED, "multi_query": False, "scale_attn_weights": False},
}
