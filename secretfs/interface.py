"""What a backend is: the contract that the kernel's secret memory, the emulator and a stranger's plug-in fulfil.

A plug-in is a distribution with an entry point in the group "secretfs.backends" (name -> Backend class). It needs this
module, `secretfs.errors` and `secretfs.libc`; `secretfs.testing` has the suite that tells whether it is right.

`MappedRegion` does for any backend that maps pages what is the same for all of them: views, wiping, closing, and
staying away from memory that belongs to another process.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

from secretfs import libc, turns
from secretfs.errors import BoundsError, ClosedError
from secretfs.refusals import lock_refused

__all__ = [
    "BACKEND_API",
    "Access",
    "Backend",
    "Guarantees",
    "MappedRegion",
    "Region",
    "Shareable",
    "lock_refused",
    "round_up",
]

BACKEND_API = 1
"""The version of this contract. A backend with another `api` is refused."""


class Access(enum.IntFlag):
    """What may be done with a region's pages; WRITE includes reading, as it does for mprotect(2) on most machines."""

    NONE = 0
    READ = libc.PROT_READ
    WRITE = libc.PROT_READ | libc.PROT_WRITE


@dataclass(frozen=True, slots=True)
class Guarantees:
    """What holds for one region, as measured or as the kernel documents it. False means: not promised."""

    off_direct_map: bool = False
    """The pages are not in the kernel's direct map: /proc/kcore and a stray kernel read do not find them."""
    refuses_pinning: bool = False
    """Pinning the pages fails: ptrace, /proc/PID/mem, process_vm_readv, vmsplice, O_DIRECT, for root too."""
    unswappable: bool = False
    """The pages are never written to swap."""
    undumpable: bool = False
    """The pages are left out of core dumps."""
    unforkable: bool = False
    """A forked child does not have them."""
    cleared_by_kernel: bool = False
    """The kernel clears the pages when the process dies by kill -9, before anybody else gets them."""
    not_hibernated: bool = False
    """The pages cannot end up in a hibernation image."""
    no_descriptor: bool = False
    """No open descriptor leads to the pages, so nobody can take it (pidfd_getfd) and map them elsewhere."""
    no_residue: bool = False
    """Writing and reading leave no copy in the memory of the process that does it for you."""
    cache_flushed: bool = False
    """The bytes leave the CPU's caches when a secret's access window closes (mode "uncached")."""
    enciphered_at_rest: bool = False
    """While no access window is open the bytes are kept enciphered, under a key that is kept in two parts."""
    device_io: bool = False
    """A driver may read or write the pages directly (a convenience, not a protection: /dev/fuse, O_DIRECT)."""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all guarantees, in the order in which they are shown."""
        return tuple(field.name for field in fields(cls))

    def as_dict(self) -> dict[str, bool]:
        """The guarantees by name."""
        return {name: getattr(self, name) for name in self.names()}

    def lost_against(self, better: Guarantees) -> tuple[str, ...]:
        """The names of what `better` promises and this does not."""
        return tuple(n for n in self.names() if getattr(better, n) and not getattr(self, n))


class Region(Protocol):
    """A run of whole pages of secret memory, owned by the process that mapped it.

    In a forked child it is dead: any use raises ClosedError, and nothing is wiped or unmapped there.
    """

    @property
    def size(self) -> int:
        """Bytes, a multiple of the page size."""

    @property
    def guarantees(self) -> Guarantees:
        """What holds for this region."""

    def view(self) -> memoryview:
        """All of the region as writable bytes. Every call has an exporter of its own, which close() watches.

        Raises:
            ClosedError: after close(), or in a forked child.
        """

    def protect(self, access: Access) -> None:
        """Change what the pages may be used for (mprotect(2)); a use against it is SIGSEGV."""

    def wipe(self, offset: int = 0, length: int | None = None) -> None:
        """Overwrite `length` bytes from `offset` (default: everything) with zeros."""

    def close(self) -> None:
        """Wipe, then unmap. Twice is fine.

        Raises:
            BufferError: a view is still in use; the memory is wiped already and goes when the view does.
        """


class Backend(Protocol):
    """A source of regions. The class is instantiated without arguments and must be cheap to make."""

    api: int
    """BACKEND_API of the contract it was written for."""
    name: str
    """The word for it in `--backend` and SECRETFS_BACKEND; the same as the entry point's."""
    guarantees: Guarantees
    """What a region made by map(size) promises."""

    def probe(self) -> None:
        """Return if regions can be had here and now.

        Raises:
            BackendUnavailable: with the reason, and the remedy as hint.
            LimitError: they could be had, but for a limit.
        """

    def map(self, size: int, *, shared: bool = False) -> Region:
        """A new region of `size` bytes (a positive multiple of the page size), zeroed and faulted in.

        `shared` keeps a descriptor that another process may map; the guarantees say so.

        Raises:
            LimitError: a limit does not allow it; nothing is left behind.
            BackendUnavailable: regions cannot be had at all.
        """


