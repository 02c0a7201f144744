"""Each reply of a mount's daemon, and each reading of a request, fails once: nothing is left behind and it goes on.

tests/faults.c is preloaded into the daemon; the product has no hook for it. After every failure root searches all of
the daemon's memory for what the request and the reply were about.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import json
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import residue
from mounts import Mounted, have_secretmem, is_mounted, needs_root, secretfs
from shims import HERE, compile_library, package_with

CODES = (errno.ENOENT, errno.EINTR, errno.EIO, errno.ENOMEM, errno.EINVAL, errno.EAGAIN)
READ_CODES = (errno.EINTR, errno.EAGAIN, errno.ENOENT)
"""What a daemon has to live with; ENODEV is the end of the mount."""


class Faults(ctypes.Structure):
    """struct faults of faults.c."""

    _fields_ = tuple(
        (name, ctypes.c_uint32)
        for name in ("fail_write", "fail_read", "code", "writes", "reads", "failed", "large_pipes", "splices")
    )


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """faults.c, compiled."""
    return compile_library(tmp_path_factory.mktemp("faults") / "faults.so", "-O1", HERE / "faults.c")


@pytest.fixture
def faults(library: Path, tmp_path: Path) -> Iterator[Faults]:
    """The switch; what is mounted from now on obeys it."""
    path = tmp_path / "faults"
    path.write_bytes(bytes(mmap.PAGESIZE))
    with path.open("r+b") as file:
        yield Faults.from_buffer(mmap.mmap(file.fileno(), 0))


@pytest.fixture(params=["shim", "fallback"])
def environment(request: pytest.FixtureRequest, library: Path, faults: Faults, tmp_path: Path) -> dict[str, str]:
    """With the shim, and with what stands in for it."""
    preload = {"LD_PRELOAD": str(library), "SECRETFS_TEST_FAULTS": str(tmp_path / "faults")}
    return preload if request.param == "shim" else {**preload, **package_with(tmp_path / "package", None)}


def work(folder: Path, needle: bytes) -> None:
    """One request of each kind that carries a secret or opens something; the first error ends it."""
    with contextlib.ExitStack() as opened:

        def opening(name: str, flags: int) -> int:
            fd = os.open(folder / name, flags)
            opened.callback(os.close, fd)
            return fd

        fd = opening("f", os.O_RDWR | os.O_CREAT)
        os.pwrite(fd, needle * 10, 0)
        for _ in range(3):  # the last time or two the shim answers by itself
            os.pwrite(fd, needle * 3, 50)
        for _ in range(3):
            os.pread(fd, 200, 10)
        os.pwrite(fd, needle * 1000, 0)  # too long for where it lies
        os.pread(fd, 70_000, 0)
        os.ftruncate(fd, 20)
        os.fchmod(fd, 0o640)
        os.pread(fd, 200, 0)
        os.symlink(needle, folder / "l")
        os.readlink(folder / "l")
        os.setxattr(folder / "f", "user.a", needle)
        os.getxattr(folder / "f", "user.a")
        os.listxattr(folder / "f")
        os.removexattr(folder / "f", "user.a")
        os.mkdir(folder / "d")
        os.listdir(folder)
        os.pread(opening("f", os.O_RDONLY), 200, 0)
        os.mknod(folder / "p", 0o600)
        os.link(folder / "p", folder / "p2")
        os.rename(folder / "p2", folder / "d" / "p2")
        os.unlink(folder / "d" / "p2")
        os.statvfs(folder)
        os.unlink(folder / "f")
        os.pread(fd, 200, 0)


def clear(folder: Path) -> None:
    """Remove what is left."""
    for one in folder.iterdir():
        if one.is_dir() and not one.is_symlink():
            clear(one)
            one.rmdir()
        else:
            one.unlink()


def fresh_needle() -> bytes:
    """Something to look for that is good for a link's target too."""
    return os.urandom(8).hex().encode()


def copies(pid: int, needle: bytes, *kinds: str) -> list[object]:
    """Where the needle is in the memory of a process, or in some kinds of it."""
    return list(residue.search(residue.mask({"needle": needle}, pid=pid, kinds=list(kinds), context=16))["hits"])


def in_use(folder: Path) -> tuple[int, int]:
    """How many files a mount has, unlinked ones that are open included, and how many bytes they take."""
    status = json.loads(os.getxattr(folder, "user.secretfs.status"))
    return status["files"], status["bytes"]


@needs_root
@pytest.mark.slow
def test_each_reply_fails_once(faults: Faults, environment: dict[str, str], tmp_path: Path) -> None:
    """Whichever reply is lost: no plaintext stays in the daemon, no handle stays open, and the mount goes on."""
    codes = itertools.cycle(CODES)
    outside = [] if have_secretmem() else ["ordinary"]  # the emulator's areas are "locked", like the window
    with Mounted(tmp_path / "mnt", env=environment) as mounted:
        before = faults.writes
        work(mounted.path, fresh_needle())
        replies = faults.writes - before
        clear(mounted.path)
        assert (replies > 30, in_use(mounted.path)) == (True, (0, 0))
        for position in range(1, replies + 1):
            needle = fresh_needle()
            faults.code, faults.fail_write, faults.failed = next(codes), position, 0
            with contextlib.suppress(OSError):
                work(mounted.path, needle)
            assert copies(mounted.daemon, needle, *outside) == [], f"after reply {position}"
            with contextlib.suppress(OSError):  # the last replies of `work`, to what nobody waits for, may come late
                clear(mounted.path)
            clear(mounted.path)
            assert faults.failed == 1
            assert copies(mounted.daemon, needle, "locked", "secretmem") == [], f"reply {position}, then unlinked"
            assert in_use(mounted.path) == (0, 0), f"what reply {position} opened is open still"


@needs_root
@pytest.mark.slow
def test_each_reading_of_a_request_fails_once(faults: Faults, environment: dict[str, str], tmp_path: Path) -> None:
    """A request that cannot be read at once (interrupted, taken back, not there after all) is read the next time."""
    with Mounted(tmp_path / "mnt", env=environment) as mounted:
        for code, position in itertools.product(READ_CODES, range(1, 41, 3)):
            faults.code, faults.fail_read, failed = code, position, faults.failed
            work(mounted.path, fresh_needle())
            clear(mounted.path)
            assert faults.failed == failed + 1
            assert in_use(mounted.path) == (0, 0)


def test_no_request_passes_through_a_pipe(faults: Faults, environment: dict[str, str], tmp_path: Path) -> None:
    """Not even where libfuse may have a pipe as large as it wants: the kernel does not clear the pages of a pipe."""
    faults.large_pipes = 1
    with Mounted(tmp_path / "mnt", env=environment) as mounted:
        data = os.urandom(3 << 20)
        (mounted.path / "f").write_bytes(data)
        assert (mounted.path / "f").read_bytes() == data
        work(mounted.path, b"needle")
        assert faults.splices == 0


def test_the_first_reply_fails(faults: Faults, environment: dict[str, str], tmp_path: Path) -> None:
    """A mount whose kernel was never told that there is a file system refuses everything, and can be unmounted."""
    faults.code, faults.fail_write = errno.EIO, 1
    folder = tmp_path / "mnt"
    folder.mkdir()
    assert secretfs("mount", folder, env=environment).returncode == 0
    assert (faults.failed, is_mounted(folder)) == (1, True)
    with pytest.raises(ConnectionRefusedError):
        folder.stat()
    done = secretfs("umount", folder)
    assert (done.returncode, is_mounted(folder)) == (0, False), done.stderr
