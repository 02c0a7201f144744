"""Stops a process in the midst of what it does, by ptrace(2): where it is about to make a certain system call."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
from types import TracebackType

_SEIZE, _INTERRUPT, _SYSCALL, _DETACH, _GET_SYSCALL_INFO = 0x4206, 0x4207, 24, 17, 0x420E
_GETREGSET = 0x4204
_TRACESYSGOOD = 1
_SYSCALL_STOP = signal.SIGTRAP | 0x80
_ENTRY = 1
_ALL = 0x40000000  # __WALL: threads too
WRITEV = {"x86_64": 20, "s390x": 146}.get(platform.machine(), 66)
VECTOR_REGISTERS = {"x86_64": 0x202}.get(platform.machine(), 2)  # NT_X86_XSTATE, NT_PRFPREG

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


class Stopped:
    """A thread of a process, held; let go at the end. Whoever holds it must do everything in one thread (ptrace(2))."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def run_to_call(self, number: int) -> None:
        """Let it run until it is about to make system call `number`."""
        while True:
            self._ask(_SYSCALL, 0, 0)
            if self._wait() == _SYSCALL_STOP and self._entering() == number:
                return

    def registers(self) -> bytes:
        """Its vector registers, as the kernel keeps them."""
        buffer = ctypes.create_string_buffer(1 << 16)
        piece = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), len(buffer))  # struct iovec
        self._ask(_GETREGSET, VECTOR_REGISTERS, ctypes.addressof(piece))
        return buffer.raw[: piece[1]]

    def _entering(self) -> int | None:
        """The system call that is about to be made; None where one has just been."""
        answer = ctypes.create_string_buffer(88)
        self._ask(_GET_SYSCALL_INFO, len(answer), ctypes.addressof(answer))
        kind, call = struct.unpack_from("B23xQ", answer)  # struct ptrace_syscall_info
        return call if kind == _ENTRY else None

    def _wait(self) -> int:
        _, status = os.waitpid(self.pid, _ALL)
        assert os.WIFSTOPPED(status), "it has ended"
        return os.WSTOPSIG(status)

    @staticmethod
    def _check(result: int) -> None:
        if result == -1:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def _ask(self, request: int, address: int, data: int) -> None:
        self._check(_libc.ptrace(request, self.pid, address, data))

    def __enter__(self) -> Stopped:
        self._ask(_SEIZE, 0, _TRACESYSGOOD)
        self._ask(_INTERRUPT, 0, 0)
        self._wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ask(_DETACH, 0, 0)
