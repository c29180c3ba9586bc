"""How many tokens of a prompt a GPU computes at once, and what memory such a step takes.

A CPU's number (estimate.MOST_TOKENS) is for its caches. A GPU has a block of threads for 64 tokens by 128 rows of a matrix and needs some
three hundred blocks to be busy: four times as many tokens for matrices of 4,096 rows, more for smaller ones and for mixtures of experts,
whose tokens are spread over many matrices. The bits of a token do not depend on it.
"""

from __future__ import annotations

from llmcli.estimate import MOST_TOKENS, blocks
from llmcli.formats.format import padded
from llmcli.plan import Op, Plan

PIECES = (2048, 1024, 512, MOST_TOKENS)
"""Tokens at once, the best first. The last one is what a placement of layers is made for: layers come before speed."""
FEW, UNIT = 8, 128
"""Attention of up to so many tokens keeps a vector and two numbers for each of their heads and so many keys."""
OUTPUTS = 16
"""Rows of logits that there is room for; where more are wanted, their arrays grow."""
GRID = 65535
"""Most blocks of a launch in its second dimension, which is the choices of experts."""


def pieces(plan: Plan) -> tuple[int, ...]:
    """Those of PIECES that a plan can use: a text is not cut finer for larger ones, and no launch is too large."""
    chosen = max((op.integer("chosen") for op in plan.ops if op.kind == "experts"), default=1)
    return tuple(n for n in PIECES if n == PIECES[-1] or (n < 2 * plan.context and n * chosen <= GRID))


def step_bytes(plan: Plan, tokens: int) -> int:
    """Bytes on the GPU for steps of up to so many tokens, a power of two: activations, one of them in int8, block tables, what experts'
    choices and attention work in, rows of logits."""
    each = 4 * (5 + blocks(plan)) + codes(max((op.inputs[0].width for op in plan.ops if op.kind == "linear"), default=0))
    row = 0
    for buffer in plan.buffers:
        size = 4 * padded(buffer.width, 32)
        each, row = each + size * (buffer.rows == "tokens"), row + size * (buffer.rows == "outputs")
    experts = max((_choice(op) * op.integer("chosen") for op in plan.ops if op.kind == "experts"), default=0)
    units = -(-plan.context // UNIT)
    parts = max((op.integer("heads") * (op.integer("head_size") + 2) for op in plan.ops if op.kind == "attention"), default=0)
    return tokens * (each + experts) + 4 * FEW * units * parts + 2 * OUTPUTS * row


def between(plan: Plan, tokens: int) -> int:
    """Bytes of this machine's memory for what a part hands on: page-locked at both ends for so many tokens, which a GPU computes at once,
    and twice for a whole text, in pieces and joined."""
    return 2 * 4 * plan.hidden * (tokens + plan.context)


def codes(columns: int) -> int:
    """Bytes of a row in int8: records of 320 bytes for 256 columns."""
    return padded(columns, 256) * 5 // 4


def _choice(op: Op) -> int:
    """Bytes of a token's choice of an expert: what it computes and says, input or output of either product in int8, its place."""
    inner, outer = op.integer("size") * (2 if op.params["gated"] else 1), op.out[0].width
    return 4 * (padded(inner, 32) + padded(outer, 32) + 1) + codes(max(inner, outer))
