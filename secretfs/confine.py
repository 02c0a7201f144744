"""What a mount's daemon gives up before it serves: other programs and processes, the network, writing to files.

Whoever takes over the daemon through a bug has its secrets, but cannot carry them away so easily: three locks, each for
good and inherited by every thread that is started later.

no_new_privs    no program that it runs has more rights than it has: PR_SET_NO_NEW_PRIVS(2const).
Landlock        no file is made, changed, removed or run, nothing is mounted, no process outside is traced or signalled,
                no TCP port is bound or connected: landlock(7), as much of it as the kernel has.
seccomp         `REFUSED` system calls fail with EPERM: seccomp(2).

Only the daemon: the parent unmounts, for an ordinary user with the set-user-ID program fusermount3, which no_new_privs
breaks. Reading files stays possible: Python imports modules when it first needs them, and looks at the memory cgroup.

Source of the numbers: the kernel's arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h,
include/uapi/linux/{landlock,seccomp,filter}.h.
"""

from __future__ import annotations

import errno
import os
import platform
import socket
import struct
from collections.abc import Iterable, Iterator

from secretfs import libc

__all__ = ["REFUSED", "confine", "landlock", "seccomp"]

REFUSED = {
    # name: its number on x86_64, on the architectures with the generic table
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, None), "vfork": (58, None),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "pidfd_getfd": (438, 438), "kcmp": (312, 272), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "vmsplice": (278, 75),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "setns": (308, 268), "unshare": (272, 97),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "open_by_handle_at": (304, 265), "personality": (135, 92), "reboot": (169, 142),
    "swapon": (167, 224), "swapoff": (168, 225), "syslog": (103, 116), "acct": (163, 89),
}  # fmt: skip
"""System calls that fail with EPERM. Beside them: clone(2) of anything but a thread, sockets of the network, and
prctl(PR_SET_DUMPABLE). clone3(2) is ENOSYS, because a filter cannot see its flags; the C library then uses clone(2).
"""
_X86_64, _GENERIC = 0, 1
_MACHINES = {  # audit number, column of REFUSED, clone, clone3, socket, prctl
    "x86_64": (0xC000003E, _X86_64, 56, 435, 41, 157),
    "aarch64": (0xC00000B7, _GENERIC, 220, 435, 198, 167),
    "riscv64": (0xC00000F3, _GENERIC, 220, 435, 198, 167),
    "loongarch64": (0xC0000102, _GENERIC, 220, 435, 198, 167),
}
_CLONE_THREAD = 0x10000
_X32 = 0x40000000

# Classic BPF, as in linux/filter.h: code, jump if true, jump if false, constant.
_INSTRUCTION = struct.Struct("=HBBI")
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _MACHINE, _FIRST = 0, 4, 16  # where struct seccomp_data has them
_KILL, _ALLOW, _ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
_LARGEST_JUMP = 255

_EXECUTE, _WRITES, _REFER, _TRUNCATE = 1 << 0, 1 << 1 | 0x1FF << 4, 1 << 13, 1 << 14


def confine() -> list[str]:
    """Give all of it up, for good, in this thread and those that it will start; what could not be had is returned.

    Returns:
        A sentence for each of the three that this kernel does not have, or forbids.
    """
    failed = []
    steps = {"no_new_privs": libc.set_no_new_privs, "Landlock": landlock, "seccomp": seccomp}
    for name, step in steps.items():
        try:
            step()
        except OSError as error:
            failed.append(f"not confined by {name}: {os.strerror(error.errno or 0).lower()}")
    return failed


def landlock() -> None:
    """Refuse to make, change, remove or run files.

    Raises:
        OSError: ENOSYS or EOPNOTSUPP where the kernel has no Landlock.
    """
    version = libc.landlock_version()
    files = _EXECUTE | _WRITES | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    ports = 0b11 if version >= 4 else 0  # bind, connect
    scopes = 0b11 if version >= 6 else 0  # abstract sockets, signals
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    libc.landlock_restrict_self(struct.pack("=QQQ", files, ports, scopes)[:size])


def seccomp() -> None:
    """Refuse `REFUSED`, in every thread.

    Raises:
        OSError: ENOSYS where the numbers of this machine's system calls are not known here, or as seccomp(2).
    """
    libc.seccomp_filter(b"".join(_filter(platform.machine())))


def _filter(machine: str) -> Iterator[bytes]:
    """The program. Whatever it does not name is allowed."""
    if machine not in _MACHINES:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    audit, column, clone, clone3, sockets, prctl = _MACHINES[machine]
    numbers = sorted(found for each in REFUSED.values() if (found := each[column]) is not None)
    yield _INSTRUCTION.pack(_LOAD, 0, 0, _MACHINE)
    yield _INSTRUCTION.pack(_EQUAL, 1, 0, audit)
    yield _INSTRUCTION.pack(_RETURN, 0, 0, _KILL)  # the 32-bit calls of the same machine
    yield _INSTRUCTION.pack(_LOAD, 0, 0, _NUMBER)
    yield from _refuse_any(numbers)
    yield from _where(clone3, _returning(_ERRNO | errno.ENOSYS))
    refused = _returning(_ERRNO | errno.EPERM)
    argument = _INSTRUCTION.pack(_LOAD, 0, 0, _FIRST)
    thread = [argument, _INSTRUCTION.pack(_ANY_BIT, 1, 0, _CLONE_THREAD), *refused]
    local = [argument, _INSTRUCTION.pack(_EQUAL, 1, 0, socket.AF_UNIX), *refused]
    dumpable = [argument, _INSTRUCTION.pack(_EQUAL, 0, 1, libc.PR_SET_DUMPABLE), *refused]
    for number, check in ((clone, thread), (sockets, local), (prctl, dumpable)):
        yield from _where(number, [*check, *_returning(_ALLOW)])
    yield from _returning(_ALLOW)


def _refuse_any(numbers: list[int]) -> Iterator[bytes]:
    """EPERM for any of `numbers`, and for the x32 calls, which have numbers of their own."""
    yield _INSTRUCTION.pack(_AT_LEAST, len(numbers), 0, _X32)
    for left, number in zip(range(len(numbers) - 1, -1, -1), numbers, strict=True):
        yield _INSTRUCTION.pack(_EQUAL, left, 0 if left else 1, number)
    assert len(numbers) <= _LARGEST_JUMP
    yield from _returning(_ERRNO | errno.EPERM)


def _where(number: int, body: Iterable[bytes]) -> list[bytes]:
    """`body`, which does not come back, for one system call."""
    steps = list(body)
    return [_INSTRUCTION.pack(_EQUAL, 0, len(steps), number), *steps]


def _returning(action: int) -> list[bytes]:
    return [_INSTRUCTION.pack(_RETURN, 0, 0, action)]
