"""Safetensors files written by hand, for what the library cannot write: any bytes, any types."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any


def build(header: bytes, data: bytes = b"") -> bytes:
    """A file of this header and these data, right or wrong."""
    return struct.pack("<Q", len(header)) + header + data


def save(path: Path, **tensors: tuple[str, tuple[int, ...], bytes]) -> None:
    """Writes tensors given as (type, shape, bytes)."""
    header: dict[str, Any] = {}
    at = 0
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(raw)]}
        at += len(raw)
    path.write_bytes(build(json.dumps(header).encode(), b"".join(raw for _, _, raw in tensors.values())))
