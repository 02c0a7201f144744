"""Attacks by descriptors: reopening what a process has open or mapped, and taking it with pidfd_getfd(2)."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import stat
import struct
import time
from collections.abc import Iterator

from secretfs import libc
from secretfs.audit import calls
from secretfs.audit.model import NotTriedError
from secretfs.audit.needle import LENGTH
from secretfs.audit.spaces import mappings
from secretfs.audit.subjects import Target

__all__ = ["fuse_descriptor", "map_files", "pidfd_getfd", "pidfd_race", "proc_fd"]

_RACE = 0.5
"""Seconds that a race is tried for."""
_WRITE_OPCODE = 16


def proc_fd(target: Target) -> bool:
    """Open every descriptor again through /proc/PID/fd, and read."""
    return _any_opened(target, f"/proc/{target.pid}/fd", os.listdir(f"/proc/{target.pid}/fd"))


def map_files(target: Target) -> bool:
    """Open what is mapped where the needle is through /proc/PID/map_files."""
    places = target.places()
    wanted = [
        f"{one.start:x}-{one.end:x}"
        for one in mappings(target.pid)
        if any(one.start <= place.start < one.end for place in places)
    ]
    return _any_opened(target, f"/proc/{target.pid}/map_files", wanted)


def pidfd_getfd(target: Target) -> bool:
    """Take every descriptor, map it and read."""
    with calls.pidfd(target.pid) as pidfd:
        for name in os.listdir(f"/proc/{target.pid}/fd"):
            with _taken(pidfd, int(name)) as fd:
                if _readable(target, fd):
                    return True
    return False


def pidfd_race(target: Target) -> bool:
    """Take descriptors while the memory is being made, before its owner has closed them."""
    with calls.pidfd(target.pid) as pidfd:
        end = time.monotonic() + _RACE
        while time.monotonic() < end:
            caught = _catch(target, pidfd)
            try:
                if any(_readable(target, fd) for fd in caught):
                    return True
            finally:
                for fd in caught:
                    os.close(fd)
    return False


def fuse_descriptor(target: Target) -> bool:
    """Stop the daemon, take its /dev/fuse, and read what a client writes in the meantime."""
    if target.subject == "ordinary":
        return _take_pipe(target)
    with calls.pidfd(target.pid) as pidfd:
        for name in os.listdir(f"/proc/{target.pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{target.pid}/fd/{name}") == "/dev/fuse":
                    with _taken(pidfd, int(name)) as fd:
                        return _read_request(target, fd)
    raise NotTriedError("the daemon's /dev/fuse was not found")


def _any_opened(target: Target, folder: str, names: list[str]) -> bool:
    refused: OSError | None = None
    for name in names:
        try:
            if not stat.S_ISREG(os.stat(f"{folder}/{name}").st_mode):
                continue
            fd = os.open(f"{folder}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            refused = error
            continue
        try:
            if _readable(target, fd):
                return True
        finally:
            os.close(fd)
    if refused is not None:
        raise refused
    return False


@contextlib.contextmanager
def _taken(pidfd: int, number: int) -> Iterator[int]:
    fd = calls.pidfd_getfd(pidfd, number)
    try:
        yield fd
    finally:
        os.close(fd)


def _readable(target: Target, fd: int) -> bool:
    """Whether the needle is in the file behind a descriptor, mapped: secret memory cannot be read in another way."""
    kind = os.fstat(fd)
    if not stat.S_ISREG(kind.st_mode) or not kind.st_size:
        return False
    try:
        address = calls.map_descriptor(fd, libc.PAGE_SIZE)
    except OSError:
        return False
    reader, writer = os.pipe()
    try:
        calls.write_address(writer, address, libc.PAGE_SIZE // 2)
        return target.needle.in_file(reader, limit=libc.PAGE_SIZE // 2)
    finally:
        os.close(reader)
        os.close(writer)
        calls.munmap(address, libc.PAGE_SIZE)


def _catch(target: Target, pidfd: int) -> list[int]:
    """What could be taken while it planted once."""
    known = {int(name) for name in os.listdir(f"/proc/{target.pid}/fd")}
    candidates = sorted(set(range(max(known) + 3)) - known)[:3] or [max(known) + 1]
    caught: list[int] = []
    if target.subject == "ordinary":
        candidates += sorted(known)
    target.begin_to_plant()
    while not select.select([target.channel], [], [], 0)[0]:
        for number in candidates:
            with contextlib.suppress(OSError):
                fd = calls.pidfd_getfd(pidfd, number)
                if len(caught) < 16 and stat.S_ISREG(os.fstat(fd).st_mode):
                    caught.append(fd)
                else:
                    os.close(fd)
    target.planted(target.receive())
    return caught


def _take_pipe(target: Target) -> bool:
    """The control: a pipe in which the secret waits for its reader."""
    with calls.pidfd(target.pid) as pidfd:
        for name in os.listdir(f"/proc/{target.pid}/fd"):
            with _taken(pidfd, int(name)) as fd:
                if stat.S_ISFIFO(os.fstat(fd).st_mode) and _reads_pipe(target, fd):
                    return True
    return False


def _reads_pipe(target: Target, fd: int) -> bool:
    if not os.get_blocking(fd) or not select.select([fd], [], [], 0)[0]:
        return False
    buffer = bytearray(LENGTH)
    try:
        os.readv(fd, [buffer])
    except OSError:
        return False  # its writing end
    return target.needle.in_buffer(buffer)


def _read_request(target: Target, fuse: int) -> bool:
    """With the daemon stopped, let the client write its file again; answer in the daemon's place."""
    os.kill(target.pid, signal.SIGSTOP)
    try:
        _wait_until_stopped(target.pid)
        target.send({"use": 1})
        found, end = False, time.monotonic() + 5
        while not found and time.monotonic() < end and select.select([fuse], [], [], 1)[0]:
            request = bytearray((1 << 20) + 4096)
            os.readv(fuse, [request])
            _, opcode, unique = struct.unpack_from("<IIQ", request)
            found = target.needle.in_buffer(request) and opcode == _WRITE_OPCODE
            os.write(fuse, struct.pack("<IiQ", 16, -errno.EIO if opcode == _WRITE_OPCODE else -errno.ENOSYS, unique))
        return found
    finally:
        os.kill(target.pid, signal.SIGCONT)
        with contextlib.suppress(OSError, NotTriedError):
            target.receive()


def _wait_until_stopped(pid: int) -> None:
    """SIGSTOP takes a moment, in which it could still take the request."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        if libc.proc_status("State", pid).startswith("T"):
            return
        os.sched_yield()
    raise NotTriedError("the daemon does not stop")
