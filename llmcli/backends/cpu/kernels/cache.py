"""Writing keys and values into the KV cache (its layout: kv.py), by itself or right behind the rotation of the keys, which are
then read where they have just been turned. One chunk is one token."""

from __future__ import annotations

from llmcli.backends.cpu.kernels import cache_codes, cache_floats
from llmcli.backends.cpu.kernels.faults import report
from llmcli.backends.cpu.kernels.instructions import inline
from llmcli.backends.cpu.kernels.rope import TOKENS
from llmcli.backends.cpu.kernels.vectors import field, load_i32
from llmcli.backends.cpu.records import CACHE_WRITE, HEADER, ROPE_WRITE
from llmcli.backends.cpu.tiles import BLOCK


def token(dtype):
    """write(args, token): a token's keys and values of all heads to its position."""
    write_head = (cache_codes if dtype in cache_codes.LANES else cache_floats).head(dtype)

    @inline
    def write(args, token):
        header = field(args, CACHE_WRITE.header)
        position = load_i32(field(header, HEADER.positions) + token * 4)
        table = field(header, HEADER.tables) + load_i32(field(header, HEADER.owners) + token * 4) * field(header, HEADER.table_stride)
        block = load_i32(table + position // BLOCK * 4)
        size, head_bytes = field(args, CACHE_WRITE.head_size), field(args, CACHE_WRITE.head_bytes)
        keys = field(args, CACHE_WRITE.cache) + block * field(args, CACHE_WRITE.block_bytes)
        key = field(args, CACHE_WRITE.key) + token * field(args, CACHE_WRITE.key_stride)
        value = field(args, CACHE_WRITE.value) + token * field(args, CACHE_WRITE.value_stride)
        fits = True
        for _ in range(field(args, CACHE_WRITE.kv_heads)):
            end = keys + head_bytes
            fits &= write_head(keys, keys + field(args, CACHE_WRITE.key_bytes), end, position % BLOCK, key, value, size)
            keys, key, value = end, key + size * 4, value + size * 4
        if not fits:
            report(header, field(args, CACHE_WRITE.op), token)

    return write


def write(dtype):
    write_token = token(dtype)

    def kernel(args, chunk, thread):
        write_token(args, chunk)

    return kernel


def rope_write(dtype, pairs):
    turn_token, write_token = TOKENS[pairs], token(dtype)

    def kernel(args, chunk, thread):
        turn_token(args, chunk)
        write_token(args + ROPE_WRITE.write_header, chunk)

    return kernel


KERNELS = {"write": write, "rope_write": rope_write}
