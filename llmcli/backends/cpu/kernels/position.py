"""x[t] += table[position[t] + offset], in place: learned positions. One chunk is one token."""

from __future__ import annotations

from llmcli.backends.cpu.kernels.vectors import field, load_first, load_i32, store_first
from llmcli.backends.cpu.records import HEADER, POSITION


def add():
    def kernel(args, chunk, thread):
        columns = field(args, POSITION.columns)
        position = load_i32(field(field(args, POSITION.header), HEADER.positions) + chunk * 4)
        row = field(args, POSITION.table) + (position + field(args, POSITION.offset)) * columns * 4
        x = field(args, POSITION.x) + chunk * field(args, POSITION.x_stride)
        for at in range(0, columns, 16):
            n = columns - at
            store_first(x + at * 4, load_first(x + at * 4, n) + load_first(row + at * 4, n), n)

    return kernel


KERNELS = {"add": add}
