"""What stands in for the shim where that was not built: the same work, done by callbacks in Python.

pyfuse3 is made to call these instead of libfuse's functions (`got.replace`). They do what shim.c does and in the same
order, and are bound to the same versions; only the table of open files (fast.c) is missing, so Python answers every
request. Each request costs some microseconds more.

They see addresses and sizes only: no byte of a request or a reply becomes a Python object here.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from typing import Any, TypeAlias

from secretfs import libc
from secretfs.native import Shim, ShimUnavailable, got, untried_libfuse, untried_pyfuse3

__all__ = ["AnyShim", "Fallback"]

_int, _pointer, _size, _u32, _u64 = ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32, ctypes.c_uint64

# Of linux/fuse.h: numbers of requests, and where things lie in one that has a header of 40 bytes.
_READ, _WRITE, _SETXATTR, _GETXATTR, _LISTXATTR, _READDIR, _READDIRPLUS = 15, 16, 21, 22, 23, 28, 44
_LENGTH_AT, _OPCODE_AT, _HEADER = 0, 4, 40
_READ_SIZE_AT, _READ_FLAGS_AT, _OPEN_FLAGS_AT, _READ_SIZE = _HEADER + 16, _HEADER + 20, _HEADER + 32, _HEADER + 40
_WRITE_FLAGS_AT, _WRITE_SIZE = _HEADER + 20, _HEADER + 40
_SETXATTR_FLAGS_AT, _LISTXATTR_SIZE = _HEADER + 4, _HEADER + 8
_LOCKOWNER = 2
_WRITE_CACHE, _KILL_SUIDGID = 1, 4
_HANDLE_AT = 16
"""Of `fh` in struct fuse_file_info of libfuse's fuse_common.h."""
_CARRIED = (256, 512, 1024)
"""Bytes of a memcpy(3) that between them go through all vector registers that copies of other sizes go through."""
_LARGE = 1 << 19
"""From here on it may use yet others, for copies that go past the caches."""
_LARGEST = (1 << 20) + 4096


class _Buffer(ctypes.Structure):
    """struct fuse_buf of libfuse's fuse_common.h: the members that all its versions have in common."""

    _fields_ = (("size", _size), ("flags", _int), ("memory", _pointer), ("fd", _int))


_BufferPointer: Any = ctypes.POINTER(_Buffer)
_Receive: Any = ctypes.PYFUNCTYPE(_int, _pointer, _BufferPointer)
_Process: Any = ctypes.PYFUNCTYPE(None, _pointer, _BufferPointer)
_ReplyBuf: Any = ctypes.PYFUNCTYPE(_int, _pointer, _pointer, _size)
_ReplyOpen: Any = ctypes.PYFUNCTYPE(_int, _pointer, _pointer)
_ReplyCreate: Any = ctypes.PYFUNCTYPE(_int, _pointer, _pointer, _pointer)


