"""The table: which system calls are looked at, when, and what answers them. What is not here is never touched.

`when` becomes part of the BPF filter, which decides by numbers alone and so quickly; `handler` decides about the few
calls that are left. A call whose descriptor turns out to be no secret is carried out by the kernel.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from secretfs_emulator.supervisor import (
    closing,
    descriptors,
    locking,
    numbers,
    pinning,
    rfc2020,
    secret,
    strict,
    transfer,
)
from secretfs_emulator.supervisor.bpf import Asked, absent, absent_for, always, among, descriptor, mapped, with_bit
from secretfs_emulator.supervisor.call import Handler

__all__ = ["CREATION", "EMULATION", "NO_IO_URING", "RFC2020", "STRICT", "UNPRIVILEGED", "Treatment", "by_number"]


@dataclass(frozen=True)
class Treatment:
    """When a call is looked at, and by what."""

    when: Asked
    handler: Handler | None = None


FIRST = descriptor(0)
SECOND = descriptor(1)
FIRST_OR_SECOND = descriptor(0, 1)
FIRST_OR_THIRD = descriptor(0, 2)
EINVAL = transfer.fails(errno.EINVAL)
EOPNOTSUPP = transfer.fails(errno.EOPNOTSUPP)

CREATION = {"memfd_secret": Treatment(always, secret.memfd_secret)}

EMULATION = {
    # making secrets
    **CREATION,
    "ftruncate": Treatment(FIRST, secret.ftruncate),
    "mmap": Treatment(mapped, secret.mmap),
    # the descriptor itself
    "dup": Treatment(FIRST, descriptors.dup),
    "fcntl": Treatment(FIRST, descriptors.fcntl),
    "ioctl": Treatment(FIRST, descriptors.ioctl),
    "fstatfs": Treatment(FIRST, transfer.fstatfs),
    # bytes through the descriptor
    "read": Treatment(FIRST, EINVAL),
    "write": Treatment(FIRST, EINVAL),
    "readv": Treatment(FIRST, EINVAL),
    "writev": Treatment(FIRST, EINVAL),
    "pread64": Treatment(FIRST, transfer.offset_fails(3)),
    "pwrite64": Treatment(FIRST, transfer.offset_fails(3)),
    "preadv": Treatment(FIRST, transfer.offset_fails(3)),
    "pwritev": Treatment(FIRST, transfer.offset_fails(3)),
    "preadv2": Treatment(FIRST, transfer.preadv2),
    "pwritev2": Treatment(FIRST, transfer.preadv2),
    "lseek": Treatment(FIRST, transfer.lseek),
    "sendfile": Treatment(FIRST_OR_SECOND, transfer.sendfile),
    "splice": Treatment(FIRST_OR_THIRD, transfer.splice),
    "tee": Treatment(FIRST_OR_SECOND, transfer.tee),
    "copy_file_range": Treatment(FIRST_OR_THIRD, transfer.copy_file_range),
    "io_submit": Treatment(always, transfer.io_submit),
    # the file
    "fallocate": Treatment(FIRST, transfer.fallocate),
    "fsetxattr": Treatment(FIRST, EOPNOTSUPP),
    "fgetxattr": Treatment(FIRST, EOPNOTSUPP),
    "fremovexattr": Treatment(FIRST, EOPNOTSUPP),
    "name_to_handle_at": Treatment(FIRST, transfer.name_to_handle_at),
    "fsync": Treatment(FIRST, EINVAL),
    "fdatasync": Treatment(FIRST, EINVAL),
    "readahead": Treatment(FIRST, EINVAL),
    # the pages
    "vmsplice": Treatment(always, pinning.vmsplice),
    "process_vm_readv": Treatment(always, pinning.process_vm_readv),
    "process_vm_writev": Treatment(always, pinning.process_vm_writev),
    "ptrace": Treatment(pinning.WHEN_PEEKING, pinning.ptrace),
    "io_uring_register": Treatment(pinning.WHEN_REGISTERING, pinning.io_uring_register),
    "sendto": Treatment(with_bit(3, pinning.ZERO_COPY), pinning.sendto),
    "sendmsg": Treatment(with_bit(2, pinning.ZERO_COPY), pinning.sendmsg),
    "madvise": Treatment(locking.WHEN_LOCKED_MATTERS, locking.madvise),
    "mprotect": Treatment(with_bit(2, locking.PROT_EXEC), locking.mprotect),
    "msync": Treatment(locking.WHEN_SYNCHRONOUS, locking.msync),
    "mlock": Treatment(always, locking.mlock),
    "mlock2": Treatment(always, locking.mlock),
}

STRICT = {
    "open": Treatment(always, strict.open_path),
    "openat": Treatment(always, strict.openat),
    "openat2": Treatment(always, strict.openat2),
    "read": Treatment(FIRST, strict.guarded(EINVAL)),
    "write": Treatment(FIRST, strict.guarded(EINVAL)),
    "readv": Treatment(FIRST, strict.guarded(EINVAL, vector=True)),
    "writev": Treatment(FIRST, strict.guarded(EINVAL, vector=True)),
    "pread64": Treatment(FIRST, strict.guarded(transfer.offset_fails(3), offset=3)),
    "pwrite64": Treatment(FIRST, strict.guarded(transfer.offset_fails(3), offset=3)),
    "preadv": Treatment(FIRST, strict.guarded(transfer.offset_fails(3), offset=3, vector=True)),
    "pwritev": Treatment(FIRST, strict.guarded(transfer.offset_fails(3), offset=3, vector=True)),
    "preadv2": Treatment(FIRST, strict.guarded(transfer.preadv2, offset=3, vector=True)),
    "pwritev2": Treatment(FIRST, strict.guarded(transfer.preadv2, offset=3, vector=True)),
}
"""What --strict adds, and changes."""

RFC2020 = {
    "memfd_create": Treatment(among(1, rfc2020.MFD_SECRET, rfc2020.MFD_SECRET | 1), rfc2020.memfd_create),
    "ioctl": Treatment(FIRST, rfc2020.ioctl),
    "process_madvise": Treatment(absent_for(0, 1, 2)),
}
"""What --rfc2020 adds, and changes. 1 and 2 are the modes that programs gave to system call 440."""

UNPRIVILEGED = {
    "close": Treatment(FIRST, closing.close),
    "close_range": Treatment(always, closing.close_range),
    "dup2": Treatment(SECOND, closing.dup2),
    "dup3": Treatment(SECOND, closing.dup2),
}
"""What an ordinary user's supervisor must know of processes that it may not look at."""

NO_IO_URING = {"io_uring_setup": Treatment(absent)}
"""With memfds: io_uring reads a file without asking any filter."""


def by_number(table: dict[str, Treatment]) -> dict[int, Treatment]:
    """The table for this machine, by the numbers of its calls."""
    found = {numbers.number(name): treatment for name, treatment in table.items()}
    return {number: treatment for number, treatment in found.items() if number is not None}
