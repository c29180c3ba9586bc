"""Which layers a GPU computes: as many of the last ones as its free memory holds.

The last layers bring the head with them, the largest product of a token, and only what is between two layers crosses the bus, once a
step. The table of tokens goes with the first layer: with it everything is on the GPU. Nothing here calls a driver: free bytes are given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmcli.kv import KVCache
from llmcli.offload.split import layer_starts
from llmcli.plan import Plan

HOST = "cpu"
RESERVED = 320 << 20
"""Bytes of a GPU that are left to the driver, compiled kernels and captured steps. An estimate; too little of it costs a second try."""
STEP = 8
"""Where a placement did not fit after all, an eighth of the GPU's layers goes to the CPU."""


@dataclass(frozen=True)
class Share:
    """Consecutive layers. device: 'cpu', 'reference', or 'cuda:NUMBER'."""

    device: str
    layers: int


Placement = tuple[Share, ...]
"""All layers of a model, in their order."""


@dataclass(frozen=True)
class Room:
    """A GPU: its number, and its free memory in bytes."""

    number: int
    free: int


class Costs:
    """What layers take on a GPU, in bytes. stored: bytes of each packed weight; blocks: of the KV cache; most_tokens: computed at once."""

    def __init__(self, plan: Plan, stored: Mapping[str, int], blocks: int, kv: str, most_tokens: int) -> None:
        starts = [*layer_starts(plan), len(plan.ops)]
        ops = [plan.ops[first:last] for first, last in zip(starts, starts[1:], strict=False)]
        self.layers = len(ops)
        self._names = [{name for op in layer for name in op.weights if name is not None} for layer in ops]
        self._stored = stored
        self.cache = [blocks * KVCache.bytes_per_block((layer,), kv) for layer in plan.cache]
        rows = sum(buffer.width for buffer in plan.buffers if buffer.rows == "tokens")
        once = sum(buffer.width for buffer in plan.buffers if buffer.rows == "outputs")
        # Activations as they are, quantized, and parts of attention; of output rows there is room for some.
        self.steps = 4 * (2 * rows * most_tokens + 16 * once)

    def weights(self, first: int, last: int) -> int:
        """Bytes of the weights of layers first .. last - 1, shared ones counted once."""
        return sum(self._stored[name] for name in set().union(*self._names[first:last]))

    def part(self, first: int, last: int) -> int:
        """Bytes of one device that computes layers first .. last - 1."""
        return self.weights(first, last) + sum(self.cache[first:last]) + self.steps + RESERVED


def choose(costs: Costs, rooms: Sequence[Room], wanted: int, shares: Sequence[float] = ()) -> Placement:
    """The placement of at most `wanted` layers on these GPUs, of as many as fit. shares: how the layers are divided among the GPUs, in
    their order; (): by their free memory, and over no more GPUs than needed."""
    for count in range(min(wanted, costs.layers), 0, -1):
        for used in [len(shares)] if shares else range(1, len(rooms) + 1):
            gpus = rooms[:used]
            counts = divide(count, shares or [room.free for room in gpus])
            if _fits(costs, gpus, counts):
                host = (Share(HOST, costs.layers - count),) if count < costs.layers else ()
                return (*host, *(Share(f"cuda:{room.number}", n) for room, n in zip(gpus, counts, strict=True) if n))
    return (Share(HOST, costs.layers),)


def _fits(costs: Costs, gpus: Sequence[Room], counts: Sequence[int]) -> bool:
    first = costs.layers - sum(counts)
    taken: dict[int, int] = {}
    for room, count in zip(gpus, counts, strict=True):
        if count:
            taken[room.number] = taken.get(room.number, 0) + costs.part(first, first + count)
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
    """The same with some of the GPUs' first layers on the CPU."""
    gpus = [share for share in placement if share.device != HOST]
    moved = left = max(1, sum(share.layers for share in gpus) // STEP)
    kept = []
    for share in gpus:
        taken = min(left, share.layers)
        left -= taken
        if share.layers > taken:
            kept.append(Share(share.device, share.layers - taken))
    return (Share(HOST, sum(share.layers for share in placement if share.device == HOST) + moved), *kept)


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
                why = f"this part takes {_mib(costs.part(first, last))} of {_mib(free[share.device])} free"
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
