"""How the numbers of a stored tensor become float32: plain floats, and the block types of GGUF.

A block type stores a row as blocks: some codes and their scales. The `gguf` package knows what the blocks of each type
mean; it is imported when the first such tensor is met. Some types' blocks are moved as they are (blocks.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from llmcli.formats.bf16 import widen
from llmcli.formats.format import Bytes, Floats
from llmcli.weights.blocks import MOVES, Move


@dataclass(frozen=True)
class Encoding:
    """elements: values in a block; size: its bytes; decode: blocks, u8 [n * size], as f32 [n * elements].

    float_format: our float format that holds every value. blocks: how blocks are moved as they are, where a format of ours holds
    them."""

    elements: int
    size: int
    decode: Callable[[Bytes], Floats]
    float_format: str = "f32"
    blocks: Move | None = None

    @property
    def bits(self) -> float:
        """Of one value."""
        return 8 * self.size / self.elements

    def repack(self, rows: Callable[[], Bytes], format: str) -> Bytes | None:
        """Rows of blocks, u8 [N, bytes of a row], packed in `format` as they are; None where they have to be decoded and packed anew."""
        return self.blocks.move(rows()) if self.blocks is not None and format == self.blocks.format else None


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
    return Encoding(elements, size, decode, blocks=MOVES.get(dtype))
