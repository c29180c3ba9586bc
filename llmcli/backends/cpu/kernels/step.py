"""The compiled step: threads take chunks of one operation after the other, without Python in between.

    ticket = step number << 40 | operation << 20 | chunks that nobody has claimed yet
A thread claims chunks by lowering the ticket; because the ticket says all, a claim that succeeds is valid, and a thread
that was away for a whole step reads nothing stale. A claim is a thread's share of what is left (guided self-scheduling, Polychronopoulos
and Kuck 1987): long runs of weights, which memory reads faster than many short ones, and short ones at the end, where threads wait.
Whoever finishes the last chunk of an operation publishes the next one and keeps its first chunks: operations of one
chunk follow each other in one thread without any traffic. An operation is done when its chunks are: nobody waits for a
thread that holds none.

`step.start` publishes a step and marks the threads that sleep, for the caller to wake them; `step.run` works: as thread 0
until the step is over, as another thread until there has been nothing to do for a while. Arguments: (a STEP record, 0,
thread).
"""

from __future__ import annotations

from llmcli.backends.cpu.kernels.instructions import inline
from llmcli.backends.cpu.kernels.threads import atomic_add, call_kernel, compare_exchange, load_acquire, pause, sched_yield, store_release
from llmcli.backends.cpu.kernels.vectors import field, load_i64, store_i64
from llmcli.backends.cpu.records import HEADER, OVER, ROW, ROW_BYTES, ROWS_OUTPUTS, ROWS_TOKENS, STEP, THREAD_BYTES

BITS = 20
MASK = (1 << BITS) - 1


@inline
def chunks_of(args, op):
    row, header = field(args, STEP.table) + op * ROW_BYTES, field(args, STEP.header)
    rows, n = load_i64(row + ROW.rows), 1
    if rows == ROWS_TOKENS:
        n = field(header, HEADER.tokens)
    elif rows == ROWS_OUTPUTS:
        n = field(header, HEADER.outputs)
    divisor = load_i64(row + ROW.divisor)
    return (n + divisor - 1) // divisor * load_i64(row + ROW.columns)


@inline
def share(args, left):
    """How many of the chunks that are left one claim takes."""
    return max(left // field(args, STEP.threads), 1)


@inline
def publish(args, number, op, keep):
    """Makes `op`, or the first after it that has chunks, the current one; with `keep` the first share of chunks is the
    caller's. Returns it, or -1 when the step is over: done, stopped, or in error."""
    stopped = load_acquire(field(args, STEP.stop)) or load_acquire(field(field(args, STEP.header), HEADER.error))
    rows = field(args, STEP.rows)
    while op < rows and not stopped:
        chunks = chunks_of(args, op)
        if chunks:
            store_i64(field(args, STEP.done), 0)
            left = chunks - share(args, chunks) if keep else chunks
            store_release(field(args, STEP.ticket), number | op << BITS | left)
            return op
        op += 1
    store_release(field(args, STEP.ticket), number | OVER)
    return -1


@inline
def work(args, ticket, thread):
    """Runs the chunks that were claimed from `ticket`, and first chunks for as long as it finishes operations."""
    op = ticket >> BITS & MASK
    chunks = chunks_of(args, op)
    first, count = chunks - (ticket & MASK), share(args, ticket & MASK)
    while op >= 0:
        row = field(args, STEP.table) + op * ROW_BYTES
        for chunk in range(first, first + count):
            call_kernel(load_i64(row + ROW.kernel), load_i64(row + ROW.args), chunk, thread)
        if chunks > count and atomic_add(field(args, STEP.done), count) + count < chunks:
            return
        op = publish(args, ticket >> 2 * BITS << 2 * BITS, op + 1, True)
        if op >= 0:
            chunks = chunks_of(args, op)
            first, count = 0, share(args, chunks)


@inline
def may_sleep(args, ticket, thread):
    """Says that the thread is about to sleep, and whether it may: not when a new step came meanwhile, unless the
    starter has noticed the thread and is waking it."""
    asleep = field(args, STEP.asleep) + thread * THREAD_BYTES
    compare_exchange(asleep, 0, 1)
    return atomic_add(field(args, STEP.ticket), 0) == ticket or not compare_exchange(asleep, 1, 0)


def start():
    def kernel(args, chunk, thread):
        number = (load_acquire(field(args, STEP.ticket)) >> 2 * BITS) + 1
        publish(args, number << 2 * BITS, 0, False)
        for other in range(1, field(args, STEP.threads)):
            if compare_exchange(field(args, STEP.asleep) + other * THREAD_BYTES, 1, 0):
                store_i64(field(args, STEP.woken) + other * 8, 1)

    return kernel


def run():
    def kernel(args, chunk, thread):
        spins, patience = field(args, STEP.spins), field(args, STEP.spins) + field(args, STEP.yields)
        idle = 0
        while True:
            ticket = load_acquire(field(args, STEP.ticket))
            over = (ticket & OVER) == OVER
            if ticket & MASK:
                if compare_exchange(field(args, STEP.ticket), ticket, ticket - share(args, ticket & MASK)):
                    work(args, ticket, thread)
                    idle = 0
            elif over and thread == 0:
                return
            elif idle < spins:
                pause()
                idle += 1
            elif idle < patience or not over:
                sched_yield()
                idle += 1
            elif may_sleep(args, ticket, thread):
                return
            else:
                idle = 0

    return kernel


KERNELS = {"start": start, "run": run}
