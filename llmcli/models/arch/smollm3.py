"""SmolLM3: Llama in which every fourth layer has no rotary positions."""

from dataclasses import replace

from llmcli.models import limits
from llmcli.models.arch import llama
from llmcli.models.config import Config
from llmcli.models.spec import Spec

TYPES = {"smollm3": "SmolLM3ForCausalLM"}
NAMES, PREFIX, IGNORED = llama.NAMES, llama.PREFIX, llama.IGNORED


def spec(cfg: Config) -> Spec:
    cfg.defaults(num_key_value_heads=4, rope_theta=2e6, max_position_embeddings=32768, tie_word_embeddings=True)
    cfg.defaults(no_rope_layer_interval=4)
    cfg.skip("max_window_layers")  # the original does not look at it
    plain = llama.spec(cfg)
    count = len(plain.layers)
    every = cfg.count("no_rope_layer_interval", most=limits.LAYERS)
    rotated = [bool((i + 1) % every) for i in range(count)]
    if cfg.has("no_rope_layers"):  # 1: the layer does rotate
        rotated = [bool(x) for x in cfg.numbers("no_rope_layers", count=count, low=0, high=1)]
    window = cfg.count("sliding_window", most=limits.CONTEXT, default=0)
    window = window if cfg.flag("use_sliding_window", default=False) else 0
    listed = cfg.words("layer_types", choices={"full_attention": 0, "sliding_attention": window}, count=count)
    windows = listed or [0 if rotates else window for rotates in rotated]
    layers = [
        replace(layer, rope=layer.rope if rotates else None, attention=replace(layer.attention, window=width))
        for layer, rotates, width in zip(plain.layers, rotated, windows, strict=True)
    ]
    return replace(plain, layers=tuple(layers))


_NAMED = {"model_type": "smollm3", "architectures": ["SmolLM3ForCausalLM"], "num_hidden_layers": 3}
_NONE = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
TINY = {
    "smollm3": {**llama.TINY["llama-tied"], **_NAMED, **_NONE, "no_rope_layer_interval": 2},
    "smollm3-windows": {
        **llama.TINY["llama-tied"],
        **_NAMED,
        **_NONE,
        "no_rope_layers": [0, 1, 0],
        "use_sliding_window": True,
        "sliding_window": 6,
        "attention_bias": True,
        "torch_dtype": "bfloat16",
    },
}
