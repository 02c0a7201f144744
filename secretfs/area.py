"""SecretArea: one region of secret memory with bounds, used by the heap, the mount and Python authors.

It alone turns an offset and a length into bytes of a region, and checks them first. The region's view never leaves
it, except through `view()`, which the region watches. An area that was made to be shared also exists in forked children
and in processes that are sent its descriptor; each maps it for itself, and its creator alone wipes it. Reading and
writing one area from several threads is as safe as for a bytearray; resize() and close() are the owner's.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
from dataclasses import replace
from types import TracebackType

from secretfs import cachelines, cgroup, libc, registry, sharing, turns
from secretfs.errors import BoundsError, ClosedError
from secretfs.interface import Backend, Guarantees, Region, Shareable, round_up
from secretfs.living import Living

__all__ = ["SecretArea"]

_areas: Living[SecretArea] = Living()
_process = os.getpid()
"""This process, known without a system call for each access."""


class SecretArea:
    """Secret memory of whole pages between guard pages, wiped when closed and at interpreter exit.

    What reads or writes before its first byte or past its last, through `address` or in C, ends the process (SIGSEGV).
    Guard pages are addresses only: they take no memory, and nothing of the lock limit. The kernel counts an area as two
    mappings, of which a process may have 65,530 (vm.max_map_count): that is about 32,600 areas. A stranger's backend
    may have no guard pages.

    Example:
        >>> from secretfs import SecretArea
        >>> with SecretArea(4096, backend="emulator") as area:
        ...     area.write(b"key", offset=16)
        ...     area
        3
        <SecretArea 4096 bytes, emulator>
    """

    def __init__(
        self, size: int, *, backend: str | Backend | None = None, shared: bool = False, mode: str = "exclusive"
    ) -> None:
        """Allocate at least `size` bytes, zeroed, and fault every page in.

        Args:
            size: bytes, rounded up to whole pages.
            backend: a backend word ("auto", "kernel", "emulator", a name), or a backend; None asks SECRETFS_BACKEND.
            shared: keep a descriptor that another process may be given; `guarantees` tells what that costs.
            mode: "exclusive", or "uncached": cache lines are flushed after each write() and read_into(), and at
                close(). No kernel offers memory that is not cached; `guarantees.cache_flushed` tells whether this
                machine can at least do that.

        Raises:
            ValueError: `size` is not positive.
            UsageError: there is no such mode.
            BackendUnavailable: no backend works under that word.
            LimitError: RLIMIT_MEMLOCK, a memory cgroup or vm.max_map_count does not allow it; nothing is left behind.
            PluginError: the backend is a stranger's, and broken.
        """
        if size <= 0:
            raise ValueError(f"an area needs a positive size, not {size}")
        self._uncached = cachelines.is_uncached(mode)
        if backend is None or isinstance(backend, str):
            backend = registry.choose_warning(backend).backend
        self._backend = backend
        self._shared = shared
        self._owner = _process
        self._view: memoryview | None = None
        self._region, self._view = self._map(size)
        self._remember_descriptor()
        _areas.add(self)

    @classmethod
    def share(cls, size: int, *, backend: str | Backend | None = None) -> SecretArea:
        """An area that other processes may be given: by fork, through multiprocessing, or by sending fileno().

        While its descriptor is open, root can take that too and map the area (pidfd_getfd(2)), and so `guarantees`
        lacks no_descriptor and unforkable. Only its creator wipes it, when it closes it.

        Raises:
            BackendUnavailable: the backend has no regions to share.
            LimitError: as for SecretArea().
        """
        area = cls(size, backend=backend, shared=True)
        sharing.teach_multiprocessing(cls)
        return area

    @classmethod
    def attach(cls, fd: int, *, backend: str | Backend | None = None) -> SecretArea:
        """Map the shared area behind a descriptor that came from another process; `fd` stays the caller's.

        Args:
            fd: what its creator's fileno() was, after SCM_RIGHTS or a fork.
            backend: the backend that it must be of; None or "auto": whichever it is.

        Raises:
            BackendUnavailable: it is not what it should be, or its size could change under us.
            LimitError: it cannot be locked or mapped.
        """
        chosen, region = sharing.attach(fd, backend)
        area = cls.__new__(cls)
        area._backend, area._shared, area._uncached = chosen, True, False
        area._owner = _process
        area._region, area._view = region, region.view()
        area._remember_descriptor()
        _areas.add(area)
        sharing.teach_multiprocessing(cls)
        return area

    def fileno(self) -> int:
        """The descriptor of a shared area, to be sent to another process; it stays the area's.

        Raises:
            ClosedError: the area is closed, or was not made to be shared.
        """
        self._bytes(0, 0)
        if self._fd < 0:
            raise ClosedError("this area keeps no descriptor", hint="make it with SecretArea.share()")
        return self._fd

    def _remember_descriptor(self) -> None:
        """A forked child cannot ask the region, which is its parent's."""
        shareable = self._shared and isinstance(self._backend, Shareable)
        self._fd = self._backend.fileno(self._region) if shareable else -1  # type: ignore[attr-defined]

    @property
    def size(self) -> int:
        """Bytes, a multiple of the page size."""
        return self._region.size

    @property
    def guarantees(self) -> Guarantees:
        """What holds for this area's memory."""
        held = self._region.guarantees
        return replace(held, cache_flushed=True) if self._uncached and cachelines.available() else held

    @property
    def backend(self) -> str:
        """The name of the backend."""
        return self._backend.name

    @property
    def mode(self) -> str:
        """ "exclusive" or "uncached"."""
        return "uncached" if self._uncached else "exclusive"

    @property
    def closed(self) -> bool:
        """Whether close() has been called."""
        return self._view is None

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        state = ", closed" if self.closed else ""
        return f"<SecretArea {self.size} bytes, {self.backend}{state}>"

    def __reduce__(self) -> str:
        raise TypeError("a SecretArea cannot be pickled or copied; one made by share() can be sent by multiprocessing")

    def write(self, data: bytes | bytearray | memoryview, offset: int = 0) -> int:
        """Copy `data` to `offset` and return its length.

        Raises:
            BoundsError: it does not fit; nothing is written.
            ClosedError: the area is closed or belongs to the parent process.
        """
        length = len(data)
        self._bytes(offset, length)[offset : offset + length] = data
        self._flush(offset, length)
        return length

    def read_into(self, buffer: bytearray | memoryview, offset: int = 0) -> int:
        """Fill `buffer` from `offset` on and return its length. There is no read(): it would make immutable bytes.

        Raises:
            BoundsError: there are not so many bytes.
            ClosedError: the area is closed or belongs to the parent process.
        """
        length = len(buffer)
        memoryview(buffer)[:] = self._bytes(offset, length)[offset : offset + length]
        self._flush(offset, length)
        return length

    def equals(self, data: bytes | bytearray | memoryview, offset: int = 0) -> bool:
        """Whether the bytes at `offset` are `data`. Not in constant time."""
        length = len(data)
        return self._bytes(offset, length)[offset : offset + length] == data

    def copy_within(self, source: int, target: SecretArea, offset: int, length: int) -> None:
        """Copy `length` bytes from `source` here to `offset` in `target`, with no copy in between."""
        target._bytes(offset, length)[offset : offset + length] = self._bytes(source, length)[source : source + length]

    @property
    def address(self) -> int:
        """Where it lies in this process: for C code that works on it in place, until the next resize() or close()."""
        self._bytes(0, 0)
        return self._address()

    def view(self) -> memoryview:
        """All bytes, writable. Release it before close(); one that survives makes close() raise BufferError."""
        self._bytes(0, 0)
        return self._region.view()

    def wipe(self, offset: int = 0, length: int | None = None) -> None:
        """Overwrite `length` bytes from `offset` with zeros; everything by default."""
        if self._view is None:
            raise ClosedError("this area was closed")
        self._region.wipe(offset, length)

    def resize(self, size: int) -> None:
        """Move to a region of at least `size` bytes, keeping what fits, and wipe the old one.

        The kernel fixes the size of secret memory for good, so both regions exist for a moment and both count against
        the lock limit.

        Raises:
            LimitError: there is no room for both; the area is as it was.
            BufferError: a view is still in use; the area has moved all the same, and what it left is wiped already
                and goes when the view does.
        """
        self._bytes(0, 0)
        if size <= 0:
            raise ValueError(f"an area needs a positive size, not {size}")
        if round_up(size, libc.PAGE_SIZE) == self.size:
            return
        region, view = self._map(size)
        kept = min(len(view), self.size)
        view[:kept] = self._bytes(0, kept)[:kept]
        old_region, old_view = self._region, self._view
        self._region, self._view = region, view
        self._remember_descriptor()
        assert old_view is not None
        old_view.release()
        old_region.close()

    def close(self) -> None:
        """Wipe and unmap. Twice is fine; in a forked child it does nothing.

        Raises:
            BufferError: a view is still in use; the memory is wiped already and goes when the view does.
        """
        view = getattr(self, "_view", None)  # None also where __init__ failed
        if view is not None:
            if _process == self._owner:
                self._flush(0, len(view))
            self._view = None
            view.release()
        if hasattr(self, "_region"):
            self._region.close()

    def __enter__(self) -> SecretArea:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(BufferError, OSError):
            self.close()

    def _map(self, size: int) -> tuple[Region, memoryview]:
        size = round_up(size, libc.PAGE_SIZE)
        cgroup.require_headroom(size)
        return registry.map_region(self._backend, size, shared=self._shared)

    def _flush(self, offset: int, length: int) -> None:
        if self._uncached and self._view is not None:
            cachelines.flush(self._address() + offset, length)

    def _address(self) -> int:
        assert self._view is not None
        return ctypes.addressof(ctypes.c_char.from_buffer(self._view))

    def _map_in_child(self) -> memoryview:
        """In a forked child: map what is shared for this process; its parent's mapping is not touched."""
        if self._fd < 0:
            raise ClosedError("this area belongs to the process that this one was forked from")
        inherited = self._region
        _, self._region = sharing.attach(self._fd, self._backend)
        self._owner = _process
        self._view = self._region.view()
        inherited.close()  # which closes its descriptor, and nothing else
        self._remember_descriptor()
        return self._view

    def _bytes(self, offset: int, length: int) -> memoryview:
        """The view, after checking that it may be used and that the range lies inside it."""
        view = self._view
        if view is None:
            raise ClosedError("this area was closed")
        if _process != self._owner:
            view = self._map_in_child()
        if offset < 0 or offset + length > len(view):
            raise BoundsError(f"{length} bytes at {offset} are outside an area of {len(view)} bytes")
        return view


def _forked() -> None:
    global _process  # noqa: PLW0603
    _process = os.getpid()


turns.at_fork(after_in_child=_forked)


@atexit.register
def wipe_all() -> None:
    """Close every area of this process, as it happens at interpreter exit, also those that something refers to."""
    for area in _areas.all():
        with contextlib.suppress(BufferError, OSError):
            area.close()
