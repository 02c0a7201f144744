"""Attacks that change a setting of the machine for a moment, or read all of its memory. Only with --machine, as root.

Whatever is changed is put back, also when the audit is killed (undo.Undo, which each attacker has for itself).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import shutil
import signal
import struct
import tempfile
import time
from collections.abc import Callable, Iterator

from secretfs import libc
from secretfs.audit import calls
from secretfs.audit.model import NotTriedError
from secretfs.audit.needle import LENGTH, Needle
from secretfs.audit.subjects import Target
from secretfs.audit.undo import Undo

__all__ = ["after_kill", "core_dump", "kcore", "page_cache", "wait_for"]

_CORE_PATTERN = "/proc/sys/kernel/core_pattern"
_KERNEL_TEXT = 0xFFFFFFFF80000000
_CHUNK = 1 << 16
"""Bytes that are searched at once: small ones are allocated again and again from the same memory."""
_PATIENCE = 2.0
"""Seconds."""


def core_dump(target: Target) -> bool:
    """End it with SIGABRT, let the kernel hand its core to dd(1), and search that."""
    with tempfile.TemporaryDirectory(prefix="secretfs-audit-") as folder, Undo() as undo:
        program, core = shutil.which("dd"), f"{folder}/core"
        if program is None:
            raise NotTriedError("dd is not installed")
        with undo.unless_done("remove", folder), _setting(undo, _CORE_PATTERN, f"|{program} of={core}"):
            _end(target.pid, signal.SIGABRT)
            wait_for(lambda: _has_ended(core))
            return target.needle.in_path(core)


def wait_for(condition: Callable[[], bool]) -> bool:
    """What the kernel does in its own time, and tells nobody."""
    end = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _has_ended(core: str) -> bool:
    """Whether dd has written a core to its end: nobody has it open any more."""
    if not os.path.exists(core):
        return False
    fd = os.open(core, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)  # refused while it is open for writing (fcntl(2))
    except OSError:
        return False
    finally:
        os.close(fd)
    return os.stat(core).st_size > 0


def kcore(target: Target) -> bool:
    """Search the direct map."""
    return _in_direct_map(target.needle)


def after_kill(target: Target) -> bool:
    """Kill what holds the needle, and search the direct map."""
    _require_kcore()
    if target.subject == "ordinary":
        os.unlink(target.path)  # its file would be found in the page cache, and show nothing
    _in_direct_map(target.needle, pieces=True)  # what the search needs is allocated: it reuses what others free
    _end(target.pid, signal.SIGKILL)
    return _in_direct_map(target.needle, pieces=True)


def page_cache(target: Target) -> bool:
    """Read the file as a client does, and ask which of its pages are in the page cache."""
    fd = os.open(target.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        target.needle.in_file(fd)
        address = calls.map_descriptor(fd, libc.PAGE_SIZE, private=True)
        try:
            return calls.mincore(address, 1, libc.PAGE_SIZE) > 0
        finally:
            calls.munmap(address, libc.PAGE_SIZE)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _setting(undo: Undo, path: str, text: str) -> Iterator[None]:
    """A setting of the kernel's, changed for the block."""
    with open(path, encoding="utf-8") as file:
        before = file.read()
    with undo.unless_done("write", path, before):
        _write(path, text)
        try:
            yield
        finally:
            _write(path, before)


def _write(path: str, text: str) -> None:
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise NotTriedError(f"{path} cannot be changed: {error.strerror}") from error


def _end(pid: int, number: int) -> None:
    """Send a signal that ends it, and return when it has ended: its core is written then, its memory free."""
    with calls.pidfd(pid) as pidfd:
        signal.pidfd_send_signal(pidfd, number)
        if not select.select([pidfd], [], [], 60)[0]:
            raise NotTriedError("it does not end")


def _require_kcore() -> None:
    if not os.path.exists("/proc/kcore"):
        raise NotTriedError("this kernel has no /proc/kcore")
    try:
        with open("/proc/kcore", "rb", buffering=0):
            pass
    except OSError as error:
        raise NotTriedError(f"/proc/kcore cannot be opened: {error.strerror}") from error


def _in_direct_map(needle: Needle, *, pieces: bool = False) -> bool:
    """Whether a needle is in physical memory, as the kernel maps it. Nothing in the clear is left by the search."""
    _require_kcore()
    fd = os.open("/proc/kcore", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return any(_in_segment(fd, needle, at, size, pieces) for at, size in _segments(fd))
    finally:
        os.close(fd)


def _segments(fd: int) -> Iterator[tuple[int, int]]:
    """The parts that are the kernel's view of physical memory: those with a physical address (elf(5))."""
    head = os.pread(fd, 64, 0)
    table, size, count = struct.unpack_from("<Q", head, 32)[0], *struct.unpack_from("<HH", head, 54)
    headers = os.pread(fd, size * count, table)
    for entry in range(0, size * count, size):
        kind, _, position, virtual, physical, length = struct.unpack_from("<IIQQQQ", headers, entry)
        if kind == 1 and physical != (1 << 64) - 1 and virtual < _KERNEL_TEXT:
            yield position, length


def _in_segment(fd: int, needle: Needle, position: int, size: int, pieces: bool) -> bool:
    """Block by block, each beginning with the end of the one before; pages that cannot be read are passed over."""
    at, end = position, position + size
    buffer, zeros = bytearray(_CHUNK + LENGTH), bytes(_CHUNK + LENGTH)
    while at < end:
        start = max(position, at - LENGTH)
        with memoryview(buffer)[: min(_CHUNK + at - start, end - start)] as wanted:
            try:
                got = os.preadv(fd, [wanted], start) - (at - start)
            except OSError:
                got = 0
        if got > 0:
            if buffer != zeros and needle.in_buffer(buffer, pieces=pieces):
                return True
            at += got
        else:
            at += libc.PAGE_SIZE
    return False


assert ctypes.sizeof(ctypes.c_void_p) == 8, "/proc/kcore is read as that of a machine of 64 bits"
