"""Files on a real mount: their bytes, their size, and what is left when something ends in the middle."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import ROOT, Mounted
from sharedmount import mount, noise

MIB = 1 << 20


@pytest.fixture
def here(mount: Mounted) -> Iterator[Path]:
    """An empty directory in the mount, which must give all its memory back."""
    folder = mount.path / "here"
    before = used(folder)
    folder.mkdir()
    yield folder
    subprocess.run(["rm", "-rf", folder], check=True)
    assert used(folder) == before, "removed files still count"


def used(path: Path) -> int:
    """Bytes of file data in the mount in whose root `path` lies, in the steps of 64 in which they are counted."""
    return int(json.loads(os.getxattr(path.parent, "user.secretfs.status"))["bytes"])


def pages_free(path: Path) -> int:
    """What df says, in pages."""
    status = os.statvfs(path)
    assert status.f_frsize == 4096
    return status.f_bavail


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 4095, 4096, 4097, 65536, 100_000, MIB + 1, 3 * MIB])
def test_what_is_written_is_read(here: Path, size: int) -> None:
    """A file of any size comes back as it was written, and has that size."""
    (here / "f").write_bytes(noise(size))
    assert (here / "f").read_bytes() == noise(size)
    assert (here / "f").stat().st_size == size


def test_append(here: Path) -> None:
    """Two descriptors with O_APPEND write one after the other, wherever they were positioned."""
    one, two = (os.open(here / "f", os.O_WRONLY | os.O_CREAT | os.O_APPEND) for _ in range(2))
    for fd, data in ((one, b"a" * 60), (two, b"b" * 60), (one, b"c" * 5000), (two, b"d")):
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, data)
    os.close(one)
    os.close(two)
    assert (here / "f").read_bytes() == b"a" * 60 + b"b" * 60 + b"c" * 5000 + b"d"


def test_pread_and_pwrite(here: Path) -> None:
    """pread and pwrite reach any offset, cross page borders and leave the position alone."""
    data = bytearray(noise(20_000))
    with open(here / "f", "w+b", buffering=0) as file:
        file.write(data)
        file.seek(7)
        for offset, piece in ((0, b"x"), (4090, b"y" * 12), (8191, b"z" * 4098), (19_999, b"end")):
            assert os.pwrite(file.fileno(), piece, offset) == len(piece)
            data[offset : offset + len(piece)] = piece
        assert file.tell() == 7
        assert os.pread(file.fileno(), 100, 4050) == data[4050:4150]
        assert os.pread(file.fileno(), 10, len(data) - 3) == b"end"
        assert os.pread(file.fileno(), 10, len(data)) == b""
    assert (here / "f").read_bytes() == data


@pytest.mark.parametrize("size", [10, 100, 4096, 9000, 300_000])
@pytest.mark.parametrize("cut", [0, 1, 64, 4095, 4096, 4097, 8192])
def test_truncate_both_ways(here: Path, size: int, cut: int) -> None:
    """After truncate down and up again the cut bytes are zeros, and what was kept is kept."""
    (here / "f").write_bytes(noise(size))
    os.truncate(here / "f", cut)
    assert (here / "f").stat().st_size == cut
    os.truncate(here / "f", size + 5000)
    kept = noise(size)[:cut]
    assert (here / "f").read_bytes() == kept + bytes(size + 5000 - len(kept))


def test_sparse(here: Path) -> None:
    """A hole reads as zeros and takes no memory."""
    before = used(here)
    with open(here / "f", "w+b", buffering=0) as file:
        file.seek(1 << 30)
        file.write(b"end")
    assert (here / "f").stat().st_size == (1 << 30) + 3
    assert used(here) - before <= 4096
    assert (here / "f").stat().st_blocks * 512 <= 4096
    with open(here / "f", "rb") as file:
        assert file.read(5000) == bytes(5000)
        file.seek((1 << 30) - 2)
        assert file.read() == b"\0\0end"


def test_statfs_follows_each_step(here: Path) -> None:
    """Status and df tell of each write, truncate and unlink at once; a small file counts in steps of 64 bytes."""
    path, start, free = here / "f", used(here), pages_free(here)
    seen = []
    for step in (
        lambda: path.write_bytes(b"x"),
        lambda: path.write_bytes(b"x" * 65),
        lambda: path.write_bytes(b"x" * 100_000),
        lambda: os.truncate(path, 64),
        path.unlink,
    ):
        step()
        seen.append(used(here) - start)
        assert free - pages_free(here) in (seen[-1] // 4096, -(-seen[-1] // 4096))
    assert seen[:2] == [64, 128]
    assert 100_000 <= seen[2] <= 102_400
    assert seen[3] <= 4096
    assert seen[4] == 0


def test_df_counts_files(here: Path) -> None:
    """df -i counts a file that is made and one that is removed."""
    free = os.statvfs(here).f_ffree
    (here / "f").touch()
    assert os.statvfs(here).f_ffree == free - 1
    (here / "f").unlink()
    assert os.statvfs(here).f_ffree == free


def test_unlink_while_open(here: Path) -> None:
    """The data of an unlinked file is there until it is closed, and its memory is given back then."""
    before = used(here)
    with open(here / "f", "w+b", buffering=0) as file:
        file.write(noise(50_000))
        (here / "f").unlink()
        assert not (here / "f").exists()
        assert os.fstat(file.fileno()).st_nlink == 0
        os.pwrite(file.fileno(), b"more", 50_000)
        assert os.pread(file.fileno(), MIB, 0) == noise(50_000) + b"more"
        assert used(here) > before
    assert used(here) == before


def test_open_again(here: Path) -> None:
    """However often a file is opened, each descriptor is one of its own, and each sees what the others do."""
    path = here / "f"
    path.write_bytes(noise(5000))
    for _ in range(300):
        assert path.read_bytes() == noise(5000)
    reader, writer, adder = (os.open(path, flags) for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(reader, b"x")
    assert os.pwrite(writer, b"new", 10) == 3
    assert os.write(adder, b"end") == 3
    assert os.pread(reader, 3, 10) + os.pread(reader, 9, 5000) == b"newend"
    os.truncate(path, 12)
    assert os.pread(reader, 9, 10) == b"ne"
    os.close(os.open(path, os.O_RDWR | os.O_TRUNC))
    assert os.pread(reader, 9, 0) == b""
    os.pwrite(writer, noise(6000), 0)
    path.chmod(0)
    path.unlink()
    assert os.pread(reader, 9000, 0) == noise(6000)
    again = os.open(f"/proc/self/fd/{writer}", os.O_RDONLY) if os.geteuid() == 0 else os.dup(reader)
    for fd in (reader, writer, adder):
        os.close(fd)
    assert used(here) == 6016
    assert os.pread(again, 9000, 0) == noise(6000)
    os.close(again)


def test_reopening_more_files_than_there_are_places(here: Path) -> None:
    """Files that share a place in the shim's table are not taken for each other, open or closed."""
    for number in range(1100):
        (here / str(number)).write_bytes(b"%d" % number)
    first = [os.open(here / str(number), os.O_RDWR) for number in range(0, 1100, 2)]
    for number in (*range(1100), *range(1100)):
        assert (here / str(number)).read_bytes() == b"%d" % number
    for number, fd in zip(range(0, 1100, 2), first, strict=True):
        os.pwrite(fd, b"%06d" % number, 0)
        os.close(fd)
    for number in range(0, 1100, 2):
        assert (here / str(number)).read_bytes() == b"%06d" % number


