"""The same shapes in PyTorch: a small Llama in bf16 with its own attention function, a token's step as a CUDA graph; and its product of
int4 weights, where it has one. Everything that PyTorch needs to be quick at this and no more: no sampling, no text."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from gpu_stages.stage import Stage
from torch.nn import functional

from llmcli.models.spec import Spec

DEPTH, PROMPTS, ROUNDS = 512, (512, 2048), 5
INT4_ROWS = ((4096, 4096), (14336, 4096), (4096, 14336))
NEEDED = 8.0


def run(stage: Stage) -> None:
    device = "cuda" if torch.cuda.is_available() and not stage.dry else "cpu"
    with torch.inference_mode():
        for name, spec in stage.shapes("1B", "8B").items():
            if stage.fits(name, 0.0 if stage.dry else NEEDED):
                model = Llama(spec, 64 if stage.dry else 2560, device)
                depth, prompts = (3, (5,)) if stage.dry else (DEPTH, PROMPTS)
                decode(stage, model, name, depth)
                for count in prompts:
                    prompt(stage, model, name, count)
                del model
        if device == "cuda" and hasattr(torch, "_weight_int4pack_mm") and stage.fits("int4 products", NEEDED / 2):
            for rows, columns in INT4_ROWS:
                int4(stage, rows, columns)


class Llama:
    """Random weights of a shape, and a cache of `context` positions of one text."""

    def __init__(self, spec: Spec, context: int, device: str) -> None:
        self.spec, self.device, self.context = spec, device, context
        own, mlp = spec.layers[0].attention, spec.layers[0].mlp
        assert mlp is not None
        self.heads, self.kv_heads, self.size = own.heads, own.kv_heads, own.head_size

        def matrix(rows: int, columns: int) -> Any:
            return torch.randn(rows, columns, device=device, dtype=torch.bfloat16) * columns**-0.5

        wide, narrow = self.heads * self.size, self.kv_heads * self.size
        shapes = {
            "qkv": (wide + 2 * narrow, spec.hidden), "out": (spec.hidden, wide),
            "up": (2 * mlp.size, spec.hidden), "down": (spec.hidden, mlp.size),
        }  # fmt: skip
        self.layers = [{name: matrix(*shape) for name, shape in shapes.items()} for _ in spec.layers]
        self.table = matrix(spec.vocab, spec.hidden)
        self.head = self.table if spec.tied else matrix(spec.vocab, spec.hidden)
        self.norm = torch.ones(spec.hidden, device=device, dtype=torch.bfloat16)
        store = 2, 1, self.kv_heads, context, self.size
        self.cache = [torch.randn(store, device=device, dtype=torch.bfloat16) for _ in spec.layers]
        angles = torch.arange(context)[:, None] * 1e4 ** -(torch.arange(0, self.size, 2) / self.size)
        self.cosine, self.sine = (f(angles).to(device, torch.bfloat16).repeat(1, 2) for f in (torch.cos, torch.sin))
        self.bytes = sum(2 * tensor.numel() for tensor in [*(m for layer in self.layers for m in layer.values()), self.head])

    def __call__(self, ids: Any, positions: Any) -> Any:
        """Logits of the last token: of a text from its beginning, or of one token, which sees all of the cache."""
        count, eps = len(ids), 1e-5
        x = self.table[ids]
        cosine, sine = self.cosine[positions], self.sine[positions]
        for layer, cache in zip(self.layers, self.cache, strict=True):
            normed = functional.rms_norm(x, (x.shape[-1],), self.norm, eps)
            qkv = functional.linear(normed, layer["qkv"]).view(count, self.heads + 2 * self.kv_heads, self.size).transpose(0, 1)
            query, key, value = qkv.split((self.heads, self.kv_heads, self.kv_heads))
            query, key = self._turned(query, cosine, sine), self._turned(key, cosine, sine)
            cache[0, 0].index_copy_(1, positions, key)
            cache[1, 0].index_copy_(1, positions, value)
            keys, values = (key[None], value[None]) if count > 1 else (cache[0], cache[1])
            found = functional.scaled_dot_product_attention(query[None], keys, values, is_causal=count > 1, enable_gqa=True)
            x = x + functional.linear(found[0].transpose(0, 1).reshape(count, -1), layer["out"])
            gate, up = functional.linear(functional.rms_norm(x, (x.shape[-1],), self.norm, eps), layer["up"]).chunk(2, -1)
            x = x + functional.linear(functional.silu(gate) * up, layer["down"])
        return functional.linear(functional.rms_norm(x[-1:], (x.shape[-1],), self.norm, eps), self.head)

    def _turned(self, x: Any, cosine: Any, sine: Any) -> Any:
        first, second = x.chunk(2, -1)
        return x * cosine + torch.cat((-second, first), -1) * sine


def decode(stage: Stage, model: Llama, name: str, depth: int) -> None:
    """The cache is cut to the text's length, which costs nothing here and much in use."""
    whole, model.cache = model.cache, [cache[:, :, :, : depth + 1] for cache in model.cache]
    ids, positions = torch.zeros(1, dtype=torch.long, device=model.device), torch.tensor([depth], device=model.device)
    step: Callable[[], Any] = lambda: model(ids, positions)  # noqa: E731
    recorded = model.device == "cuda"
    if recorded:
        step = _recorded(step)
    took = _seconds(step, model.device, 20)
    cache = 2 * 2 * model.kv_heads * model.size * (depth + 1) * len(model.layers)
    stage.say(
        "torch decode", shape=name, format="bf16", depth=depth, device_tokens_per_s=1 / took, bytes=model.bytes + cache, recorded=recorded,
        device_share_of_copy=stage.share("copy", (model.bytes + cache) / took),
    )  # fmt: skip
    model.cache = whole


