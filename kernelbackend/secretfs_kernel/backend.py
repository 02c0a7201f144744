"""Backend: what the kernel's secret memory promises, and how a region of it is made."""

from __future__ import annotations

import errno
import os

from secretfs import libc
from secretfs.errors import BackendUnavailable
from secretfs.interface import BACKEND_API, Guarantees
from secretfs.interface import Region as AnyRegion
from secretfs_kernel.probe import probe
from secretfs_kernel.region import Region

__all__ = ["Backend"]


class Backend:
    """memfd_secret(2): pages outside the kernel's direct map."""

    api = BACKEND_API
    name = "kernel"
    guarantees = Guarantees(
        off_direct_map=True,
        refuses_pinning=True,
        unswappable=True,
        undumpable=True,
        unforkable=True,
        cleared_by_kernel=True,
        not_hibernated=True,
        no_descriptor=True,
        no_residue=True,
        device_io=False,
    )

    def probe(self) -> None:
        """Prove that memory made here is secret; see `secretfs.interface.Backend.probe`."""
        probe()

    def map(self, size: int, *, shared: bool = False) -> Region:
        """A region of secret memory; see `secretfs.interface.Backend.map`."""
        return Region.create(size, self.guarantees, shared=shared)

    def fileno(self, region: AnyRegion) -> int:
        """The descriptor of a shared region."""
        assert isinstance(region, Region)
        return region.fileno()

    def attach(self, fd: int) -> Region:
        """Map a memfd_secret descriptor from elsewhere; its size is fixed by the kernel once it has one."""
        try:
            magic = libc.file_system_magic(fd)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            raise BackendUnavailable(f"descriptor {fd} is not open") from error
        if magic != libc.SECRETMEM_MAGIC:
            raise BackendUnavailable(f"descriptor {fd} is not secret memory of the kernel")
        size = os.fstat(fd).st_size
        if size <= 0 or size % libc.PAGE_SIZE:
            raise BackendUnavailable(f"descriptor {fd} is secret memory of {size} bytes, not of whole pages")
        return Region.attach(fd, size, self.guarantees)
