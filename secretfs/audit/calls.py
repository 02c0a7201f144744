"""System calls that attackers make and nothing else here does: typed, with errors as OSError.

Each is described in the man page of its name, in section 2; the numbers are those of the kernel's syscall tables.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from collections.abc import Iterator
from typing import Any

__all__ = [
    "MACHINE",
    "bpf",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "map_descriptor",
    "map_fixed",
    "mincore",
    "perf_event_open",
    "pidfd",
    "pidfd_getfd",
    "prctl",
    "process_madvise",
    "read_process",
    "swapoff",
    "swapon",
    "vmsplice",
    "write_address",
]

MACHINE = platform.machine()
_GENERIC = {"bpf": 280, "perf_event_open": 241}
_NUMBERS = {"x86_64": {"bpf": 321, "perf_event_open": 298}}.get(MACHINE, _GENERIC)
_IO_URING_SETUP, _IO_URING_ENTER, _IO_URING_REGISTER = 425, 426, 427
_MAP_NEW_FIXED = 0x100022  # MAP_FIXED_NOREPLACE | MAP_ANONYMOUS | MAP_PRIVATE
_PIDFD_GETFD, _PROCESS_MADVISE = 438, 440

_libc = ctypes.CDLL(None, use_errno=True)
_long, _pointer, _size = ctypes.c_long, ctypes.c_void_p, ctypes.c_size_t
_libc.syscall.restype = _long
for _name, _result, _arguments in (
    ("process_vm_readv", _long, (ctypes.c_int, _pointer, _long, _pointer, _long, _long)),
    ("vmsplice", _long, (ctypes.c_int, _pointer, _long, ctypes.c_uint)),
    ("write", _long, (ctypes.c_int, _pointer, _size)),
    ("mmap", _pointer, (_pointer, _size, ctypes.c_int, ctypes.c_int, ctypes.c_int, _long)),
    ("munmap", ctypes.c_int, (_pointer, _size)),
    ("mincore", ctypes.c_int, (_pointer, _size, _pointer)),
    ("prctl", ctypes.c_int, (ctypes.c_int, *[ctypes.c_ulong] * 4)),
    ("swapon", ctypes.c_int, (ctypes.c_char_p, ctypes.c_int)),
    ("swapoff", ctypes.c_int, (ctypes.c_char_p,)),
):
    getattr(_libc, _name).restype = _result
    getattr(_libc, _name).argtypes = _arguments


class Piece(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", _pointer), ("length", _size))


def check(result: int) -> int:
    """The result of a call; its errno as an exception."""
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _syscall(number: int, *arguments: Any) -> int:
    """syscall(2). Numbers and pointers are passed in full width."""
    words = [each if isinstance(each, (_long, _pointer)) else _long(each) for each in arguments]
    return check(_libc.syscall(_long(number), *words))


def read_process(pid: int, address: int, buffer: bytearray) -> int:
    """process_vm_readv(2): fill `buffer` from `address` of another process, and return how much was read."""
    exported = (ctypes.c_char * len(buffer)).from_buffer(buffer)
    local, remote = Piece(ctypes.addressof(exported), len(buffer)), Piece(address, len(buffer))
    try:
        return check(_libc.process_vm_readv(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0))
    finally:
        del exported


def vmsplice(fd: int, address: int, length: int) -> int:
    """vmsplice(2): give pages of this process to a pipe."""
    return check(_libc.vmsplice(fd, ctypes.byref(Piece(address, length)), 1, 0))


def write_address(fd: int, address: int, length: int) -> int:
    """write(2) from an address that may lead nowhere: EFAULT then, where reading it would end the process."""
    return check(_libc.write(fd, address, length))


def map_descriptor(fd: int, length: int, *, private: bool = False, writable: bool = False, offset: int = 0) -> int:
    """mmap(2) of a descriptor."""
    address = _libc.mmap(None, length, 3 if writable else 1, 2 if private else 1, fd, offset)
    return _mapped(address)


def _mapped(address: int) -> int:
    if address == ctypes.c_void_p(-1).value:
        check(-1)
    return int(address)


def map_fixed(address: int, length: int) -> int:
    """mmap(2) of new memory at that address; FileExistsError where something else is."""
    return _mapped(_libc.mmap(address, length, 3, _MAP_NEW_FIXED, -1, 0))


def munmap(address: int, length: int) -> None:
    """munmap(2)."""
    check(_libc.munmap(address, length))


def mincore(address: int, pages: int, page_size: int) -> int:
    """mincore(2): how many of these pages are resident."""
    vector = ctypes.create_string_buffer(pages)
    check(_libc.mincore(address, pages * page_size, vector))
    return sum(byte & 1 for byte in vector.raw)


def prctl(option: int, *arguments: int) -> int:
    """prctl(2)."""
    return check(_libc.prctl(option, *arguments, *[0] * (4 - len(arguments))))


@contextlib.contextmanager
def pidfd(pid: int) -> Iterator[int]:
    """pidfd_open(2), closed afterwards."""
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """pidfd_getfd(2): a duplicate of another process's descriptor."""
    return _syscall(_PIDFD_GETFD, pidfd, fd, 0)


def process_madvise(pidfd: int, address: int, length: int, advice: int) -> int:
    """process_madvise(2)."""
    piece = Piece(address, length)
    return _syscall(_PROCESS_MADVISE, pidfd, ctypes.addressof(piece), 1, advice, 0)


def perf_event_open(attributes: Any, pid: int) -> int:
    """perf_event_open(2) for one process on every processor."""
    return _syscall(_NUMBERS["perf_event_open"], ctypes.addressof(attributes), pid, -1, -1, 8)


def bpf(command: int, attributes: Any) -> int:
    """bpf(2)."""
    return _syscall(_NUMBERS["bpf"], command, ctypes.addressof(attributes), ctypes.sizeof(attributes))


def io_uring_setup(entries: int, parameters: Any) -> int:
    """io_uring_setup(2)."""
    return _syscall(_IO_URING_SETUP, entries, ctypes.addressof(parameters))


def io_uring_enter(fd: int, submit: int, complete: int) -> int:
    """io_uring_enter(2) that waits for completions (IORING_ENTER_GETEVENTS)."""
    return _syscall(_IO_URING_ENTER, fd, submit, complete, 1, 0, 0)


def io_uring_register(fd: int, operation: int, argument: int, count: int) -> int:
    """io_uring_register(2)."""
    return _syscall(_IO_URING_REGISTER, fd, operation, argument, count)


def swapon(path: str, flags: int) -> None:
    """swapon(2)."""
    check(_libc.swapon(os.fsencode(path), flags))


def swapoff(path: str) -> None:
    """swapoff(2)."""
    check(_libc.swapoff(os.fsencode(path)))
