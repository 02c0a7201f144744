"""A third backend for secretfs: locked memory, in as few lines as the contract needs.

`MappedRegion` has what is the same for every backend: views, wiping, closing, forks. What is left to say is what this
memory promises, whether it can be had here, and how it is made.
"""

from __future__ import annotations

from secretfs import libc
from secretfs.errors import BackendUnavailable, LimitError
from secretfs.interface import BACKEND_API, Guarantees, MappedRegion, lock_refused

__all__ = ["Backend", "Region"]


class Region(MappedRegion):
    """Locked memory."""


class Backend:
    """Memory that is never swapped out, never dumped and never inherited. It promises nothing against root."""

    api = BACKEND_API
    name = "locked"
    guarantees = Guarantees(
        unswappable=True, undumpable=True, unforkable=True, no_descriptor=True, device_io=True
    )  # what is not named is not promised

    def probe(self) -> None:
        """Try it on one page: only what was seen to work is offered."""
        try:
            self.map(libc.PAGE_SIZE).close()
        except (LimitError, OSError) as error:
            raise BackendUnavailable(f"no memory can be locked here: {error}", hint="raise `ulimit -l`") from error

    def map(self, size: int, *, shared: bool = False) -> Region:
        """Map, tell the kernel what must not happen to the pages, and lock them, which also faults them in."""
        if shared:
            raise BackendUnavailable("this memory cannot be shared", hint="use another backend for shared areas")
        try:
            address = libc.mmap_anonymous(size)
        except OSError as error:
            raise lock_refused(size, error) from error
        try:
            libc.madvise(address, size, libc.MADV_DONTDUMP)
            libc.madvise(address, size, libc.MADV_DONTFORK)
            libc.mlock(address, size)
        except OSError as error:
            libc.munmap(address, size)  # nothing is left behind
            raise lock_refused(size, error) from error
        return Region(address, size, self.guarantees)
