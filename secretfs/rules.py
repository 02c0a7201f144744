"""Rules of a Unix file system that need no file system: who asks, what may replace what, when bits and times change."""

from __future__ import annotations

import errno
import stat
import time
from collections.abc import Collection
from typing import NamedTuple, Protocol

from secretfs.errors import FileError
from secretfs.nodes import Node

__all__ = ["AccessTimes", "Caller", "Changes", "Statistics", "check_replaceable", "drop_privileges"]

NANO = 10**9
DAY = 24 * 3600 * NANO
NEVER = (1 << 62) * NANO


class Caller(Protocol):
    """Who asks."""

    @property
    def uid(self) -> int:
        """The file system user id."""

    @property
    def gid(self) -> int:
        """The file system group id."""


class Changes(NamedTuple):
    """What setattr is to change; None leaves it alone. Times are nanoseconds."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime: int | None = None
    mtime: int | None = None


class Statistics(NamedTuple):
    """What statvfs(3) and `secretfs status` tell. Sizes are bytes."""

    size: int
    used: int
    files: int
    max_files: int
    locked: int


def check_replaceable(node: Node, victim: Node) -> None:
    """What rename(2) says about replacing a directory by a file, and the reverse."""
    if node.is_dir() and not victim.is_dir():
        raise FileError(errno.ENOTDIR)
    if victim.is_dir() and not node.is_dir():
        raise FileError(errno.EISDIR)
    if victim.entries:
        raise FileError(errno.ENOTEMPTY)


def drop_privileges(node: Node) -> None:
    """Take the set-user-ID and set-group-ID bits from a file that changed: the kernel leaves that to us.

    (libfuse turns on FUSE_CAP_HANDLE_KILLPRIV.) A set-group-ID bit without group execution means locking, not a
    privilege, and stays. Of a directory the bits are no privileges.
    """
    if node.mode & (stat.S_ISUID | stat.S_ISGID) and not node.is_dir():
        node.mode &= ~stat.S_ISUID
        if node.mode & stat.S_IXGRP:
            node.mode &= ~stat.S_ISGID


class AccessTimes:
    """When reading sets an access time. The kernel leaves that to us, so the flags of the mount are followed here."""

    def __init__(self, flags: Collection[str] = ()) -> None:
        """Follow noatime, nodiratime and strictatime, as mount(8) has them; relatime where there is none of them."""
        self._strict = "strictatime" in flags
        self._never = "noatime" in flags and not self._strict
        self._never_directories = self._never or "nodiratime" in flags

    def touch(self, node: Node) -> None:
        """`node` has been read."""
        now = time.time_ns()
        if self._due_after(node) < now:
            node.atime = now

    def fresh_until(self, node: Node) -> int:
        """Until when (seconds since 1970) reading `node` changes nothing; 0 if not even now."""
        return self._due_after(node) // NANO

    def _due_after(self, node: Node) -> int:
        """relatime: an access time is set when it is older than a change, or than a day."""
        if self._never_directories if node.is_dir() else self._never:
            return NEVER
        if self._strict or node.atime <= max(node.mtime, node.ctime):
            return 0
        return node.atime + DAY
