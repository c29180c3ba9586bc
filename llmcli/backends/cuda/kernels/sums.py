"""Sums over a block of threads, in one order: over the lanes of each warp, then warps ascending."""

from __future__ import annotations

from llmcli.backends.cuda.kernels.platform import WARP, cuda, device, lane_sum


def block_sum(warps):
    """The device function (value, shared array of `warps`) -> the sum of all threads' values, in every thread. All threads call it."""

    @device
    def sum_(value, partials):
        warp = cuda.threadIdx.x // WARP
        found = lane_sum(value)
        cuda.syncthreads()  # who still reads the last sum's partials?
        if cuda.threadIdx.x % WARP == 0:
            partials[warp] = found
        cuda.syncthreads()
        total = partials[0]
        for i in range(1, warps):
            total = total + partials[i]
        return total

    return sum_
