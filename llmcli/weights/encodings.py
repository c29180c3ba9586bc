"""How the numbers of a stored tensor become float32: plain floats, and the block types of GGUF.

A block type stores a row as blocks: some codes and their scales. The `gguf` package knows what the blocks of each type
mean; it is imported when the first such tensor is met. The blocks of some types have the codes and scales of a format
of ours: they are moved as they are, so that nothing is rounded twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from llmcli.formats import layout
from llmcli.formats.bf16 import widen
from llmcli.formats.format import ROWS, Bytes, Floats, padded


@dataclass(frozen=True)
class Encoding:
    """elements: values in a block; size: its bytes; decode: blocks, u8 [n * size], as f32 [n * elements].

    float_format: our float format that holds every value. kept: a format that may be asked for -> the format of ours
    that holds the blocks bit for bit. move: rows of blocks, u8 [N, bytes of a row], as a matrix packed in that format;
    None where it cannot hold these."""

    elements: int
    size: int
    decode: Callable[[Bytes], Floats]
    float_format: str = "f32"
    kept: Mapping[str, str] = field(default_factory=dict)
    move: Callable[[Bytes], Bytes | None] | None = None

    def repack(self, rows: Callable[[], Bytes], format: str) -> Bytes | None:
        """What `move` makes of the rows; None where they have to be decoded and packed anew."""
        return self.move(rows()) if self.move is not None and format in self.kept.values() else None


FLOATS = {
    "F32": Encoding(1, 4, lambda raw: raw.view(np.float32), "f32"),
    "F16": Encoding(1, 2, lambda raw: raw.view(np.float16).astype(np.float32), "f16"),
    "BF16": Encoding(1, 2, lambda raw: widen(raw.view(np.uint16)), "bf16"),
}
"""Plain floats, by the names that safetensors and GGUF share."""


def find(dtype: str) -> Encoding | None:
    """The encoding of a tensor's type; None for one that does not stand for float numbers, or that nobody can decode."""
    return FLOATS.get(dtype) or _blocks(dtype)


@cache
def _blocks(dtype: str) -> Encoding | None:
    import gguf

    if dtype not in gguf.GGMLQuantizationType.__members__:
        return None
    kind = gguf.GGMLQuantizationType[dtype]
    elements, size = gguf.GGML_QUANT_SIZES[kind]

    def decode(raw: Bytes) -> Floats:
        # Damaged scales give infinities, which are reported with their place and not as warnings.
        with np.errstate(all="ignore"):
            values = gguf.quants.dequantize(raw.reshape(1, -1), kind)
        return np.ascontiguousarray(values, np.float32).reshape(-1)

    try:
        decode(np.zeros(size, np.uint8))
    except NotImplementedError:
        return None
    kept, move = _KEPT.get(dtype, ({}, None))
    return Encoding(elements, size, decode, kept=kept, move=move)


def _nibbles(raw: Bytes) -> Bytes | None:
    """Blocks of a scale and 32 nibbles: the low ones are columns 0 .. 15, as in our int4 formats."""
    codes, scales = _split(raw, 2 + 16, 0x88)
    return layout.pack_nibbles(np.concatenate([codes & 15, codes >> 4], axis=-1), scales) if np.isfinite(scales).all() else None


def _bytes(raw: Bytes) -> Bytes | None:
    """Blocks of a scale and 32 signed bytes. Ours has no code -128, which other programs' rules never give."""
    codes, scales = _split(raw, 2 + 32, 0)
    signed = codes.view(np.int8)
    return layout.pack_bytes(signed, scales) if np.isfinite(scales).all() and signed.min(initial=0) > -128 else None


def _split(raw: Bytes, size: int, padding: int) -> tuple[Bytes, layout.Scales]:
    """Rows of blocks, each an f16 scale and code bytes: codes u8 [Np, groups, size - 2] and scales [Np, groups], with
    rows of `padding` codes and scale 0 up to a multiple of 16."""
    rows = len(raw)
    blocks = raw.reshape(rows, -1, size)
    count = blocks.shape[1]
    codes = np.full((padded(rows, ROWS), count, size - 2), padding, np.uint8)
    scales = np.zeros((padded(rows, ROWS), count), np.float16)
    codes[:rows] = blocks[..., 2:]
    scales[:rows] = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0]
    return codes, scales


_KEPT: dict[str, tuple[dict[str, str], Callable[[Bytes], Bytes | None]]] = {
    "Q4_0": ({"int4": "int4_uniform"}, _nibbles),
    "IQ4_NL": ({"int4": "iq4_nl"}, _nibbles),
    "Q8_0": ({"int8": "int8"}, _bytes),
}
