"""What stands behind an emulated secret: one file for each. Two kinds of backing are in tmpfs.py and memfds.py.

Only the supervised programs hold a secret open: when it is closed for good, the backing is told, wipes the pages and
forgets the secret. The supervisor looks at files by device and inode.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from secretfs import libc
from secretfs_emulator.supervisor import system

__all__ = ["Area", "Backing", "Key", "forget", "give", "let_go", "lock_pages", "wipe_file"]

Key = tuple[int, int]
"""A file: st_dev and st_ino."""
_ZEROS = bytes(1 << 16)
FILE_NAME = "secretmem"  # what /proc shows, as for the kernel's


@dataclass
class Area:
    """One secret."""

    key: Key
    name: str = ""
    fd: int = -1
    size: int = 0
    pinned: tuple[int, int] | None = None  # address and length of a locked mapping of ours
    mappers: set[tuple[int, int]] = field(default_factory=set)  # processes that have mapped it; not those that inherit
    repeatable: bool = field(default=False)  # made through the interface of 2020: private mappings, any ftruncate


class Backing(Protocol):
    """Where the bytes are.

    Attributes:
        name: the word of --backing.
        lacks: what a program may notice that memfd_secret(2) would not show it, one sentence each.
        areas: the secrets that exist.
        device: st_dev of all of them.
        keep: descriptors that it needs.
    """

    name: str
    lacks: tuple[str, ...]
    areas: dict[Key, Area]
    device: int
    keep: tuple[int, ...]

    def create(self, uid: int, gid: int) -> tuple[Area, int]:
        """A new secret that belongs to a user, and the one descriptor of it, which the caller passes on and closes."""

    def reopen(self, area: Area) -> int:
        """One more open file of the secret, to be passed on; OSError where there must be only one."""

    def resize(self, area: Area, size: int) -> None:
        """ftruncate(2)."""

    def hold(self, area: Area) -> None:
        """Keep the pages out of swap, before somebody maps them; OSError where that cannot be."""

    def attend(self) -> None:
        """Wait for news of the files and deal with them; OSError once the backing is closed."""


def give(fd: int, uid: int, gid: int) -> None:
    """Make a file belong to a user, as far as we can give files away; an ordinary user's are the user's anyway."""
    if os.geteuid() == 0 and (uid or gid):
        with contextlib.suppress(OSError):  # a user that our namespace does not know
            os.fchown(fd, uid, gid)


def lock_pages(area: Area) -> None:
    """Lock the pages through a mapping of our own, for as long as the secret exists."""
    if area.pinned is not None and area.pinned[1] >= area.size:
        return
    let_go(area)
    if area.size:
        address = system.mmap_readable(area.fd, area.size)
        try:
            libc.mlock(address, area.size)
        except OSError:
            libc.munmap(address, area.size)
            raise
        area.pinned = (address, area.size)


def let_go(area: Area) -> None:
    """Give the locked mapping back."""
    if area.pinned is not None:
        libc.munmap(*area.pinned)
        area.pinned = None


def forget(area: Area) -> None:
    """Give back all that we hold of it."""
    let_go(area)
    if area.fd >= 0:
        os.close(area.fd)
        area.fd = -1


def wipe_file(fd: int) -> None:
    """Overwrite what was ever touched of a file with zeros."""
    size = os.fstat(fd).st_size
    for start, end in _extents(fd, size):
        while start < end:
            start += os.pwrite(fd, memoryview(_ZEROS)[: min(end - start, len(_ZEROS))], start)  # noqa: PLW2901


def _extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    end = 0
    with contextlib.suppress(OSError):  # ENXIO: no data from here on
        while end < size:
            start = os.lseek(fd, end, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
            yield start, end
