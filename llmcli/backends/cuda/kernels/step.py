"""A step's input on the device: one i32 array, the `step` of every kernel.

    [T, R, width, most]  [tokens]  [positions]  [owners]  [outputs]  [block tables]
T tokens, R wanted rows; each section in brackets after the first holds `most` numbers, of which the first T (of outputs: R)
count. A table row of `width` block numbers for each sequence; owners are rows of the tables. A captured graph keeps its
kernels' arguments: what changes from step to step is only in here.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

TOKENS_IN_STEP, ROWS_IN_STEP, TABLE_WIDTH, MOST = 0, 1, 2, 3
"""Where the four counts are."""
HEADER = 4
TOKENS, POSITIONS, OWNERS, OUTPUTS, TABLES = 0, 1, 2, 3, 4
"""Sections: number `i` of section S is step[HEADER + S * step[MOST] + i]."""

Ints = npt.NDArray[np.int32]


def words(most: int, sequences: int, width: int) -> int:
    """Numbers in a step of up to `most` tokens of up to `sequences` sequences with up to `width` blocks each."""
    return HEADER + TABLES * most + sequences * width


def fill(step: Ints, most: int, tokens: Ints, positions: Ints, owners: Ints, outputs: Ints, tables: Ints) -> int:
    """Writes a step into `step` (a pinned host array); tables: [sequences, width]. Returns the numbers written."""
    step[:HEADER] = len(tokens), len(outputs), tables.shape[1], most
    for section, values in ((TOKENS, tokens), (POSITIONS, positions), (OWNERS, owners), (OUTPUTS, outputs)):
        start = HEADER + section * most
        step[start : start + len(values)] = values
    start = HEADER + TABLES * most
    step[start : start + tables.size] = tables.ravel()
    return start + tables.size
