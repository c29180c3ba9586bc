"""Which kernel multiplies by a matrix: one launch of decode.py, prompt.py or floats.py, by format and number of tokens.

All of them add in one order (decode.py), so the choice changes no bit of a token's result.
"""

from __future__ import annotations

from llmcli.backends.cuda.kernels import codes, decode, floats, prompt
from llmcli.backends.cuda.launch import Launch
from llmcli.backends.cuda.weights import FLOAT_BYTES

ROOM = prompt.TOKENS
"""Quantized rows have room for a multiple of so many tokens: kernels read whole blocks and store what there is."""


def height(tokens):
    """Tokens that a decode kernel computes at once; 0 where the prompt kernel is for them."""
    return next((h for h in decode.HEIGHTS if h >= tokens), 0)


def linear(format, place, tokens, step, which, weights, x, out, bias=None, add=False):
    """out[t] = matrix @ x[t] + bias, added to out's own where `add`, for rows t < step[which].

    tokens: the most rows that a step will have. weights u8: the repacked matrix (weights.py), `place` its layout. x: quantized rows u8
    (quantize.py) for formats with int8 activations, else an operand. Operands are (f32 array, start, row stride). bias f32 or None."""
    to, start, stride = out
    tail = to if bias is None else bias, -1 if bias is None else 0, to, start, stride, int(add)
    if format in FLOAT_BYTES:
        kernel, grid, block = floats.launch(format, place, tokens)
        return Launch(kernel, grid, block, (step, which, 1, weights, 0, place.rows, place.columns, *x, 1, step, 0, 0, *tail))
    numbers = place.scales, place.offsets, *codes.table(format), place.rows, place.groups, decode.span(place.chunks)
    kind, tall = codes.kind(format), height(tokens)
    if not tall:
        kernel, grid, block = prompt.launch(kind, place, -(-tokens // prompt.TOKENS))
        return Launch(kernel, grid, block, (step, which, weights, 0, *numbers, x, 1, step, 0, *tail))
    kernel = decode.integers(kind, tall)
    grid = -(-place.rows // 32), -(-tokens // tall)
    return Launch(kernel, grid, 32 * decode.segments(place.chunks), (step, which, 1, weights, 0, *numbers, x, 1, step, 0, 0, *tail))
