"""The numbers of the system calls that are looked at, for each architecture that is known here.

Sources: the kernel's arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h (aarch64, riscv64).
"""

from __future__ import annotations

import platform

__all__ = ["AUDIT", "NUMBERS", "number", "supported"]

AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "riscv64": 0xC00000F3}
"""What seccomp calls an architecture (AUDIT_ARCH_* of linux/audit.h)."""

NUMBERS: dict[str, tuple[int | None, int | None]] = {
    # name: (x86_64, generic); None: that architecture has no such call
    "read": (0, 63),
    "write": (1, 64),
    "open": (2, None),
    "close": (3, 57),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "ioctl": (16, 29),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "readv": (19, 65),
    "writev": (20, 66),
    "msync": (26, 227),
    "madvise": (28, 233),
    "dup": (32, 23),
    "dup2": (33, None),
    "sendfile": (40, 71),
    "sendto": (44, 206),
    "sendmsg": (46, 211),
    "fcntl": (72, 25),
    "fsync": (74, 82),
    "fdatasync": (75, 83),
    "ftruncate": (77, 46),
    "ptrace": (101, 117),
    "fstatfs": (138, 44),
    "mlock": (149, 228),
    "readahead": (187, 213),
    "fsetxattr": (190, 7),
    "fgetxattr": (193, 10),
    "fremovexattr": (199, 16),
    "io_submit": (209, 2),
    "openat": (257, 56),
    "splice": (275, 76),
    "tee": (276, 77),
    "vmsplice": (278, 75),
    "fallocate": (285, 47),
    "dup3": (292, 24),
    "preadv": (295, 69),
    "pwritev": (296, 70),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "name_to_handle_at": (303, 264),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "seccomp": (317, 277),
    "memfd_create": (319, 279),
    "mlock2": (325, 284),
    "copy_file_range": (326, 285),
    "preadv2": (327, 286),
    "pwritev2": (328, 287),
    "io_uring_setup": (425, 425),
    "io_uring_register": (427, 427),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "close_range": (436, 436),
    "openat2": (437, 437),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "memfd_secret": (447, 447),
}


def supported() -> bool:
    """Whether the numbers of this machine's system calls are known."""
    return platform.machine() in AUDIT


def number(name: str) -> int | None:
    """The number of a system call on this machine, or None where it has no such call."""
    native, generic = NUMBERS[name]
    return native if platform.machine() == "x86_64" else generic
