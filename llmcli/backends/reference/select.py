"""From the step's tokens to the wanted rows, and from logits to what is asked of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llmcli.backends.reference.step import Floats, Ints, Step
from llmcli.ops import TOP

Doubles = npt.NDArray[np.float64]


def select_rows(step: Step, x: Floats) -> Floats:
    """x [T, H] -> [R, H]."""
    return x[step.batch.outputs]


def top(logits: Floats) -> tuple[Ints, Floats, Doubles, Doubles]:
    """logits [R, V] -> the TOP largest: ids and values [R, min(TOP, V)] (equal logits by ascending id), then
    log-sum-exp and entropy (nats) [R] in float64."""
    ids = np.argsort(-logits, axis=-1, kind="stable")[:, :TOP].astype(np.int32)
    wide = logits.astype(np.float64)
    highest = wide.max(-1, keepdims=True)
    log_sum = np.log(np.exp(wide - highest).sum(-1)) + highest[:, 0]
    share = np.exp(wide - log_sum[:, None])
    entropy = log_sum - (share * np.where(share > 0, wide, 0)).sum(-1)  # -infinity adds nothing
    return ids, np.take_along_axis(logits, ids, -1), log_sum, entropy
