"""How threads share a call: one leads, others help if they arrive in time.

The leader opens a mailbox, works, closes it and waits for the helpers that are still working. A helper polls the
mailbox for a short while, so that consecutive batches need no system call, then sleeps (in Python). All of this runs
without Python's lock. The leader does not wait for helpers that were not scheduled in time.
"""

from __future__ import annotations

from typing import Any

from kitae.augment.kernels.run import RUN_AT, SCRATCH_BYTES
from kitae.native.link import as_i64, call2, exchange, fetch, fetch_add, put, rest

# The mailbox: int64, by byte offset.
STATE = 0  # OPEN while there is work, plus the number of helpers inside
JOB = 64  # counts the jobs
CONTEXT_AT = 72
MOST = 80  # helpers at a time
MAILBOX = 128  # bytes
OPEN = 1 << 40
PATIENCE = 1500  # pauses; some tens of microseconds


def lead(mailbox: Any, context: Any, scratch: Any, most: Any) -> Any:
    """Work with up to `most` helpers: returns how many are still inside after a while."""
    put(mailbox + CONTEXT_AT, context)
    put(mailbox + MOST, most)
    fetch_add(mailbox + JOB, 1)
    fetch_add(mailbox + STATE, OPEN)
    call2(as_i64(context)[RUN_AT], context, scratch)
    fetch_add(mailbox + STATE, -OPEN)
    return close(mailbox)


def close(mailbox: Any) -> Any:
    """Wait a while for the helpers inside; returns how many are left."""
    inside = fetch(mailbox + STATE)
    breaths = 0
    while inside > 0 and breaths < PATIENCE:
        rest()
        breaths += 1
        inside = fetch(mailbox + STATE)
    return inside


def serve(mailbox: Any, scratch: Any, size: Any) -> Any:
    """Help with jobs until none comes for a while: 0, or the bytes of scratch memory that the last one lacked."""
    breaths = 0
    last = 0
    while breaths < PATIENCE:
        state = fetch(mailbox + STATE)
        job = fetch(mailbox + JOB)
        if state >= OPEN and job != last and state - OPEN < fetch(mailbox + MOST):
            if exchange(mailbox + STATE, state, state + 1):
                last = job
                context = fetch(mailbox + CONTEXT_AT)
                needed = as_i64(context)[SCRATCH_BYTES]
                if needed <= size:
                    call2(as_i64(context)[RUN_AT], context, scratch)
                fetch_add(mailbox + STATE, -1)
                if needed > size:
                    return needed
                breaths = 0
        else:
            rest()
            breaths += 1
    return 0
