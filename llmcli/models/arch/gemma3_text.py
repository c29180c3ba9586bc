"""Gemma 3 (text): Gemma 2 with norms on queries and keys, and rotary positions of their own in layers with a window."""

from dataclasses import replace

from llmcli.models import limits, rope
from llmcli.models.arch import gemma, gemma2, llama, qwen3
from llmcli.models.config import Config
from llmcli.models.spec import Rope, Spec

TYPES = {"gemma3_text": "Gemma3ForCausalLM"}
PREFIX, IGNORED = llama.PREFIX, llama.IGNORED
NAMES = gemma.counted_from_one({**gemma2.NAMES, **{name: qwen3.NAMES[name] for name in ("layers.{i}.query_norm", "layers.{i}.key_norm")}})


def spec(cfg: Config) -> Spec:
    cfg.defaults(num_key_value_heads=4, sliding_window=4096, max_position_embeddings=131072, rope_theta=1e6)
    plain = llama.with_attention(gemma2.sandwiched(cfg), qk_norm="head")
    window = cfg.count("sliding_window", most=limits.CONTEXT, default=0)
    every = cfg.count("sliding_window_pattern", "_sliding_window_pattern", most=limits.LAYERS, default=6)
    far, near = _ropes(cfg, plain)
    count = len(plain.layers)
    kinds = {"full_attention": (0, far), "sliding_attention": (window, near)}
    listed = cfg.words("layer_types", choices=kinds, count=count)
    each = listed or [kinds["sliding_attention" if (i + 1) % every else "full_attention"] for i in range(count)]
    layers = zip(plain.layers, each, strict=True)
    return replace(plain, layers=tuple(replace(x, attention=replace(x.attention, window=w), rope=r) for x, (w, r) in layers))


def _ropes(cfg: Config, plain: Spec) -> tuple[Rope | None, Rope | None]:
    """Of layers that see everything, and of those with a window. transformers 5 writes an object for each; before it,
    all fields but one were of the first kind."""
    fields, size = cfg.section("rope_scaling", "rope_parameters"), plain.layers[0].attention.head_size
    if not fields.has("full_attention", "sliding_attention"):
        return plain.layers[0].rope, Rope(size, cfg.number("rope_local_base_freq", low=2, high=1e15, default=1e4))
    far = rope.read(cfg, size, plain.context, 1e6, fields=fields.section("full_attention"))
    return far, rope.read(cfg, size, plain.context, 1e4, fields=fields.section("sliding_attention"))


_NAMED = {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "attn_logit_softcapping": None}
_OWN = {"sliding_window_pattern": 3, "rope_theta": 5000.0, "rope_local_base_freq": 100.0, "final_logit_softcapping": None}
_SCALED = {"num_hidden_layers": 4, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}
TINY = {"gemma3": {**gemma2.TINY["gemma2"], **_NAMED, **_OWN, **_SCALED}}
