"""Calls about mapped pages: the kernel locks the mappings of secret memory by itself, so that some advice fails there.

MADV_DONTNEED, which fails as well, is not looked at: allocators give it too often to ask about each.
"""

from __future__ import annotations

import contextlib
import errno

from secretfs_emulator.supervisor import pinning, target
from secretfs_emulator.supervisor.bpf import among
from secretfs_emulator.supervisor.call import Call
from secretfs_emulator.supervisor.notify import CONTINUE, Answer, fail
from secretfs_emulator.supervisor.secret import fits

__all__ = ["PROT_EXEC", "WHEN_LOCKED_MATTERS", "WHEN_SYNCHRONOUS", "madvise", "mlock", "mprotect", "msync"]

PROT_EXEC = 4

_MS_ASYNC, _MS_INVALIDATE, _MS_SYNC = 1, 2, 4
WHEN_LOCKED_MATTERS = among(2, 9, 20, 21, 22, 23)  # MADV_REMOVE, COLD, PAGEOUT, POPULATE_READ, POPULATE_WRITE
WHEN_SYNCHRONOUS = among(2, _MS_SYNC, _MS_INVALIDATE, _MS_SYNC | _MS_INVALIDATE, _MS_ASYNC | _MS_INVALIDATE)


def madvise(call: Call) -> Answer:
    """madvise(2) that is not for locked pages, or faults them in through a pin."""
    return fail(errno.EINVAL) if _on_secret(call) else CONTINUE


def msync(call: Call) -> Answer:
    """msync(2): locked pages cannot be invalidated, and the file has no fsync."""
    if not _on_secret(call):
        return CONTINUE
    return fail(errno.EBUSY if call.number(2) & _MS_INVALIDATE else errno.EINVAL)


def mprotect(call: Call) -> Answer:
    """mprotect(2) with PROT_EXEC; the tmpfs refuses it by itself, memfds do not."""
    return fail(errno.EACCES) if _on_secret(call) else CONTINUE


def mlock(call: Call) -> Answer:
    """mlock(2), mlock2(2): a secret cannot be faulted in that way; ordinary memory counts beside secrets."""
    if not call.has_secrets() or target.lock_limit(call.pid) == 0:  # with which the kernel refuses by itself: EPERM
        return CONTINUE
    return fail(errno.ENOMEM) if _on_secret(call) or not fits(call, call.arguments[1]) else CONTINUE


def _on_secret(call: Call) -> bool:
    if not call.has_secrets():
        return False
    first, length = call.arguments[0], call.arguments[1]
    with contextlib.suppress(*target.UNSEEN):
        return pinning.touches(pinning.secret_ranges(call, call.pid), [(first, first + length)])
    return False
