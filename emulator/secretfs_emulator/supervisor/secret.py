"""What makes a secret: memfd_secret(2), its size, its mappings; as Linux 6.18 answers (mm/secretmem.c)."""

from __future__ import annotations

import contextlib
import errno
import os

from secretfs import libc
from secretfs_emulator.supervisor import target
from secretfs_emulator.supervisor.backing import Area
from secretfs_emulator.supervisor.call import Call
from secretfs_emulator.supervisor.notify import CONTINUE, Answer, fail, value

__all__ = ["fits", "ftruncate", "memfd_secret", "mmap"]

_PROT_EXEC, _MAP_TYPE, _MAP_PRIVATE = 4, 0x0F, 2


def memfd_secret(call: Call) -> Answer:
    """A descriptor at a reserved number. The only flag is O_CLOEXEC."""
    flags = call.number(0)
    if flags & ~os.O_CLOEXEC:
        return fail(errno.EINVAL)
    session = call.session
    if session.refuses_another():
        return fail(session.failure)
    if session.backing is None:  # the kernel has the call: only failures are injected
        return CONTINUE
    try:
        _, fd = session.backing.create(*call.owner())
    except OSError as error:
        return fail(error.errno if error.errno in (errno.EMFILE, errno.ENFILE) else errno.ENOMEM)
    try:
        return call.put(fd, cloexec=bool(flags))
    finally:
        os.close(fd)


def ftruncate(call: Call) -> Answer:
    """Once, from nothing: the size is fixed from then on."""
    area = call.secret()
    if area is None or not call.waiting():
        return CONTINUE
    size = call.offset(1)
    if size < 0 or (area.size and not area.repeatable):
        return fail(errno.EINVAL)
    assert call.session.backing is not None
    try:
        call.session.backing.resize(area, size)
    except OSError as error:
        return fail(error.errno or errno.EINVAL)
    return value(0)


def mmap(call: Call) -> Answer:
    """Shared, not executable, within the lock limit; the kernel then maps."""
    area = call.secret(4)
    if area is None:
        return CONTINUE
    protection, flags = call.number(2), call.number(3)
    if protection & _PROT_EXEC:
        return fail(errno.EPERM)
    if flags & _MAP_TYPE == _MAP_PRIVATE and not area.repeatable:
        return fail(errno.EINVAL)
    length = -(-call.arguments[1] // libc.PAGE_SIZE) * libc.PAGE_SIZE
    if length and not (fits(call, length) and _held(call, area)):
        return fail(errno.EAGAIN)
    with contextlib.suppress(*target.UNSEEN):
        area.mappers.add(call.process)
    return CONTINUE


def _held(call: Call, area: Area) -> bool:
    assert call.session.backing is not None
    try:
        call.session.backing.hold(area)
    except OSError:
        return False
    return True


def fits(call: Call, length: int) -> bool:
    """Whether the caller may lock that much more. Counted anew each time, so that nothing need be known of munmap,
    mremap, fork and exec.
    """
    try:
        status = call.status
        if status.capable(libc.CAP_IPC_LOCK) and target.in_first_user_namespace(call.pid):
            return True
        limit = target.lock_limit(call.pid)
        return limit is None or status.locked + mapped_bytes(call) + length <= limit
    except target.UNSEEN:
        return True


def mapped_bytes(call: Call) -> int:
    """How many bytes of secrets the caller has mapped itself: what a child inherits is not locked for it."""
    backing = call.session.backing
    assert backing is not None
    whose = call.process
    ranges = target.mapped_ranges(call.pid, backing.device)
    found = ((end - start, backing.areas.get((backing.device, inode))) for start, end, inode in ranges)
    return sum(length for length, area in found if area is not None and whose in area.mappers)
