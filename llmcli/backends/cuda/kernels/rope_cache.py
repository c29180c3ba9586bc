"""Rotary positions of queries and keys, in place (rope.py), and keys and values to the cache (cache.py), in one launch: the same
functions, so the same bits.

The first blocks turn queries, a thread one pair of each of some heads; each of the others takes one kv head: its threads turn the
key's pairs, then write the key and the value. Bytes: as both by themselves, but keys are read the second time from the L1 cache.
"""

from __future__ import annotations

from llmcli.backends.cuda.kernels.cache import head_writer, threads
from llmcli.backends.cuda.kernels.platform import cuda, kernel, made
from llmcli.backends.cuda.kernels.rope import EACH, turner


@made
def rows(head_size: int, pairs: int, dtype: str, interleaved: bool):
    """The kernel. pairs: as of rope.rows, here a constant because it divides; heads: of queries and of keys, the last kv_heads. Grid
    (blocks of queries + kv heads, tokens)."""
    turn, write_head, block = turner(interleaved), head_writer(head_size, dtype), threads(head_size)

    @kernel
    def rope_cache_write(
        step, fault, op, x, x_start, x_stride, heads, frequencies, factor, value, value_start, value_stride,
        cache, layer_start, block_bytes, kv_heads,
    ):  # fmt: skip
        token, thread, query_blocks, query_heads = cuda.blockIdx.y, cuda.threadIdx.x, cuda.gridDim.x - kv_heads, heads - kv_heads
        if token >= step[0]:
            return
        row = x_start + token * x_stride
        if cuda.blockIdx.x < query_blocks:
            item = cuda.blockIdx.x * block + thread
            first, pair = item // pairs * EACH, item % pairs
            if first < query_heads:
                turn(step, token, x, row, first, query_heads, head_size, pair, pairs, frequencies, factor)
            return
        kv_head = cuda.blockIdx.x - query_blocks
        head = query_heads + kv_head
        for pair in range(thread, pairs, block):
            turn(step, token, x, row, head, head + 1, head_size, pair, pairs, frequencies, factor)
        cuda.syncthreads()
        v = value_start + token * value_stride + kv_head * head_size
        write_head(step, fault, op, token, x, row + head * head_size, value, v, cache, layer_start, block_bytes, kv_head)

    return rope_cache_write


def rope_cache_write(head_size: int, pairs: int, dtype: str, interleaved: bool, most: int, heads: int, kv_heads: int):
    """(kernel, grid, block) for up to `most` tokens."""
    block = threads(head_size)
    query_blocks = -(-(-(-(heads - kv_heads) // EACH) * pairs) // block)
    return rows(head_size, pairs, dtype, interleaved), (query_blocks + kv_heads, most), block
