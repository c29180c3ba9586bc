"""Which operations are launched as one, how many launches a layer is, and when a result stays as floats."""

from __future__ import annotations

from dataclasses import replace

import pytest
from devices import SPECS, lowered, made, spec

from llmcli.backends.cuda.kernels.platform import SIMULATED
from llmcli.backends.cuda.lower import LOWER, QUANTIZERS
from llmcli.backends.fuse import fuse
from llmcli.models.spec import Attention, Layer, Mlp, Rope, Spec
from llmcli.plan import Buffer, Op, Plan, Slot, Weight

LLAMA = spec(Layer(Attention(2, 1, 32, 32**-0.5), Mlp(28), rope=Rope(32)))
ONE_TOKEN = """norm.quantized_rows decode.integers rope_cache.rows attention_decode_halves.decode attention_decode.merge_quantize
    decode.integers norm.quantized_rows decode.integers elementwise.quantized_rows decode.integers""".split()
PROMPT = """norm.quantized_rows prompt.integers rope_cache.rows attention_prompt_halves.prompt quantize.quantize
    prompt.integers norm.quantized_rows prompt.integers elementwise.quantized_rows prompt.integers""".split()


def kernels(spec: Spec, rows: int, together: bool = True) -> list[str]:
    """What the first layer launches."""
    lowering = lowered(made(spec, "int4", "f16"), 16, together)
    ops = [(number, op) for number, op in lowering.ops if op.label.startswith("layers.0")]
    launches = [launch for number, op in ops for launch in LOWER[op.kind](lowering, op, number, rows)]
    return [launch.kernel.reference[0] for launch in launches]


@pytest.mark.skipif(SIMULATED, reason="the simulator's kernels have no names")
def test_a_layer_of_llama_is_ten_launches() -> None:
    """docs/cuda.md says so."""
    assert kernels(LLAMA, 1) == ONE_TOKEN and len(ONE_TOKEN) == 10 and len(kernels(LLAMA, 1, False)) == 15
    assert kernels(LLAMA, 16) == PROMPT and len(PROMPT) == 10 and len(kernels(LLAMA, 16, False)) == 14


@pytest.mark.skipif(SIMULATED, reason="the simulator's kernels have no names")
def test_heads_that_share_a_group_are_quantized_behind_them() -> None:
    narrow = spec(Layer(Attention(2, 1, 20, 0.2), Mlp(28), rope=Rope(20)))
    assert kernels(narrow, 1)[3:6] == ["attention_decode_halves.decode", "attention_decode.merge", "quantize.quantize"]


def kept(spec: Spec, taps: tuple[str, ...] = ()) -> dict[str, bool]:
    """Of each operation that quantizes: whether its result stays as floats."""
    return {op.label: bool(op.params["kept"]) for _, op in lowered(made(spec, "int4", "f16", taps), 1).ops if "kept" in op.params}


def test_what_nobody_reads_as_floats_is_not_kept() -> None:
    assert kept(LLAMA) == {
        "layers.0.attention_norm": False,
        "layers.0.attention": False,
        "layers.0.mlp_norm": False,
        "layers.0.activation": False,
        "final_norm": False,
    }
    assert kept(LLAMA, ("residual", "attention", "lens")) == {**kept(LLAMA), "final_norm": False}


def test_what_somebody_else_reads_is_kept() -> None:
    (layer,) = LLAMA.layers
    shared = kept(replace(LLAMA, layers=(replace(layer, residual="parallel", shared_norm=True),)))
    assert shared == {"layers.0.attention_norm": True, "layers.0.attention": False, "layers.0.activation": False, "final_norm": False}
    after = kept(replace(LLAMA, layers=(replace(layer, pre_norms=False, post_norms=True),), embedding_norm=True))
    assert after["embedding_norm"], "the residual stream itself"
    assert "layers.0.mlp_norm" not in kept(SPECS["experts"]), "the router is first, and reads floats"


@pytest.mark.parametrize("heads, kinds", [(1, ["norm", "linear"]), (2, ["norm", "quantize", "linear"])])
def test_only_a_norm_of_whole_rows_quantizes(heads: int, kinds: list[str]) -> None:
    x, y = Slot(0, 0, 64), Slot(1, 0, 8)
    normed = Op("norm", (x,), (x,), (None, None), {"kind": "rms", "eps": 1e-5, "heads": heads})
    ops = normed, Op("linear", (y,), (x,), ("matrix", None))
    plan = Plan(ops, (Buffer("x", 64), Buffer("y", 8)), {"matrix": Weight("matrix", (8, 64), "matrix")}, (), 8, 64, 8, 1)
    assert [op.kind for _, op in fuse(plan, lambda name: True, quantizers=QUANTIZERS)] == kinds
