"""Listing directories of a real mount while they change: getdents64(2) itself, and readdir(3) and its kin."""

from __future__ import annotations

import ctypes
import os
import random
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import Mounted
from sharedmount import mount

_libc = ctypes.CDLL(None, use_errno=True)
_HEAD = struct.Struct("QqHB")  # of struct linux_dirent64: inode, position of the next entry, length, type
_NAME = 19
_GETDENTS64 = {"x86_64": 217}.get(os.uname().machine, 61)
DOTS = [".", ".."]


@pytest.fixture
def here(mount: Mounted) -> Iterator[Path]:
    """An empty directory in the mount, after which no file may be left."""
    before = mount.held()
    folder = mount.path / "here"
    folder.mkdir()
    yield folder
    subprocess.run(["rm", "-rf", folder], check=True)
    assert mount.held() == before


def getdents(fd: int, size: int) -> list[tuple[str, int]]:
    """What one getdents64(2) with a buffer of `size` bytes returns: names, each with the position behind it."""
    buffer = ctypes.create_string_buffer(size)
    length = _libc.syscall(_GETDENTS64, fd, buffer, size)
    if length < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    found, at = [], 0
    while at < length:
        _, position, taken, _ = _HEAD.unpack_from(buffer, at)
        found.append((buffer.raw[at + _NAME : at + taken].split(b"\0")[0].decode(), position))
        at += taken
    return found


def rest(fd: int, size: int = 1000) -> list[str]:
    """All names from the position of `fd` on."""
    names = []
    while found := getdents(fd, size):
        names += [name for name, _ in found]
    return names


@pytest.fixture
def listed(here: Path) -> Iterator[int]:
    """A directory of 500 files, open."""
    for number in range(500):
        os.mknod(here / f"stays{number}")
    fd = os.open(here, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


STAYING = sorted(f"stays{number}" for number in range(500))


@pytest.mark.parametrize("size", [60, 300, 4000, 1 << 20])
def test_nothing_skipped_and_nothing_twice(here: Path, listed: int, size: int) -> None:
    """Whatever the buffer's size, all that stays is listed once, though around it files come, go and change names."""
    choice, names = random.Random(size), []
    goes = [f"goes{number}" for number in range(200)]
    for name in goes:
        os.mknod(here / name)
    for number in range(1000):
        if number % 3 == 0 and goes:
            (here / goes.pop(choice.randrange(len(goes)))).unlink()
        if number % 5 == 0 and goes:
            os.rename(here / goes[0], here / f"new name{number}")
            goes[0] = f"new name{number}"
        if number % 4 == 0:
            os.mknod(here / f"comes{number}")
        found = getdents(listed, size)
        if not found:
            break
        names += [name for name, _ in found]
    names += rest(listed, size)
    assert sorted(name for name in names if name.startswith("stays")) == STAYING
    assert len(names) == len(set(names))
    os.lseek(listed, 0, os.SEEK_SET)
    assert sorted(rest(listed)) == sorted([*DOTS, *os.listdir(here)])


def test_buffer_too_small(listed: int) -> None:
    """A buffer that holds no entry is EINVAL, and the listing goes on with a larger one."""
    with pytest.raises(OSError, match="Invalid argument"):
        getdents(listed, 10)
    assert sorted(rest(listed)) == [*DOTS, *STAYING]


def test_removing_while_listing(here: Path, listed: int) -> None:
    """Who removes each file that is listed, as rm does, meets every one of them."""
    removed = 0
    while found := getdents(listed, 500):
        for name, _ in found:
            if name not in DOTS:
                (here / name).unlink()
                removed += 1
    assert removed == 500
    assert os.listdir(here) == []


def test_any_position_can_be_returned_to(here: Path, listed: int) -> None:
    """From every position that was told the same names follow, but for those that are gone, in any order of asking."""
    names, positions = [], [0]
    while found := getdents(listed, 200):
        names += [name for name, _ in found]
        positions += [position for _, position in found]
    gone = set(names[2:100:3])
    for name in gone:
        (here / name).unlink()
        os.mknod(here / f"another {name}")
    for index in random.Random(1).sample(range(1, len(positions)), 60):
        os.lseek(listed, positions[index], os.SEEK_SET)
        assert rest(listed) == [name for name in names[index:] if name not in gone]
    os.lseek(listed, positions[-1] + 10, os.SEEK_SET)
    assert rest(listed) == []


def test_position_of_another_handle(here: Path, listed: int) -> None:
    """A position that one handle was told leads another, fresh one, to the same entry while nothing changes."""
    first = getdents(listed, 300)
    fresh = os.open(here, os.O_RDONLY | os.O_DIRECTORY)
    os.lseek(fresh, first[-1][1], os.SEEK_SET)
    assert rest(fresh) == rest(listed)
    os.close(fresh)


def test_two_listings_at_once(here: Path, listed: int) -> None:
    """Two handles of one directory go their own ways; a descriptor that was duplicated goes on where the first was."""
    other, same = os.open(here, os.O_RDONLY | os.O_DIRECTORY), os.dup(listed)
    first = [name for name, _ in getdents(listed, 300)]
    assert sorted(rest(other)) == [*DOTS, *STAYING]
    assert sorted([*first, *rest(same)]) == [*DOTS, *STAYING]
    assert rest(listed) == []
    os.close(other)
    os.close(same)


class _Entry(ctypes.Structure):
    _fields_ = (
        ("ino", ctypes.c_uint64), ("off", ctypes.c_int64), ("length", ctypes.c_ushort), ("kind", ctypes.c_ubyte),
        ("name", ctypes.c_char * 256),
    )  # fmt: skip


def test_readdir_telldir_seekdir_rewinddir(here: Path, listed: int) -> None:
    """The C library's functions: seekdir returns to what telldir told, rewinddir to the start, where news is seen."""
    _libc.fdopendir.restype = ctypes.c_void_p
    _libc.readdir.restype = ctypes.POINTER(_Entry)
    _libc.telldir.restype = ctypes.c_long
    stream = ctypes.c_void_p(_libc.fdopendir(os.dup(listed)))

    def read() -> str | None:
        entry = _libc.readdir(stream)
        return entry.contents.name.decode() if entry else None

    names, told = [], []
    while (name := read()) is not None:
        names.append(name)
        told.append(_libc.telldir(stream))
    assert sorted(names) == [*DOTS, *STAYING]
    for index in (400, 3, 250, 0, 499):
        _libc.seekdir(stream, ctypes.c_long(told[index]))
        assert read() == names[index + 1]
    os.mknod(here / "news")
    _libc.rewinddir(stream)
    assert sorted(iter(read, None)) == [*DOTS, "news", *STAYING]
    _libc.closedir(stream)


def test_directory_removed_while_it_is_listed(here: Path, listed: int) -> None:
    """Listing through the handle of a directory that is gone is ENOENT, which readdir(3) calls the end."""
    (here / "d").mkdir()
    (here / "d" / "f").touch()
    fd = os.open(here / "d", os.O_RDONLY | os.O_DIRECTORY)
    assert len(getdents(fd, 30)) == 1
    (here / "d" / "f").unlink()
    (here / "d").rmdir()
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            getdents(fd, 1000)
        assert os.listdir(fd) == []  # from the start
    os.close(fd)
