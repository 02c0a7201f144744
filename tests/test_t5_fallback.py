"""A mount without the shim: Python does its work, and where that cannot be had either, the mount says what is gone.

A copy of the package is played that was installed without a compiler, or beside versions that it was not tried with.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
import residue
from mounts import PATIENCE, Mounted, have_secretmem, is_mounted, needs_root, needs_secretmem, secretfs
from shims import package_with

from secretfs import native

NOT_BUILT = "not built: apt-get install gcc libc6-dev pkg-config libfuse3-dev"
UNTRIED = {
    "pyfuse3": ({"native": ('PYFUSE3 = ("3.4.", "3.5.")', 'PYFUSE3 = ("3.4.9.",)')}, "not tried with pyfuse3 3."),
    "libfuse": ({"native": ("LIBFUSE = range(314, 319)", "LIBFUSE = range(1)")}, "not tried with libfuse 3."),
}
STATIC = {"native__got": ('RELOCATIONS = {"x86_64": (6, 7), "aarch64": (1025, 1026)}', "RELOCATIONS = {}")}
SIZES = (16, 64, 100, 4096, 5000, 131072, 1 << 20, 3 << 20)

_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module")
def without_shim(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a secretfs that was installed without a compiler."""
    return package_with(tmp_path_factory.mktemp("without"))


