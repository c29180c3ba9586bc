"""Gemma 1: Llama with norms that multiply by 1 + weight, embeddings times the root of their width, and a GELU gate."""

from dataclasses import replace

from llmcli.models.arch import llama
from llmcli.models.config import ACTIVATIONS, Config
from llmcli.models.names import Source, plus_one
from llmcli.models.spec import Spec

TYPES = {"gemma": "GemmaForCausalLM"}
PREFIX, IGNORED = llama.PREFIX, llama.IGNORED


def counted_from_one(names: dict[str, Source]) -> dict[str, Source]:
    """The same names, with the norms' weights as Gemma stores them."""
    return {ours: plus_one(source.names[0]) if ours.endswith("norm") else source for ours, source in names.items()}


NAMES = counted_from_one(llama.NAMES)


def spec(cfg: Config) -> Spec:
    cfg.defaults(head_dim=256, num_key_value_heads=16, max_position_embeddings=8192, tie_word_embeddings=True)
    cfg.expect("use_bidirectional_attention", False)
    # The first files say "gelu" and mean its approximation; `hidden_activation` came to say so.
    gate = cfg.word("hidden_act", choices={**ACTIVATIONS, "gelu": "gelu_tanh"}, default="gelu_pytorch_tanh")
    gate = cfg.word("hidden_activation", choices=ACTIVATIONS) if cfg.has("hidden_activation") else gate
    plain = llama.spec(cfg)
    layers = tuple(replace(x, mlp=x.mlp and replace(x.mlp, activation=gate)) for x in plain.layers)
    return replace(plain, layers=layers, embedding_scale=plain.hidden**0.5)


_NAMED = {"model_type": "gemma", "architectures": ["GemmaForCausalLM"], "hidden_act": "gelu", "rms_norm_eps": 1e-6}
TINY = {"gemma": {**llama.TINY["llama-tied"], **_NAMED, "head_dim": 16, "num_attention_heads": 2, "torch_dtype": "bfloat16"}}
