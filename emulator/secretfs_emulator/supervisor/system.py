"""System calls that neither Python nor secretfs.libc offers: seccomp(2), detached mounts, fanotify(7), looks at others.

Every function raises OSError with the kernel's errno. Addresses are plain ints.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os

from secretfs_emulator.supervisor import numbers

__all__ = [
    "close_all_but",
    "fanotify_init",
    "fanotify_mark",
    "fsopen_tmpfs",
    "inotify_add_watch",
    "inotify_init",
    "mmap_readable",
    "pidfd_getfd",
    "prctl",
    "raw",
    "read_memory",
    "signalfd",
    "write_memory",
]

PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP, PR_CAP_AMBIENT = 38, 24, 47
FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE = 0, 1, 6
FSOPEN_CLOEXEC = FSMOUNT_CLOEXEC = 1
MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 2, 4, 8
FAN_CLOEXEC, FAN_CLASS_CONTENT, FAN_UNLIMITED_QUEUE, FAN_UNLIMITED_MARKS = 1, 4, 0x10, 0x20
FAN_MARK_ADD, FAN_MARK_FILESYSTEM = 1, 0x100
_PROT_READ, _MAP_SHARED = 1, 1
_SFD_CLOEXEC = _IN_CLOEXEC = 0o2000000

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_long, _pointer, _size = ctypes.c_long, ctypes.c_void_p, ctypes.c_size_t


_libc.mmap.restype = _pointer


class _Iovec(ctypes.Structure):
    _fields_ = (("base", _pointer), ("length", _size))


_iovecs = ctypes.POINTER(_Iovec)
for _name in ("process_vm_readv", "process_vm_writev"):
    _function = getattr(_libc, _name)
    _function.restype = ctypes.c_ssize_t
    _function.argtypes = (ctypes.c_int, _iovecs, ctypes.c_ulong, _iovecs, ctypes.c_ulong, ctypes.c_ulong)


def _check(result: int) -> int:
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def raw(name: str, *arguments: int | bytes | None) -> int:
    """A system call by its name; ENOSYS where this architecture has none of that name."""
    known = numbers.number(name)
    if known is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    converted = [_long(a) if isinstance(a, int) else a for a in arguments]
    return _check(_syscall(_long(known), *converted))


def prctl(option: int, first: int = 0, second: int = 0) -> int:
    """prctl(2) with arguments that are numbers."""
    return _check(_libc.prctl(option, _long(first), _long(second), _long(0), _long(0)))


def fsopen_tmpfs(options: dict[str, str | None]) -> int:
    """A descriptor of the root of a fresh tmpfs(5) that is mounted nowhere: no exec, no devices, no set-user-ID."""
    context = raw("fsopen", b"tmpfs", FSOPEN_CLOEXEC)
    try:
        for name, value in options.items():
            if value is None:
                raw("fsconfig", context, FSCONFIG_SET_FLAG, name.encode(), None, 0)
            else:
                raw("fsconfig", context, FSCONFIG_SET_STRING, name.encode(), value.encode(), 0)
        raw("fsconfig", context, FSCONFIG_CMD_CREATE, None, None, 0)
        mount = raw("fsmount", context, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC)
        try:  # which fanotify_mark(2) does not take: it is a path only (O_PATH)
            return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
        finally:
            os.close(mount)
    finally:
        os.close(context)


def fanotify_init() -> int:
    """A fanotify(7) group that may refuse; the descriptors it hands out are open for reading and writing."""
    flags = FAN_CLOEXEC | FAN_CLASS_CONTENT | FAN_UNLIMITED_QUEUE | FAN_UNLIMITED_MARKS
    return raw("fanotify_init", flags, os.O_RDWR | os.O_CLOEXEC)


def fanotify_mark(group: int, mask: int, fd: int, *, filesystem: bool = False) -> None:
    """Watch the file behind `fd`, or the whole file system that it is on."""
    raw("fanotify_mark", group, FAN_MARK_ADD | (FAN_MARK_FILESYSTEM if filesystem else 0), mask, fd, None)


def mmap_readable(fd: int, length: int) -> int:
    """mmap(2) a file, shared and read-only: enough to lock its pages."""
    address = _libc.mmap(None, _size(length), _PROT_READ, _MAP_SHARED, fd, _long(0))
    if address == _pointer(-1).value or address is None:
        _check(-1)
    return int(address)


def inotify_init() -> int:
    """inotify_init1(2)."""
    return _check(_libc.inotify_init1(_IN_CLOEXEC))


def inotify_add_watch(group: int, path: str, mask: int) -> int:
    """inotify_add_watch(2): the number by which events name the file."""
    return _check(_libc.inotify_add_watch(group, path.encode(), ctypes.c_uint32(mask)))


def signalfd(numbers_wanted: set[int]) -> int:
    """signalfd(2): a descriptor from which blocked signals are read."""
    mask = sum(1 << (number - 1) for number in numbers_wanted)
    buffer = ctypes.create_string_buffer(mask.to_bytes(8, "little"), 128)
    return _check(_libc.signalfd(-1, buffer, _SFD_CLOEXEC))


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """pidfd_getfd(2): a descriptor of ours for the file that is descriptor `fd` of another process."""
    return raw("pidfd_getfd", pidfd, fd, 0)


def read_memory(pid: int, address: int, length: int) -> bytearray:
    """Bytes of another process (process_vm_readv(2)); EFAULT if not all of them can be had."""
    data = bytearray(length)
    _transfer(_libc.process_vm_readv, pid, address, data)
    return data


def write_memory(pid: int, address: int, data: bytes | bytearray) -> None:
    """Put bytes into another process (process_vm_writev(2)); EFAULT if they do not all fit."""
    _transfer(_libc.process_vm_writev, pid, address, bytearray(data))


def _transfer(call: ctypes._CFuncPtr, pid: int, address: int, data: bytearray) -> None:  # type: ignore[name-defined]
    if not data:
        return
    here = _Iovec(ctypes.addressof(ctypes.c_char.from_buffer(data)), len(data))
    there = _Iovec(address, len(data))
    if _check(call(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)) != len(data):
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))


def close_all_but(*keep: int) -> None:
    """Close every descriptor above the standard streams but `keep`."""
    edges = [2, *sorted(fd for fd in keep if fd > 2), os.sysconf("SC_OPEN_MAX")]
    for lower, upper in itertools.pairwise(edges):
        os.closerange(lower + 1, upper)
