"""Calls that would pin pages of a secret: the kernel cannot pin secret memory, so they fail; here that is played.

The addresses lie in the caller's memory, and are copied from there once. Another thread may change them before the
kernel reads them again: a program that plays such tricks gets around this, as it does not with the kernel's secrets.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Callable, Sequence

from secretfs_emulator.supervisor import system, target
from secretfs_emulator.supervisor.bpf import among
from secretfs_emulator.supervisor.call import Call
from secretfs_emulator.supervisor.notify import CONTINUE, Answer, fail, value

__all__ = [
    "WHEN_PEEKING",
    "WHEN_REGISTERING",
    "ZERO_COPY",
    "io_uring_register",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "secret_ranges",
    "sendmsg",
    "sendto",
    "touches",
    "vmsplice",
]

WHEN_PEEKING = among(0, 1, 2, 4, 5)  # PTRACE_PEEKTEXT, PEEKDATA, POKETEXT, POKEDATA
WHEN_REGISTERING = among(1, 0)  # IORING_REGISTER_BUFFERS
ZERO_COPY = 0x4000000  # MSG_ZEROCOPY
_IOVEC = struct.Struct("=QQ")
_IOV_MAX = 1024
_WORD = 8
_MOST_COPIED = 1 << 24
_MESSAGE = struct.Struct("=16xQQ")  # struct msghdr: msg_iov, msg_iovlen

Range = tuple[int, int]


def vmsplice(call: Call) -> Answer:
    """vmsplice(2) into a pipe pins the pages; out of one it copies, which is allowed."""
    if not call.has_secrets():
        return CONTINUE
    with contextlib.suppress(*target.UNSEEN):
        if target.flags_of(call.pid, call.number(0)) & os.O_ACCMODE == os.O_RDONLY:
            return CONTINUE
        if touches(secret_ranges(call, call.pid), _iovecs(call, 1, 2)):
            return fail(errno.EFAULT)
    return CONTINUE


def process_vm_readv(call: Call) -> Answer:
    """process_vm_readv(2)."""
    return _process_vm(call, writing=False)


def process_vm_writev(call: Call) -> Answer:
    """process_vm_writev(2)."""
    return _process_vm(call, writing=True)


def _process_vm(call: Call, *, writing: bool) -> Answer:
    """The pages of the other process are pinned, the caller's are not."""
    if call.arguments[5]:
        return fail(errno.EINVAL)
    if not call.has_secrets():
        return CONTINUE
    with contextlib.suppress(*target.UNSEEN):
        remote = _iovecs(call, 3, 4)
        secrets = _ranges_of_other(call, call.number(0)) if remote else []
        if touches(secrets, remote):
            return _up_to_the_secret(call, secrets, remote, writing=writing)
    return CONTINUE


def _up_to_the_secret(call: Call, secrets: Sequence[Range], remote: Sequence[Range], *, writing: bool) -> Answer:
    """What lies before the first byte of a secret is copied all the same. We do it, but only within the caller's own
    memory: to reach into another process, it would have to be asked for by the caller's rights and not by ours.
    """
    allowed = _cut(remote, secrets)
    other = target.translate(call.pid, call.number(0))
    if not allowed or other is None or target.Status(other).process != target.Status(call.pid).process:
        return fail(errno.EFAULT)
    local = _iovecs(call, 1, 2)
    source, sink = (local, allowed) if writing else (allowed, local)
    if sum(last - first for first, last in source) > _MOST_COPIED or not call.waiting():
        return fail(errno.EFAULT)
    data = b"".join(system.read_memory(call.pid, first, last - first) for first, last in source)
    done = 0
    for first, last in sink:
        piece = data[done : done + last - first]
        system.write_memory(call.pid, first, piece)
        done += len(piece)
    return value(done)


def _cut(ranges: Sequence[Range], secrets: Sequence[Range]) -> list[Range]:
    """The ranges up to the first byte of a secret."""
    found = []
    for first, last in ranges:
        inside = [max(start, first) for start, end in secrets if start < last and end > first]
        found.append((first, min(inside, default=last)))
        if inside:
            break
    return [(first, last) for first, last in found if first < last]


def io_uring_register(call: Call) -> Answer:
    """io_uring_register(2) of buffers pins them for as long as the ring exists."""
    return _refuse_pinning(call, lambda: _iovecs(call, 2, 3))


def sendto(call: Call) -> Answer:
    """send(2) and sendto(2) with MSG_ZEROCOPY."""
    first, length = call.arguments[1], call.arguments[2]
    return _refuse_pinning(call, lambda: [(first, first + length)])


def sendmsg(call: Call) -> Answer:
    """sendmsg(2) with MSG_ZEROCOPY."""
    return _refuse_pinning(call, lambda: _message(call))


def _message(call: Call) -> list[Range]:
    header = target.memory(call.pid, call.arguments[1], _MESSAGE.size)
    return _array(call, *_MESSAGE.unpack(header)) if header is not None else []


def _refuse_pinning(call: Call, ranges: Callable[[], list[Range]]) -> Answer:
    if not call.has_secrets():
        return CONTINUE
    with contextlib.suppress(*target.UNSEEN):
        if touches(secret_ranges(call, call.pid), ranges()):
            return fail(errno.EFAULT)
    return CONTINUE


def ptrace(call: Call) -> Answer:
    """ptrace(2) PEEK and POKE by whom the kernel would let: EIO on a secret."""
    if not call.has_secrets():
        return CONTINUE
    address = call.arguments[2]
    with contextlib.suppress(*target.UNSEEN):
        other = target.translate(call.pid, call.number(1))
        if (
            other is not None
            and _traced_by(other, call.pid)
            and touches(_ranges_of_other(call, call.number(1)), [(address, address + _WORD)])
        ):
            return fail(errno.EIO)
    return CONTINUE


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
    return _array(call, call.arguments[pointer], call.arguments[count])


def _array(call: Call, address: int, entries: int) -> list[Range]:
    """The ranges that an array of struct iovec names; none if there are too many, or they cannot be read."""
    if not 0 < entries <= _IOV_MAX:
        return []
    data = target.memory(call.pid, address, entries * _IOVEC.size)
    if data is None:
        return []
    return [(base, base + length) for base, length in _IOVEC.iter_unpack(data) if length]


def touches(secrets: Sequence[Range], ranges: Sequence[Range]) -> bool:
    """Whether a byte of one is a byte of the other."""
    return any(start < last and end > first for start, end in ranges for first, last in secrets)
