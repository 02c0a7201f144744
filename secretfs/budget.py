"""How much memory a mount may take, compared with every limit before anything is mounted.

Three kinds of limits: what may be locked (RLIMIT_MEMLOCK), what the memory cgroups leave, and what the machine has.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from secretfs import cgroup, libc
from secretfs.errors import MORE_IN_CGROUP, MORE_LOCKED, CgroupLimitExceeded, LimitError, LockLimitExceeded

__all__ = ["BUDGET", "RESERVE", "Room", "affordable_size", "require_memory"]

BUDGET = 3 << 20
"""Bytes of locked memory for what is not file data: the window, the receive buffer, names and half-used slabs."""
PYTHON = 14 << 20
"""Bytes of ordinary memory that the daemon comes to take beside that: pyfuse3, trio, and what it no longer shares with
the process that it was forked from (11 MiB were measured)."""
STARTING = PYTHON + BUDGET + (5 << 20)
"""The same and what the parent comes to take (4 MiB). The process that mounts is there for a moment longer."""
RESERVE = 16 << 20
"""Bytes of a memory cgroup that are never taken: for what uses a full mount (`secretfs umount` takes 12 MiB)."""
DEFAULT_SIZE = 16 << 20
SMALLEST_DEFAULT = 64 * 1024


class Room(NamedTuple):
    """How much a limit leaves for data, in bytes, and what is said where that is not enough."""

    left: int
    says: str
    remedy: str


def require_memory() -> None:
    """Return if the memory cgroups have room for a daemon: asked by the parent before it forks one.

    Raises:
        CgroupLimitExceeded: going on would wake the OOM killer, which may pick a neighbour.
    """
    cgroup.require_headroom(STARTING, spare=RESERVE)


def affordable_size(asked: int | None) -> tuple[int, Room | None]:
    """The size of the mount, and the memory cgroup that does not leave so much now.

    A cgroup's room comes and goes with its other processes, so what was asked for is not refused because of it.

    Raises:
        LockLimitExceeded: not even the daemon's own budget can be locked.
        CgroupLimitExceeded: not even that is left in a memory cgroup.
        LimitError: the size that was asked for is more than may be locked, or than there is.
    """
    fixed, changing = [*_lockable(), *_installed()], list(_chargeable())
    if asked is None:
        return min([DEFAULT_SIZE, *(room.left for room in fixed + changing)]), None
    tightest = min(fixed, default=None)
    if tightest is not None and asked > tightest.left:
        raise LimitError(
            f"a size of {asked} bytes {tightest.says}", hint=f"use --size {tightest.left} or less{tightest.remedy}"
        )
    return asked, next((room for room in changing if asked > room.left), None)


def _lockable() -> Iterator[Room]:
    limit = libc.lock_limit()
    if limit is None:
        return
    used = libc.locked_bytes()
    left = limit - used - BUDGET
    if left < SMALLEST_DEFAULT:
        raise LockLimitExceeded(BUDGET + SMALLEST_DEFAULT, used=used, limit=limit)
    says = f"cannot be locked: RLIMIT_MEMLOCK leaves {left} of its {limit} bytes for data"
    yield Room(left, says, f", or {MORE_LOCKED}")


def _chargeable() -> Iterator[Room]:
    room = cgroup.headroom()
    if room is None:
        return
    left = room.headroom - PYTHON - BUDGET - RESERVE
    if left < SMALLEST_DEFAULT:
        wanted = PYTHON + BUDGET + SMALLEST_DEFAULT
        raise CgroupLimitExceeded(wanted, headroom=room.headroom, path=room.path, spare=RESERVE)
    yield Room(left, f"is more than the memory cgroup {room.path!r} now leaves for data: {left} bytes", MORE_IN_CGROUP)


def _installed() -> Iterator[Room]:
    there_is = os.sysconf("SC_PHYS_PAGES") * libc.PAGE_SIZE
    if there_is > STARTING:  # else the C library was not allowed to ask (sysinfo(2)), and does not say so
        yield Room(there_is, f"is more than this machine's {there_is} bytes of memory", "")
