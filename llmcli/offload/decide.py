"""What is asked (`--device`, `--gpu-layers`, `--gpu-split`) and what is here become a placement, with its reasons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from llmcli.backends.cuda import device
from llmcli.errors import DeviceError, MissingExtra, OutOfMemory, UsageError
from llmcli.offload.place import HOST, Costs, Placement, Room, Share, choose

WORTH = 128 << 20
"""Bytes of weights from which `auto` takes a GPU: below, an answer is there before a GPU is ready. An estimate, not measured yet."""

Layers = int | Literal["auto", "all"]


@dataclass(frozen=True)
class Wish:
    """device: 'auto' or 'cuda'; layers: at most so many on GPUs; split: their shares, by GPU, () for one that suits."""

    device: str = "auto"
    layers: Layers = "auto"
    split: tuple[float, ...] = ()

    @property
    def particular(self) -> bool:
        """Whether something was asked for that needs a GPU."""
        return self.device == "cuda" or self.layers not in ("auto", 0) or bool(self.split)


@dataclass(frozen=True)
class Decision:
    """Where layers go. wanted: layers that were meant for GPUs; rooms: of the GPUs looked at; reason: why there is none, or ''."""

    placement: Placement
    wanted: int
    rooms: tuple[Room, ...] = ()
    reason: str = ""

    @property
    def on_gpus(self) -> int:
        return sum(share.layers for share in self.placement if share.device != HOST)


def decide(wish: Wish, costs: Costs) -> Decision:
    """Where the layers of a model with these costs go. The driver is asked only where a GPU may come of it. A GPU's free memory is asked
    only when those before it do not hold all: that connects the process with it, which takes part of a second and some of its memory.
    Raises, for 'cuda': DeviceError, MissingExtra, OutOfMemory; UsageError for a split over more GPUs than there are."""
    host = (Share(HOST, costs.layers),)
    wanted = wish.layers if isinstance(wish.layers, int) else costs.layers
    if wanted == 0:
        return Decision(host, 0, reason="no layers on the GPU were asked for")
    weights = costs.weights(0, costs.layers)
    if not wish.particular and weights < WORTH:
        return Decision(host, 0, reason=f"weights of less than {WORTH >> 20} MiB are on the CPU sooner")
    found, rooms = Decision(host, wanted), list[Room]()
    try:
        gpus = device.usable()
        if len(wish.split) > len(gpus):
            why = f"{len(gpus)} can be used"
            raise UsageError(f"--gpu-split over {len(wish.split)} GPUs", why, "Give as many shares as there are GPUs")
        for gpu in gpus[: len(wish.split) or None]:
            rooms.append(Room(gpu.number, device.free(gpu.number)))
            if len(rooms) < len(wish.split):
                continue
            found = Decision(choose(costs, rooms, wanted, wish.split), wanted, tuple(rooms))
            if found.on_gpus == min(wanted, costs.layers):
                break
    except (DeviceError, MissingExtra) as error:
        if wish.device == "cuda":
            raise
        return Decision(host, wanted, reason=f"{error.what}: {error.why}")
    if wish.device == "cuda" and not found.on_gpus:
        need, have = (f"{size / 2**20:,.0f} MiB" for size in (costs.part(costs.layers - 1, costs.layers), max(room.free for room in rooms)))
        why = f"its last layer with the head takes {need}, and {have} are free"
        raise OutOfMemory("not enough GPU memory for one layer of this model", why, "Use a smaller context (-c) or --device cpu")
    return found


def say(wish: Wish, decision: Decision, layers: int, notify: Callable[[str], None]) -> None:
    """Tells, in a line, what a user would not expect: no GPU where one was asked for, or fewer layers than meant."""
    if decision.reason:
        if wish.particular:
            notify(f"the CPU computes all layers: {decision.reason}")
    elif decision.on_gpus < decision.wanted:
        notify(f"{decision.on_gpus} of {layers} layers are on the GPU, because its free memory holds no more (llm show --gpu-layers auto)")
