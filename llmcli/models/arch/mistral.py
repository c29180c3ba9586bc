"""Mistral: Llama whose attention sees a window of the last positions."""

from llmcli.models import limits
from llmcli.models.arch import llama
from llmcli.models.config import Config
from llmcli.models.spec import Spec

TYPES = {"mistral": "MistralForCausalLM"}
NAMES, PREFIX, IGNORED = llama.NAMES, llama.PREFIX, llama.IGNORED


def spec(cfg: Config) -> Spec:
    cfg.defaults(num_key_value_heads=8, sliding_window=4096, max_position_embeddings=131072)
    window = cfg.count("sliding_window", most=limits.CONTEXT, default=0)
    return llama.with_attention(llama.spec(cfg), window=window)


_NAMED = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
TINY = {"mistral": {**llama.TINY["llama-tied"], **_NAMED, "sliding_window": 7, "torch_dtype": "float16"}}
