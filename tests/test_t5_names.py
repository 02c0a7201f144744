"""Names on a real mount: directories, renames, links, listings, and extended attributes."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    ROOT,
    XATTR_CREATE,
    XATTR_REPLACE,
    Mounted,
    renameat2,
)
from sharedmount import mount


@pytest.fixture
def here(mount: Mounted) -> Iterator[Path]:
    """An empty directory in the mount, after which no file may be left."""
    before = mount.status()["files"]
    folder = mount.path / "here"
    folder.mkdir()
    yield folder
    subprocess.run(["rm", "-rf", folder], check=True)
    assert mount.status()["files"] == before


@contextlib.contextmanager
def refused(code: int) -> Iterator[None]:
    """What is done here must fail with that errno."""
    with pytest.raises(OSError, match=r".") as caught:
        yield
    assert caught.value.errno == code, os.strerror(caught.value.errno or 0)


# Renames


def test_rename_replaces(here: Path) -> None:
    """rename takes the place of another file, whose open handle still reads the old bytes."""
    (here / "old").write_bytes(b"old" * 2000)
    (here / "new").write_bytes(b"new")
    with open(here / "old", "rb") as kept:
        os.rename(here / "new", here / "old")
        assert (here / "old").read_bytes() == b"new"
        assert kept.read() == b"old" * 2000
    assert os.listdir(here) == ["old"]


def test_rename_refuses(here: Path) -> None:
    """rename says what rename(2) says: ENOTEMPTY, EISDIR, ENOTDIR, EINVAL, ENOENT."""
    (here / "full" / "sub").mkdir(parents=True)
    (here / "empty").mkdir()
    (here / "file").touch()
    with refused(errno.ENOTEMPTY):
        os.rename(here / "empty", here / "full")
    with refused(errno.EISDIR):
        os.rename(here / "file", here / "empty")
    with refused(errno.ENOTDIR):
        os.rename(here / "empty", here / "file")
    with refused(errno.EINVAL):
        os.rename(here / "full", here / "full" / "sub" / "deeper")
    with refused(errno.ENOENT):
        os.rename(here / "nothing", here / "file")
    assert sorted(os.listdir(here)) == ["empty", "file", "full"]


def test_rename_directory(here: Path) -> None:
    """A directory moves with what is in it, over an empty one too, and ".." and link counts follow."""
    (here / "a" / "d" / "inner").mkdir(parents=True)
    (here / "a" / "d" / "f").write_bytes(b"x")
    (here / "b" / "empty").mkdir(parents=True)
    os.rename(here / "a" / "d", here / "b" / "empty")
    assert sorted(os.listdir(here / "b" / "empty")) == ["f", "inner"]
    assert os.path.samefile(here / "b" / "empty" / "..", here / "b")
    assert [(here / name).stat().st_nlink for name in ("a", "b", "b/empty")] == [2, 3, 3]


def test_rename_noreplace(here: Path) -> None:
    """renameat2 with NOREPLACE is EEXIST where the name is taken, else a rename."""
    (here / "a").write_bytes(b"a")
    (here / "b").write_bytes(b"b")
    with refused(errno.EEXIST):
        renameat2(here / "a", here / "b", RENAME_NOREPLACE)
    renameat2(here / "a", here / "c", RENAME_NOREPLACE)
    assert {path.name: path.read_bytes() for path in here.iterdir()} == {"b": b"b", "c": b"a"}


def test_rename_exchange(here: Path) -> None:
    """renameat2 with EXCHANGE swaps a file and a directory, and needs both."""
    (here / "a").write_bytes(b"a")
    (here / "d" / "inner").mkdir(parents=True)
    renameat2(here / "a", here / "d", RENAME_EXCHANGE)
    assert (here / "d").read_bytes() == b"a"
    assert os.listdir(here / "a") == ["inner"]
    with refused(errno.ENOENT):
        renameat2(here / "a", here / "nothing", RENAME_EXCHANGE)


def test_rename_onto_itself(here: Path) -> None:
    """rename of a name onto itself or onto another name of the same file does nothing."""
    (here / "a").write_bytes(b"a")
    os.link(here / "a", here / "b")
    os.rename(here / "a", here / "a")
    os.rename(here / "a", here / "b")
    assert sorted(os.listdir(here)) == ["a", "b"]


# Links


def test_hard_links(here: Path) -> None:
    """Names of one file share its bytes and number; st_nlink counts them; the last one takes the bytes along."""
    (here / "a").write_bytes(b"one")
    os.link(here / "a", here / "b")
    assert (here / "a").stat().st_ino == (here / "b").stat().st_ino
    assert (here / "b").stat().st_nlink == 2
    (here / "b").write_bytes(b"two")
    (here / "a").unlink()
    assert (here / "b").read_bytes() == b"two"
    assert (here / "b").stat().st_nlink == 1
    with refused(errno.EPERM):
        os.link(here, here / "directory")
    with refused(errno.EEXIST):
        os.link(here / "b", here / "b")


def test_symlinks(here: Path) -> None:
    """A symbolic link says its target, is followed, may dangle or loop, and takes targets of up to 4095 bytes."""
    (here / "f").write_bytes(b"bytes")
    (here / "l").symlink_to("f")
    (here / "dangling").symlink_to("no/where")
    (here / "loop").symlink_to("loop")
    (here / "long").symlink_to("x" * 4095)
    assert (here / "l").read_bytes() == b"bytes"
    assert os.readlink(here / "dangling") == "no/where"
    assert os.readlink(here / "long") == "x" * 4095
    assert (here / "l").lstat().st_size == 1
    assert stat.S_ISLNK((here / "l").lstat().st_mode)
    with refused(errno.ELOOP):
        (here / "loop").read_bytes()
    with refused(errno.ENOENT):
        (here / "dangling").read_bytes()


def test_special_files(here: Path) -> None:
    """A fifo carries bytes, a socket can be bound; a device node is root's to make."""
    os.mkfifo(here / "fifo")
    with subprocess.Popen(["cat", here / "fifo"], stdout=subprocess.PIPE) as reader:
        (here / "fifo").write_bytes(b"through")
        assert reader.communicate(timeout=10)[0] == b"through"
    if not ROOT:
        with refused(errno.EPERM):
            os.mknod(here / "null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))


# Directories


def test_directories(here: Path) -> None:
    """mkdir and rmdir answer as on any file system, and count the links of the parent."""
    (here / "d").mkdir()
    (here / "d" / "f").touch()
    assert here.stat().st_nlink == 3
    with refused(errno.EEXIST):
        (here / "d").mkdir()
    with refused(errno.ENOTEMPTY):
        (here / "d").rmdir()
    with refused(errno.ENOTDIR):
        (here / "d" / "f").rmdir()
    with refused(errno.EISDIR):
        (here / "d").unlink()
    with refused(errno.ENOTDIR):
        (here / "d" / "f" / "g").touch()
    (here / "d" / "f").unlink()
    (here / "d").rmdir()
    assert here.stat().st_nlink == 2


def test_removed_directory(here: Path) -> None:
    """In a directory that was removed while somebody was in it nothing can be made, and it lists as empty."""
    (here / "d").mkdir()
    fd = os.open(here / "d", os.O_RDONLY | os.O_DIRECTORY)
    (here / "d").rmdir()
    with refused(errno.ENOENT):
        os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    assert os.listdir(fd) == []
    os.close(fd)


@pytest.mark.slow
def test_large_directory_while_it_changes(here: Path) -> None:
    """Of 5,000 entries each that stays is listed exactly once, though others come and go during the listing."""
    stays = {f"stays{number}" for number in range(4_000)}
    goes = [f"goes{number}" for number in range(1_000)]
    for name in (*stays, *goes):
        os.mknod(here / name)
    listed = []
    with os.scandir(here) as entries:
        for count, entry in enumerate(entries):
            listed.append(entry.name)
            if count % 8 == 0 and goes:
                (here / goes.pop()).unlink()
                os.mknod(here / f"comes{count}")
    assert len(goes) < 600
    assert len(listed) == len(set(listed)), "something was listed twice"
    assert stays <= set(listed), "something was skipped"
    everything = os.listdir(here)
    assert stays | set(goes) <= set(everything)
    assert len(everything) == 5_000


def test_listing_tells_types_and_rewinds(here: Path) -> None:
    """A listing tells inode numbers and types, and a second one through the same handle sees what came since."""
    (here / "f").touch()
    (here / "d").mkdir()
    (here / "l").symlink_to("f")
    with os.scandir(here) as entries:
        kinds = {entry.name: (entry.is_dir(follow_symlinks=False), entry.is_symlink()) for entry in entries}
    assert kinds == {"f": (False, False), "d": (True, False), "l": (False, True)}
    fd = os.open(here, os.O_RDONLY)
    assert len(os.listdir(fd)) == 3
    (here / "more").touch()
    assert "more" in os.listdir(fd)
    os.close(fd)
    listing = subprocess.run(["ls", "-ai", here], capture_output=True, text=True, check=True).stdout
    assert f"{here.stat().st_ino} ." in listing


# Names


@pytest.mark.parametrize(
    "name",
    [b"n" * 255, b"\xff\xfe\x80", b"new\nline", b" ", b"...", b"-rf", b"tab\tand\x01control", "ü€𝄞".encode(), b"\\040"],
    ids=repr,
)
def test_odd_names(here: Path, name: bytes) -> None:
    """Any bytes but "/" and NUL make a name: created, listed, renamed, linked to and removed under it."""
    path = os.path.join(os.fsencode(here), name)
    with open(path, "wb") as file:
        file.write(b"content")
    assert os.listdir(os.fsencode(here)) == [name]
    os.rename(path, path[:-1] + b"_")
    os.rename(path[:-1] + b"_", path)
    os.symlink(name, os.path.join(os.fsencode(here), b"link"))
    assert (here / "link").read_bytes() == b"content"
    os.unlink(path)
    assert os.listdir(here) == ["link"]


def test_names_of_256_bytes(here: Path) -> None:
    """A name of 256 bytes is ENAMETOOLONG in each call that takes one, and nothing is made."""
    long, file = here / ("n" * 256), here / "f"
    file.touch()
    for call in (
        long.touch,
        long.mkdir,
        long.stat,
        lambda: os.rename(file, long),
        lambda: os.link(file, long),
        lambda: os.symlink("x", long),
        lambda: os.mkfifo(long),
        lambda: os.unlink(long),
    ):
        with refused(errno.ENAMETOOLONG):
            call()
    assert os.listdir(here) == ["f"]


def test_dot_names(here: Path) -> None:
    """ "." and ".." lead where they should, out of the mount as well, and cannot be removed or replaced."""
    (here / "d").mkdir()
    assert os.path.samefile(f"{here}/d/./..", here)
    assert os.path.samefile(here / ".." / "..", here.parent.parent)
    for call in (lambda: os.rmdir(f"{here}/d/."), lambda: os.rename(here / "d", f"{here}/d/..")):
        with pytest.raises(OSError, match=r"."):
            call()
    assert os.listdir(here) == ["d"]


# Extended attributes


def test_extended_attributes(here: Path) -> None:
    """User attributes are set, read, listed, replaced and removed, on files and directories."""
    (here / "f").touch()
    for path in (here / "f", here):
        os.setxattr(path, "user.one", b"1")
        os.setxattr(path, "user.empty", b"")
        os.setxattr(path, "user.one", b"two" * 1000)
        assert os.getxattr(path, "user.one") == b"two" * 1000
        assert os.getxattr(path, "user.empty") == b""
        assert sorted(os.listxattr(path)) == ["user.empty", "user.one"]
        os.removexattr(path, "user.one")
        os.removexattr(path, "user.empty")
        assert os.listxattr(path) == []
        with refused(errno.ENODATA):
            os.getxattr(path, "user.one")
        with refused(errno.ENODATA):
            os.removexattr(path, "user.one")


def test_xattr_flags(here: Path) -> None:
    """XATTR_CREATE wants a new attribute, XATTR_REPLACE an old one; both leave things alone otherwise."""
    (here / "f").touch()
    with refused(errno.ENODATA):
        os.setxattr(here / "f", "user.a", b"1", XATTR_REPLACE)
    assert os.listxattr(here / "f") == []
    os.setxattr(here / "f", "user.a", b"1", XATTR_CREATE)
    with refused(errno.EEXIST):
        os.setxattr(here / "f", "user.a", b"2", XATTR_CREATE)
    assert os.getxattr(here / "f", "user.a") == b"1"
    os.setxattr(here / "f", "user.a", b"3", XATTR_REPLACE)
    assert os.getxattr(here / "f", "user.a") == b"3"


def test_xattr_limits(here: Path) -> None:
    """A value of 64 KiB fits, a larger one is E2BIG, a name of 256 bytes ERANGE, another name space EOPNOTSUPP."""
    (here / "f").touch()
    os.setxattr(here / "f", "user.big", b"b" * 65536)
    assert os.getxattr(here / "f", "user.big") == b"b" * 65536
    with refused(errno.E2BIG):
        os.setxattr(here / "f", "user.big", b"b" * 65537)
    with refused(errno.ERANGE):
        os.setxattr(here / "f", "user." + "n" * 251, b"")
    with refused(errno.EOPNOTSUPP):
        os.setxattr(here / "f", "unknown.space", b"")
    assert os.listxattr(here / "f") == ["user.big"]


def test_status_attributes_are_read_only(mount: Mounted) -> None:
    """What tells the status can be neither changed nor removed, and is not listed."""
    for name in ("user.secretfs.status", "user.secretfs.pid", "user.secretfs.other"):
        with refused(errno.EPERM):
            os.setxattr(mount.path, name, b"x")
    with pytest.raises(OSError, match=r"."):
        os.removexattr(mount.path, "user.secretfs.status")
    assert os.listxattr(mount.path) == []
    assert int(os.getxattr(mount.path, "user.secretfs.pid")) == mount.daemon
