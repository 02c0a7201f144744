"""Calls that would move bytes through a secret's descriptor, or change its file: they fail, each with its own errno.

The file of secret memory has no operation of that kind (mm/secretmem.c); which errno that gives is decided in fs/.
"""

from __future__ import annotations

import errno
import struct

from secretfs import libc
from secretfs_emulator.supervisor import system, target
from secretfs_emulator.supervisor.call import Call, Handler
from secretfs_emulator.supervisor.notify import CONTINUE, Answer, fail, value

__all__ = [
    "copy_file_range",
    "fails",
    "fallocate",
    "fstatfs",
    "io_submit",
    "lseek",
    "name_to_handle_at",
    "offset_fails",
    "preadv2",
    "sendfile",
    "splice",
]

_STATFS = struct.Struct("=QQQQQQQ8sQQQ32x")  # struct statfs of 64-bit architectures
_NAME_MAX = 255
_ST_VALID = 0x20
_LAST_WHENCE = 4  # SEEK_HOLE
_AT_EMPTY_PATH = 0x1000
_IOCB = struct.Struct("=20xI40x")  # struct iocb: aio_fildes
_MOST_REQUESTS = 1024


def fails(code: int) -> Handler:
    """A handler: fails with `code` on a secret."""

    def handler(call: Call) -> Answer:
        return fail(code) if call.secret() is not None else CONTINUE

    return handler


def offset_fails(index: int) -> Handler:
    """A handler for what takes an offset as argument `index`: ESPIPE on a secret, EINVAL for a negative one."""

    def handler(call: Call) -> Answer:
        if call.secret() is None:
            return CONTINUE
        return fail(errno.EINVAL if call.offset(index) < 0 else errno.ESPIPE)

    return handler


def preadv2(call: Call) -> Answer:
    """preadv2(2) and pwritev2(2): without an offset (-1) they are readv and writev."""
    if call.secret() is None:
        return CONTINUE
    return fail(errno.EINVAL if call.offset(3) < 0 else errno.ESPIPE)


def sendfile(call: Call) -> Answer:
    """sendfile(2): the secret may be either end."""
    if call.secret(1) is not None:
        return fail(errno.ESPIPE if call.arguments[2] else errno.EINVAL)
    return fail(errno.EINVAL) if call.secret(0) is not None else CONTINUE


def splice(call: Call) -> Answer:
    """splice(2): the secret may be either end."""
    return fail(errno.EINVAL) if call.secret(0) is not None or call.secret(2) is not None else CONTINUE


def tee(call: Call) -> Answer:
    """tee(2): between pipes only."""
    return fail(errno.EINVAL) if call.secret(0) is not None or call.secret(1) is not None else CONTINUE


def copy_file_range(call: Call) -> Answer:
    """copy_file_range(2): the secret may be either end; two of them are on one file system."""
    ends = [call.secret(0) is not None, call.secret(2) is not None]
    return fail(errno.EINVAL if all(ends) else errno.EXDEV) if any(ends) else CONTINUE


def lseek(call: Call) -> Answer:
    """lseek(2)."""
    if call.secret() is None:
        return CONTINUE
    return fail(errno.ESPIPE if 0 <= call.number(2) <= _LAST_WHENCE else errno.EINVAL)


def fallocate(call: Call) -> Answer:
    """fallocate(2)."""
    if call.secret() is None:
        return CONTINUE
    return fail(errno.EINVAL if call.offset(2) < 0 or call.offset(3) <= 0 else errno.EOPNOTSUPP)


def name_to_handle_at(call: Call) -> Answer:
    """name_to_handle_at(2) of the descriptor itself: the file system of secret memory exports nothing."""
    if not call.number(4) & _AT_EMPTY_PATH or call.secret() is None:
        return CONTINUE
    first = target.memory(call.pid, call.arguments[1], 1)
    return fail(errno.EOPNOTSUPP) if first is not None and first[0] == 0 else CONTINUE


def io_submit(call: Call) -> Answer:
    """io_submit(2): requests are looked at before the kernel copies them once more."""
    number = call.arguments[1]
    if not call.has_secrets() or not 0 < number <= _MOST_REQUESTS:
        return CONTINUE
    pointers = target.memory(call.pid, call.arguments[2], number * 8) or b""
    for (pointer,) in struct.iter_unpack("=Q", pointers):
        request = target.memory(call.pid, pointer, _IOCB.size)
        if request is None:
            return CONTINUE
        (fd,) = _IOCB.unpack(request)
        if fd in call.session.window and call.secret_at(fd) is not None:
            return fail(errno.EINVAL)
    return CONTINUE


def fstatfs(call: Call) -> Answer:
    """fstatfs(2): the file system of secret memory, with a mark by which secretfs tells it from the kernel's."""
    if call.secret() is None or not call.waiting():
        return CONTINUE
    about = _STATFS.pack(
        libc.SECRETMEM_MAGIC, libc.PAGE_SIZE, 0, 0, 0, 0, 0, libc.EMULATED, _NAME_MAX, libc.PAGE_SIZE, _ST_VALID
    )
    try:
        system.write_memory(call.pid, call.arguments[1], about)
    except OSError:
        return fail(errno.EFAULT)
    return value(0)
