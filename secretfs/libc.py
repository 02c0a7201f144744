"""Typed calls into the C library and the kernel that Python does not offer.

This module alone decides how a system call is made and how its failure becomes an OSError. It knows nothing of
backends, regions or policies. Addresses are plain ints. Every function raises OSError with the kernel's errno.

Sources: the man pages of section 2 named in each docstring; system call numbers from the kernel's
arch/*/entry/syscalls tables and include/uapi/asm-generic/unistd.h (memfd_secret is 447 wherever it is wired).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
from typing import Any

__all__ = [
    "PAGE_SIZE", "PROT_NONE", "PROT_READ", "PROT_WRITE", "add_seals", "at_secure", "effective_capability",
    "fault_in", "file_system_magic", "fill_random", "get_seals", "is_emulated", "landlock_restrict_self",
    "landlock_version", "lock_limit", "locked_bytes", "madvise", "memfd_secret", "mlock", "mmap_anonymous",
    "mmap_shared", "mount", "mprotect", "mremap", "munmap", "original_environment", "proc_status", "ptrace",
    "read_own_page", "reserve", "seccomp_filter", "set_dumpable", "set_no_new_privs", "splice_own_page",
    "umount", "watch_for_unmount", "wipe", "wipe_bytes",
]  # fmt: skip

# What is not Linux can import this, so that the registry can say what is missing there.
PAGE_SIZE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
PROT_NONE, PROT_READ, PROT_WRITE = 0, 1, 2
MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE = 0x01, 0x02, 0x20, 0x4000
MREMAP_MAYMOVE, MREMAP_FIXED = 1, 2
MADV_DONTFORK, MADV_DOFORK, MADV_DONTDUMP = 10, 11, 16
PR_GET_DUMPABLE, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 3, 4, 38
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
_IN_DELETE_SELF, _IN_ONLYDIR = 0x400, 0x01000000
SECRETMEM_MAGIC = 0x5345434D
EMULATED = b"secretfs"
SEAL_SEAL, SEAL_SHRINK, SEAL_GROW, SEAL_WRITE, SEAL_FUTURE_WRITE = 1, 2, 4, 8, 16
CAP_IPC_LOCK, CAP_SYS_ADMIN = 14, 21
_F_ADD_SEALS, _F_GET_SEALS = 1033, 1034
_AT_SECURE = 23
_FSID = 56  # in struct statfs of 64-bit architectures
_IOV_MAX = 1024

# Where memfd_secret(2) is wired. The number is the same everywhere; the architecture list is not.
MEMFD_SECRET_NUMBERS = {"x86_64": 447, "aarch64": 447, "riscv64": 447, "s390x": 447, "loongarch64": 447}
_SECCOMP_NUMBERS = {"x86_64": 317, "aarch64": 277, "riscv64": 277, "loongarch64": 277, "s390x": 348}
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446  # everywhere
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC, _LANDLOCK_CREATE_RULESET_VERSION = 1, 1, 1

_libc = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None


def _declare(name: str, result: Any, *arguments: Any) -> Any:
    """Return the C function `name` with its types set, or one that raises ENOSYS where the C library lacks it."""
    try:
        function = getattr(_libc, name)
    except AttributeError:

        def missing(*_: object) -> None:
            raise OSError(errno.ENOSYS, f"this C library has no {name}")

        return missing
    function.restype = result
    function.argtypes = arguments
    return function


_long, _int, _size, _pointer = ctypes.c_long, ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p
_syscall = _declare("syscall", _long)
_mmap = _declare("mmap", _pointer, _pointer, _size, _int, _int, _int, _long)
_munmap = _declare("munmap", _int, _pointer, _size)
_mremap = _declare("mremap", _pointer, _pointer, _size, _size, _int, _pointer)
_getrandom = _declare("getrandom", ctypes.c_ssize_t, _pointer, _size, ctypes.c_uint)
_mprotect = _declare("mprotect", _int, _pointer, _size, _int)
_mlock = _declare("mlock", _int, _pointer, _size)
_madvise = _declare("madvise", _int, _pointer, _size, _int)
_memset = _declare("memset", None, _pointer, _int, _size)
_prctl = _declare("prctl", _int, _int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_getauxval = _declare("getauxval", ctypes.c_ulong, ctypes.c_ulong)
_fstatfs = _declare("fstatfs", _int, _int, _pointer)
_fcntl = _declare("fcntl", _int, _int, _int, _int)
_mount = _declare("mount", _int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_umount2 = _declare("umount2", _int, ctypes.c_char_p, _int)
_inotify_init1 = _declare("inotify_init1", _int, _int)
_inotify_add_watch = _declare("inotify_add_watch", _int, _int, ctypes.c_char_p, ctypes.c_uint32)
_process_vm_readv = _declare(
    "process_vm_readv", ctypes.c_ssize_t, _int, _pointer, ctypes.c_ulong, _pointer, ctypes.c_ulong, ctypes.c_ulong
)

_ptrace = _declare("ptrace", _long, _long, _long, _pointer, _pointer)
_vmsplice = _declare("vmsplice", ctypes.c_ssize_t, _int, _pointer, ctypes.c_ulong, ctypes.c_uint)


class _Iovec(ctypes.Structure):
    _fields_ = (("base", _pointer), ("length", _size))


class _FilterProgram(ctypes.Structure):  # struct sock_fprog
    _fields_ = (("length", ctypes.c_ushort), ("filter", _pointer))


def _check(result: int) -> int:
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def memfd_secret(flags: int) -> int:
    """memfd_secret(2): a descriptor of secret memory; ENOSYS also where the architecture is not wired."""
    number = MEMFD_SECRET_NUMBERS.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    return _check(_syscall(_long(number), ctypes.c_uint(flags)))


def mmap_shared(fd: int, length: int) -> int:
    """mmap(2) `length` bytes of `fd`, shared, readable and writable.

    Python's own mmap keeps a duplicate of the descriptor open, through which root could map the secret again.
    """
    return _mapped(_mmap(None, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0))


def mmap_anonymous(length: int) -> int:
    """mmap(2) `length` bytes of private anonymous memory, readable and writable."""
    return _mapped(_mmap(None, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))


def reserve(length: int) -> int:
    """mmap(2) `length` bytes of addresses at which nothing can be read or written: guard pages."""
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
    return _mapped(_mmap(None, length, PROT_NONE, flags, -1, 0))


def mremap(address: int, length: int, target: int) -> None:
    """mremap(2) with MREMAP_FIXED: move a mapping to `target`, over whatever is mapped there."""
    _mapped(_mremap(address, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, target))


def _mapped(address: int | None) -> int:
    if address is None or address == ctypes.c_void_p(-1).value:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return address


def munmap(address: int, length: int) -> None:
    """munmap(2)."""
    _check(_munmap(address, length))


def mprotect(address: int, length: int, protection: int) -> None:
    """mprotect(2)."""
    if _mprotect(address, length, protection):
        _check(-1)


def mlock(address: int, length: int) -> None:
    """mlock(2): faults every page in and keeps it out of swap; ENOMEM, EAGAIN or EPERM at the limit."""
    _check(_mlock(address, length))


def madvise(address: int, length: int, advice: int) -> None:
    """madvise(2)."""
    _check(_madvise(address, length, advice))


def wipe(address: int, length: int) -> None:
    """Overwrite `length` bytes with zeros (a call that no optimiser can drop, as it crosses into the C library)."""
    _memset(address, 0, length)


def wipe_bytes(received: bytes) -> None:
    """Overwrite a bytes object with zeros, the same way; ctypes hands over where its bytes lie."""
    _memset(received, 0, len(received))


def fill_random(address: int, length: int) -> None:
    """getrandom(2) straight into memory, with no copy elsewhere; interrupted or short, it goes on."""
    while length > 0:
        got = _getrandom(address, min(length, 1 << 24), 0)
        if got < 0 and ctypes.get_errno() == errno.EINTR:
            continue
        _check(got)
        address, length = address + got, length - got


def fault_in(view: memoryview) -> None:
    """Make the kernel touch every page of `view`, writing zeros to its first byte.

    From the kernel's side a page that cannot be had is EFAULT, an exception here; touched by ourselves it would be
    SIGBUS. readv(2) of /dev/zero with one byte per page is the quickest such call.
    """
    fd = os.open("/dev/zero", os.O_RDONLY | os.O_CLOEXEC)
    try:
        page = 0
        pages = (len(view) + PAGE_SIZE - 1) // PAGE_SIZE
        while page < pages:
            bytes_wanted = [view[i * PAGE_SIZE : i * PAGE_SIZE + 1] for i in range(page, min(pages, page + _IOV_MAX))]
            page += os.readv(fd, bytes_wanted)
    finally:
        os.close(fd)


def read_own_page(address: int) -> None:
    """Read one byte at `address` of this process through process_vm_readv(2), which pins the page.

    EFAULT means that the page cannot be pinned: for mapped memory, that it is secret (secretmem has no struct page
    that get_user_pages would hand out; kernel commit 1507f51255c9).
    """
    byte = ctypes.create_string_buffer(1)
    local = _Iovec(ctypes.addressof(byte), 1)
    remote = _Iovec(address, 1)
    _check(_process_vm_readv(os.getpid(), ctypes.byref(local), 1, ctypes.byref(remote), 1, 0))


def splice_own_page(address: int) -> None:
    """Hand one byte at `address` to a pipe with vmsplice(2), which pins the page: EFAULT where that is refused."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _check(_vmsplice(writer, ctypes.byref(_Iovec(address, 1)), 1, 0))
    finally:
        os.close(reader)
        os.close(writer)


