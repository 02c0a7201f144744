"""The interface that was proposed in July 2020 and changed before it was merged: memfd_create(2) with MFD_SECRET, then
an ioctl(2) that says which kind of secret.

MFD_SECRET is the bit that means MFD_NOEXEC_SEAL since Linux 6.3. So the call makes what it means today, and only the
ioctl, which nothing else answers, turns the descriptor into a secret; mapping before it was an error in 2020. The
first system call of programs of that era, number 440, is process_madvise today; for them it is absent.
Source: the patch mails, <20200706172051.19465-4-rppt@kernel.org> and the replies.
"""

from __future__ import annotations

import errno
import os

from secretfs_emulator.supervisor import descriptors, target
from secretfs_emulator.supervisor.backing import give
from secretfs_emulator.supervisor.call import Call
from secretfs_emulator.supervisor.notify import CONTINUE, Answer, fail

__all__ = ["MFD_SECRET", "ioctl", "memfd_create"]

MFD_CLOEXEC, MFD_SECRET = 0x1, 0x8
EXCLUSIVE, UNCACHED = 0x40082D13, 0x40082D14  # _IOW('-', 0x13, unsigned long), _IOW('-', 0x14, unsigned long)
_LETTER = ord("-")
_LONGEST_NAME = 249
_PAGE = 4096


def memfd_create(call: Call) -> Answer:
    """memfd_create(2) with MFD_SECRET and at most MFD_CLOEXEC: an ordinary memfd, at a reserved number."""
    name = _name(call)
    if isinstance(name, Answer):
        return name
    try:
        fd = _memfd(name)
    except OSError as error:
        return fail(error.errno or errno.ENOMEM)
    try:
        give(fd, *call.owner())
        about = os.fstat(fd)
        call.session.modeless.add((about.st_dev, about.st_ino))
        return call.put(fd, cloexec=bool(call.number(1) & MFD_CLOEXEC))
    finally:
        os.close(fd)


def _name(call: Call) -> str | Answer:
    text = target.string(call.pid, call.arguments[0], _LONGEST_NAME + 1)
    if text is None:
        return fail(errno.EFAULT)
    if len(text) > _LONGEST_NAME:
        return fail(errno.EINVAL)
    return os.fsdecode(bytes(text)) if call.waiting() else CONTINUE


def _memfd(name: str) -> int:
    try:
        return os.memfd_create(name, MFD_CLOEXEC | MFD_SECRET)
    except OSError as error:
        if error.errno != errno.EINVAL:  # before Linux 6.3
            raise
    fd = os.memfd_create(name, MFD_CLOEXEC)
    os.fchmod(fd, 0o666)
    return fd


def ioctl(call: Call) -> Answer:
    """ioctl(2): the first one that names a mode makes the secret; later ones, and unknown ones, are EINVAL."""
    command = call.arguments[1] & 0xFFFFFFFF
    key = call.file(call.number(0))
    session = call.session
    if key in session.modeless:
        if command in (EXCLUSIVE, UNCACHED):
            return _make_secret(call)
        return fail(errno.EINVAL) if command >> 8 & 0xFF == _LETTER else CONTINUE
    backing = session.backing
    if key is None or backing is None:
        return CONTINUE
    area = backing.areas.get(key)
    if (area is not None and area.repeatable) or (backing.name == "kernel" and key[0] == backing.device):
        return CONTINUE if command in descriptors.GENERIC else fail(errno.EINVAL)
    return descriptors.ioctl(call)


def _make_secret(call: Call) -> Answer:
    """Put a fresh secret in the place of the memfd. Uncached memory cannot be had: it is made as exclusive."""
    session, number = call.session, call.number(0)
    assert session.backing is not None
    if session.refuses_another():
        return fail(session.failure)
    flags = target.flags_of(call.pid, number)
    about = target.file_of(call.pid, number)
    if about is None or not call.waiting():
        return CONTINUE
    if call.arguments[1] & 0xFFFFFFFF == UNCACHED:
        session.counts["MFD_SECRET_UNCACHED given as cached"] += 1
    try:
        area, fd = session.backing.create(*call.owner())
    except OSError as error:
        return fail(error.errno or errno.ENOMEM)
    try:
        area.repeatable = True
        if about.st_size:
            session.backing.resize(area, about.st_size)
        session.modeless.discard((about.st_dev, about.st_ino))
        return call.place(fd, number, cloexec=bool(flags & os.O_CLOEXEC), answer=0)
    finally:
        os.close(fd)
