"""Calls that would move bytes through a secret's descriptor, or change its file: they fail, each with its own errno.

The file of secret memory has no operation of that kind (mm/secretmem.c); which errno that gives is decided in fs/.
"""

from __future__ import annotations

import errno
import struct

from secretfs import libc
from secretfs_emulator.supervisor import system
from secretfs_emulator.supervisor.call import Call, Handler
from secretfs_emulator.supervisor.notify import CONTINUE, Answer, fail, value

__all__ = ["copy_file_range", "fails", "fstatfs", "offset_fails", "preadv2", "sendfile", "splice"]

_STATFS = struct.Struct("=QQQQQQQ8sQQQ32x")  # struct statfs of 64-bit architectures
_NAME_MAX = 255


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
    """copy_file_range(2): the secret may be either end."""
    return fail(errno.EXDEV) if call.secret(0) is not None or call.secret(2) is not None else CONTINUE


def fstatfs(call: Call) -> Answer:
    """fstatfs(2): the file system of secret memory, with a mark by which secretfs tells it from the kernel's."""
    if call.secret() is None or not call.waiting():
        return CONTINUE
    about = _STATFS.pack(
        libc.SECRETMEM_MAGIC, libc.PAGE_SIZE, 0, 0, 0, 0, 0, libc.EMULATED, _NAME_MAX, libc.PAGE_SIZE, 0
    )
    try:
        system.write_memory(call.pid, call.arguments[1], about)
    except OSError:
        return fail(errno.EFAULT)
    return value(0)
