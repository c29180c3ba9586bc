"""Granite-MoE: Granite with experts in the MLP's place, in some models beside an MLP that every token passes."""

from dataclasses import replace

from llmcli.models import limits
from llmcli.models.arch import granite, llama
from llmcli.models.config import ACTIVATIONS, Config
from llmcli.models.names import copy
from llmcli.models.spec import Experts, Spec

TYPES = {"granitemoe": "GraniteMoeForCausalLM", "granitemoeshared": "GraniteMoeSharedForCausalLM"}
PREFIX, IGNORED = llama.PREFIX, llama.IGNORED

_LAYER = "model.layers.{i}"
NAMES = {
    **llama.NAMES,
    "layers.{i}.router": copy(f"{_LAYER}.block_sparse_moe.router.layer.weight"),
    "layers.{i}.experts_up": copy(f"{_LAYER}.block_sparse_moe.input_linear.weight"),
    "layers.{i}.experts_down": copy(f"{_LAYER}.block_sparse_moe.output_linear.weight"),
    "layers.{i}.shared.gate_up": copy(f"{_LAYER}.shared_mlp.input_linear.weight"),
    "layers.{i}.shared.down": copy(f"{_LAYER}.shared_mlp.output_linear.weight"),
}


def spec(cfg: Config) -> Spec:
    dense = granite.spec(cfg)
    count = cfg.count("num_local_experts", most=limits.EXPERTS, default=8)
    experts = Experts(
        count=count,
        chosen=cfg.count("num_experts_per_tok", most=count, default=2),
        size=cfg.count("intermediate_size", most=limits.WIDTH),
        activation=cfg.word("hidden_act", choices=ACTIVATIONS, default="silu"),
        softmax="after",
        shared=cfg.count("shared_intermediate_size", least=0, most=limits.WIDTH, default=0),
    )
    return replace(dense, layers=tuple(replace(x, mlp=None, experts=experts) for x in dense.layers))


_NAMED = {"model_type": "granitemoe", "architectures": ["GraniteMoeForCausalLM"], "torch_dtype": "bfloat16", "attention_bias": False}
_SHARED = {"model_type": "granitemoeshared", "architectures": ["GraniteMoeSharedForCausalLM"], "shared_intermediate_size": 20}
_EXPERTS = {"num_local_experts": 5, "num_experts_per_tok": 3, "intermediate_size": 28}
TINY = {
    "granitemoe": {**granite.TINY["granite"], **_NAMED, **_EXPERTS},
    "granitemoeshared": {**granite.TINY["granite"], **_NAMED, **_EXPERTS, **_SHARED},
}