class Fallback:
    """The callbacks, in place for the rest of the process's life. Make it after pyfuse3 was imported."""

    def __init__(self, pyfuse3: str, window_address: int, window_size: int) -> None:
        """Put them into the call table of `pyfuse3`, the path of its compiled module.

        Args:
            pyfuse3: the path.
            window_address: where the window lies, which wipes itself.
            window_size: its bytes.

        Raises:
            ShimUnavailable: they cannot be put there, or do not fit what is installed.
        """
        try:
            binding = ctypes.PyDLL(pyfuse3)  # symbols are looked up in it and in the libfuse that it is bound to
        except OSError as error:
            raise ShimUnavailable(f"pyfuse3 has no compiled module where it was expected: {error}") from error
        problem = untried_pyfuse3() or untried_libfuse(binding)
        if problem:
            raise ShimUnavailable(problem)
        self._window = range(window_address, window_address + window_size)
        self._requests = 0
        self._locked = 0  # the receive buffer that has been locked
        self._buffer_size = 0
        self._error = 0
        self._page_cache_read = False
        self._open_flags = 0
        self._keeps_privileges = False
        self._xattr_flags = 0
        self._size = 0  # of the request in hand, or of what it asks for
        self._ones = (ctypes.c_char * _LARGEST)()
        ctypes.memset(self._ones, 0xFF, max(_CARRIED))
        self._carried = (ctypes.c_char * _LARGEST)()
        self.lost_handle = _u64()
        """What was opened for a reply that did not reach the kernel, or 0."""
        self._libc = ctypes.PyDLL(None, use_errno=True)
        self._libc.malloc_usable_size.restype = _size
        self._libc.read.restype = ctypes.c_ssize_t
        self._real = _Libfuse(binding)
        _kept.append(self._replace(binding))

    def fills_page_cache(self) -> bool:
        """Whether the request in hand is a read that fills the kernel's page cache."""
        return self._page_cache_read

    def leaves_atime(self) -> bool:
        """Whether the request in hand reads through a descriptor with O_NOATIME, as it is now."""
        return bool(self._open_flags & os.O_NOATIME)

    def keeps_privileges(self) -> bool:
        """Whether the request in hand is a direct write by somebody with CAP_FSETID: set-user-ID bits stay."""
        return self._keeps_privileges

    def xattr_flags(self) -> int:
        """The flags of the setxattr(2) in hand, which pyfuse3 does not get to see."""
        return self._xattr_flags

    def forget_registers(self) -> None:
        """Let other bytes go through the vector registers that the C library copies with."""
        if self._size >= _LARGE:
            ctypes.memmove(self._carried, self._ones, self._size)
        for size in _CARRIED:
            ctypes.memmove(self._carried, self._ones, size)

    def verify(self) -> None:
        """After the first request: return if requests pass through here and the receive buffer is locked.

        Raises:
            ShimUnavailable: they do not, or it is not.
        """
        if not self._requests:
            raise ShimUnavailable("pyfuse3 does not call what was put into its call table")
        if self._error:
            raise ShimUnavailable(f"the receive buffer cannot be locked: {os.strerror(self._error).lower()}")

    def _replace(self, binding: ctypes.CDLL) -> list[Any]:
        callbacks = {
            "fuse_session_receive_buf": _Receive(self._receive),
            "fuse_session_process_buf": _Process(self._process),
            "fuse_reply_buf": _ReplyBuf(self._reply_buf),
            "fuse_reply_open": _ReplyOpen(self._reply_open),
            "fuse_reply_create": _ReplyCreate(self._reply_create),
        }
        got.replace(binding, {name: ctypes.cast(one, _pointer).value or 0 for name, one in callbacks.items()})
        return [self, callbacks]

    def _receive(self, session: int, pointer: Any) -> int:
        buffer = pointer.contents
        received = self._read_request(session, buffer) if buffer.memory else self._real.receive_buf(session, pointer)
        if received == -errno.EAGAIN:  # the client was killed before its request was read; pyfuse3 waits again
            return -errno.EINTR
        if buffer.memory and buffer.memory != self._locked:
            self._lock(buffer.memory)
        self._requests += received > 0
        return int(received)

    def _read_request(self, session: int, buffer: _Buffer) -> int:
        """Not through libfuse, which may splice it through a pipe (see shim.c)."""
        fd = self._real.session_fd(session)
        code = errno.ENOENT
        while code == errno.ENOENT:  # a client took its request back meanwhile
            received = int(self._libc.read(fd, _pointer(buffer.memory), _size(self._buffer_size)))
            code = ctypes.get_errno() if received < 0 else 0
        if code == errno.ENODEV:  # unmounted
            self._real.session_exit(session)
        if self._real.session_exited(session):
            return 0
        if code:
            return -code
        if received < _HEADER:
            return -errno.EIO
        buffer.size = received
        buffer.flags = 0
        return received

    def _lock(self, memory: int) -> None:
        """Lock the receive buffer, out of swap and of core dumps."""
        self._locked = memory
        self._buffer_size = self._libc.malloc_usable_size(_pointer(memory))
        start = memory & -libc.PAGE_SIZE
        length = (memory + self._buffer_size - start + libc.PAGE_SIZE - 1) & -libc.PAGE_SIZE
        try:
            libc.mlock(start, length)
            libc.madvise(start, length, libc.MADV_DONTDUMP)
            self._error = 0
        except OSError as error:
            self._error = error.errno or errno.EIO

    def _process(self, session: int, pointer: Any) -> None:
        buffer = pointer.contents
        memory, size = buffer.memory, buffer.size  # both may change while the request is processed
        if memory:
            self._look_at(memory, size)
        try:
            self._real.process_buf(session, pointer)
        finally:
            if memory:
                libc.wipe(memory, size)
            self.forget_registers()

    def _look_at(self, request: int, size: int) -> None:
        """Note what a request is about; put it in another way where pyfuse3 would leave copies behind (rewrite.c)."""
        opcode = _u32.from_address(request + _OPCODE_AT)
        self._size = min(size, _LARGEST)
        self._page_cache_read = self._keeps_privileges = False
        self._open_flags = 0
        if opcode.value in (_READ, _READDIR, _READDIRPLUS) and size >= _READ_SIZE:
            self._open_flags = _u32.from_address(request + _OPEN_FLAGS_AT).value
        if opcode.value == _READ and size >= _READ_SIZE:
            self._size = min(_u32.from_address(request + _READ_SIZE_AT).value, _LARGEST)
            # One that does not come from a program names no lock owner (see shim.c).
            self._page_cache_read = not _u32.from_address(request + _READ_FLAGS_AT).value & _LOCKOWNER
        elif opcode.value == _WRITE and size >= _WRITE_SIZE:
            self._keeps_privileges = not _u32.from_address(request + _WRITE_FLAGS_AT).value & (
                _WRITE_CACHE | _KILL_SUIDGID
            )
        elif opcode.value == _SETXATTR and size >= _SETXATTR_FLAGS_AT + 4:
            flags = _u32.from_address(request + _SETXATTR_FLAGS_AT)
            self._xattr_flags, flags.value = flags.value, 0
        elif opcode.value == _LISTXATTR and size == _LISTXATTR_SIZE:
            opcode.value = _GETXATTR
            ctypes.c_char.from_address(request + size).value = b"\0"  # the empty name
            _u32.from_address(request + _LENGTH_AT).value += 1

    def _reply_buf(self, request: int, data: int | None, size: int) -> int:
        """Also wipe what the reply was made from; one byte or none may be an object that all of Python shares."""
        result: int = self._real.reply_buf(request, data, size)
        if data and size > 1 and data not in self._window:
            libc.wipe(data, size)
        return result

    def _reply_open(self, request: int, info: int) -> int:
        return self._noting_loss(self._real.reply_open(request, info), info)

    def _reply_create(self, request: int, entry: int, info: int) -> int:
        return self._noting_loss(self._real.reply_create(request, entry, info), info)

    def _noting_loss(self, result: int, info: int) -> int:
        if result:
            self.lost_handle.value = _u64.from_address(info + _HANDLE_AT).value
        return result


