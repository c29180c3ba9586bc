"""Qwen2: Llama with biases on queries, keys and values, and windows in the layers from max_window_layers on."""

from dataclasses import replace

from llmcli.models import limits
from llmcli.models.arch import llama
from llmcli.models.config import Config
from llmcli.models.spec import Spec

TYPES = {"qwen2": "Qwen2ForCausalLM"}
NAMES, PREFIX, IGNORED = llama.NAMES, llama.PREFIX, llama.IGNORED


def spec(cfg: Config) -> Spec:
    cfg.expect("use_mrope", False)
    return windows(cfg, llama.with_attention(llama.spec(cfg), bias=True))


def windows(cfg: Config, spec: Spec) -> Spec:
    """The spec with a window in each layer that `layer_types` or, without it, `max_window_layers` gives one."""
    cfg.defaults(sliding_window=4096)
    window = cfg.count("sliding_window", most=limits.CONTEXT, default=0)
    first = cfg.count("max_window_layers", least=0, most=limits.LAYERS, default=28)
    if not cfg.flag("use_sliding_window", default=False):
        window = 0
    count = len(spec.layers)
    listed = cfg.words("layer_types", choices={"full_attention": 0, "sliding_attention": window}, count=count)
    each = listed or tuple(window if i >= first else 0 for i in range(count))
    layers = zip(spec.layers, each, strict=True)
    return replace(spec, layers=tuple(replace(x, attention=replace(x.attention, window=w)) for x, w in layers))


_NAMED = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
_WINDOWS = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}
TINY = {"qwen2": {**llama.TINY["llama-tied"], **_NAMED, **_WINDOWS}}
