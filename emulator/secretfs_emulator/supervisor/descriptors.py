"""Calls about a secret's descriptor itself: copies stay at reserved numbers, and what it cannot do is refused."""

from __future__ import annotations

import errno
import fcntl as constants
import os
import resource

from secretfs_emulator.supervisor import system, target
from secretfs_emulator.supervisor.backing import Area
from secretfs_emulator.supervisor.call import Call
from secretfs_emulator.supervisor.notify import CONTINUE, Answer, fail, value

__all__ = ["GENERIC", "dup", "fcntl", "ioctl"]

_ADD_SEALS, _GET_SEALS = 1033, 1034
_DUPLICATES = (constants.F_DUPFD, constants.F_DUPFD_CLOEXEC)
_LOOKED_AT = (*_DUPLICATES, _ADD_SEALS, _GET_SEALS, constants.F_SETLEASE, constants.F_SETFL)
# What the kernel answers for every file, before it asks the file system (do_vfs_ioctl).
GENERIC = {
    0x5450, 0x5451, 0x5421, 0x5452, 0x5460,  # FIONCLEX, FIOCLEX, FIONBIO, FIOASYNC, FIOQSIZE
    2,  # FIGETBSZ; but not FIONREAD: it is for files that are not anonymous
    0xC0045877, 0xC0045878,  # FIFREEZE, FITHAW
    0x40049409, 0x4020940D, 0xC0189436,  # FICLONE, FICLONERANGE, FIDEDUPERANGE
}  # fmt: skip


def dup(call: Call) -> Answer:
    """dup(2)."""
    area = call.secret()
    return _duplicate(call, area, cloexec=False) if area is not None else CONTINUE


def fcntl(call: Call) -> Answer:
    """fcntl(2): duplicates, seals, which only memfds have, leases, which nobody could break, and O_DIRECT."""
    command = call.number(1)
    if command not in _LOOKED_AT:
        return CONTINUE
    area = call.secret()
    if area is None:
        return CONTINUE
    if command == constants.F_SETLEASE:
        return fail(errno.EAGAIN) if call.number(2) == constants.F_WRLCK else value(0)
    if command == constants.F_SETFL and not call.number(2) & os.O_DIRECT:
        return CONTINUE
    if command not in _DUPLICATES:
        return fail(errno.EINVAL)
    least = call.arguments[2]
    if least >= _descriptor_limit(call):
        return fail(errno.EINVAL)
    window = call.session.window
    if least >= window.first + window.count:
        return CONTINUE  # beyond the reserved numbers: a copy that answers some calls differently
    return _duplicate(call, area, cloexec=command == constants.F_DUPFD_CLOEXEC, least=least)


def ioctl(call: Call) -> Answer:
    """ioctl(2): only what is the same for every file."""
    if call.arguments[1] & 0xFFFFFFFF in GENERIC or call.secret() is None:
        return CONTINUE
    return fail(errno.ENOTTY)


def _duplicate(call: Call, area: Area, *, cloexec: bool, least: int = 0) -> Answer:
    """The same open file once more; through our own hands, since the kernel would take the lowest number of all."""
    try:
        fd = _its_file(call, area)
    except OSError as error:
        if target.short(error):
            raise
        return CONTINUE  # not to be had: a copy at a low number works, but answers some calls differently
    try:
        return call.put(fd, cloexec=cloexec, least=least)
    finally:
        os.close(fd)


def _its_file(call: Call, area: Area) -> int:
    """A descriptor of ours for the caller's open file; where that may not be had (a process that is not dumpable, the
    security module yama), one for the same secret.
    """
    backing = call.session.backing
    assert backing is not None
    pidfd = target.pidfd_of(call.pid)
    try:
        if not call.waiting():
            raise ProcessLookupError
        return system.pidfd_getfd(pidfd, call.number(0))
    except PermissionError:
        return backing.reopen(area)
    finally:
        os.close(pidfd)


def _descriptor_limit(call: Call) -> int:
    try:
        return resource.prlimit(call.pid, resource.RLIMIT_NOFILE)[0]
    except OSError:
        return call.session.window.first + call.session.window.count
