"""StableLM in GGUF: a layer without a second norm has attention and MLP side by side."""

from llmcli.models.arch import stablelm
from llmcli.models.gguf import command_r, llama
from llmcli.models.metadata import Description, Entries, Shapes


def describe(entries: Entries, shapes: Shapes, rope_factors: list[float]) -> Description:
    entries.get("use_parallel_residual")  # files of sequential models can say it too
    config = llama.fields(entries, stablelm.TYPES, rope_factors)
    config |= {
        "layer_norm_eps": entries.get("attention.layer_norm_epsilon"),
        "partial_rotary_factor": config["partial_rotary_factor"] or 1.0,
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in shapes,
        "use_qkv_bias": "blk.0.attn_q.bias" in shapes,
        "qk_layernorm": "blk.0.attn_q_norm.weight" in shapes,
    }
    return Description(config, command_r.NAMES)
