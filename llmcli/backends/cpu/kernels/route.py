"""Choosing experts: the `chosen` largest of a token's router logits, largest first, and their weights by softmax.

One chunk is one token. Equal logits are taken by ascending id; what is not a number comes last, so that there always
is a choice. Softmax sums run over experts ascending in 16 lanes and a fixed tree, those over the chosen in their order.
"""

from __future__ import annotations

import numpy as np

from llmcli.backends.cpu.kernels.instructions import inline
from llmcli.backends.cpu.kernels.mathematics import exp
from llmcli.backends.cpu.kernels.vectors import (
    as_f64,
    choose,
    field,
    first_lanes,
    lane,
    load_f32,
    load_first,
    load_i32,
    splat,
    store_f32,
    store_i32,
    total,
)
from llmcli.backends.cpu.records import ROUTE

F = np.float32
INFINITY = F(np.inf)


@inline
def load_logit(logits, i):
    x = load_f32(logits + i * 4)
    return x if x == x else -INFINITY


@inline
def next_after(logits, count, last, last_id):
    """The expert that follows (logit `last`, id `last_id`) in order of falling logits and ascending ids."""
    found, most = -1, -INFINITY
    for i in range(count):
        x = load_logit(logits, i)
        if (x < last or (x == last and i > last_id)) and (found < 0 or x > most):
            found, most = i, x
    return found


@inline
def exp_sum(logits, count, most):
    """The sum of e^(logit - most) over all experts."""
    lanes = splat(F(0))
    for at in range(0, count, 16):
        weight = exp(load_first(logits + at * 4, count - at) - splat(most))
        lanes = lanes + choose(first_lanes(count - at), weight, splat(F(0)))
    return total(lanes)


def rows(over_all):
    """The factory: softmax over all experts before the choice, or over the chosen."""

    def factory():
        def kernel(args, chunk, thread):
            logits = field(args, ROUTE.logits) + chunk * field(args, ROUTE.logits_stride)
            ids = field(args, ROUTE.ids) + chunk * field(args, ROUTE.ids_stride)
            weights = field(args, ROUTE.weights) + chunk * field(args, ROUTE.weights_stride)
            count, chosen = field(args, ROUTE.count), field(args, ROUTE.chosen)
            last, last_id = INFINITY, -1
            for i in range(chosen):
                last_id = next_after(logits, count, last, last_id)
                last = load_logit(logits, last_id)
                store_i32(ids + i * 4, last_id)
            most = load_f32(logits + load_i32(ids) * 4)
            sum_ = F(0)
            for i in range(chosen):
                weight = lane(exp(splat(load_f32(logits + load_i32(ids + i * 4) * 4) - most)), 0)
                store_f32(weights + i * 4, weight)
                sum_ = sum_ + weight
            if over_all and not field(args, ROUTE.normalise):
                sum_ = exp_sum(logits, count, most)
            factor = F(as_f64(field(args, ROUTE.scale)))
            for i in range(chosen):
                store_f32(weights + i * 4, load_f32(weights + i * 4) / sum_ * factor)

        return kernel

    return factory


KERNELS = {"before": rows(True), "after": rows(False)}