def ptrace(request: int, pid: int, address: int, data: int) -> int:
    """ptrace(2). What PTRACE_PEEKDATA reads is the result too, so that -1 without an errno is a value."""
    ctypes.set_errno(0)
    result: int = _ptrace(request, pid, address, data)
    return result if result != -1 or not ctypes.get_errno() else _check(result)


def set_dumpable(*, dumpable: bool) -> None:
    """prctl(2) PR_SET_DUMPABLE: without it no core dump, and no ptrace and no /proc/PID/mem for the same user."""
    _check(_prctl(PR_SET_DUMPABLE, int(dumpable), 0, 0, 0))


def set_no_new_privs() -> None:
    """PR_SET_NO_NEW_PRIVS(2const): no program that this thread runs gets rights by set-user-ID bits or capabilities."""
    _check(_prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def seccomp_filter(program: bytes) -> None:
    """seccomp(2) SECCOMP_SET_MODE_FILTER in all threads; `program` is instructions of classic BPF, 8 bytes each."""
    number = _SECCOMP_NUMBERS.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    code = ctypes.create_string_buffer(program, len(program))
    holder = _FilterProgram(len(program) // 8, ctypes.cast(code, _pointer))
    flags = ctypes.c_ulong(_SECCOMP_FILTER_FLAG_TSYNC)
    if _check(_syscall(_long(number), _long(_SECCOMP_SET_MODE_FILTER), flags, ctypes.byref(holder))):
        raise OSError(errno.ESRCH, os.strerror(errno.ESRCH))  # a thread, by number, could not follow


def landlock_version() -> int:
    """landlock_create_ruleset(2): the version of the kernel's Landlock; ENOSYS or EOPNOTSUPP without."""
    version = ctypes.c_uint(_LANDLOCK_CREATE_RULESET_VERSION)
    return _check(_syscall(_long(_LANDLOCK_CREATE_RULESET), None, _size(0), version))


def landlock_restrict_self(attributes: bytes) -> None:
    """landlock_restrict_self(2) with a struct landlock_ruleset_attr and no rules: what it handles is refused."""
    fd = _check(_syscall(_long(_LANDLOCK_CREATE_RULESET), attributes, _size(len(attributes)), ctypes.c_uint(0)))
    try:
        _check(_syscall(_long(_LANDLOCK_RESTRICT_SELF), _int(fd), ctypes.c_uint(0)))
    finally:
        os.close(fd)


def is_dumpable() -> bool:
    """prctl(2) PR_GET_DUMPABLE."""
    return _check(_prctl(PR_GET_DUMPABLE, 0, 0, 0, 0)) == 1


def at_secure() -> bool:
    """Whether this program was started with raised privileges (getauxval(3) AT_SECURE)."""
    return bool(_getauxval(_AT_SECURE))


def file_system_magic(fd: int) -> int:
    """The f_type of the file system behind `fd` (fstatfs(2)); SECRETMEM_MAGIC for secret memory."""
    buffer = ctypes.create_string_buffer(512)
    _check(_fstatfs(fd, buffer))
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF


def original_environment() -> dict[bytes, bytes]:
    """os.environb without LC_CTYPE where Python has set it, for itself and its children, in the C locale (PEP 538)."""
    environment = dict(os.environb)
    with contextlib.suppress(OSError), open("/proc/self/environ", "rb") as file:
        given = file.read()
        if given and not any(entry.startswith(b"LC_CTYPE=") for entry in given.split(b"\0")):
            environment.pop(b"LC_CTYPE", None)
    return environment


def is_emulated(fd: int) -> bool:
    """Whether a descriptor of memfd_secret(2) is from `secretfs run`, which puts EMULATED where the kernel has the
    number of the file system (f_fsid of fstatfs(2)). Neither the environment nor /proc is needed to know.
    """
    buffer = ctypes.create_string_buffer(512)
    _check(_fstatfs(fd, buffer))
    return buffer.raw[_FSID : _FSID + len(EMULATED)] == EMULATED


def add_seals(fd: int, seals: int) -> None:
    """fcntl(2) F_ADD_SEALS."""
    _check(_fcntl(fd, _F_ADD_SEALS, seals))


def get_seals(fd: int) -> int:
    """fcntl(2) F_GET_SEALS."""
    return _check(_fcntl(fd, _F_GET_SEALS, 0))


def mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
    """mount(2)."""
    _check(_mount(os.fsencode(source), os.fsencode(target), os.fsencode(kind), flags, os.fsencode(data)))


def umount(target: str, flags: int) -> None:
    """umount2(2)."""
    _check(_umount2(os.fsencode(target), flags))


def watch_for_unmount(target: str) -> int:
    """inotify(7) on a directory: a descriptor that can be read from when its file system is gone (IN_UNMOUNT).

    It does not keep the file system from being unmounted.
    """
    fd: int = _check(_inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
    try:
        _check(_inotify_add_watch(fd, os.fsencode(target), _IN_ONLYDIR | _IN_DELETE_SELF))
    except OSError:
        os.close(fd)
        raise
    return fd


def proc_status(field: str, pid: int | str = "self") -> str:
    """One field of /proc/PID/status (proc(5)), or "" where there is none."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name == field:
                return value.strip()
    return ""


def effective_capability(number: int) -> bool:
    """Whether this process has capability `number` (capabilities(7))."""
    return bool(int(proc_status("CapEff") or "0", 16) >> number & 1)


def locked_bytes() -> int:
    """How many bytes of this process count against RLIMIT_MEMLOCK (VmLck of proc(5))."""
    return int((proc_status("VmLck") or "0").split()[0]) * 1024


def lock_limit() -> int | None:
    """How many bytes this process may lock (RLIMIT_MEMLOCK), None for no limit (also with CAP_IPC_LOCK)."""
    import resource  # not everywhere, see PAGE_SIZE

    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY or effective_capability(CAP_IPC_LOCK):
        return None
    return soft
