"""Which layers a GPU computes: as many of the last ones as its free memory holds.

The last layers bring the head with them, the largest product of a token, and only what is between two layers crosses the bus, once a
step. The table of tokens goes with the first layer: with it everything is on the GPU. Nothing here calls a driver: free bytes are given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from llmcli.estimate import MOST_TOKENS
from llmcli.kv import KVCache
from llmcli.offload.split import layer_starts
from llmcli.offload.steps import between, pieces, step_bytes
from llmcli.plan import Plan

HOST = "cpu"
RESERVED = 320 << 20
"""Bytes of a GPU that are left to the driver, compiled kernels and captured steps. An estimate; too little of it costs a second try."""
STEP = 8
"""Where a placement did not fit after all, and not with fewer tokens at once, an eighth of the GPU's layers goes to the CPU."""


@dataclass(frozen=True)
class Share:
    """Consecutive layers. device: 'cpu', 'reference', or 'cuda:NUMBER'; tokens: of a prompt, computed at once."""

    device: str
    layers: int
    tokens: int = MOST_TOKENS


Placement = tuple[Share, ...]
"""All layers of a model, in their order."""


@dataclass(frozen=True)
class Room:
    """A GPU: its number, and its free memory in bytes."""

    number: int
    free: int


class Costs:
    """What layers take on a GPU, in bytes. stored: bytes of each packed weight; blocks: of the KV cache."""

    def __init__(self, plan: Plan, stored: Mapping[str, int], blocks: int, kv: str) -> None:
        starts = [*layer_starts(plan), len(plan.ops)]
        ops = [plan.ops[first:last] for first, last in zip(starts, starts[1:], strict=False)]
        self.layers = len(ops)
        self._names = [{name for op in layer for name in op.weights if name is not None} for layer in ops]
        self._stored = stored
        self.cache = [blocks * KVCache.bytes_per_block((layer,), kv) for layer in plan.cache]
        self.steps = {tokens: step_bytes(plan, tokens) for tokens in pieces(plan)}
        """By how many tokens are computed at once, most first."""

    def weights(self, first: int, last: int) -> int:
        """Bytes of the weights of layers first .. last - 1, shared ones counted once."""
        return sum(self._stored[name] for name in set().union(*self._names[first:last]))

    def part(self, first: int, last: int, tokens: int = MOST_TOKENS) -> int:
        """Bytes of one device that computes layers first .. last - 1 of so many tokens at once."""
        return self.weights(first, last) + sum(self.cache[first:last]) + self.steps[tokens] + RESERVED


def choose(costs: Costs, rooms: Sequence[Room], wanted: int, shares: Sequence[float] = ()) -> Placement:
    """The placement of at most `wanted` layers on these GPUs, of as many as fit, and of as many tokens at once as then fit. shares: how
    the layers are divided among the GPUs, in their order; (): by their free memory, and over no more GPUs than needed."""
    for count in range(min(wanted, costs.layers), 0, -1):
        for used in [len(shares)] if shares else range(1, len(rooms) + 1):
            gpus = rooms[:used]
            counts = divide(count, shares or [room.free for room in gpus])
            if _fits(costs, gpus, counts, MOST_TOKENS):
                tokens = next(tokens for tokens in costs.steps if _fits(costs, gpus, counts, tokens))
                host = (Share(HOST, costs.layers - count),) if count < costs.layers else ()
                return (*host, *(Share(f"cuda:{room.number}", n, tokens) for room, n in zip(gpus, counts, strict=True) if n))
    return (Share(HOST, costs.layers),)


def _fits(costs: Costs, gpus: Sequence[Room], counts: Sequence[int], tokens: int) -> bool:
    first = costs.layers - sum(counts)
    taken: dict[int, int] = {}
    for room, count in zip(gpus, counts, strict=True):
        if count:
            taken[room.number] = taken.get(room.number, 0) + costs.part(first, first + count, tokens)
        first += count
    return all(taken.get(room.number, 0) <= room.free for room in gpus)


def divide(count: int, shares: Sequence[float]) -> list[int]:
    """`count` things by shares: whole numbers that add up, each within one of its share."""
    total, reached, found = sum(shares), 0.0, []
    for share in shares:
        before = round(count * reached / total)
        reached += share
        found.append(round(count * reached / total) - before)
    return found


def fewer(placement: Placement) -> Placement:
    """The same with less on GPUs: half the tokens at once, while that is more than the CPU computes; then some of the GPUs' first layers
    on the CPU."""
    gpus = [share for share in placement if share.device != HOST]
    if any(share.tokens > MOST_TOKENS for share in gpus):
        return tuple(replace(share, tokens=share.tokens // 2) if share.tokens > MOST_TOKENS else share for share in placement)
    moved = left = max(1, sum(share.layers for share in gpus) // STEP)
    kept = []
    for share in gpus:
        taken = min(left, share.layers)
        left -= taken
        if share.layers > taken:
            kept.append(replace(share, layers=share.layers - taken))
    return (Share(HOST, sum(share.layers for share in placement if share.device == HOST) + moved), *kept)


def handed(plan: Plan, placement: Placement) -> int:
    """Bytes of this machine's memory for what parts hand on to each other."""
    return max(between(plan, share.tokens) for share in placement) * (len(placement) - 1)


@dataclass(frozen=True)
class Row:
    """What a layer takes where, in bytes, and why there."""

    layer: int
    device: str
    weights: int
    cache: int
    why: str


def explain(costs: Costs, placement: Placement, rooms: Sequence[Room], wanted: int) -> list[Row]:
    """A row for each layer of a placement that `choose` made."""
    free = {f"cuda:{room.number}": room.free for room in rooms}
    rows: list[Row] = []
    for share in placement:
        first, last = len(rows), len(rows) + share.layers
        for layer in range(first, last):
            if share.device != HOST:
                why = f"this part takes {_mib(costs.part(first, last, share.tokens))} of {_mib(free[share.device])} free"
                why += f" with {share.tokens:,} tokens at once" if layer == first else ""
            elif not rooms:
                why = "no GPU is used"
            elif layer < costs.layers - wanted:
                why = f"-ngl {wanted}"
            else:
                largest = max(room.free for room in rooms)
                why = f"with it a part would take {_mib(costs.part(layer, costs.layers))}; {_mib(largest)} are free"
            why += "; with the table of tokens" if layer == 0 else ""
            why += "; with the head" if layer == costs.layers - 1 else ""
            rows.append(Row(layer, share.device, costs.weights(layer, layer + 1), costs.cache[layer], why))
    return rows


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
