"""Holding a process with ptrace(2): peeking, and making it call the system on its tracer's behalf."""

from __future__ import annotations

import contextlib
import ctypes
import os

from secretfs import libc
from secretfs.audit import calls
from secretfs.audit.model import NotTriedError
from secretfs.audit.spaces import mappings

__all__ = ["Traced"]

_SEIZE, _INTERRUPT, _DETACH, _PEEKDATA, _SINGLESTEP = 0x4206, 0x4207, 17, 2, 9
_GETREGS, _SETREGS = 12, 13
_WALL = 0x40000000
_SYSCALL = b"\x0f\x05"
# struct user_regs_struct of x86_64, in words.
_R10, _RAX, _RDX, _RSI, _RDI, _ORIG_RAX, _RIP = 7, 10, 12, 13, 14, 15, 16
_WORDS = 27


class Traced:
    """A process that is stopped; let go at the end. All of it must be done in one thread (ptrace(2))."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def peek(self, address: int) -> int:
        """One word of its memory."""
        return libc.ptrace(_PEEKDATA, self.pid, address, 0) & (1 << 64) - 1

    def call(self, number: int, *arguments: int) -> int:
        """Make it do a system call and go on as if nothing had happened; x86_64 only.

        Raises:
            OSError: what the call has failed with.
        """
        if calls.MACHINE != "x86_64":
            raise NotTriedError(f"this attack was written for x86_64, and this is {calls.MACHINE}")
        saved = self._registers()
        changed = (ctypes.c_ulong * _WORDS)(*saved)
        changed[_RAX], changed[_ORIG_RAX], changed[_RIP] = number, (1 << 64) - 1, self._instruction()
        for register, value in zip((_RDI, _RSI, _RDX, _R10), arguments, strict=False):
            changed[register] = value
        libc.ptrace(_SETREGS, self.pid, 0, ctypes.addressof(changed))
        try:
            libc.ptrace(_SINGLESTEP, self.pid, 0, 0)
            self._wait()
            result = ctypes.c_long(self._registers()[_RAX]).value
        finally:
            libc.ptrace(_SETREGS, self.pid, 0, ctypes.addressof(saved))
        if -4096 < result < 0:
            raise OSError(-result, os.strerror(-result))
        return result

    def _registers(self) -> ctypes.Array[ctypes.c_ulong]:
        registers = (ctypes.c_ulong * _WORDS)()
        libc.ptrace(_GETREGS, self.pid, 0, ctypes.addressof(registers))
        return registers

    def _instruction(self) -> int:
        """Where in its code a syscall instruction is."""
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
            for one in mappings(self.pid):
                if one.rights.startswith("r-x") and "libc" in one.name:
                    found = os.pread(memory.fileno(), one.size, one.start).find(_SYSCALL)
                    if found >= 0:
                        return one.start + found
        raise NotTriedError("no syscall instruction was found in its C library")

    def _wait(self) -> None:
        _, status = os.waitpid(self.pid, _WALL)
        if not os.WIFSTOPPED(status):
            raise NotTriedError("it has ended")

    def __enter__(self) -> Traced:
        libc.ptrace(_SEIZE, self.pid, 0, 0)
        libc.ptrace(_INTERRUPT, self.pid, 0, 0)
        self._wait()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            libc.ptrace(_DETACH, self.pid, 0, 0)