AnyShim: TypeAlias = Shim | Fallback
"""What has seen each request."""


class _Libfuse:
    """libfuse's own functions, called without letting go of the GIL: pyfuse3's handlers are called from within."""

    def __init__(self, binding: ctypes.CDLL) -> None:
        def function(name: str, prototype: Any) -> Callable[..., int]:
            try:
                found: Callable[..., int] = prototype((name, binding))
            except AttributeError:
                raise ShimUnavailable(f"libfuse lacks {name!r}") from None
            return found

        self.receive_buf = function("fuse_session_receive_buf", _Receive)
        self.process_buf = function("fuse_session_process_buf", _Process)
        self.reply_buf = function("fuse_reply_buf", _ReplyBuf)
        self.reply_open = function("fuse_reply_open", _ReplyOpen)
        self.reply_create = function("fuse_reply_create", _ReplyCreate)
        self.session_fd = function("fuse_session_fd", ctypes.PYFUNCTYPE(_int, _pointer))
        self.session_exit = function("fuse_session_exit", ctypes.PYFUNCTYPE(None, _pointer))
        self.session_exited = function("fuse_session_exited", ctypes.PYFUNCTYPE(_int, _pointer))


_kept: list[Any] = []
"""Callbacks that are in a call table: they must never be freed."""
