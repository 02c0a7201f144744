"""Reading and writing on a real mount in all the ways there are: direct, synchronous, vectored, large, many at once."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import random
import resource
import socket
from pathlib import Path

import pytest
from mounts import Mounted, needs_root
from sharedmount import here, mount, noise
from workers import Peer, working

MIB = 1 << 20


# Flags of an open file


def test_append_can_be_turned_on_and_off(here: Path) -> None:
    """fcntl(F_SETFL) with and without O_APPEND decides where the next write goes, whatever the file was opened with."""
    (here / "open").touch()
    for name, flags in (("open", 0), ("open", os.O_APPEND), ("create", os.O_APPEND)):
        fd = os.open(here / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC | flags)
        os.write(fd, b"0123456789")
        fcntl.fcntl(fd, fcntl.F_SETFL, 0)
        assert os.pwrite(fd, b"AB", 2) == 2
        assert os.pread(fd, 20, 0) == b"01AB456789"
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
        os.lseek(fd, 0, os.SEEK_SET)
        assert os.write(fd, b"CD") == 2
        assert os.pread(fd, 20, 0) == b"01AB456789CD"
        os.close(fd)


@pytest.mark.parametrize("flag", ["O_DIRECT", "O_SYNC", "O_DSYNC", "O_NOATIME", "O_NONBLOCK"])
def test_flags_change_no_bytes(here: Path, flag: str) -> None:
    """O_DIRECT (at any alignment, as on a tmpfs), O_SYNC and others: what is written is read, by others as well."""
    fd = os.open(here / "f", os.O_RDWR | os.O_CREAT | getattr(os, flag))
    data = noise(20_000)
    for start, length in ((0, 4096), (4096, 1), (4097, 4095), (8192, 11_808)):
        assert os.pwrite(fd, data[start : start + length], start) == length
    assert (here / "f").read_bytes() == data
    (here / "f").write_bytes(data[::-1])
    assert os.pread(fd, 30_000, 0) == data[::-1]
    assert os.pread(fd, 3, 19_999) == data[:1]
    os.close(fd)


@pytest.mark.parametrize("flag", ["RWF_HIPRI", "RWF_DSYNC", "RWF_SYNC", "RWF_APPEND"])
def test_flags_of_one_write(here: Path, flag: str) -> None:
    """pwritev2 takes the flags that it takes on a tmpfs; RWF_APPEND appends whatever the offset."""
    number = getattr(os, flag, 0x10)  # RWF_APPEND: Python 3.10
    with open(here / "f", "w+b", buffering=0) as file:
        file.write(b"0123456789")
        assert os.pwritev(file.fileno(), [b"A", b"B"], 3, number) == 2
    expected = b"0123456789AB" if flag == "RWF_APPEND" else b"012AB56789"
    assert (here / "f").read_bytes() == expected


# Vectored and very large


def test_a_thousand_pieces(here: Path) -> None:
    """writev and readv of as many pieces as there may be, of odd sizes, keep their order; one more is EINVAL."""
    most = os.sysconf("SC_IOV_MAX")
    data = noise(most * 700)
    cuts = sorted(random.Random(1).sample(range(len(data)), most - 1))
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    with open(here / "f", "w+b", buffering=0) as file:
        assert os.writev(file.fileno(), pieces) == len(data)
        assert os.pread(file.fileno(), len(data) + 1, 0) == data
        buffers = [bytearray(len(piece)) for piece in reversed(pieces)]
        assert os.preadv(file.fileno(), buffers, 0) == len(data)
        assert b"".join(buffers) == data
        with pytest.raises(OSError, match="Invalid argument"):
            os.writev(file.fileno(), [b"x"] * (most + 1))
        assert os.fstat(file.fileno()).st_size == len(data)


@pytest.mark.parametrize("offset", [0, 1, 4095])
def test_three_mebibytes_in_one_call(here: Path, offset: int) -> None:
    """One call of 3 MiB, which the kernel splits, is whole, at any alignment, and ends at the end of the file."""
    data = noise(3 * MIB)
    with open(here / "f", "w+b", buffering=0) as file:
        fd = file.fileno()
        assert os.pwritev(fd, [data[:1], data[1 : MIB + 7], b"", data[MIB + 7 :]], offset) == len(data)
        assert os.fstat(fd).st_size == offset + len(data)
        buffers = [bytearray(MIB - 3), bytearray(2 * MIB), bytearray(MIB)]
        assert os.preadv(fd, buffers, offset) == len(data)
        assert b"".join(buffers)[: len(data)] == data
        assert os.pread(fd, 4 * MIB, offset + 100) == data[100:]


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize("size", [16, pytest.param(64, marks=pytest.mark.long)])
def test_many_mebibytes_in_one_call(tmp_path: Path, size: int) -> None:
    """One write of 16 MiB and more, and one read of it; where the size ends the write is short by the rest."""
    with Mounted(tmp_path / "mnt", "--size", f"{size + 1}M") as mounted:
        data = mmap.mmap(-1, size * MIB)
        for start in range(0, size * MIB, MIB):
            data[start : start + MIB] = noise(MIB - 1) + bytes([start // MIB])
        with open(mounted.path / "f", "w+b", buffering=0) as file:
            assert os.pwrite(file.fileno(), data, 0) == size * MIB
            back = mmap.mmap(-1, (size + 1) * MIB)
            assert os.preadv(file.fileno(), [back], 0) == size * MIB
            assert hashlib.sha256(memoryview(back)[: size * MIB]).digest() == hashlib.sha256(data).digest()
            assert os.pwrite(file.fileno(), data, size * MIB) == MIB
            assert os.fstat(file.fileno()).st_size == (size + 1) * MIB
            with pytest.raises(OSError, match="No space left"):
                os.pwrite(file.fileno(), b"x", (size + 1) * MIB)
            assert os.pread(file.fileno(), 2 * MIB, size * MIB) == data[:MIB]


def test_between_files_and_sockets(here: Path) -> None:
    """sendfile, splice and copy_file_range hand a file's bytes on, within the mount and out of it, also newer ones."""
    data = noise(300_000)
    (here / "f").write_bytes(data)
    with open(here / "f", "r+b", buffering=0) as source, open(here / "g", "w+b", buffering=0) as target:
        for newer in (False, True):
            if newer:
                data = data[:5000] + b"newer" + data[5005:]
                os.pwrite(source.fileno(), b"newer", 5000)
            assert os.sendfile(target.fileno(), source.fileno(), 0, len(data)) == len(data)
            assert os.pread(target.fileno(), MIB, 0) == data
            os.lseek(target.fileno(), 0, os.SEEK_SET)
        assert os.copy_file_range(source.fileno(), target.fileno(), 1000, 4500, 0) == 1000
        assert os.pread(target.fileno(), 1000, 0) == data[4500:5500]
        reader, writer = os.pipe()
        assert os.splice(source.fileno(), writer, 3000, offset_src=4000) == 3000
        assert os.splice(reader, target.fileno(), 3000, offset_dst=7) == 3000
        assert os.pread(target.fileno(), 3000, 7) == data[4000:7000]
        ours, theirs = socket.socketpair()
        with ours, theirs:
            assert os.sendfile(ours.fileno(), source.fileno(), 4000, 2000) == 2000
            assert theirs.recv(3000) == data[4000:6000]
        os.close(reader)
        os.close(writer)