@runtime_checkable
class Shareable(Protocol):
    """Optional: a backend whose shared regions can be mapped by another process that gets the descriptor."""

    def fileno(self, region: Region) -> int:
        """The descriptor of a region made with shared=True; it stays the region's."""

    def attach(self, fd: int) -> Region:
        """Map a descriptor that came from elsewhere, after checking that it is what it should be.

        Raises:
            BackendUnavailable: it is something else, or its size could change under us.
        """


_left: list[MappedRegion] = []
"""What could not be closed when nothing referred to it any more; tried again with each new region."""


def round_up(size: int, step: int) -> int:
    """The smallest multiple of `step` that holds `size`."""
    return (size + step - 1) // step * step


class MappedRegion:
    """A Region over pages that are mapped already.

    Views: each is a memoryview over an exporter object of its own. Slices and foreign exports keep that object alive,
    so counting living exporters tells whether anybody could still reach the memory. An exporter holds its region,
    never the other way round.
    """

    def __init__(self, address: int, size: int, guarantees: Guarantees, *, fd: int = -1, creator: bool = True) -> None:
        """Take over `size` bytes mapped at `address`, and `fd` if one is to stay open.

        `creator` says who wipes: someone who attached to another's shared region does not.
        """
        self.size = size
        self.guarantees = guarantees
        self._address = address
        self._fd = fd
        self._creator = creator
        self._owner = os.getpid()
        self._exporters = 0
        self._access: Access | None = Access.WRITE
        self._closed = self._closing = False
        self._mapped = True
        self._guard = 0
        if _left:
            _left.pop()._close_quietly()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<{type(self).__module__.partition('.')[0]} region of {self.size} bytes, {state}>"

    def fileno(self) -> int:
        """The descriptor of a shared region.

        Raises:
            ClosedError: there is none.
        """
        self._require_alive()
        if self._fd < 0:
            raise ClosedError("this region keeps no descriptor", hint="make it with shared=True")
        return self._fd

    def view(self) -> memoryview:
        try:
            with turns.lock:
                self._require_alive()
                exporter = _exporter_type(self.size).from_address(self._address)
                exporter.region = self
                self._exporters += 1
        finally:
            turns.catch_up()
        return memoryview(exporter).cast("B")

    def protect(self, access: Access) -> None:
        self._require_alive()
        self.protect_pages(access)

    def enclose(self) -> None:
        """Move the pages between two guard pages: an access before their start or past their end is SIGSEGV.

        They are addresses only, which take no memory and nothing of the lock limit. To be called before there is a
        view. Not part of Region: a backend without it, or that overrides it as its pages cannot be moved, has none.

        Raises:
            LimitError: no addresses or mappings are left for them; the region is closed.
        """
        self._require_alive()
        page, base = libc.PAGE_SIZE, 0
        self._mapped = False  # where the pages are is not known if a signal handler raises in between
        try:
            base = libc.reserve(self.size + 2 * page)
            libc.mremap(self._address, self.size, base + page)
        except OSError as error:
            self._mapped = True
            refusal = lock_refused(self.size, error)
            if base:
                libc.munmap(base, self.size + 2 * page)
            self.close()
            raise refusal from error
        self._address, self._guard, self._mapped = base + page, page, True

    def lend_to_child(self) -> None:
        """Before a fork: let the child have these pages. It calls adopt(), and its parent let_go()."""
        libc.madvise(self._address, self.size, libc.MADV_DOFORK)

    def adopt(self) -> None:
        """In the child: the pages are this process's now, locked and in no further child."""
        self._owner = os.getpid()
        self._exporters = 0  # that its parent's views are gone was left to be done, by the parent
        if not self.guarantees.off_direct_map:  # secret memory is locked by nature; a lock is not inherited
            libc.mlock(self._address, self.size)
        libc.madvise(self._address, self.size, libc.MADV_DONTFORK)

    def discard(self) -> None:
        """Unmap without wiping what was never written, where not every page could be had."""
        self._closed, self._creator = True, False
        self._close_descriptor()
        self._unmap()

    def let_go(self) -> None:
        """In the parent: unmap without wiping what the child now has, or what the kernel clears if it has not."""
        if not self.guarantees.cleared_by_kernel:
            self._wipe(0, self.size)  # private pages: the child keeps its own
        self._closed, self._creator = True, False
        self._unmap()

    def wipe(self, offset: int = 0, length: int | None = None) -> None:
        self._require_alive()
        length = self.size - offset if length is None else length
        if offset < 0 or length < 0 or offset + length > self.size:
            raise BoundsError(f"cannot wipe {length} bytes at {offset}: the region has {self.size}")
        self._wipe(offset, length)

    def close(self) -> None:
        if os.getpid() != self._owner:  # asked first: the lock may belong to a thread that was not forked along
            self._close_descriptor()
            return
        try:
            with turns.lock:
                turns.settle()
                if self._mapped:
                    self._wipe_and_unmap()
        finally:
            turns.catch_up()

    def __del__(self) -> None:
        if getattr(self, "_mapped", False):  # not where __init__ failed
            turns.later(self._close_quietly)

    def _wipe_and_unmap(self) -> None:
        """The lock is held. A signal handler that comes in between wipes as well, but leaves the unmapping to us."""
        nested, self._closing = self._closing, True
        try:
            self._closed = True
            self.protect_pages(Access.WRITE)  # a stale view then reads zeros and never faults
            if self._creator:
                libc.wipe(self._address, self.size)
            try:
                self._close_descriptor()
            finally:
                if not nested and not self._exporters:
                    self._unmap()
            if self._exporters:
                raise BufferError(
                    f"{self._exporters} view(s) of a closed region are in use; its memory is wiped and goes with them"
                )
        finally:
            self._closing = nested

    def _close_quietly(self) -> None:
        try:
            self.close()
        except BufferError:  # a garbage cycle may hold region and view alike
            pass
        except OSError:  # as many mappings as a process may have: perhaps there are fewer next time
            _left.append(self)

    def _require_alive(self) -> None:
        if self._closed:
            raise ClosedError("this memory was closed")
        if os.getpid() != self._owner:
            raise ClosedError("this memory belongs to the process that this one was forked from")

    def protect_pages(self, access: Access) -> None:
        """protect(), for a caller that knows the region to be alive."""
        if access is not self._access:
            self._access = None  # for a signal handler that comes right after the call
            libc.mprotect(self._address, self.size, access)
            self._access = access

    def _wipe(self, offset: int, length: int) -> None:
        before = self._access
        self.protect_pages(Access.WRITE)
        libc.wipe(self._address + offset, length)
        if before is not None:
            self.protect_pages(before)

    def _close_descriptor(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _unmap(self) -> None:
        """What cannot be unmapped (a process may have so many mappings) is tried again, by close() or at the end."""
        self._mapped = False  # a signal handler that comes right after the call must find it so
        try:
            libc.munmap(self._address - self._guard, self.size + 2 * self._guard)
        except OSError:
            self._mapped = True
            raise

    def _exporter_gone(self) -> None:
        self._exporters -= 1
        unmappable = self._closed and self._mapped and not self._exporters and not self._closing
        if unmappable and os.getpid() == self._owner:
            with contextlib.suppress(OSError):
                self._unmap()


class _Exporter:
    """Mixed into a ctypes array type: tells its region when the last view over it is gone."""

    region: MappedRegion

    def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        region = getattr(self, "region", None)
        if region is not None and not finalizing():
            turns.later(region._exporter_gone)


@functools.cache
def _exporter_type(size: int) -> Any:
    """A ctypes array of `size` bytes with _Exporter's ending. Sizes are page multiples, so there are few."""
    return type("_ExportedBytes", (_Exporter, ctypes.c_char * size), {"_type_": ctypes.c_char, "_length_": size})
