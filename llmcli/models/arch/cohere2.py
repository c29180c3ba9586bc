"""Cohere 2 (Command R7B): Command-R with rotary positions and a window in most layers, and neither in every fourth."""

from dataclasses import replace

from llmcli.models import limits
from llmcli.models.arch import cohere, llama
from llmcli.models.config import Config
from llmcli.models.spec import Spec

TYPES = {"cohere2": "Cohere2ForCausalLM"}
NAMES, PREFIX, IGNORED = llama.NAMES, llama.PREFIX, llama.IGNORED
_ONLY: dict[str, bool | str] = {
    "use_embedding_sharing": True,
    "use_gated_activation": True,
    "use_parallel_block": True,
    "use_parallel_embedding": True,
}
_ONLY |= {"use_qk_norm": False, "position_embedding_type": "rope_gptj", "order_of_interleaved_layers": "local_attn_first"}


def spec(cfg: Config) -> Spec:
    cfg.defaults(sliding_window=4096)
    for name, value in _ONLY.items():
        cfg.expect(name, value)
    plain = cohere.parallel(cfg)
    count = len(plain.layers)
    window = cfg.count("sliding_window", most=limits.CONTEXT)
    every = cfg.count("sliding_window_pattern", "_sliding_window_pattern", "layer_switch", most=limits.LAYERS, default=4)
    listed = cfg.words("layer_types", choices={"full_attention": 0, "sliding_attention": window}, count=count)
    windows = listed or [window if (i + 1) % every else 0 for i in range(count)]
    layers = [
        replace(layer, rope=layer.rope if width else None, attention=replace(layer.attention, window=width))
        for layer, width in zip(plain.layers, windows, strict=True)
    ]
    return replace(plain, layers=tuple(layers))


_NAMED = {
    "model_type": "cohere2",
    "architectures": ["Cohere2ForCausalLM"],
    "sliding_window": 7,
    "num_hidden_layers": 3,
    "torch_dtype": "bfloat16",
}
TINY = {"cohere2": {**cohere.TINY["cohere"], **_NAMED, "sliding_window_pattern": 2}}
