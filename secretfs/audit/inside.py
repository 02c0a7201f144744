"""Attacks from inside the owner: a bug of its own, or a system call that it is talked into. They run in the victim.

Each gets the holder and returns whether the needle came out. What comes out is compared masked and wiped at once, so
that the victim stays clean for the next attack.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable

from secretfs import libc
from secretfs.audit import calls
from secretfs.audit.holders import Holder
from secretfs.audit.model import NotTriedError
from secretfs.audit.needle import LENGTH
from secretfs.audit.uring import Ring

__all__ = [
    "by_exec",
    "by_fork",
    "freed_heap",
    "o_direct",
    "over_read",
    "plain_write",
    "registered_buffer",
    "stale_view",
    "under_read",
    "use_after_free",
    "vmsplice",
]

REACH = 4 * libc.PAGE_SIZE
"""Bytes that an over-read goes on."""
_MEMORY_FILE_SYSTEMS = (0x01021994, 0x858458F6)
"""tmpfs, ramfs (statfs(2))."""


def vmsplice(holder: Holder) -> bool:
    """Give the page to a pipe, where it can be read from."""
    return _through_pipe(holder, lambda writer: calls.vmsplice(writer, holder.address, LENGTH))


def plain_write(holder: Holder) -> bool:
    """write(2) from the address: the kernel copies on the owner's behalf."""
    return _through_pipe(holder, lambda writer: calls.write_address(writer, holder.address, LENGTH))


def registered_buffer(holder: Holder) -> bool:
    """Register the page with io_uring, and let the kernel write from it."""
    with Ring() as ring:
        ring.register(holder.address, LENGTH)
        return _through_pipe(holder, lambda writer: ring.write_registered(writer, holder.address, LENGTH))


def o_direct(holder: Holder) -> bool:
    """Write the page to a file past the page cache, as a disk's driver takes it."""
    page = holder.address // libc.PAGE_SIZE * libc.PAGE_SIZE
    with tempfile.NamedTemporaryFile(prefix="secretfs-audit-", dir=_on_disk()) as file:
        if libc.file_system_magic(file.fileno()) in _MEMORY_FILE_SYSTEMS:
            raise NotTriedError("there is no file on a disk here: a tmpfs copies, whatever it is asked for")
        try:
            fd = os.open(file.name, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            raise NotTriedError(f"no file here can be opened with O_DIRECT: {error.strerror}") from error
        try:
            calls.write_address(fd, page, libc.PAGE_SIZE)
            return holder.needle.in_file(file.fileno())
        finally:
            os.close(fd)
            os.pwrite(file.fileno(), bytes(libc.PAGE_SIZE), 0)
            os.fdatasync(file.fileno())


def over_read(holder: Holder) -> bool:
    """Read on past the end of an object that lies in front."""
    end, _ = holder.neighbours()
    return any(_reads(holder, address) for address in range(end, end + REACH, LENGTH))


def under_read(holder: Holder) -> bool:
    """Read back before the start of an object that lies behind."""
    _, start = holder.neighbours()
    nearest = start - 2 * LENGTH
    return any(_reads(holder, address) for address in range(nearest, nearest - REACH, -LENGTH))


def _reads(holder: Holder, address: int) -> bool:
    """Whether the needle begins there, or soon after; EFAULT where nothing can be read, and a bug would end."""
    return _through_pipe(holder, lambda writer: calls.write_address(writer, address, 2 * LENGTH))


def use_after_free(holder: Holder) -> bool:
    """Read the address after the memory was given back."""
    holder.release()
    return plain_write(holder)


def stale_view(holder: Holder) -> bool:
    """Read a view that was kept after the memory was given back."""
    view = holder.view()
    holder.release()
    try:
        copy = bytearray(view)
    except ValueError:
        return False  # it knows that its memory is gone
    return holder.needle.in_buffer(copy)


def freed_heap(holder: Holder) -> bool:
    """Search all memory of the owner after it was given back."""
    from secretfs.audit.spaces import holds

    holder.release()
    memory = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return holds(os.getpid(), holder.needle, memory, pieces=True)
    finally:
        os.close(memory)


def by_fork(holder: Holder) -> bool:
    """Read it in a child that was forked."""

    def read_in_child(writer: int) -> int:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                calls.write_address(writer, holder.address, LENGTH)
                code = 0
            except OSError as error:
                code = error.errno or 1
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code > 0:
            raise OSError(code, os.strerror(code))
        return LENGTH if code == 0 else 0

    return _through_pipe(holder, read_in_child)


_INHERITED = """
import mmap, os, sys
for fd in map(int, os.listdir("/proc/self/fd")):
    try:
        os.write(1, mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ)[:4096])
    except (OSError, ValueError):
        pass
"""


def by_exec(holder: Holder) -> bool:
    """Map every descriptor that a program has after exec(2)."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    words = [sys.executable, "-I", "-S", "-c", _INHERITED]
    pid = os.posix_spawn(sys.executable, words, {}, file_actions=[(os.POSIX_SPAWN_DUP2, writer, 1)])
    os.close(writer)
    try:
        return holder.needle.in_file(reader)
    finally:
        os.close(reader)
        os.waitpid(pid, 0)


def _through_pipe(holder: Holder, fill: Callable[[int], int]) -> bool:
    """Let something write to a pipe, and look whether the needle is in it."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    before = signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        got = fill(writer)
        return got > 0 and holder.needle.in_file(reader, limit=got)
    finally:
        signal.signal(signal.SIGPIPE, before)
        os.close(reader)
        os.close(writer)


def _on_disk() -> str:
    """A folder that is more probably on a disk than /tmp is."""
    return "/var/tmp" if os.access("/var/tmp", os.W_OK) else tempfile.gettempdir()  # noqa: S108