def prompt(stage: Stage, model: Llama, name: str, count: int) -> None:
    ids, positions = torch.zeros(count, dtype=torch.long, device=model.device), torch.arange(count, device=model.device)
    ids.random_(model.spec.vocab)
    took = _seconds(lambda: model(ids, positions), model.device, 3)
    products = 2 * count * (model.bytes / 2 - model.head.numel())
    stage.say(
        "torch prompt", shape=name, format="bf16", tokens=count, tokens_per_s=count / took, operations_per_s=products / took,
        share_of_bf16=stage.share("bf16", products / took),
    )  # fmt: skip


def int4(stage: Stage, rows: int, columns: int) -> None:
    """One token by matrices that follow each other through more than the L2 cache holds."""
    group, tiles = 32, 8
    count = max(2, (512 << 20) // (rows * columns // 2))
    packed = []
    for _ in range(count):
        codes = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8, device="cuda")
        weights = torch._convert_weight_to_int4pack(codes, tiles)
        scales = torch.randn(columns // group, rows, 2, device="cuda", dtype=torch.bfloat16)
        packed.append((weights, scales))
    x = torch.randn(1, columns, device="cuda", dtype=torch.bfloat16)
    step = _recorded(lambda: [torch._weight_int4pack_mm(x, weights, group, scales) for weights, scales in packed])
    took, size = _seconds(step, "cuda", 5) / count, rows * columns * (0.5 + 4 / group)
    stage.say(
        "torch int4 matrix by vector", rows=rows, columns=columns, group=group, us=took * 1e6, bytes_per_s=size / took,
        share_of_copy=stage.share("copy", size / took),
    )  # fmt: skip


def _recorded(step: Callable[[], Any]) -> Callable[[], Any]:
    """As a CUDA graph, after a few warm calls on a stream of its own."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _seconds(step: Callable[[], Any], device: str, count: int) -> float:
    """The median of some measurements of `count` calls each, by the GPU's clock where there is one."""
    step()
    found = []
    for _ in range(ROUNDS):
        if device != "cuda":
            start = time.perf_counter()
            step()
            found.append(time.perf_counter() - start)
            continue
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(count):
            step()
        last.record()
        last.synchronize()
        found.append(first.elapsed_time(last) / 1000 / count)
    return statistics.median(found)
