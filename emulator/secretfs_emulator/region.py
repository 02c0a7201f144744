"""Region: locked private memory, or a sealed memfd where it is to be shared."""

from __future__ import annotations

import os
from dataclasses import replace

from secretfs import libc
from secretfs.interface import Guarantees, MappedRegion, lock_refused

__all__ = ["Region"]


class Region(MappedRegion):
    """A region of mlock(2)ed memory. Memory that cannot be locked is never handed out."""

    @classmethod
    def create(cls, size: int, guarantees: Guarantees, *, shared: bool) -> Region:
        """Map and lock `size` bytes; locking also faults every page in.

        Private memory where possible: a memfd stays reachable for root through /proc/PID/map_files.
        """
        try:
            return cls._create(size, guarantees, shared=shared)
        except OSError as error:
            raise lock_refused(size, error) from error

    @classmethod
    def _create(cls, size: int, guarantees: Guarantees, *, shared: bool) -> Region:
        if not shared:
            return cls._locked(libc.mmap_anonymous(size), size, guarantees)
        fd = os.memfd_create("secretfs", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size)
            libc.add_seals(fd, libc.SEAL_SHRINK | libc.SEAL_GROW | libc.SEAL_SEAL)
            return cls._locked(libc.mmap_shared(fd, size), size, guarantees, fd=fd)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def attach(cls, fd: int, size: int, guarantees: Guarantees) -> Region:
        """Map somebody else's descriptor; the region keeps a duplicate of it."""
        try:
            own = os.dup(fd)
        except OSError as error:
            raise lock_refused(size, error) from error
        try:
            return cls._locked(libc.mmap_shared(own, size), size, guarantees, fd=own, creator=False)
        except OSError as error:
            os.close(own)
            raise lock_refused(size, error) from error

    @classmethod
    def _locked(cls, address: int, size: int, guarantees: Guarantees, *, fd: int = -1, creator: bool = True) -> Region:
        try:
            libc.mlock(address, size)
            libc.madvise(address, size, libc.MADV_DONTDUMP)
            if fd < 0:
                libc.madvise(address, size, libc.MADV_DONTFORK)
        except OSError:
            libc.munmap(address, size)
            raise
        if fd >= 0:
            guarantees = replace(guarantees, unforkable=False, no_descriptor=False)
        return cls(address, size, guarantees, fd=fd, creator=creator)
