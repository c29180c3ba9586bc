"""A simulated block's threads, one after the other up to each barrier.

Numba's own scheduler polls its threads, which takes 5 to 20 ms a barrier. Here a thread that reaches a barrier hands over to the next
one: the first to reach it runs last up to the next barrier, so that a missing barrier shows. A thread that ends while others wait is
an error: kernels call barriers and warp operations with all threads of a block.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numba.cuda.simulator.kernel import BlockThread


def taken() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


class Stopped(BaseException):
    """Ends a thread whose block has failed."""


class Thread(BlockThread):
    def __init__(self, target: Callable[[], None], block: Block, at: tuple[int, ...], point: tuple[int, ...]) -> None:
        super().__init__(target, block, at, point, False)
        self.body, self.block, self.ended = target, block, False
        self.go = taken()

    def run(self) -> None:
        try:
            with np.errstate(all="ignore"):  # as on a GPU
                self.body()
        except Stopped:
            return
        except BaseException as error:
            error.add_note(f"in thread {self.thread_id} of block {self.blockIdx}")
            self.block.failure = error
        self.ended = True
        self.block.hand_over()

    def syncthreads(self) -> None:
        self.block.hand_over()
        self.go.acquire()
        if self.block.failure:
            raise Stopped


class Block:
    """In the place of Numba's BlockManager."""

    def __init__(self, function: Callable[..., None], grid: tuple[int, ...], block: tuple[int, ...], debug: bool) -> None:
        self._f, self._block_dim = function, block
        self.block_state = np.zeros(block, np.bool_)
        self.failure: BaseException | None = None
        self.done = taken()

    def run(self, at: tuple[int, ...], *args: Any) -> None:
        self.threads = [Thread(lambda: self._f(*args), self, at, point) for point in np.ndindex(*self._block_dim)]
        self.order, self.forward = self.threads[::-1], True
        self.hand_over()
        self.done.acquire()
        for thread in self.threads:
            if thread.ident is not None:
                if thread.go.locked():
                    thread.go.release()
                thread.join()
        if self.failure:
            raise self.failure

    def hand_over(self) -> None:
        """The running thread is at a barrier, or at its end."""
        if not self.order and not self.failure:
            waiting = [thread for thread in self.threads if not thread.ended]
            if waiting and len(waiting) < len(self.threads):
                self.failure = AssertionError(f"{len(waiting)} threads of {len(self.threads)} wait at a barrier, the others have ended")
            self.order, self.forward = waiting[:: 1 if self.forward else -1], not self.forward
        if self.failure or not self.order:
            self.done.release()
            return
        thread = self.order.pop()
        if thread.ident is None:
            thread.start()
        else:
            thread.go.release()
