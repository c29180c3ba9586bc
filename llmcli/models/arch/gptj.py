"""GPT-J: attention and MLP side by side behind one layer norm, interleaved rotary pairs, biases outside attention."""

from llmcli.models import limits
from llmcli.models.config import ACTIVATIONS, Config, head_size
from llmcli.models.names import both, concat, copy
from llmcli.models.spec import Attention, Layer, Mlp, Norm, Rope, Spec

TYPES = {"gptj": "GPTJForCausalLM"}
PREFIX = "transformer."
IGNORED = (".attn.bias", ".attn.masked_bias")

_LAYER = "transformer.h.{i}"
NAMES = {
    "embedding": copy("transformer.wte.weight"),
    **both("layers.{i}.attention_norm", f"{_LAYER}.ln_1"),
    "layers.{i}.qkv": concat(*(f"{_LAYER}.attn.{x}_proj.weight" for x in "qkv")),
    "layers.{i}.attention_out": copy(f"{_LAYER}.attn.out_proj.weight"),
    **both("layers.{i}.up", f"{_LAYER}.mlp.fc_in"),
    **both("layers.{i}.down", f"{_LAYER}.mlp.fc_out"),
    **both("final_norm", "transformer.ln_f"),
    **both("head", "lm_head"),
}


def spec(cfg: Config) -> Spec:
    cfg.expect("rotary", True)
    cfg.expect("scale_attn_weights", True)
    hidden = cfg.count("n_embd", "hidden_size", most=limits.WIDTH)
    heads = cfg.count("n_head", "num_attention_heads", most=limits.HEADS)
    size = head_size(hidden, heads)
    layer = Layer(
        Attention(heads, heads, size, scale=size**-0.5),
        Mlp(
            size=cfg.count("n_inner", most=limits.WIDTH, default=4 * hidden),
            activation=cfg.word("activation_function", choices=ACTIVATIONS, default="gelu_new"),
            gated=False,
            bias=True,
        ),
        rope=Rope(cfg.count("rotary_dim", least=2, most=size), interleaved=True),
        residual="parallel",
        shared_norm=True,
    )
    return Spec(
        vocab=cfg.count("vocab_size", most=limits.VOCAB),
        hidden=hidden,
        context=cfg.count("n_positions", "max_position_embeddings", most=limits.CONTEXT),
        norm=Norm("layer", cfg.number("layer_norm_epsilon", low=0, high=1, default=1e-5), bias=True),
        layers=(layer,) * cfg.count("n_layer", "num_hidden_layers", most=limits.LAYERS),
        tied=cfg.flag("tie_word_embeddings", default=False),
        head_bias=True,
    )


TINY = {
    "gptj": {
        "model_type": "gptj",
        "architectures": ["GPTJForCausalLM"],
        "n_embd": 48,
        "n_head": 3,
        "n_layer": 2,
        "n_inner": None,
        "n_positions": 40,
        "rotary_dim": 10,
        "vocab_size": 67,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
    }
}
