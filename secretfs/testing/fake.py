"""FakeBackend: ordinary memory behind the contract of a backend, for tests that need no locked memory.

It promises nothing, and says so. What it has and real memory lacks is a limit that can be set at any time, so that
running out can be tried at every byte.
"""

from __future__ import annotations

import os
import weakref

from secretfs.errors import BoundsError, ClosedError, LimitError
from secretfs.interface import BACKEND_API, Access, Guarantees

__all__ = ["FakeBackend", "FakeRegion"]


class _Bytes(bytearray):
    """A bytearray whose end can be watched."""

    __slots__ = ("__weakref__",)


class FakeRegion:
    """Bytes of a bytearray, which itself refuses to be emptied while a view of it is in use."""

    def __init__(self, backend: FakeBackend, size: int) -> None:
        self.size = size
        self.guarantees = Guarantees()
        self._bytes: _Bytes | None = _Bytes(size)
        self._access = Access.WRITE
        self._owner = os.getpid()
        weakref.finalize(self._bytes, backend._given_back, size).atexit = False

    def __repr__(self) -> str:
        return f"<fake region of {self.size} bytes, {'closed' if self._bytes is None else 'open'}>"

    def view(self) -> memoryview:
        """All bytes; read-only under READ, refused under NONE: there are no pages whose access could be changed."""
        memory = self._alive()
        if self._access is Access.NONE:
            raise ClosedError("this memory is protected")
        view = memoryview(memory)
        return view if self._access is Access.WRITE else view.toreadonly()

    def protect(self, access: Access) -> None:
        """Decide about views to come."""
        self._alive()
        self._access = access

    def wipe(self, offset: int = 0, length: int | None = None) -> None:
        """Overwrite with zeros."""
        memory = self._alive()
        length = self.size - offset if length is None else length
        if offset < 0 or length < 0 or offset + length > self.size:
            raise BoundsError(f"cannot wipe {length} bytes at {offset}: the region has {self.size}")
        memoryview(memory)[offset : offset + length] = bytes(length)

    def close(self) -> None:
        """Wipe, then give the bytes back, now or when the last view goes; that a view is left is told once."""
        memory = self._bytes
        if memory is None or os.getpid() != self._owner:
            return
        self._bytes = None
        memoryview(memory)[:] = bytes(self.size)
        memory.clear()  # BufferError while a view is in use

    def _alive(self) -> _Bytes:
        if self._bytes is None:
            raise ClosedError("this memory was closed")
        if os.getpid() != self._owner:
            raise ClosedError("this memory belongs to the process that this one was forked from")
        return self._bytes


class FakeBackend:
    """A backend of ordinary memory.

    Attributes:
        limit: how many bytes all its regions may have together; None for no limit.
        used: how many bytes they have now, regions that only a view keeps alive included.
    """

    api = BACKEND_API
    name = "fake"
    guarantees = Guarantees()

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.used = 0

    def probe(self) -> None:
        """It always works."""

    def map(self, size: int, *, shared: bool = False) -> FakeRegion:
        """A region of `size` zeros.

        Raises:
            LimitError: `limit` does not allow it.
        """
        if self.limit is not None and self.used + size > self.limit:
            raise LimitError(f"cannot map {size} bytes: {self.used} of the {self.limit} bytes of the fake are in use")
        self.used += size
        return FakeRegion(self, size)

    def _given_back(self, size: int) -> None:
        self.used -= size
