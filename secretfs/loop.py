"""Waiting for the next request: poll first, spin briefly after activity, only then sleep in trio.

pyfuse3's own wait takes a lock and two trips through the event loop for every request, which is two thirds of what a
request costs. This one is put in its place (`install`). A worker that is asked for again at once never enters the
event loop, but every CHECKPOINT requests, so that signals and timers get their turn. After a request it polls for
`spin` microseconds: waking a sleeping process on another CPU costs about that much. Idle, it sleeps in trio.

Works with one worker task only (pyfuse3.main(max_tasks=1)): nobody else reads the descriptor.
"""

from __future__ import annotations

import ctypes
import select
import time
from typing import Any

import pyfuse3
import trio

__all__ = ["install", "keep_memory"]

CHECKPOINT = 64
_WAIT = "_wait_fuse_readable"
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT = 16 << 20


def install(fd: int, spin: int, spun: ctypes.c_int | None) -> bool:
    """Replace pyfuse3's wait on /dev/fuse (`fd`); False, and nothing changed, where pyfuse3 has no such function.

    `spun` is the shim's flag that it has polled already.
    """
    if not hasattr(pyfuse3, _WAIT):
        return False
    setattr(pyfuse3, _WAIT, _waiter(fd, spin * 1000, spun or ctypes.c_int(0)))
    return True


def keep_memory() -> None:
    """Let malloc keep blocks of a megabyte instead of mapping and unmapping one for every large write (mallopt(3))."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _KEPT)


def _waiter(fd: int, spin: int, spun: ctypes.c_int) -> Any:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    pending, clock = poller.poll, time.perf_counter_ns
    served = 0

    async def wait_fuse_readable() -> bool:
        """True if a request can be read, False if the session is over."""
        nonlocal served
        served += 1
        if served >= CHECKPOINT:
            served = 0
            await trio.lowlevel.checkpoint()
        if pending(0):
            return True
        if spun.value:
            spun.value = 0
        else:
            end = clock() + spin
            while clock() < end:
                if pending(0):
                    return True
        served = 0
        try:
            await trio.lowlevel.wait_readable(fd)
        except trio.ClosedResourceError:
            return False
        return True

    return wait_fuse_readable
