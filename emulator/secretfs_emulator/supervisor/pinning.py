"""Calls that would pin pages of a secret: the kernel cannot pin secret memory, so they fail; here that is played.

The addresses lie in the caller's memory, and are copied from there once. Another thread may change them before the
kernel reads them again: a program that plays such tricks gets around this, as it does not with the kernel's secrets.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Sequence

from secretfs_emulator.supervisor import system, target
from secretfs_emulator.supervisor.bpf import among
from secretfs_emulator.supervisor.call import Call
from secretfs_emulator.supervisor.notify import CONTINUE, Answer, fail, value

__all__ = [
    "WHEN_PEEKING",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "secret_ranges",
    "touches",
    "vmsplice",
]

WHEN_PEEKING = among(0, 1, 2, 4, 5)  # PTRACE_PEEKTEXT, PEEKDATA, POKETEXT, POKEDATA
_IOVEC = struct.Struct("=QQ")
_IOV_MAX = 1024
_WORD = 8
_MOST_COPIED = 1 << 20

Range = tuple[int, int]


def vmsplice(call: Call) -> Answer:
    """vmsplice(2) into a pipe pins the pages; out of one it copies, which is allowed."""
    if not _any(call):
        return CONTINUE
    with contextlib.suppress(OSError):
        if target.flags_of(call.pid, call.number(0)) & os.O_ACCMODE == os.O_RDONLY:
            return CONTINUE
        if touches(secret_ranges(call, call.pid), _iovecs(call, 1, 2)):
            return fail(errno.EFAULT)
    return CONTINUE


def process_vm_readv(call: Call) -> Answer:
    """process_vm_readv(2): the pages of the other process are pinned, our own are not."""
    return _process_vm(call, source=(3, 4), sink=(1, 2))


def process_vm_writev(call: Call) -> Answer:
    """process_vm_writev(2): as process_vm_readv, the other way."""
    return _process_vm(call, source=(1, 2), sink=(3, 4))


def _process_vm(call: Call, source: tuple[int, int], sink: tuple[int, int]) -> Answer:
    """What comes before the first byte of a secret is copied, and EFAULT if that is nothing."""
    if not _any(call) or call.arguments[5]:
        return CONTINUE
    with contextlib.suppress(OSError):
        remote = _iovecs(call, 3, 4)
        clear = _bytes_before(_ranges_of_other(call, call.number(0)), remote) if remote else None
        if clear is None or clear >= sum(end - start for start, end in _iovecs(call, 1, 2)):
            return CONTINUE
        itself = target.Status(call.pid).process
        if 0 < clear <= _MOST_COPIED and target.translate(call.pid, call.number(0)) == itself:
            _copy(itself, _iovecs(call, *source), _iovecs(call, *sink), clear)
            return value(clear)
        return fail(errno.EFAULT)
    return CONTINUE


def _bytes_before(secrets: Sequence[Range], ranges: Sequence[Range]) -> int | None:
    """How many bytes of `ranges` come before the first one that is secret; None if none is."""
    before = 0
    for start, end in ranges:
        touched = [max(first, start) for first, last in secrets if start < last and end > first]
        if touched:
            return before + min(touched) - start
        before += end - start
    return None


def _copy(pid: int, source: Sequence[Range], sink: Sequence[Range], length: int) -> None:
    """Copy the first bytes of one list of ranges of a process to those of another."""
    data = bytearray()
    for start, end in source:
        data += system.read_memory(pid, start, min(end - start, length - len(data)))
    for start, end in sink:
        piece = data[: end - start]
        system.write_memory(pid, start, piece)
        del data[: len(piece)]


def ptrace(call: Call) -> Answer:
    """ptrace(2) PEEK and POKE by whom the kernel would let: EIO on a secret."""
    if not _any(call):
        return CONTINUE
    address = call.arguments[2]
    with contextlib.suppress(OSError):
        other = target.translate(call.pid, call.number(1))
        if (
            other is not None
            and _traced_by(other, call.pid)
            and touches(_ranges_of_other(call, call.number(1)), [(address, address + _WORD)])
        ):
            return fail(errno.EIO)
    return CONTINUE


def _any(call: Call) -> bool:
    return call.session.backing is not None and bool(call.session.backing.areas)


def secret_ranges(call: Call, pid: int) -> list[Range]:
    """Where a process has secrets mapped."""
    backing = call.session.backing
    assert backing is not None
    ranges = target.mapped_ranges(pid, backing.device)
    return [(start, end) for start, end, inode in ranges if (backing.device, inode) in backing.areas]


def _ranges_of_other(call: Call, number: int) -> list[Range]:
    """The same of the process that the caller calls `number`; none if that has ended meanwhile."""
    other = target.translate(call.pid, number)
    if other is None:
        return []
    pidfd = target.pidfd_of(other)
    try:
        found = secret_ranges(call, other)
        return found if target.alive(pidfd) and call.waiting() else []
    finally:
        os.close(pidfd)


def _traced_by(pid: int, tracer: int) -> bool:
    """TracerPid is the tracing thread."""
    return int(target.Status(pid).field(b"TracerPid") or b"0") == tracer


def _iovecs(call: Call, pointer: int, count: int) -> list[Range]:
    """The ranges that an array of struct iovec names; none if there are too many, or they cannot be read."""
    entries = call.arguments[count]
    if not 0 < entries <= _IOV_MAX:
        return []
    data = target.memory(call.pid, call.arguments[pointer], entries * _IOVEC.size)
    if data is None:
        return []
    return [(base, base + length) for base, length in _IOVEC.iter_unpack(data) if length]


def touches(secrets: Sequence[Range], ranges: Sequence[Range]) -> bool:
    """Whether any of the ranges has a byte of a secret."""
    return any(start < last and end > first for start, end in ranges for first, last in secrets)
