"""The window: the one piece of ordinary memory that plaintext passes through on its way out of a mount.

The kernel cannot read a reply from secret memory (it pins the pages of what is written to /dev/fuse: EFAULT), so a
reply is copied here first. The window is mlocked, left out of core dumps and of forks, and wiped as soon as the last
reference to what was lent is gone, which is right after the reply.
"""

from __future__ import annotations

import ctypes
from typing import Any

from secretfs import libc
from secretfs.errors import BoundsError
from secretfs.interface import lock_refused

__all__ = ["Window"]


class Window:
    """`size` bytes of locked memory that are lent to one reply at a time."""

    def __init__(self, size: int) -> None:
        """Map and lock it.

        Raises:
            LockLimitExceeded: it cannot be locked.
        """
        self.size = size
        self._lent = 0
        try:
            self._address = libc.mmap_anonymous(size)
        except OSError as error:
            raise lock_refused(size, error) from error
        try:
            libc.mlock(self._address, size)
            libc.madvise(self._address, size, libc.MADV_DONTDUMP)
            libc.madvise(self._address, size, libc.MADV_DONTFORK)
        except OSError as error:
            libc.munmap(self._address, size)
            raise lock_refused(size, error) from error
        self._lent_type: Any = type(
            "_Lent", (_WipedBytes, ctypes.c_char * size), {"_type_": ctypes.c_char, "_length_": size}
        )

    @property
    def address(self) -> int:
        """Where it lies."""
        return self._address

    def lend(self, length: int) -> memoryview:
        """The first `length` bytes, all zero. They are wiped when every view of them is gone."""
        if length > self.size:
            raise BoundsError(f"{length} bytes do not fit a window of {self.size} bytes")
        if self._lent:
            raise BoundsError("the window is lent already")
        lent: Any = self._lent_type.from_address(self._address)
        lent.window = self
        self._lent = length
        return memoryview(lent).cast("B")[:length]

    def close(self) -> None:
        """Wipe and unmap. Twice is fine; while something is lent it raises BufferError."""
        if self._lent:
            raise BufferError("the window is still lent")
        if self._address:
            libc.wipe(self._address, self.size)
            libc.munmap(self._address, self.size)
            self._address = 0

    def _taken_back(self) -> None:
        libc.wipe(self._address, self._lent)
        self._lent = 0


class _WipedBytes:
    """Mixed into a ctypes array: the exporter under every view of what was lent."""

    window: Window

    def __del__(self) -> None:
        window = getattr(self, "window", None)
        if window is not None:
            window._taken_back()