def test_unlinked_but_not_gone(here: Path) -> None:
    """A file lives on by another name, which may be newer than what the shim knows of it, and as long as it is open."""
    for size in (10, 4096, 20_000):
        data = noise(size)
        (here / "a").write_bytes(data)
        assert (here / "a").read_bytes() == data
        os.link(here / "a", here / "b")
        assert (here / "a").read_bytes() == data
        (here / "new").write_bytes(b"so that the directory has just changed")
        (here / "a").unlink()
        assert (here / "b").read_bytes() == data
        readers = [os.open(here / "b", os.O_RDONLY) for _ in range(3)]
        (here / "new").unlink()
        (here / "b").unlink()
        for reader in readers:
            assert os.pread(reader, size, 0) == data
            os.close(reader)
        assert os.listdir(here) == []


def test_open_flags(here: Path) -> None:
    """O_EXCL refuses a name that is taken, O_TRUNC empties, and a descriptor allows what it was opened for."""
    (here / "f").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        os.open(here / "f", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    with pytest.raises(FileNotFoundError):
        os.open(here / "g", os.O_WRONLY)
    with pytest.raises(IsADirectoryError):
        os.open(here, os.O_WRONLY)
    with pytest.raises(NotADirectoryError):
        os.open(here / "f", os.O_DIRECTORY)
    assert (here / "f").read_bytes() == b"old"
    fd = os.open(here / "f", os.O_WRONLY | os.O_TRUNC)
    assert os.fstat(fd).st_size == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.read(fd, 1)
    os.close(fd)
    fd = os.open(here / "f", os.O_RDONLY)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(fd, b"x")
    os.close(fd)


def test_fsync(here: Path) -> None:
    """fsync, fdatasync and sync of files and directories succeed."""
    with open(here / "f", "wb", buffering=0) as file:
        file.write(b"x")
        os.fsync(file.fileno())
        os.fdatasync(file.fileno())
    fd = os.open(here, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)


def test_offsets_near_the_end_of_numbers(here: Path) -> None:
    """Around 2^63 every call succeeds with the right size or says EFBIG or EINVAL, and the file stays whole."""
    (here / "f").write_bytes(b"whole")
    last = (1 << 63) - 1
    with open(here / "f", "r+b", buffering=0) as file:
        fd = file.fileno()
        for offset in (last, last - 1):
            with pytest.raises(OSError, match=r".") as refused:
                os.pwrite(fd, b"xx", offset)
            assert refused.value.errno in (errno.EFBIG, errno.EINVAL)
        assert os.pread(fd, 10, last - 10) == b""
        assert os.pread(fd, 10, 0) == b"whole"
        assert os.pwrite(fd, b"far", last - 4096) == 3
        assert os.fstat(fd).st_size == last - 4093
        assert os.pread(fd, 10, last - 4097) == b"\0far"
        os.ftruncate(fd, last)
        assert os.fstat(fd).st_size == last
        os.ftruncate(fd, 5)
    assert (here / "f").read_bytes() == b"whole"


@pytest.mark.slow
def test_large_pieces(here: Path) -> None:
    """Reads and writes of more than a FUSE request are split and put together again."""
    data = noise(3 * MIB + 12_345)
    with open(here / "f", "w+b", buffering=0) as file:
        assert os.writev(file.fileno(), [data[:MIB], data[MIB:]]) == len(data)
        assert os.pread(file.fileno(), len(data) + 1, 0) == data
    assert subprocess.run(["cat", here / "f"], capture_output=True, check=True).stdout == data


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of all kinds of files outside the mount."""
    top = tmp_path_factory.mktemp("source") / "tree"
    for number in range(300):
        path = top / f"d{number % 17}" / f"s{number % 5}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise(number * 37 % 9001))
        path.chmod((0o600, 0o644, 0o755, 0o400)[number % 4])
        os.utime(path, ns=(10**18 + number, 10**18 + number * 10**9 + 123_456_789))
    (top / "big").write_bytes(noise(MIB))
    (top / "link").symlink_to("d0/s0/f0")
    (top / "dangling").symlink_to("no/where")
    os.link(top / "big", top / "hard")
    os.mkfifo(top / "pipe", 0o600)
    return top


def described(top: Path) -> dict[str, object]:
    """Everything that a copy must keep: type, mode, mtime, link target, digest of the bytes."""
    found: dict[str, object] = {}
    for path in sorted(top.rglob("*")):
        status = path.lstat()
        content: object = None
        if stat.S_ISREG(status.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest(), status.st_nlink
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        found[str(path.relative_to(top))] = (status.st_mode, status.st_mtime_ns, content)
    return found


@pytest.mark.slow
def test_cp_in_and_out(here: Path, tree: Path, tmp_path: Path) -> None:
    """`cp -a` of a tree into the mount and out again keeps bytes, modes, times and links."""
    subprocess.run(["cp", "-a", tree, here / "tree"], check=True)
    assert described(here / "tree") == described(tree)
    subprocess.run(["cp", "-a", here / "tree", tmp_path / "back"], check=True)
    assert described(tmp_path / "back") == described(tree)


@pytest.mark.slow
def test_tar_in_and_out(here: Path, tree: Path, tmp_path: Path) -> None:
    """A tree that tar unpacks in the mount packs there into the same archive."""
    words = ["--sort=name", "--format=posix", "--pax-option=delete=atime,delete=ctime", "-C"]
    subprocess.run(["tar", "-cf", tmp_path / "a.tar", *words, tree.parent, "tree"], check=True)
    subprocess.run(["tar", "-xpf", tmp_path / "a.tar", "-C", here], check=True)
    assert described(here / "tree") == described(tree)
    subprocess.run(["tar", "-cf", tmp_path / "b.tar", *words, here, "tree"], check=True)
    assert (tmp_path / "b.tar").read_bytes() == (tmp_path / "a.tar").read_bytes()


@pytest.mark.slow
def test_size_limit_in_the_middle_of_a_write(tmp_path: Path) -> None:
    """Where --size ends a write is short, the next one is ENOSPC, all else stays intact and the mount goes on."""
    with Mounted(tmp_path / "mnt", "--size", "1M") as mounted:
        (mounted.path / "old").write_bytes(noise(100_000))
        fd = os.open(mounted.path / "new", os.O_RDWR | os.O_CREAT)
        written = 0
        with pytest.raises(OSError, match="No space left") as full:  # noqa: PT012
            while written < 2 * MIB:
                written += os.write(fd, noise(300_000)[written % 300_000 :])
        assert full.value.errno == errno.ENOSPC
        assert MIB - 110_000 < written <= MIB - 100_000
        assert os.fstat(fd).st_size == written
        assert os.pread(fd, 300_000, 0) == noise(300_000)
        assert (mounted.path / "old").read_bytes() == noise(100_000)
        with pytest.raises(OSError, match="No space left"):
            os.pwrite(fd, b"x" * 10_000, written)
        os.pwrite(fd, b"over", 0)
        os.close(fd)
        (mounted.path / "new").unlink()
        (mounted.path / "after").write_bytes(noise(800_000))
        assert (mounted.path / "after").read_bytes() == noise(800_000)


@pytest.mark.slow
def test_appending_to_a_small_file_when_full(tmp_path: Path) -> None:
    """A small file that cannot grow any more keeps its bytes and its size."""
    with Mounted(tmp_path / "mnt", "--size", "8K") as mounted:
        (mounted.path / "small").write_bytes(b"precious")
        (mounted.path / "rest").write_bytes(b"r" * 4096)
        (mounted.path / "rest2").write_bytes(b"r" * (4096 - 64))
        assert os.statvfs(mounted.path).f_bavail == 0
        with pytest.raises(OSError, match="No space left"), open(mounted.path / "small", "ab", buffering=0) as file:
            file.write(b"x" * 200)
        assert (mounted.path / "small").read_bytes() == b"precious"
        with pytest.raises(OSError, match="No space left"):
            (mounted.path / "another").write_bytes(b"x")
        assert (mounted.path / "rest").read_bytes() == b"r" * 4096


@pytest.mark.slow
def test_max_files(tmp_path: Path) -> None:
    """--max-files is ENOSPC at the next file, and room again after an unlink."""
    with Mounted(tmp_path / "mnt", "--size", "1M", "--max-files", "5") as mounted:
        for name in "abcde":
            (mounted.path / name).touch()
        with pytest.raises(OSError, match="No space left"):
            (mounted.path / "f").touch()
        with pytest.raises(OSError, match="No space left"):
            (mounted.path / "directory").mkdir()
        known = os.open(mounted.path / "a", os.O_PATH)  # so that the kernel does not forget the inode
        (mounted.path / "a").unlink()
        (mounted.path / "f").touch()
        os.close(known)
        assert sorted(os.listdir(mounted.path)) == ["b", "c", "d", "e", "f"]


def limit_memlock() -> None:
    """In a child: an ordinary user's lock limit."""
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (8 * MIB, 8 * MIB))


