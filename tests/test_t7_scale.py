"""A mount with very many files: nothing is lost in a large directory, and each costs the daemon little memory."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import Mounted, have_secretmem, needs_root, proc_status

LIMIT = 1024
"""Bytes of ordinary memory that a file may take in the daemon, beside the memory that its name and its bytes lie in."""

how_many = pytest.mark.parametrize("files", [2_000, pytest.param(100_000, marks=pytest.mark.long)])

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(params=["kernel", "emulator"])
def mount(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mounted]:
    """A fresh mount on each backend that has served a few files already."""
    if request.param == "kernel" and not have_secretmem():
        pytest.skip("memfd_secret: the kernel has none here")
    with Mounted(tmp_path / "mnt", "--backend", request.param, "--size", "32M") as mounted:
        fill(mounted.path, 500, bytes(64))
        empty(mounted.path, 500)
        yield mounted


def fill(path: Path, files: int, data: bytes) -> None:
    """Make that many files with that content."""
    folder = os.open(path, os.O_PATH)
    for number in range(files):
        fd = os.open(f"file{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
        if data:
            os.write(fd, data)
        os.close(fd)
    os.close(folder)


def empty(path: Path, files: int) -> None:
    """Remove what `fill` has made."""
    folder = os.open(path, os.O_PATH)
    for number in range(files):
        os.unlink(f"file{number}", dir_fd=folder)
    os.close(folder)


def ordinary_memory(mount: Mounted) -> int:
    """Bytes of the daemon's memory that are not part of an area; the kernel's areas are not anonymous."""
    status = mount.status()
    locked = 0 if status["backend"] == "kernel" else int(status["locked_bytes"])
    return int(proc_status(mount.daemon)["RssAnon"].split()[0]) * 1024 - locked


@needs_root
@how_many
@pytest.mark.parametrize("size", [0, 64])
def test_memory_of_a_file(mount: Mounted, size: int, files: int) -> None:
    """A file takes less than a kibibyte of ordinary memory, and what was taken for files that are gone serves again."""
    before = ordinary_memory(mount)
    fill(mount.path, files, bytes(size))
    there = (ordinary_memory(mount) - before) / files
    assert mount.held() == (files, size * files)
    empty(mount.path, files)
    assert mount.held() == (0, 0)
    fill(mount.path, files, bytes(size))
    again = (ordinary_memory(mount) - before) / files
    print(f"{size} bytes: {there:.0f} bytes of memory, the second time {again:.0f}")
    assert there < LIMIT and again < LIMIT
    empty(mount.path, files)


@needs_root
@how_many
def test_large_directory(tmp_path: Path, files: int) -> None:
    """Of all files in a large directory each is found by name and listed once, while others come and go."""
    with Mounted(tmp_path / "mnt", "--size", "32M") as mount:
        folder = os.open(mount.path, os.O_RDONLY | os.O_DIRECTORY)
        names = [f"stays{number}" for number in range(files)]
        for name in names:
            os.mknod(name, dir_fd=folder)
        for name in random.Random(1).sample(names, 1000):
            assert os.stat(name, dir_fd=folder).st_size == 0
            assert not os.access(f"{name}.", os.F_OK, dir_fd=folder)
        listed = []
        with os.scandir(folder) as entries:
            for number, entry in enumerate(entries):
                listed.append(entry.name)
                if number % 100 == 0:
                    os.mknod(f"comes{number}", dir_fd=folder)
                if number % 500 == 400:
                    os.unlink(f"comes{number - 400}", dir_fd=folder)
        assert len(listed) == len(set(listed))
        assert set(listed) >= set(names)
        listing = subprocess.run(["ls", "-U", mount.path], capture_output=True, text=True, check=True).stdout
        assert len(set(listing.split()) & set(names)) == files
        subprocess.run(["find", mount.path, "-mindepth", "1", "-delete"], check=True)
        assert os.listdir(folder) == []
        os.close(folder)
        assert mount.held() == (0, 0)
