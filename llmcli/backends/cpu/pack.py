"""Packing weights with compiled kernels: twins of formats/search.py and formats/int8.py, with the same bytes, several times as fast."""

from __future__ import annotations

import functools

import numpy as np

from llmcli.backends.cpu import objects, threads
from llmcli.backends.cpu.records import PACK, pack
from llmcli.formats import format as formats
from llmcli.formats import search
from llmcli.formats.format import ROWS, Bytes, Floats, aligned

INT4: objects.Key = ("pack.int4", ())
INT8: objects.Key = ("pack.int8", ())
BINS = 32
WIDTH = 16
"""Halves of a code's unit in a bin."""
GIANT = np.float32(1e6)
"""Weights beyond it may need scales that f16 cannot hold: the oracle says so."""
WORTH = {INT4: 32 << 20, INT8: 512 << 20}
"""Weights that NumPy packs in about the time that compiling takes."""


class Packer:
    """(format, f32 [N, K]) -> the packed matrix, by the kernel where it is kept or there is enough to do to compile it."""

    def __init__(self) -> None:
        self._seen = dict.fromkeys(WORTH, 0)

    def __call__(self, format: str, values: Floats) -> Bytes:
        """Raises NumericalError."""
        key = kernel_of(format)
        if key:
            self._seen[key] += values.size
            if objects.ready(key) or self._seen[key] > WORTH[key]:
                return packed(format, values)
        return formats.get(format).pack(values)


def kernel_of(format: str) -> objects.Key | None:
    """The kernel that packs the format."""
    if searched(format):
        return INT4
    return INT8 if formats.get(format).FORMAT.bits == 8 else None


def searched(format: str) -> bool:
    """Whether this packs the format: one with a scale search, and at most one border between codes in a bin."""
    record = formats.get(format).FORMAT
    if not record.search:
        return False
    codes = np.array(record.codes)
    return bool(np.diff(codes[1:] + codes[:-1]).min() >= WIDTH and 2 * np.ptp(codes) < BINS * WIDTH)


def packed(format: str, values: Floats) -> Bytes:
    """f32 [N, K] -> the packed matrix, as the `pack` of a format with a kernel makes it; raises what that does."""
    module, key = formats.get(format), kernel_of(format)
    assert key is not None
    rows, columns = values.shape
    values = np.ascontiguousarray(values)
    if values.size == 0 or not max(values.max(), -values.min()) < GIANT:
        return module.pack(values)
    kernel = threads.function(objects.load([key])[key])
    sections = module.sections(rows, columns)
    out = aligned(module.size(rows, columns))
    out[sum(sections) :] = 0
    tables = _tables(module.FORMAT.codes) if key == INT4 else out
    start = int(out.ctypes.data)
    args = pack(
        PACK,
        header=0,
        x=int(values.ctypes.data),
        x_stride=values.strides[0],
        columns=columns,
        rows=rows,
        codes=start,
        scales=start + sections[0],
        tables=int(tables.ctypes.data),
    )
    for chunk in range(-(-rows // ROWS)):
        kernel(args.ctypes.data, chunk, 0)
    return out


@functools.cache
def _tables(codes: tuple[int, ...]) -> Bytes:
    """See records.PACK."""
    values = np.array(codes)
    places = values[1:] + values[:-1] - 2 * values[0]  # where the next code begins
    numbers = np.searchsorted(places, np.arange(BINS) * WIDTH, "right")
    next_places = np.append(places, 1 << 30)[numbers] - 1
    numbers = np.minimum(numbers, len(codes) - 1)
    above = np.minimum(numbers + 1, len(codes) - 1)
    candidates = np.outer(values[[0, -1]].astype(np.float32), search.STRETCHES.astype(np.float32)).astype(np.float32)
    ends = np.array([2 * values[0], 2 * (values[-1] - values[0])])
    parts = (
        next_places.astype(np.int32),
        values[numbers].astype(np.float32),
        values[above].astype(np.float32),
        numbers.astype(np.int32),
        candidates.ravel(),
        ends.astype(np.float32),
    )
    return np.concatenate([part.view(np.uint8) for part in parts])
