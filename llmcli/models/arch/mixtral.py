"""Mixtral: Mistral whose MLPs are experts, of which a router chooses some for each token."""

from dataclasses import replace

from llmcli.models import limits
from llmcli.models.arch import llama, mistral
from llmcli.models.config import ACTIVATIONS, Config
from llmcli.models.names import Source, copy
from llmcli.models.spec import Experts, Spec

TYPES = {"mixtral": "MixtralForCausalLM"}
PREFIX, IGNORED = llama.PREFIX, llama.IGNORED

_BLOCK = "model.layers.{i}.block_sparse_moe"
NAMES = {
    **llama.NAMES,
    "layers.{i}.router": copy(f"{_BLOCK}.gate.weight"),
    "layers.{i}.experts_up": Source("stack_concat", tuple(f"{_BLOCK}.experts.{{e}}.{w}.weight" for w in ("w1", "w3"))),
    "layers.{i}.experts_down": Source("stack", (f"{_BLOCK}.experts.{{e}}.w2.weight",)),
}


def spec(cfg: Config) -> Spec:
    cfg.defaults(sliding_window=None, rms_norm_eps=1e-5, rope_theta=1e6)
    dense = mistral.spec(cfg)
    count = cfg.count("num_local_experts", "num_experts", most=limits.EXPERTS, default=8)
    experts = Experts(
        count=count,
        chosen=cfg.count("num_experts_per_tok", most=count, default=2),
        size=cfg.count("intermediate_size", most=limits.WIDTH),
        activation=cfg.word("hidden_act", choices=ACTIVATIONS, default="silu"),
    )
    return replace(dense, layers=tuple(replace(x, mlp=None, experts=experts) for x in dense.layers))


_EXPERTS = {"num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 36, "sliding_window": None}
_NAMED = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "torch_dtype": "bfloat16"}
TINY = {"mixtral": {**llama.TINY["llama-linear"], **_NAMED, **_EXPERTS, "rope_scaling": None}}
