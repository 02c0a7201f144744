"""Region: pages of one memfd_secret file, mapped and, unless shared, with its descriptor closed at once."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

from secretfs import libc
from secretfs.interface import Guarantees, MappedRegion, lock_refused

__all__ = ["Region"]


class Region(MappedRegion):
    """A region of memfd_secret(2) memory."""

    @classmethod
    def create(cls, size: int, guarantees: Guarantees, *, shared: bool) -> Region:
        """Make, size, map and fault in `size` bytes.

        The descriptor is closed as soon as the pages are mapped: while it is open, root can take it with
        pidfd_getfd(2) and map the secret. Faulting in comes last, through the kernel: newer kernels count pages
        against the lock limit only then, and report an excess as SIGBUS to whoever touches the page.
        """
        fd = cls._descriptor(size)
        try:
            os.ftruncate(fd, size)
            region = cls._map(fd, size, guarantees, shared=shared)
        except BaseException:
            os.close(fd)
            raise
        try:
            if not shared:
                os.close(fd)
                libc.madvise(region._address, size, libc.MADV_DONTFORK)  # the kernel sets DONTDUMP by itself
            with region.view() as view:
                libc.fault_in(view)
        except OSError as error:
            region.discard()  # not wiped: on newer kernels touching a page beyond the limit is SIGBUS
            raise lock_refused(size, error) from error
        return region

    @classmethod
    def attach(cls, fd: int, size: int, guarantees: Guarantees) -> Region:
        """Map somebody else's descriptor; the region keeps a duplicate of it."""
        try:
            own = os.dup(fd)
        except OSError as error:
            raise lock_refused(size, error) from error
        try:
            return cls._map(own, size, guarantees, shared=True, creator=False)
        except BaseException:
            os.close(own)
            raise

    @staticmethod
    def _descriptor(size: int) -> int:
        try:
            return libc.memfd_secret(os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.EPERM:  # a filter's answer, and no limit's
                raise
            raise lock_refused(size, error) from error

    @classmethod
    def _map(cls, fd: int, size: int, guarantees: Guarantees, *, shared: bool, creator: bool = True) -> Region:
        try:
            address = libc.mmap_shared(fd, size)
        except OSError as error:
            raise lock_refused(size, error) from error
        if shared:
            guarantees = replace(guarantees, unforkable=False, no_descriptor=False)
            return cls(address, size, guarantees, fd=fd, creator=creator)
        return cls(address, size, guarantees)
