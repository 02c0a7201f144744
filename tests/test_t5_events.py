"""Waiting on a real mount: poll, select and epoll, FIFOs, sockets, and inotify."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
from pathlib import Path

import pytest
from sharedmount import here, mount
from workers import Peer, working

_libc = ctypes.CDLL(None, use_errno=True)


def test_poll(here: Path) -> None:
    """poll, select and epoll find a regular file ready at once for reading and writing, and a directory too."""
    with open(here / "f", "w+b", buffering=0) as file:
        assert select.select([file], [file], [], 0) == ([file], [file], [])
        poll = select.poll()
        poll.register(file, select.POLLIN | select.POLLOUT | select.POLLPRI)
        assert poll.poll(0) == [(file.fileno(), select.POLLIN | select.POLLOUT)]


def test_fifo(here: Path) -> None:
    """A FIFO wakes whoever waits for it with poll, select or edge-triggered epoll, and tells of the writer's end."""
    os.mkfifo(here / "fifo")
    with pytest.raises(OSError, match="No such device or address"):
        os.open(here / "fifo", os.O_WRONLY | os.O_NONBLOCK)

    def writer(peer: Peer) -> None:
        fd = os.open(here / "fifo", os.O_WRONLY)  # waits for the reader
        for word in ("one", "two"):
            peer.hear(word)
            os.write(fd, word.encode())
        peer.hear("end")

    with working(writer) as (worker,):
        fd = os.open(here / "fifo", os.O_RDONLY)
        os.set_blocking(fd, False)
        with pytest.raises(BlockingIOError):
            os.read(fd, 10)
        edge, poll = select.epoll(), select.poll()
        edge.register(fd, select.EPOLLIN | select.EPOLLET)
        poll.register(fd, select.POLLIN)
        assert poll.poll(0) == [] and select.select([fd], [], [], 0) == ([], [], [])
        worker.say("one")
        assert edge.poll(20) == [(fd, select.EPOLLIN)] and edge.poll(0) == []
        assert poll.poll(0) == [(fd, select.POLLIN)]
        worker.say("two")
        assert edge.poll(20) == [(fd, select.EPOLLIN)]
        assert select.select([fd], [], [], 20)[0] == [fd]
        assert os.read(fd, 10) == b"onetwo"
        worker.say("end")
        assert edge.poll(20) == [(fd, select.EPOLLHUP)]
        assert os.read(fd, 10) == b""
        os.close(fd)
        edge.close()


def test_sockets(here: Path) -> None:
    """A socket's name is connected to across processes; without a listener it refuses, and a copy by link works."""

    def server(peer: Peer) -> None:
        with socket.socket(socket.AF_UNIX) as listening:
            os.chdir(here)
            listening.bind("socket")
            listening.listen()
            peer.say()
            connection, _ = listening.accept()
            with connection:
                connection.sendall(connection.recv(100)[::-1])

    with working(server) as (worker,):
        worker.hear()
        os.link(here / "socket", here / "other name")
        folder = os.open(here, os.O_PATH)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"/proc/self/fd/{folder}/other name")  # the whole path may be too long for an address
            client.sendall(b"through")
            assert client.recv(100) == b"hguorht"
        assert worker.end() == 0
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
        client.connect(f"/proc/self/fd/{folder}/socket")
    os.close(folder)


# inotify

_EVENT = struct.Struct("iIII")
_NAMES = {
    0x2: "modify", 0x4: "attrib", 0x8: "close_write", 0x10: "close_nowrite", 0x20: "open", 0x40: "moved_from",
    0x80: "moved_to", 0x100: "create", 0x200: "delete", 0x400: "delete_self", 0x800: "move_self", 0x1: "access",
    0x8000: "ignored",
}  # fmt: skip


class Watch:
    """inotify(7) on one path."""

    def __init__(self, path: Path) -> None:
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self._fd >= 0
        assert _libc.inotify_add_watch(self._fd, os.fsencode(path), 0xFFF) >= 0, os.strerror(ctypes.get_errno())

    def events(self) -> list[str]:
        """What has happened since they were asked for last, in order: words like "create d"."""
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return []
        found = []
        while data:
            _, mask, _, length = _EVENT.unpack_from(data)
            name = data[_EVENT.size : _EVENT.size + length].rstrip(b"\0").decode()
            found.append(f"{_NAMES[mask & 0xFFFF]} {name}".strip())
            data = data[_EVENT.size + length :]
        return found

    def close(self) -> None:
        """End it."""
        os.close(self._fd)


def test_inotify_on_a_directory(here: Path) -> None:
    """Whoever watches a directory hears of all that another process does in it, in order."""
    watch = Watch(here)

    def busy(_: Peer) -> None:
        with open(here / "f", "wb", buffering=0) as file:
            file.write(b"data")
        os.truncate(here / "f", 2)
        (here / "f").read_bytes()
        os.chmod(here / "f", 0o600)
        os.rename(here / "f", here / "g")
        os.setxattr(here / "g", "user.x", b"1")
        os.link(here / "g", here / "h")
        os.symlink("g", here / "l")
        os.mkdir(here / "d")
        os.rmdir(here / "d")
        os.unlink(here / "g")

    with working(busy) as (worker,):
        assert worker.end() == 0
    assert watch.events() == [
        "create f", "open f", "modify f", "close_write f", "modify f", "open f", "access f",
        "close_nowrite f", "attrib f", "moved_from f", "moved_to g", "attrib g", "create h", "create l", "create d",
        "delete d", "delete g",
    ]  # fmt: skip
    watch.close()


def test_inotify_on_a_file(here: Path) -> None:
    """Whoever watches a file hears of its writes, its moves, and its end when the last user is gone."""
    (here / "f").touch()
    watch = Watch(here / "f")
    os.rename(here / "f", here / "g")
    with open(here / "g", "ab", buffering=0) as file:
        file.write(b"x")
        (here / "g").unlink()
        assert watch.events() == ["move_self", "open", "modify", "attrib"]
    assert watch.events() == ["close_write", "delete_self", "ignored"]
    watch.close()
