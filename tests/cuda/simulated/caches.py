"""A KV cache as the device has it, and attention's operands, for kernel tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from steps import Array, F, Operand, Tokens, random

from llmcli.backends.cuda.kernels import attention_decode, attention_prompt
from llmcli.backends.cuda.kernels.cache import CacheLayout
from llmcli.backends.reference.attention import attention
from llmcli.kv import BLOCK, KVCache
from llmcli.plan import CacheLayer

LAYER = 1
"""Of three."""


def empty(cache: KVCache, dtype: str) -> tuple[Array, CacheLayout]:
    """A device's cache of `dtype` where nothing is written: NaN."""
    layout = CacheLayout.of(cache.layers, dtype)
    return np.full(cache.blocks * layout.block_bytes, 255, np.uint8), layout


def coded(x: Array) -> tuple[Array, Array]:
    """[positions, D] as int8 codes and f32 scales [positions]; NaN: 255 in every byte."""
    with np.errstate(invalid="ignore", divide="ignore"):
        size = abs(x).max(-1)
        codes = np.rint(x * (F(127) / np.where(size > 0, size, F(np.inf)))[:, None])
        return np.where(np.isnan(codes), -1, codes).astype(np.int8), np.where(np.isnan(size), x[:, 0], size / F(127))


def on_device(cache: KVCache, dtype: str) -> tuple[Array, CacheLayout]:
    """The same numbers, as the device has them. dtype: the cache's own, or int8 for one of f32."""
    data, layout = empty(cache, dtype)
    for number, (layer, head) in enumerate(zip(cache.layers, layout.layers, strict=True)):
        for block in range(cache.blocks):
            start = block * layout.block_bytes + layout.starts[number]
            for h in range(layer.kv_heads):
                keys = cache.keys(number, block)[h].swapaxes(1, 2).reshape(BLOCK, -1)
                values, scales = cache.values(number, block)[h, :, : head.head_size], np.zeros((2, 0), F)
                if dtype == "int8":
                    (keys, key_scales), (values, value_scales) = coded(keys), coded(values)
                    scales = np.stack([key_scales, value_scales])
                keys = np.pad(keys, ((0, 0), (0, head.key_chunks * head.chunk - head.head_size)))
                keys = keys.reshape(BLOCK, -1, head.chunk).swapaxes(0, 1)
                values = values.reshape(-1, head.chunk, head.head_size).swapaxes(1, 2)
                parts = [np.ascontiguousarray(x).view(np.uint8).reshape(-1) for x in (keys, values, scales)]
                data[start : start + head.head_bytes] = np.concatenate(parts)
                start += head.head_bytes
    return data, layout


@dataclass(frozen=True)
class Shape:
    """What an attention operation is."""

    heads: int = 4
    kv_heads: int = 2
    size: int = 16
    dtype: str = "f16"
    window: int = 0
    softcap: float = 0.0
    alibi: bool = False
    sinks: bool = False
    scale: float = 0.4

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def slopes(self) -> Array | None:
        return (2.0 ** -np.arange(1, self.heads + 1)).astype(F) if self.alibi else None

    @property
    def sink_logits(self) -> Array | None:
        return np.linspace(-3, 4, self.heads).astype(F) if self.sinks else None


@dataclass
class Texts:
    """Sequences whose keys and values are random, up to their lengths."""

    shape: Shape
    tokens: Tokens
    data: Array = field(init=False)
    layout: CacheLayout = field(init=False)

    @staticmethod
    def of(shape: Shape, lengths: tuple[int, ...]) -> Texts:
        layers = [CacheLayer(1, 8), CacheLayer(shape.kv_heads, shape.size), CacheLayer(2, 8)]
        tokens = Tokens.of(
            layers, (0,) * len(lengths), "f32" if shape.dtype == "int8" else shape.dtype, sum(-(-n // BLOCK) for n in lengths) + 2
        )
        tokens.cache.data[:] = 255
        texts = Texts(shape, tokens)
        for number, length in enumerate(lengths):
            texts.write(number, length)
        return texts

    def write(self, number: int, length: int) -> None:
        """Random keys and values from where sequence `number` ends to `length`."""
        sequence, cache = self.tokens.sequences[number], self.tokens.cache
        first = sequence.length
        sequence.extend(length - first)
        for position in range(first, length):
            new = random(2, self.shape.kv_heads, self.shape.size, seed=1000 * number + position)
            if self.shape.dtype == "int8":
                new = np.array([c * s[:, None] for c, s in map(coded, new)])
            block, within = sequence.blocks[position // BLOCK], position % BLOCK
            cache.keys(LAYER, block)[:, within // 16, :, within % 16] = new[0]
            cache.values(LAYER, block)[:, within, : self.shape.size] = new[1]

    def upload(self) -> Texts:
        self.data, self.layout = on_device(self.tokens.cache, self.shape.dtype)
        return self

    def expected(self, owners: Any, positions: Any, query: Array) -> Array:
        s = self.shape
        step = self.tokens.reference(owners, positions)
        slopes = () if s.slopes is None else tuple(float(x) for x in s.slopes)
        shape: dict[str, Any] = {"heads": s.heads, "kv_heads": s.kv_heads, "head_size": s.size, "scale": s.scale}
        return attention(step, query, s.sink_logits, layer=LAYER, slopes=slopes, window=s.window, softcap=s.softcap, **shape)

    def attend(self, owners: Any, positions: Any, query: Array, prompt: bool, shares: int = 2, room: int = 1) -> Array:
        """By attention_prompt, or by attention_decode and its merge. room: tokens that there might be more."""
        s, count = self.shape, len(owners)
        step, out, nothing = self.tokens.device(owners, positions), Operand.empty(count, query.shape[1]), np.full(1, np.nan, F)
        place = (self.data, self.layout.starts[LAYER], self.layout.block_bytes, s.kv_heads)
        slopes = (nothing, 0) if s.slopes is None else (s.slopes, 1)
        sinks = (nothing, 0) if s.sink_logits is None else (s.sink_logits, 1)
        args = (step, *Operand.of(query, 5).args, *place, s.scale, s.window, s.softcap, *slopes)
        if prompt:
            kernel, grid, block = attention_prompt.attention_prompt(s.size, s.dtype, count + room, s.kv_heads, s.group)
            kernel[grid, block](*args, *sinks, *out.args)
        else:
            most = attention_decode.units(max(positions) + 1) + 1
            sizes = attention_decode.scratch(count + room, s.heads, s.size, most)
            vectors, extents = (np.full(n + 1, np.nan, F) for n in sizes)
            kernel, grid, block = attention_decode.attention_decode(s.size, s.dtype, count + room, s.kv_heads, s.group, most)
            kernel[(min(grid[0], shares), *grid[1:]), block](*args, vectors, extents, most)
            kernel, grid, block = attention_decode.attention_merge(s.size, count + room, s.heads)
            kernel[grid, block](step, vectors, extents, most, *out.args, s.size, s.window, *sinks)
            assert np.isnan(vectors[-1]) and np.isnan(extents[-1])
        return out.taken(count)
