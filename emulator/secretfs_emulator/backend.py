"""Backend: what locked memory promises, which is less than secret memory does, and how a region of it is made."""

from __future__ import annotations

import os

from secretfs import libc
from secretfs.errors import BackendUnavailable
from secretfs.interface import BACKEND_API, Guarantees
from secretfs.interface import Region as AnyRegion
from secretfs_emulator.probe import probe
from secretfs_emulator.region import Region

__all__ = ["Backend"]

SIZE_FIXED = libc.SEAL_SHRINK | libc.SEAL_GROW
READ_ONLY = libc.SEAL_WRITE | libc.SEAL_FUTURE_WRITE


class Backend:
    """mlock(2), MADV_DONTDUMP and MADV_DONTFORK: nothing in swap and in core dumps, no protection from root."""

    api = BACKEND_API
    name = "emulator"
    guarantees = Guarantees(
        off_direct_map=False,
        refuses_pinning=False,
        unswappable=True,
        undumpable=True,
        unforkable=True,
        cleared_by_kernel=False,
        not_hibernated=False,
        no_descriptor=True,
        no_residue=True,
        device_io=True,
    )

    def probe(self) -> None:
        """Lock one page; see `secretfs.interface.Backend.probe`."""
        probe()

    def map(self, size: int, *, shared: bool = False) -> Region:
        """A region of locked memory; see `secretfs.interface.Backend.map`."""
        return Region.create(size, self.guarantees, shared=shared)

    def fileno(self, region: AnyRegion) -> int:
        """The descriptor of a shared region."""
        assert isinstance(region, Region)
        return region.fileno()

    def attach(self, fd: int) -> Region:
        """Map a memfd from elsewhere, if its size is sealed: one that shrank would be SIGBUS here."""
        try:
            seals = libc.get_seals(fd)
        except OSError as error:
            raise BackendUnavailable(f"descriptor {fd} is not a memfd") from error
        size = os.fstat(fd).st_size
        if seals & SIZE_FIXED != SIZE_FIXED or size <= 0 or size % libc.PAGE_SIZE:
            raise BackendUnavailable(f"descriptor {fd} is a memfd of {size} bytes without seals against resizing")
        if seals & READ_ONLY:
            raise BackendUnavailable(f"descriptor {fd} is a memfd that is sealed against writing")
        return Region.attach(fd, size, self.guarantees)
