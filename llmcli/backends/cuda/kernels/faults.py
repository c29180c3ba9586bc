"""Reporting a number that is not finite: the first one found is kept, the step goes on and is then discarded."""

from __future__ import annotations

import numpy as np

from llmcli.backends.cuda.kernels.platform import cuda, device

NOTHING = np.int64(0)


@device
def report(fault, op, token):
    """Writes the operation's number and the token's row into `fault` (i64 [1]), unless there is something in it."""
    cuda.atomic.cas(fault, 0, NOTHING, (np.int64(op) << 32) + np.int64(token) + 1)
