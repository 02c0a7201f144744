"""Why the kernel would not give memory: which limit it was, and what to do about it.

`interface.py` hands `lock_refused` on to those who write backends.
"""

from __future__ import annotations

import contextlib
import errno
import os

from secretfs import libc
from secretfs.errors import MORE_MAPPINGS, LimitError, LockLimitExceeded

__all__ = ["lock_refused", "mappings"]

_LAST_MAPPINGS = 8
"""mremap(2) refuses a few before mmap(2) does."""
_OPEN_FILES = "raise the limit on open files: `ulimit -n`, LimitNOFILE= in a systemd unit"


def lock_refused(wanted: int, cause: OSError) -> OSError | LimitError:
    """What to raise when the kernel would not give `wanted` bytes: a LimitError if a limit is why, else `cause`."""
    if cause.errno in (errno.EMFILE, errno.ENFILE):
        return LimitError(f"cannot map {wanted} bytes: {os.strerror(cause.errno)}", hint=_OPEN_FILES)
    if cause.errno not in (errno.EAGAIN, errno.ENOMEM, errno.EPERM, errno.EFAULT):
        return cause
    limit, used = libc.lock_limit(), libc.locked_bytes()
    if limit is not None and (cause.errno != errno.ENOMEM or used + wanted > limit):
        return LockLimitExceeded(wanted, used=used, limit=limit)
    if cause.errno == errno.EPERM:
        return cause
    with contextlib.suppress(OSError):
        there, most = mappings()
        if there > most - _LAST_MAPPINGS:
            return LimitError(
                f"cannot map {wanted} bytes: the {most} mappings that vm.max_map_count allows are in use",
                hint=MORE_MAPPINGS,
            )
    return LimitError(f"cannot map {wanted} bytes: {os.strerror(errno.ENOMEM)}", hint="free memory, or ask for less")


def mappings() -> tuple[int, int]:
    """How many mappings this process has, and how many it may have (vm.max_map_count of proc_sys_vm(5))."""
    with open("/proc/self/maps", "rb") as file:
        used = sum(1 for _ in file)
    with open("/proc/sys/vm/max_map_count", encoding="ascii") as file:
        return used, int(file.read())
