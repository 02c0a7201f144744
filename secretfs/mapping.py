"""mmap(): the implicit form, secret memory without an object to hold.

The proposal of 2020 announced it as mmap(MAP_SECRET); it never had a value or code. Here the memory lives as long as
any view of it, and is wiped with the last one, and at interpreter exit.
"""

from __future__ import annotations

import atexit
import contextlib

from secretfs import registry
from secretfs.errors import BackendUnavailable
from secretfs.interface import Backend, MappedRegion
from secretfs.living import Living
from secretfs.slab import map_region

__all__ = ["mmap", "unmap_all"]

_regions: Living[MappedRegion] = Living()


def mmap(length: int, *, backend: str | Backend | None = None) -> memoryview:
    """`length` bytes of secret memory between guard pages, zeroed, as a writable memoryview.

    It ends at a guard page, is wiped and unmapped when the last view of it is gone (slices, NumPy arrays and ctypes
    objects over it included), and does not exist in a forked child: touching it there is SIGSEGV.

    Raises:
        ValueError: `length` is not positive.
        BackendUnavailable: no backend works under that word, or it makes no mappings.
        LimitError: as for SecretArea().
    """
    if length <= 0:
        raise ValueError(f"a mapping needs a positive length, not {length}")
    if backend is None or isinstance(backend, str):
        backend = registry.choose_warning(backend).backend
    region = map_region(backend, length)
    if not isinstance(region, MappedRegion):
        region.close()
        raise BackendUnavailable(f"the backend {backend.name} makes no mappings", hint="use a SecretArea")
    region.enclose()
    _regions.add(region)
    return region.view()[region.size - length :]


@atexit.register
def unmap_all() -> None:
    """Wipe all of it; what a view still refers to stays mapped, as zeros."""
    for region in _regions.all():
        with contextlib.suppress(BufferError, OSError):
            region.close()
