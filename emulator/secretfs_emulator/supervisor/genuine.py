"""Backing where the kernel has memfd_secret(2) and only the interface of 2020 is played: the secrets are real ones."""

from __future__ import annotations

import errno
import os

from secretfs import libc
from secretfs_emulator.supervisor.backing import Area, Key, give

__all__ = ["KernelBacking"]


class KernelBacking:
    """See `backing.Backing`. The kernel does everything, so no secret need be known."""

    name = "kernel"
    lacks: tuple[str, ...] = ("private mappings of a secret, which the interface of 2020 had, are refused",)
    keep: tuple[int, ...] = ()

    def __init__(self) -> None:
        """Raises OSError where memfd_secret(2) does not work."""
        self.areas: dict[Key, Area] = {}
        fd = libc.memfd_secret(os.O_CLOEXEC)
        self.device = os.fstat(fd).st_dev
        os.close(fd)

    def create(self, uid: int, gid: int) -> tuple[Area, int]:
        """See `backing.Backing.create`."""
        fd = libc.memfd_secret(os.O_CLOEXEC)
        give(fd, uid, gid)
        return Area((self.device, os.fstat(fd).st_ino), fd=fd), fd

    def reopen(self, area: Area) -> int:
        """See `backing.Backing.reopen`."""
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    def resize(self, area: Area, size: int) -> None:
        """See `backing.Backing.resize`."""
        os.ftruncate(area.fd, size)

    def hold(self, area: Area) -> None:
        """See `backing.Backing.hold`: the kernel locks it."""

    def attend(self) -> None:
        """See `backing.Backing.attend`: the kernel wipes it."""
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