# Many


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, pytest.param(10, marks=pytest.mark.long)])
def test_thousands_of_handles(here: Path, workers: int) -> None:
    """Open handles of a thousand files, up to ten thousand in all, read what they should, names or none."""
    files = 1000
    for number in range(files):
        (here / f"f{number}").write_bytes(b"%d" % number * 40)

    def holder(peer: Peer) -> None:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, files + 100), most))
        fds = [os.open(here / f"f{number}", os.O_RDWR) for number in range(files)]
        peer.say("open")
        peer.hear()
        for number, fd in enumerate(fds):
            assert os.pread(fd, 500, 0) == b"%d" % number * 40
        peer.say("read")
        peer.hear()
        for fd in fds[::2]:
            os.close(fd)

    with working(*[holder] * workers) as holders:
        for word in ("open", "read"):
            for worker in holders:
                worker.hear(word)
            if word == "open":
                for number in range(files):
                    (here / f"f{number}").unlink()
            for worker in holders:
                worker.say()
        for worker in holders:
            assert worker.end() == 0


def test_deep_paths(here: Path) -> None:
    """A thousand directories within each other: each reached by openat and by "..", the lowest holds a file."""
    levels, name = 1000, "d" * 20
    fds = [os.open(here, os.O_RDONLY | os.O_DIRECTORY)]
    for _ in range(levels):
        os.mkdir(name, dir_fd=fds[-1])
        fds.append(os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fds[-1]))
        os.close(fds.pop(0))
    with open(os.open("f", os.O_RDWR | os.O_CREAT, dir_fd=fds[0]), "r+b", buffering=0) as file:
        file.write(b"deep")
        file.seek(0)
        assert file.read() == b"deep"
    with pytest.raises(OSError, match="Invalid argument"):
        os.rename(here / name, name, dst_dir_fd=fds[0])
    for _ in range(levels):
        fds.append(os.open("..", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fds[-1]))
        os.close(fds.pop(0))
    assert os.path.samestat(os.fstat(fds[0]), os.stat(here))
    os.close(fds[0])


def test_longest_path(here: Path) -> None:
    """A path of 4095 bytes leads to a file; one byte more is ENAMETOOLONG."""
    os.chdir(here)
    try:
        step = "d" * 99
        path = "/".join([step] * 40)
        os.makedirs(path)
        longest = f"{path}/{'f' * (4095 - len(path) - 1)}"
        Path(longest).write_bytes(b"far")
        assert Path(longest).read_bytes() == b"far"
        assert Path("./" + longest[:-2]).exists() is False
        with pytest.raises(OSError, match="too long") as refusal:
            os.stat(longest + "f")
        assert refusal.value.errno == errno.ENAMETOOLONG
    finally:
        os.chdir("/")
