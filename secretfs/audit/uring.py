"""Just enough of io_uring(7): one ring, one registered buffer, one write."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from secretfs.audit import calls
from secretfs.audit.model import NotTriedError

__all__ = ["Ring"]

_ENTRY, _WRITE_FIXED, _REGISTER_BUFFERS = 64, 5, 0
_SQ_RING, _CQ_RING, _SQES = 0, 0x8000000, 0x10000000
_PAGE = 4096


class Ring:
    """A ring of one entry."""

    def __init__(self) -> None:
        self._parameters = ctypes.create_string_buffer(120)  # struct io_uring_params
        try:
            self._fd = calls.io_uring_setup(1, self._parameters)
        except OSError as error:
            raise NotTriedError(f"io_uring cannot be used here: {error.strerror}") from error
        self._submission = self._map(_SQ_RING)
        self._completion = self._map(_CQ_RING)
        self._entries = self._map(_SQES)

    def _map(self, offset: int) -> int:
        return calls.map_descriptor(self._fd, _PAGE, writable=True, offset=offset)

    def register(self, address: int, length: int) -> None:
        """IORING_REGISTER_BUFFERS: the kernel pins the pages."""
        piece = calls.Piece(address, length)
        calls.io_uring_register(self._fd, _REGISTER_BUFFERS, ctypes.addressof(piece), 1)

    def write_registered(self, fd: int, address: int, length: int) -> int:
        """IORING_OP_WRITE_FIXED, and what it returned."""
        entry = struct.pack("<BBHiQQIIQHH", _WRITE_FIXED, 0, 0, fd, (1 << 64) - 1, address, length, 0, 1, 0, 0)
        ctypes.memmove(self._entries, entry.ljust(_ENTRY, b"\0"), _ENTRY)
        # io_sqring_offsets begins at 40 of the parameters (head, tail, mask, entries, flags, dropped, array),
        # io_cqring_offsets at 80 (head, tail, mask, entries, overflow, cqes).
        _, tail, mask, _, _, _, array = struct.unpack_from("<7I", self._parameters, 40)
        *_, completions = struct.unpack_from("<6I", self._parameters, 80)
        at = ctypes.c_uint32.from_address(self._submission + tail)
        index = at.value & ctypes.c_uint32.from_address(self._submission + mask).value
        ctypes.c_uint32.from_address(self._submission + array + 4 * index).value = 0
        at.value += 1
        calls.io_uring_enter(self._fd, 1, 1)
        result = ctypes.c_int32.from_address(self._completion + completions + 8).value
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        if result == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return result

    def __enter__(self) -> Ring:
        return self

    def __exit__(self, *_: object) -> None:
        for address in (self._submission, self._completion, self._entries):
            calls.munmap(address, _PAGE)
        os.close(self._fd)