@pytest.mark.slow
def test_twenty_thousand_small_files(tmp_path: Path) -> None:
    """20,000 files of 64 bytes fit an ordinary user's 8 MiB RLIMIT_MEMLOCK with default options."""
    many = 2_000 if ROOT else 20_000  # no such limit binds root
    with Mounted(tmp_path / "mnt", preexec_fn=limit_memlock) as mounted:
        folder = os.open(mounted.path, os.O_PATH)
        for number in range(many):
            fd = os.open(f"file{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
            os.write(fd, b"%064d" % number)
            os.close(fd)
        for number in (0, 1, 777, many - 1):
            assert (mounted.path / f"file{number}").read_bytes() == b"%064d" % number
        os.close(folder)
        assert len(os.listdir(mounted.path)) == many
        answer = mounted.status()
        assert answer["files"] == many
        assert ROOT or answer["locked_bytes"] <= answer["lock_limit"] == 8 * MIB


@pytest.mark.slow
def test_lock_limit_in_the_middle_of_a_write(tmp_path: Path) -> None:
    """Filling a mount of default size to the brim ends in ENOSPC, never in a signal, and deleting makes room."""
    with Mounted(tmp_path / "mnt", preexec_fn=limit_memlock) as mounted:
        (mounted.path / "kept").write_bytes(noise(10_000))
        chunk, count = noise(MIB), 0
        with pytest.raises(OSError, match="No space left"):  # noqa: PT012
            while count < 64:
                (mounted.path / f"chunk{count}").write_bytes(chunk)
                count += 1
        assert count >= 4
        assert (mounted.path / "kept").read_bytes() == noise(10_000)
        assert (mounted.path / "chunk0").read_bytes() == chunk
        for path in mounted.path.glob("chunk*"):
            path.unlink()
        (mounted.path / "again").write_bytes(chunk)
        assert (mounted.path / "again").read_bytes() == chunk
