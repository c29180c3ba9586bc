"""StarCoder2: grouped queries and rotary positions as in Llama, layer norms, biases and an MLP without gate as in GPT-2."""

from llmcli.models import limits, rope
from llmcli.models.arch import llama
from llmcli.models.config import ACTIVATIONS, Config, head_size
from llmcli.models.names import both
from llmcli.models.spec import Attention, Layer, Mlp, Norm, Spec

TYPES = {"starcoder2": "Starcoder2ForCausalLM"}
PREFIX, IGNORED = llama.PREFIX, llama.IGNORED

_LAYER = "model.layers.{i}"
NAMES = {
    **llama.NAMES,
    **both("layers.{i}.attention_norm", f"{_LAYER}.input_layernorm"),
    **both("layers.{i}.mlp_norm", f"{_LAYER}.post_attention_layernorm"),
    **both("layers.{i}.up", f"{_LAYER}.mlp.c_fc"),
    **both("layers.{i}.down", f"{_LAYER}.mlp.c_proj"),
    **both("final_norm", "model.norm"),
}


def spec(cfg: Config) -> Spec:
    cfg.expect("mlp_type", "default")
    cfg.expect("norm_type", "layer_norm")
    hidden = cfg.count("hidden_size", most=limits.WIDTH)
    heads = cfg.count("num_attention_heads", most=limits.HEADS)
    context = cfg.count("max_position_embeddings", most=limits.CONTEXT, default=4096)
    size, bias = head_size(hidden, heads), cfg.flag("use_bias", default=True)
    cfg.defaults(num_key_value_heads=2)
    layer = Layer(
        Attention(
            heads=heads,
            kv_heads=cfg.count("num_key_value_heads", most=limits.HEADS, default=heads),
            head_size=size,
            scale=size**-0.5,
            bias=bias,
            out_bias=bias,
            window=cfg.count("sliding_window", most=limits.CONTEXT, default=0),
        ),
        Mlp(
            size=cfg.count("intermediate_size", most=limits.WIDTH),
            activation=cfg.word("hidden_act", choices=ACTIVATIONS, default="gelu_pytorch_tanh"),
            gated=False,
            bias=bias,
        ),
        rope=rope.read(cfg, size, context),
    )
    return Spec(
        vocab=cfg.count("vocab_size", most=limits.VOCAB),
        hidden=hidden,
        context=context,
        norm=Norm("layer", cfg.number("norm_epsilon", low=0, high=1, default=1e-5), bias=True),
        layers=(layer,) * cfg.count("num_hidden_layers", most=limits.LAYERS),
        tied=cfg.flag("tie_word_embeddings", default=True),
    )


TINY = {
    "starcoder2": {
        "model_type": "starcoder2",
        "architectures": ["Starcoder2ForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 52,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 67,
        "max_position_embeddings": 40,
        "rope_theta": 500.0,
        "sliding_window": 9,
    }
}
