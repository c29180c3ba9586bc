"""A step's choices of experts, by expert: what the prompt kernel goes by to read each expert's weights once for all of its tokens.

    groups, i32:   [blocks]  [expert, first, end] of each block  ...  [order]
order: the choices (token * chosen + number), those of an expert side by side. A block is up to TOKENS of them: order[first] ..
order[end - 1]. Nothing of it is read back: grids have room for the most blocks that there can be, and those without one end at once.
Within an expert the order is that in which threads came; no choice's numbers depend on it.
"""

from __future__ import annotations

import numpy as np

from llmcli.backends.cuda.kernels import prompt
from llmcli.backends.cuda.kernels.platform import SIMULATED, cuda, kernel
from llmcli.backends.cuda.launch import Launch

THREADS = 1024 if not SIMULATED else 32
MOST = 2048
"""Experts that there is shared memory for."""
TOKENS = prompt.TOKENS
HEADER, EACH = prompt.HEADER, prompt.EACH


def blocks(choices, count):
    """The most blocks that so many choices of `count` experts make: full ones, and the rest of each expert."""
    return choices // TOKENS + min(choices, count)


def order_at(choices, count):
    """Where the order begins."""
    return HEADER + EACH * blocks(choices, count)


def words(choices, count):
    """Numbers in `groups`."""
    return order_at(choices, count) + choices


@kernel
def group_choices(step, chosen, ids, ids_start, ids_stride, count, groups, order):
    """One block. Counts each expert's choices, then each expert's thread finds where its own begin and writes their blocks.
    order: where it begins in `groups`."""
    counts = cuda.shared.array(MOST, np.int32)
    places = cuda.shared.array(MOST, np.int32)
    thread, choices = cuda.threadIdx.x, step[0] * chosen
    for expert in range(thread, count, THREADS):
        counts[expert] = 0
    cuda.syncthreads()
    for choice in range(thread, choices, THREADS):
        cuda.atomic.add(counts, ids[ids_start + choice // chosen * ids_stride + choice % chosen], 1)
    cuda.syncthreads()
    for expert in range(thread, count, THREADS):
        place, block = 0, 0
        for before in range(expert):
            place += counts[before]
            block += (counts[before] + TOKENS - 1) // TOKENS
        end = place + counts[expert]
        places[expert] = place
        while place < end:
            at = HEADER + EACH * block
            groups[at], groups[at + 1], groups[at + 2] = expert, place, min(place + TOKENS, end)
            place, block = place + TOKENS, block + 1
        if expert == count - 1:
            groups[0] = block
    cuda.syncthreads()
    for choice in range(thread, choices, THREADS):
        place = cuda.atomic.add(places, ids[ids_start + choice // chosen * ids_stride + choice % chosen], 1)
        groups[order + place] = choice


def group(tokens, chosen, count, step, ids, groups):
    """One launch for up to so many tokens; ids: (i32 array, start, stride)."""
    return Launch(group_choices, 1, THREADS, (step, chosen, *ids, count, groups, order_at(tokens * chosen, count)))
