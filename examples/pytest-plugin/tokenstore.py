"""An application's own code: keeps a token in secret memory, and says so when it cannot.

It uses memfd_secret(2) itself, and an anonymous mapping where the kernel has none. This is what its tests are about.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os

MEMFD_SECRET = 447


class TokenStore:
    """Room for one token. `hidden` tells whether it lies in secret memory."""

    def __init__(self, size: int = 4096) -> None:
        self.hidden = True
        try:
            self._memory = _secret_memory(size)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EPERM):
                raise
            self.hidden = False
            self._memory = mmap.mmap(-1, size)

    def put(self, token: bytes) -> None:
        """Replace the token."""
        self._memory[: len(token)] = token

    def get(self, length: int) -> bytes:
        """The first bytes of the token."""
        return self._memory[:length]

    def close(self) -> None:
        """Wipe and forget it."""
        self._memory[:] = bytes(len(self._memory))
        self._memory.close()


def _secret_memory(size: int) -> mmap.mmap:
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(MEMFD_SECRET, os.O_CLOEXEC)
    if fd == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    try:
        os.ftruncate(fd, size)
        return mmap.mmap(fd, size)
    finally:
        os.close(fd)
