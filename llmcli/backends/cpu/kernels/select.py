"""out[r] = x[row r of those whose logits are wanted]. One chunk is one of them."""

from __future__ import annotations

from llmcli.backends.cpu.kernels.vectors import field, load_first, load_i32, store_first
from llmcli.backends.cpu.records import HEADER, SELECT


def rows():
    def kernel(args, chunk, thread):
        row = load_i32(field(field(args, SELECT.header), HEADER.output_rows) + chunk * 4)
        x = field(args, SELECT.x) + row * field(args, SELECT.x_stride)
        out = field(args, SELECT.out) + chunk * field(args, SELECT.out_stride)
        for at in range(0, field(args, SELECT.columns), 16):
            n = field(args, SELECT.columns) - at
            store_first(out + at * 4, load_first(x + at * 4, n), n)

    return kernel


KERNELS = {"rows": rows}
