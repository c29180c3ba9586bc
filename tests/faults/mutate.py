"""Changes to files, byte by byte and inside JSON: the same seed gives the same change."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

NUMBERS = [0, 1, 2, 7, 31, 32, 127, 128, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
JUNK: list[Any] = [
    *(None, True, False, "", "x", "\0", "\x1b[2J", "\ud800", "../../etc/passwd", "9" * 400, [], {}, [[]], [0], {"": None}),
    *(-1, -(2**63), 0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"), 10**4000),
    *NUMBERS,
]


def changed(data: bytes, rng: random.Random) -> bytes:
    """A file with some things changed: inside its JSON where it is or begins with some, else bytes."""
    if rng.random() < 0.6:
        try:
            return _in_json(data, rng)
        except (ValueError, RecursionError, OverflowError):
            pass
    for _ in range(1 << rng.randrange(4)):
        data = _in_bytes(data, rng)
    return data


def _in_bytes(data: bytes, rng: random.Random) -> bytes:
    at, end = sorted((_place(data, rng), _place(data, rng)))
    match rng.randrange(8):
        case 0:
            return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        case 1 if data[at : at + 1]:
            return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        case 2:
            return data[:at]
        case 3:
            return data[:at] + data[end:]
        case 4:
            return data[:end] + data[at:end][:4096] + data[end:]
        case 5:
            kind = rng.choice(["<I", "<Q", "<H"])
            number = rng.choice(NUMBERS) % (1 << 8 * struct.calcsize(kind))
            return data[:at] + struct.pack(kind, number) + data[at + struct.calcsize(kind) :]
        case 6:
            return data[:at] + rng.randbytes(rng.randrange(1, 17)) + data[at:]
        case _:
            return data[:at] + str(rng.choice(NUMBERS)).encode() + data[at + rng.randrange(4) :]


def _place(data: bytes, rng: random.Random) -> int:
    """Mostly near the beginning, where headers are."""
    return min(len(data), int(len(data) * rng.random() ** rng.choice([1, 4, 16])))


def _in_json(data: bytes, rng: random.Random) -> bytes:
    """In all of it, or in the header of a safetensors file, whose length stays right."""
    if data[:1] == b"{":
        return _dumps(_spoiled(json.loads(data), rng))
    size = int.from_bytes(data[:8], "little")
    if data[8:9] != b"{" or size > len(data):
        raise ValueError("no JSON here")
    header = _dumps(_spoiled(json.loads(data[8 : 8 + size]), rng))
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def _dumps(found: Any) -> bytes:
    return json.dumps(found, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _spoiled(found: Any, rng: random.Random) -> Any:
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        path = []
        here = found
        while isinstance(here, (dict, list)) and here and (not path or rng.random() < 0.8):
            key = rng.choice(list(here)) if isinstance(here, dict) else rng.randrange(len(here))
            path.append((here, key))
            here = here[key]
        if not path:
            continue
        inside, key = path[-1]
        if isinstance(here, str) and here[:1] == "{" and rng.random() < 0.8:
            inside[key] = _dumps(_spoiled(json.loads(here), rng)).decode("utf-8", "surrogatepass")
            continue
        match rng.randrange(6):
            case 0:
                del inside[key]
            case 1 if isinstance(inside, dict):
                inside[rng.choice(["", "__metadata__", str(key) + "x", "type", "a" * 3000])] = inside[key]
            case 2 if isinstance(inside, list):
                inside.extend(inside[key : key + 1] * rng.choice([1, 2, 100]))
            case 3 if type(here) is int:
                inside[key] = here + rng.choice([-1, 1, 64, -64, 2**32])
            case 4:
                other, other_key = rng.choice(path)
                inside[key] = json.loads(json.dumps(other[other_key]))
            case _:
                inside[key] = rng.choice(JUNK)
    return found
