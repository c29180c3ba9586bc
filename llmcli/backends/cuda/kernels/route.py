"""Choosing experts: the `chosen` largest of a token's router logits, largest first, and their weights by softmax.

A warp chooses for one token: each lane knows the best of its experts (i = lane, lane + 32, ...) that follows the last one chosen;
the largest of the lanes' logits and, among equal ones, the lowest id wins. What is not a number comes last, so that there always
is a choice. Softmax sums: over all experts in 32 lanes and the exchange, over the chosen in their order. Bytes: the logits, from
the cache for each choice.
"""

from __future__ import annotations

import numpy as np

from llmcli.backends.cuda.kernels.mathematics import exp
from llmcli.backends.cuda.kernels.platform import WARP, cuda, device, kernel, lane_max, lane_sum, made, product

F = np.float32
INFINITY, MINUS_INFINITY, ZERO = F(np.inf), F(-np.inf), F(0)
NOBODY = np.int32(1 << 30)


@device
def logit(logits, at):
    x = logits[at]
    return x if x == x else MINUS_INFINITY


@made
def rows(over_all):
    """The kernel: softmax over all experts before the choice, or over the chosen."""

    @kernel
    def route_rows(
        step, logits, logits_start, logits_stride, ids, ids_start, ids_stride, weights, weights_start, weights_stride, count, chosen,
        normalise, scale,
    ):  # fmt: skip
        """ids: an i32 array, chosen of them a token."""
        token, lane = cuda.blockIdx.x, cuda.threadIdx.x
        if token >= step[0]:
            return
        start, to, to_ids = logits_start + token * logits_stride, weights_start + token * weights_stride, ids_start + token * ids_stride
        last, last_id, most, sum_ = INFINITY, -1, ZERO, ZERO
        for i in range(chosen):
            best, best_id = MINUS_INFINITY, NOBODY
            for expert in range(lane, count, WARP):
                x = logit(logits, start + expert)
                if (x < last or (x == last and expert > last_id)) and (best_id == NOBODY or x > best):
                    best, best_id = x, np.int32(expert)
            last = lane_max(best)
            # lanes without a best have MINUS_INFINITY and NOBODY: they lose to any other of that logit
            last_id = -lane_max(np.int32(-best_id) if best == last else np.int32(-NOBODY))
            if i == 0:
                most = logits[start + last_id]
            weight = exp(logits[start + last_id] - most)
            sum_ = sum_ + weight
            if lane == 0:
                ids[to_ids + i] = last_id
                weights[to + i] = weight
        if over_all and not normalise:
            own = ZERO
            for expert in range(lane, count, WARP):
                own = own + exp(logits[start + expert] - most)
            sum_ = lane_sum(own)
        if lane == 0:
            for i in range(chosen):
                weights[to + i] = product(weights[to + i] / sum_, F(scale))

    return route_rows


KERNELS = {"before": rows(True), "after": rows(False)}


def route(softmax: str, most: int):
    """(kernel, grid, block) for up to `most` tokens; chosen <= count."""
    return KERNELS[softmax], most, WARP
