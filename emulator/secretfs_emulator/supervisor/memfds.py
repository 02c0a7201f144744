"""Backing for an ordinary user: memfds, watched by inotify(7), their pages locked by the supervisor.

The kernel refuses less by itself than with tmpfs.py: what is not stopped by the filter works on them as on any memfd.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct

from secretfs import libc
from secretfs_emulator.supervisor import system
from secretfs_emulator.supervisor.backing import FILE_NAME, Area, Key, forget, give, lock_pages, wipe_file

__all__ = ["MemfdBacking", "keep_out_of_core_dumps"]

_CLOSED = 0x8 | 0x10  # IN_CLOSE_WRITE, IN_CLOSE_NOWRITE
_EVENT = struct.Struct("=iIII")  # struct inotify_event, without a name
COREDUMP_FILTER = "/proc/self/coredump_filter"
_NO_NEW_PRIVS = "the programs cannot gain privileges (no_new_privs): sudo and fusermount3 fail"
_LEAKS = (
    "any process of the same user, and root, can read the memory",
    "the pages are in the kernel's direct map, and are wiped by the supervisor only: not after its kill -9",
    "a descriptor below the reserved numbers (dup2, SCM_RIGHTS, pidfd_getfd) can be read and written",
    "io_uring is switched off, and core dumps have no shared anonymous memory",
    "all secrets together are limited by the supervisor's RLIMIT_MEMLOCK, and count until they are closed everywhere",
)


class MemfdBacking:
    """See `backing.Backing`."""

    name = "memfd"

    def __init__(self) -> None:
        """Raises OSError where the sandbox forbids memfd_create(2) or inotify(7)."""
        privileged = libc.effective_capability(libc.CAP_SYS_ADMIN)
        self.lacks: tuple[str, ...] = _LEAKS if privileged else (*_LEAKS, _NO_NEW_PRIVS)
        self.areas: dict[Key, Area] = {}
        self._group = system.inotify_init()
        self._watches: dict[int, Area] = {}
        self.keep: tuple[int, ...] = (self._group,)
        fd = _memfd()
        self.device = os.fstat(fd).st_dev
        os.close(fd)

    def create(self, uid: int, gid: int) -> tuple[Area, int]:
        """See `backing.Backing.create`. The descriptor is a second open of the memfd: only such a one tells inotify
        that it was closed. We are the owner: an ordinary user cannot give files away.
        """
        original = _memfd()
        path = f"/proc/self/fd/{original}"
        area, watch = Area((self.device, os.fstat(original).st_ino)), -1
        try:
            os.fchmod(original, 0o600)
            area.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            watch = system.inotify_add_watch(self._group, path, _CLOSED)
            self._watches[watch] = area
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except BaseException:
            self._watches.pop(watch, None)
            forget(area)
            raise
        finally:
            os.close(original)
        give(fd, uid, gid)
        self.areas[area.key] = area
        return area, fd

    def reopen(self, area: Area) -> int:
        """See `backing.Backing.reopen`."""
        return os.open(f"/proc/self/fd/{area.fd}", os.O_RDWR | os.O_CLOEXEC)

    def resize(self, area: Area, size: int) -> None:
        """See `backing.Backing.resize`."""
        os.ftruncate(area.fd, size)
        area.size = size

    def hold(self, area: Area) -> None:
        """See `backing.Backing.hold`."""
        lock_pages(area)

    def attend(self) -> None:
        """See `backing.Backing.attend`."""
        events = os.read(self._group, 1 << 14)
        for watch, mask, _, _ in _EVENT.iter_unpack(events):
            area = self._watches.get(watch)
            if mask & _CLOSED and area is not None and _is_last(area.fd):
                del self._watches[watch], self.areas[area.key]
                with contextlib.suppress(OSError):  # what fails with one does not keep us from the others
                    wipe_file(area.fd)
                with contextlib.suppress(OSError):
                    forget(area)  # the last one: the file is gone, and with it the watch


def _memfd() -> int:
    return os.memfd_create(FILE_NAME, os.MFD_CLOEXEC)


def _is_last(fd: int) -> bool:
    """Whether no other open file leads to it: a program may have opened it once more through /proc. Only then is a
    lease for writing granted (fcntl(2) F_SETLEASE).
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return False
    return True


def keep_out_of_core_dumps() -> None:
    """Take shared anonymous memory, which memfds are, out of the core dumps of this process and what it starts."""
    with contextlib.suppress(OSError):
        fd = os.open(COREDUMP_FILTER, os.O_RDWR | os.O_CLOEXEC)
        try:
            kept = int(os.read(fd, 32), 16) & ~0b10
            os.pwrite(fd, b"0x%x" % kept, 0)
        finally:
            os.close(fd)
