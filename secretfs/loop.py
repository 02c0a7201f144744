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
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import pyfuse3
import trio

if TYPE_CHECKING:
    from secretfs.native import Shim

__all__ = ["install", "keep_memory"]

CHECKPOINT = 64
_WAIT = "_wait_fuse_readable"
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT = 16 << 20


class Served(Protocol):
    """Whose requests these are. None of this may raise."""

    def replied(self) -> None:
        """A reply has gone: do what the next request needs but no client should wait for. They are waking up now."""

    def rest(self) -> None:
        """Nobody waits: do all that was left. Before sleeping."""

    def pause(self) -> None:
        """Do what must not be left for long. At every checkpoint."""


def install(fd: int, spin: int, shim: Shim | None, served: Served) -> bool:
    """Replace pyfuse3's wait on /dev/fuse (`fd`); False, and nothing changed, where pyfuse3 has no such function.

    Args:
        fd: the descriptor of /dev/fuse; with a shim it does not block.
        spin: microseconds to poll after a request before sleeping.
        shim: polls by itself and says when it has done so in vain. With this wait it may also answer.
        served: told when there is time.
    """
    if not hasattr(pyfuse3, _WAIT):
        return False
    comes = _polling(fd, spin * 1000) if shim is None else _shim_polls(shim)
    setattr(pyfuse3, _WAIT, _waiter(comes, fd, served))
    if shim is not None:
        shim.answers.value = 1
    return True


def keep_memory() -> None:
    """Let malloc keep blocks of a megabyte instead of mapping and unmapping one for every large write (mallopt(3))."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _KEPT)


def _polling(fd: int, spin: int) -> Callable[[], bool]:
    """Tells whether a request comes within `spin` nanoseconds."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    pending, clock = poller.poll, time.perf_counter_ns

    def comes() -> bool:
        if pending(0):
            return True
        end = clock() + spin
        while clock() < end:
            if pending(0):
                return True
        return False

    return comes


def _shim_polls(shim: Shim) -> Callable[[], bool]:
    """Tells whether it is worth asking the shim for a request: not when it has just waited for one in vain."""
    spun = shim.spun

    def comes() -> bool:
        if not spun.value:
            return True
        spun.value = 0
        return False

    return comes


def _waiter(comes: Callable[[], bool], fd: int, served: Served) -> Any:
    count = 0

    async def wait_fuse_readable() -> bool:
        """True if a request can be read, False if the session is over."""
        nonlocal count
        served.replied()
        count += 1
        if count >= CHECKPOINT:
            count = 0
            served.pause()
            await trio.lowlevel.checkpoint()
        if comes():
            return True
        count = 0
        served.rest()
        try:
            await trio.lowlevel.wait_readable(fd)
        except trio.ClosedResourceError:
            return False
        return True

    return wait_fuse_readable