@pytest.fixture(scope="module")
def mount(without_shim: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """A mount of it."""
    with Mounted(tmp_path_factory.mktemp("fallback") / "mnt", env=without_shim) as mounted:
        yield mounted


# What it says


def test_python_stands_in(mount: Mounted) -> None:
    """One warning says that the shim was not built and how to get it; no guarantee is gone."""
    (warning,) = [line for line in mount.said.stderr.splitlines() if "native shim" in line]
    assert warning.startswith(f"secretfs: warning: the native shim is {NOT_BUILT}")
    assert warning.endswith("; Python does its work, which takes longer")
    status = mount.status()
    assert warning.endswith(status["native"]["shim"])
    assert (status["guarantees"]["no_residue"], "no_residue" in status["lost"]) == (True, False)
    assert "no_residue" not in mount.said.stderr


@needs_secretmem
def test_it_will_do_under_require(without_shim: dict[str, str], tmp_path: Path) -> None:
    """--backend kernel is content with it."""
    with Mounted(tmp_path / "mnt", "--backend", "kernel", env=without_shim) as mounted:
        assert mounted.status()["policy"] == "require"


@pytest.mark.parametrize("shim", [native.SHIM, None], ids=["built", "not built"])
@pytest.mark.parametrize("part", UNTRIED)
def test_untried_versions(tmp_path: Path, part: str, shim: str | None) -> None:
    """With a version that was not tried neither the shim nor Python in its place is used: a guarantee is gone, and the
    mount says so and why; files work.
    """
    changes, reason = UNTRIED[part]
    environment = package_with(tmp_path / "package", shim and Path(shim), **changes)
    with Mounted(tmp_path / "mnt", env=environment) as mounted:
        assert "secretfs: warning: not guaranteed: no_residue, because the native shim is " in mounted.said.stderr
        assert reason in mounted.said.stderr
        status = mounted.status()
        assert reason in status["native"]["shim"]
        assert (status["guarantees"]["no_residue"], "no_residue" in status["lost"]) == (False, True)
        rewritten(mounted.path / "f", os.urandom(100_000))


def test_no_way_at_all(tmp_path: Path) -> None:
    """Without the shim, and where the calls of pyfuse3 cannot be redirected, both reasons are told."""
    with Mounted(tmp_path / "mnt", env=package_with(tmp_path / "package", **STATIC)) as mounted:
        status = mounted.status()
        assert status["native"]["shim"].startswith(f"{NOT_BUILT}")
        assert "; nor can Python do its work: the call table of a library is not known on" in status["native"]["shim"]
        assert "no_residue" in status["lost"]
        rewritten(mounted.path / "f", os.urandom(100_000))


@needs_secretmem
@pytest.mark.parametrize("changes", [*(changes for changes, _ in UNTRIED.values()), STATIC])
def test_refused_under_require(tmp_path: Path, changes: dict[str, tuple[str, str]]) -> None:
    """--backend kernel refuses to mount where the guarantee is gone, with exit code 3, and leaves nothing mounted."""
    (tmp_path / "mnt").mkdir()
    environment = package_with(tmp_path / "package", **changes)
    done = secretfs("mount", "--backend", "kernel", tmp_path / "mnt", env=environment)
    assert done.returncode == 3
    assert "error: the daemon would keep copies of what passes through it: the native shim is " in done.stderr
    assert not is_mounted(tmp_path / "mnt")


def test_pyfuse3_waits_in_its_own_way(tmp_path: Path) -> None:
    """Where pyfuse3 lacks the function that waits, its own wait serves the mount."""
    changes = {"loop": ('_WAIT = "_wait_fuse_readable"', '_WAIT = "_no_such_function"')}
    for shim in (Path(native.SHIM), None):
        environment = package_with(tmp_path / f"package-{bool(shim)}", shim, **changes)
        with Mounted(tmp_path / "mnt", env=environment) as mounted:
            assert mounted.status()["guarantees"]["no_residue"]
            rewritten(mounted.path / "f", os.urandom(3 << 20))
            opened_and_unlinked(mounted.path)


# What it does


def rewritten(path: Path, data: bytes) -> None:
    """Write a file, in one piece and then in small ones, and read it back in both ways."""
    with open(path, "w+b", buffering=0) as file:
        assert file.write(data) == len(data)
        for at in range(0, min(len(data), 5000), 500):
            os.pwrite(file.fileno(), data[at : at + 500], at)
        assert os.pread(file.fileno(), len(data) + 1, 0) == data
        assert b"".join(os.pread(file.fileno(), 500, at) for at in range(0, 5000, 500)) == data[:5000]


def opened_and_unlinked(folder: Path) -> None:
    """What the shim would answer, with requests between that it never does (statvfs)."""
    a, b = (os.open(folder / name, os.O_RDWR | os.O_CREAT) for name in "ab")
    os.write(a, b"first")
    os.statvfs(folder)
    assert (os.pread(a, 100, 0), os.pread(b, 100, 0)) == (b"first", b"")
    os.pwrite(a, b"x" * 50, 0)
    os.statvfs(folder)
    again = os.open(folder / "a", os.O_RDWR)
    assert os.pread(again, 100, 0) == b"x" * 50
    os.statvfs(folder)
    os.close(a)
    (folder / "a").unlink()
    assert os.pread(again, 100, 0) == b"x" * 50
    os.close(again)
    os.close(b)
    assert os.listdir(folder) == ["f", "b"]


def hits(daemon: int, needle: bytes, *kinds: str) -> list[object]:
    """Where root finds it in the daemon."""
    return list(residue.search(residue.mask({"needle": needle}, pid=daemon, kinds=list(kinds), context=16))["hits"])


def test_memory_is_locked(mount: Mounted, tmp_path: Path) -> None:
    """As much is locked as with the shim: the window, the receive buffer and the first areas."""
    with Mounted(tmp_path / "mnt") as other:
        locked = other.status()["locked_bytes"]
    assert mount.status()["locked_bytes"] >= locked


@needs_root
@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_left_behind(mount: Mounted, size: int) -> None:
    """Root finds a file's bytes nowhere but in the areas while it lives, and nowhere at all when they are cut off."""
    needle = os.urandom(16)
    outside = [] if have_secretmem() else ["ordinary"]  # the emulator's areas are locked, like the window
    path = mount.path / "f"
    rewritten(path, (needle * (size // 16 + 1))[:size])
    assert hits(mount.daemon, needle, *outside) == []
    path.rename(mount.path / "g")
    os.truncate(mount.path / "g", 0)
    assert hits(mount.daemon, needle) == []
    rewritten(mount.path / "g", (needle * (size // 16 + 1))[:size])
    (mount.path / "g").unlink()
    assert hits(mount.daemon, needle) == []


@needs_root
def test_no_target_and_no_value_is_left_behind(mount: Mounted) -> None:
    """Nor are the targets of links, nor the values of attributes."""
    needle = os.urandom(8).hex().encode()
    outside = [] if have_secretmem() else ["ordinary"]
    link, path = mount.path / "l", mount.path / "f"
    os.symlink(needle, link)
    assert os.readlink(os.fsencode(link)) == needle
    path.touch()
    os.setxattr(path, "user.a", needle)
    assert os.getxattr(path, "user.a") == needle
    assert hits(mount.daemon, needle, *outside) == []
    link.unlink()
    os.removexattr(path, "user.a")
    assert hits(mount.daemon, needle) == []
    path.unlink()


def test_the_page_cache_is_emptied(mount: Mounted) -> None:
    """What a private mapping has brought into the page cache is thrown out when that file is closed."""
    path = mount.path / "f"
    path.write_bytes(os.urandom(64 * 1024))
    with open(path, "r+b") as watching, private(watching) as watched:
        with open(path, "rb") as file, private(file) as mapping:
            assert mapping[:16]
            assert cached_pages(watched) > 0, "nothing was in the page cache"
        end = time.monotonic() + PATIENCE  # it is done after the close was answered
        while cached_pages(watched) and time.monotonic() < end:
            os.listxattr(path)
        assert cached_pages(watched) == 0
    path.unlink()


def private(file: IO[bytes]) -> mmap.mmap:
    """A private mapping, which can be written to as ctypes wants it."""
    return mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def cached_pages(mapping: mmap.mmap) -> int:
    """How many pages of what is mapped are in the page cache (mincore(2)): looking brings none there."""
    pages = ctypes.create_string_buffer(len(mapping) // mmap.PAGESIZE)
    first = ctypes.c_char.from_buffer(mapping)
    try:
        assert _libc.mincore(ctypes.byref(first), ctypes.c_size_t(len(mapping)), pages) == 0
    finally:
        del first
    return sum(page & 1 for page in pages.raw[:-1])
