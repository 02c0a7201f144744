"""probe(): whether memfd_secret(2) works here, proven on a page, and if not, why and what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import re

from secretfs import libc
from secretfs.errors import BackendUnavailable
from secretfs.interface import Guarantees, lock_refused
from secretfs_kernel.region import Region

__all__ = ["probe"]

FIRST_KERNEL = (5, 14)  # kernel commit 1507f51255c9 "mm: introduce memfd_secret"
_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # says nothing of secret memory
ON_BY_DEFAULT = (6, 5)  # kernel commit b758fe6df50d "mm/secretmem: make it on by default"


def probe() -> None:
    """Return if memory made by memfd_secret(2) is secret.

    A call that merely succeeds proves nothing: a sandbox may emulate it. So one page is made and pinning it is tried,
    which must fail, after pinning an ordinary page has been seen to work. `secretfs run` plays that too, and says who
    it is.

    Raises:
        BackendUnavailable: with the reason, and the remedy as hint.
        LimitError: not even one page may be had.
    """
    if platform.machine() not in libc.MEMFD_SECRET_NUMBERS:
        raise BackendUnavailable(
            f"memfd_secret is not wired on the architecture {platform.machine()!r}",
            hint=f"use one of: {', '.join(sorted(libc.MEMFD_SECRET_NUMBERS))}",
        )
    try:
        region = Region.create(libc.PAGE_SIZE, Guarantees(), shared=True)  # its descriptor is asked who made it
    except OSError as error:
        raise _explained(error) from error
    try:
        if libc.is_emulated(region.fileno()):
            raise BackendUnavailable(
                "memfd_secret is emulated here by secretfs run: its memory can be read like any other",
                hint="start without `secretfs run`, or use --backend emulator",
            )
        _prove(region._address)
    except OSError as error:
        raise lock_refused(libc.PAGE_SIZE, error) from error
    finally:
        with contextlib.suppress(OSError):  # which says nothing of secret memory; its end tries again
            region.close()


def _prove(secret: int) -> None:
    ordinary = libc.mmap_anonymous(libc.PAGE_SIZE)
    try:
        libc.wipe(ordinary, 1)
        refused = _pinning_refused(ordinary, secret)
    finally:
        with contextlib.suppress(OSError):
            libc.munmap(ordinary, libc.PAGE_SIZE)
    if not refused:
        raise BackendUnavailable(
            "memfd_secret answers here, but its memory can be read like any other, so it is emulated",
            hint="leave the sandbox or emulator that answers for the kernel, or use --backend emulator",
        )


def _pinning_refused(ordinary: int, secret: int) -> bool:
    """Whether the secret page cannot be pinned where the ordinary one can."""
    for pins in (libc.read_own_page, libc.splice_own_page):
        try:
            pins(ordinary)
        except OSError as error:
            if error.errno in _SHORT:
                raise
            continue  # this way of pinning is itself forbidden here: it would prove nothing
        try:
            pins(secret)
        except OSError as error:
            if error.errno in _SHORT:
                raise
            return error.errno == errno.EFAULT
        return False
    raise BackendUnavailable(
        "memfd_secret answers here, but neither process_vm_readv nor vmsplice may be used to check that it is secret",
        hint="allow process_vm_readv or vmsplice in the seccomp profile",
    )


def _explained(error: OSError) -> BackendUnavailable:
    filtered = libc.proc_status("Seccomp") == "2"
    if error.errno == errno.EPERM or (error.errno == errno.ENOSYS and filtered and _switched_on()):
        return BackendUnavailable(
            f"memfd_secret is blocked ({errno.errorcode[error.errno]}), most likely by a container's seccomp profile",
            hint="allow memfd_secret in the profile, for example docker run --security-opt seccomp=PROFILE.json, or in "
            "the unit SystemCallFilter=memfd_secret",
        )
    if error.errno == errno.ENOSYS and _kernel() < FIRST_KERNEL:
        return BackendUnavailable(
            f"kernel {platform.release()} is too old for memfd_secret",
            hint="use Linux 5.14 or newer, best 6.5 or newer",
        )
    if error.errno == errno.ENOSYS:
        return BackendUnavailable(
            f"memfd_secret is switched off in kernel {platform.release()}",
            hint="boot with secretmem.enable=1 on the kernel command line; if it is there, the kernel was built "
            "without CONFIG_SECRETMEM or cannot split its direct map (arm64: rodata=full)",
        )
    return BackendUnavailable(
        f"memfd_secret failed with {os.strerror(error.errno or 0)!r}", hint="look for a security module that refuses it"
    )


def _switched_on() -> bool:
    """Whether this kernel has memfd_secret(2) switched on, as far as its version and its command line tell."""
    with contextlib.suppress(OSError), open("/proc/cmdline", encoding="utf-8", errors="replace") as line:
        for word in reversed(line.read().split()):
            name, _, value = word.partition("=")
            if name == "secretmem.enable" and value:
                return _kernel() >= FIRST_KERNEL and value.lower().startswith(("1", "y", "t", "on"))
    return _kernel() >= ON_BY_DEFAULT


def _kernel() -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", platform.release())
    return (int(match[1]), int(match[2])) if match else (0, 0)
