"""Nothing left behind: what root finds of secrets in the daemon's memory, at work and after it.

Another process searches all of it (residue.py). The control is a file system as one writes it with pyfuse3. Data, link
targets, attribute values and names are all looked for; test_t5_interrupted.py has the requests that end in the middle.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import naivefs
import pytest
import residue
from mounts import needs_root, needs_secretmem
from needles import Needles, Searcher
from watched import Watched, opened

pytestmark = [needs_root, pytest.mark.slow]

libc = ctypes.CDLL(None, use_errno=True)
KIB, MIB = 1 << 10, 1 << 20
SIZES = (16, 17, 64, 65, 1000, 4095, 4096, 4097, 64 * KIB, 100_000, MIB, MIB + 1, 4 * MIB)
KINDS = {"kernel": ("--backend", "kernel"), "emulator": ("--backend", "emulator"), "cached": ("--cached",)}
KERNEL = pytest.param("kernel", marks=needs_secretmem)
direct = pytest.mark.parametrize("mount", [KERNEL, "emulator"], indirect=True)
"""For what is only so where the page cache is passed by."""


@pytest.fixture(scope="module")
def searcher() -> Iterator[Searcher]:
    """The process that searches."""
    with Searcher(Needles()) as searcher:
        yield searcher


@pytest.fixture(scope="module", params=[KERNEL, "emulator", "cached"])
def mount(
    request: pytest.FixtureRequest, searcher: Searcher, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    """A mount of each kind."""
    path = tmp_path_factory.mktemp("residue") / "mnt"
    with Watched(path, searcher, "--size", "32M", *KINDS[request.param]) as mounted:
        yield mounted


@pytest.fixture
def here(mount: Watched) -> Iterator[Path]:
    """Its root. It is emptied at the end, and then nothing of any secret is anywhere."""
    yield mount.path
    subprocess.run(["find", mount.path, "-mindepth", "1", "-delete"], check=True)
    mount.expect_nothing()


def put(path: Path, data: bytes, flags: int = os.O_CREAT, offset: int = 0) -> None:
    """Write in one call."""
    with opened(path, os.O_WRONLY | flags) as fd:
        assert os.pwrite(fd, data, offset) == len(data)


def got(path: Path, size: int, times: int = 1) -> bytes:
    """What is read in one call, the last of so many."""
    with opened(path, os.O_RDONLY) as fd:
        return [os.pread(fd, size, 0) for _ in range(times)][-1]


# The control


@pytest.fixture
def naive(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """The file system of naivefs.py: its process, and where it is mounted."""
    command = [sys.executable, "-I", naivefs.__file__, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid, tmp_path
        subprocess.run(["umount", tmp_path], check=True)


def found_in(pid: int, searcher: Searcher, secret: bytes) -> int:
    """How many marks of a secret are in ordinary memory."""
    wanted = set(searcher.needles.marks(secret))
    return sum(times for mark, times in searcher.search(pid).marks.get("ordinary", {}).items() if mark in wanted)


@pytest.mark.parametrize("size", [64, 4 * KIB, 64 * KIB, MIB])
def test_control_data(naive: tuple[int, Path], searcher: Searcher, size: int) -> None:
    """A naive file system keeps copies of what was in a file, long after it was unlinked."""
    pid, path = naive
    secret = searcher.needles.secret(size)
    put(path / "f", secret)
    assert got(path / "f", size) == secret
    (path / "f").unlink()
    for n in range(1000):
        assert not os.path.lexists(path / str(n))
    assert found_in(pid, searcher, secret) >= len(searcher.needles.marks(secret))


def test_control_everything_else(naive: tuple[int, Path], searcher: Searcher) -> None:
    """A naive file system has link targets, attribute values and names in its memory."""
    pid, path = naive
    target, value, name = (searcher.needles.secret(size) for size in (4000, 4000, 200))
    put(path / os.fsdecode(name), b"")
    (path / "l").symlink_to(os.fsdecode(target))
    os.setxattr(path / os.fsdecode(name), "user.a", value)
    for secret in (target, value, name):
        assert found_in(pid, searcher, secret) >= sum(searcher.needles.marks(secret).values())


# Files


def test_every_size(mount: Watched, here: Path) -> None:
    """Files of any size are only in their areas, whatever was done to them; what was cut or replaced is gone."""
    paths = {size: here / str(size) for size in SIZES}
    first, second, third = ({size: mount.needles.secret(size, f"{nth} of {size}") for size in SIZES} for nth in "123")
    for size, path in paths.items():
        put(path, first[size])
    mount.expect_only(*first.values())
    for size, path in paths.items():
        assert got(path, size, times=2) == first[size]
    mount.expect_only(*first.values())
    for size, path in paths.items():
        put(path, second[size], 0)
    mount.expect_only(*second.values())
    for size, path in paths.items():
        put(path, third[size], os.O_APPEND)
        assert got(path, 2 * size, times=2) == second[size] + third[size]
    mount.expect_only(*second.values(), *third.values())
    for size, path in paths.items():
        os.truncate(path, size // 2)
    mount.expect_only(*(secret[: size // 2] for size, secret in second.items()))
    for size, path in paths.items():
        put(path, first[size], os.O_TRUNC)
        path.rename(here / "replaced")
    mount.expect_only(first[SIZES[-1]])


def test_unlinked_while_open(mount: Watched, here: Path) -> None:
    """A file without a name lives as long as it is open; when it is closed, nothing of it is left."""
    secrets = [mount.needles.secret(size) for size in (100, 5000, 300_000)]
    descriptors = []
    for number, secret in enumerate(secrets):
        put(here / str(number), secret)
        descriptors.append(os.open(here / str(number), os.O_RDWR))
        (here / str(number)).unlink()
    more = [mount.needles.secret(len(secret)) for secret in secrets]
    for fd, before, after in zip(descriptors, secrets, more, strict=True):
        assert os.pread(fd, MIB, 0) == before
        assert os.pwrite(fd, after, len(before)) == len(after)
    mount.expect_only(*secrets, *more)
    for fd in descriptors:
        os.close(fd)
    mount.expect_nothing()


@direct
def test_answered_in_c(mount: Watched, here: Path) -> None:
    """Reads and writes that the shim answers leave nothing behind, nor do those of the same file that Python answers.

    (That it really does what its table says is seen in test_t5_interrupted.py.)
    """
    larger = [mount.needles.secret(5000, f"larger {n}") for n in range(2)]
    with opened(here / "larger", os.O_RDWR | os.O_CREAT) as fd:
        for secret in larger:
            assert mount.answered_by_shim(here / "larger", 5000) == ""
            os.pwrite(fd, secret, 0)
            mount.expect_only(secret)
        assert mount.answered_by_shim(here / "larger", 5000) == "write"
        os.ftruncate(fd, 0)
    secrets = [mount.needles.secret(4096, f"write {n}") for n in range(3)]
    put(here / "size", bytes(4096))  # so many are lent to a new file from now on
    with opened(here / "f", os.O_RDWR | os.O_CREAT) as fd:
        for secret in secrets:
            assert mount.answered_by_shim(here / "f", 4096) == "write"
            os.pwrite(fd, secret, 0)
            mount.expect_only(secret)
        for answered in ("write", "read write"):
            assert mount.answered_by_shim(here / "f", 4096) == answered
            assert os.pread(fd, 4096, 0) == secrets[2]
            mount.expect_only(secrets[2])
        os.ftruncate(fd, 0)
    mount.expect_nothing()


@direct
def test_small_files(mount: Watched, here: Path) -> None:
    """Files that are written once and removed, of changing sizes: the shim has them in a slot that may be too large, or
    too small, and is given to another file.
    """
    for size in (4096, 16, 64, 65, 4096, 100, 2048, 1000, 5000, 30):
        secrets = [mount.needles.secret(size, f"{size} bytes, {n}") for n in range(2)]
        with (
            opened(here / "a", os.O_WRONLY | os.O_CREAT) as first,
            opened(here / "b", os.O_WRONLY | os.O_CREAT) as second,
        ):
            os.write(first, secrets[0])
            os.write(second, secrets[1])
        mount.expect_only(*secrets)
        (here / "a").unlink()
        mount.expect_only(secrets[1])
        (here / "b").unlink()
        mount.expect_nothing()


@direct
def test_opened_in_c(mount: Watched, here: Path) -> None:
    """A file that the shim has opened leaves nothing behind either, when it is closed without a name."""
    secrets = [mount.needles.secret(5000, f"opened {n}") for n in range(3)]
    for n, secret in enumerate(secrets):
        put(here / str(n), secret)
        assert got(here / str(n), len(secret)) == secret
    settled = mount.opened_by_the_shim()
    descriptors = [os.open(here / str(n), os.O_RDWR) for n in range(3)]
    assert mount.opened_by_the_shim() == settled + 3
    for n in range(3):
        (here / str(n)).unlink()
    mount.expect_only(*secrets)
    for fd, secret in zip(descriptors, secrets, strict=True):
        assert os.pread(fd, MIB, 0) == secret
        os.close(fd)
    mount.expect_nothing()


@direct
def test_files_in_several_pieces(mount: Watched, here: Path) -> None:
    """A file with holes and runs of pages here and there leaves nothing behind either."""
    secrets = [mount.needles.secret(8192, f"piece {n}") for n in range(12)]
    for n, secret in enumerate(secrets):
        put(here / f"file{n % 2}", secret, offset=(n // 2 * 7 % 6) * 100_000)
    assert sum(got(here / f"file{n}", MIB, 2).count(mount.needles.head) for n in (0, 1)) == 12 * 512
    mount.expect_only(*secrets)
    os.truncate(here / "file0", 250_000)
    mount.expect_only(*(secret for n, secret in enumerate(secrets) if n % 2 or (n // 2 * 7 % 6) < 3))


@direct
def test_private_mapping(mount: Watched, here: Path) -> None:
    """Reads for the page cache, which a private mapping makes, leave nothing behind in the daemon."""
    secret = mount.needles.secret(300_000)
    put(here / "f", secret)
    with open(here / "f", "r+b") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as mapped:
        assert mapped[:] == secret
        mount.expect_only(secret)


@pytest.mark.parametrize("mount", ["cached"], indirect=True)
def test_shared_mapping(mount: Watched, here: Path) -> None:
    """What comes through the page cache of a mount with --cached leaves nothing behind in the daemon."""
    first, second = mount.needles.secret(300_000), mount.needles.secret(300_000)
    put(here / "f", first)
    with open(here / "f", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        assert mapped[:] == first
        mapped[:] = second
        mapped.flush()
        mount.expect_only(second)


def test_unrelated_requests(mount: Watched, here: Path) -> None:
    """A thousand other requests neither uncover nor leave anything."""
    gone, kept = mount.needles.secret(50_000, "gone"), mount.needles.secret(50_000, "kept")
    put(here / "gone", gone)
    put(here / "kept", kept)
    (here / "gone").unlink()
    for n in range(200):
        path = here / f"other{n}"
        put(path, b"other" * n)
        assert len(got(path, 1000)) == 5 * n
        path.rename(here / "other")
        (here / "other").unlink()
    mount.expect_only(kept)


CLIENT = """
import os, sys
folder, name = sys.argv[1:]
records = [sys.stdin.buffer.read(16) for _ in range(12)]
for turn in range(12):
    secret = records[turn] * (1 + 7 ** (turn % 6))
    path = os.path.join(folder, f"{name}{turn % 3}")
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    for _ in range(3):
        assert os.pwrite(fd, secret, 0) == len(secret)
        assert os.pread(fd, len(secret), 0) == secret
    os.close(fd)
    os.setxattr(path, "user.a", secret[:60000])
    if turn % 3 == 2:
        os.rename(path, path + "renamed")
        os.truncate(path + "renamed", 1000)
"""


def test_many_clients(mount: Watched, here: Path) -> None:
    """Six programs at once that write, read, rename and cut leave nothing but what is in their files."""
    clients, secrets = [], []
    for number in range(6):
        client = subprocess.Popen([sys.executable, "-I", "-c", CLIENT, here, f"c{number}"], stdin=subprocess.PIPE)
        assert client.stdin is not None
        records = [mount.needles.secret(16, f"client {number}, turn {turn}") for turn in range(12)]
        client.stdin.write(b"".join(records))
        client.stdin.flush()
        clients.append(client)
        secrets.append(records)
    assert [client.wait() for client in clients] == [0] * 6
    for client in clients:
        client.communicate()
    files = [path.read_bytes() for path in here.iterdir()]
    values = [os.getxattr(path, "user.a") for path in here.iterdir()]
    assert len(files) == 18
    mount.expect_only(*files, *values)


# What passes through Python as bytes


def test_link_targets(mount: Watched, here: Path) -> None:
    """The targets of symbolic links are nowhere but in areas, also those of links that could not be made."""
    targets = {size: mount.needles.secret(size, f"target of {size}") for size in (16, 64, 500, 4094)}
    for size, target in targets.items():
        os.symlink(target, here / str(size))
        with pytest.raises(FileExistsError):
            os.symlink(mount.needles.secret(size, "target of no link"), here / str(size))
    mount.expect_only(*targets.values())
    assert [os.readlink(os.fsencode(here / str(size))) for size in targets] == list(targets.values())
    mount.expect_only(*targets.values())
    for size in targets:
        (here / str(size)).rename(here / "l")
    mount.expect_only(targets[4094])


def test_attribute_values(mount: Watched, here: Path) -> None:
    """The values of extended attributes are nowhere but in areas, also those that could not be set."""
    put(here / "f", b"")
    names = {size: f"user.{size}" for size in (16, 64, 1000, 4097, 65536)}
    first, second = ({size: mount.needles.secret(size, f"{nth} of {size}") for size in names} for nth in "12")
    for size, name in names.items():
        os.setxattr(here / "f", name, first[size], os.XATTR_CREATE)
        for flag, other in ((os.XATTR_CREATE, name), (os.XATTR_REPLACE, name + "x")):
            with pytest.raises(OSError, match=r"exists|No data"):
                os.setxattr(here / "f", other, mount.needles.secret(size, "refused"), flag)
    mount.expect_only(*first.values())
    for size, name in names.items():
        assert os.getxattr(here / "f", name) == first[size]
        assert _getxattr(here / "f", name, size - 1) == errno.ERANGE
        os.setxattr(here / "f", name, second[size], os.XATTR_REPLACE)
    mount.expect_only(*second.values())
    for name in names.values():
        os.removexattr(here / "f", name)
    mount.expect_nothing()


def _getxattr(path: Path, name: str, size: int) -> int:
    """The errno of getxattr(2) with so large a buffer."""
    buffer = ctypes.create_string_buffer(size)
    result = libc.getxattr(os.fsencode(path), name.encode(), buffer, ctypes.c_size_t(size))
    return 0 if result >= 0 else ctypes.get_errno()


def test_names(mount: Watched, here: Path) -> None:
    """Names of files and of attributes are nowhere but in areas once a request is over, and nowhere when they are gone.

    (The kernel's own name cache is another matter: docs/threat-model.md.)
    """
    one, two, three, attribute = (mount.needles.secret(size) for size in (16, 100, 255, 200))
    paths = [here / os.fsdecode(name) for name in (one, two, three)]
    put(paths[0], b"")
    os.mkdir(paths[1])
    os.mknod(paths[2])
    os.setxattr(paths[0], b"user." + attribute, b"")
    mount.expect_only(one, two, three, attribute)
    for _ in range(2):
        assert set(os.listdir(os.fsencode(here))) == {one, two, three}
        assert os.listxattr(paths[0]) == [os.fsdecode(b"user." + attribute)]
        assert os.getxattr(paths[0], b"user." + attribute) == b""
    mount.expect_only(one, two, three, attribute)
    os.link(paths[0], paths[1] / paths[2].name)
    paths[1].rename(here / paths[1].name[::-1])
    paths[0].rename(paths[2])
    mount.expect_only(two[::-1], three, three, attribute)
    os.removexattr(paths[2], b"user." + attribute)
    for path in (paths[2], here / paths[1].name[::-1] / paths[2].name):
        path.unlink()
    for path in (here / paths[1].name[::-1], *paths):
        with contextlib.suppress(OSError):
            path.rmdir()
        assert not path.exists()
    mount.expect_nothing()


def test_large_directory(mount: Watched, here: Path) -> None:
    """Reading a directory whose names take many requests leaves none of them behind."""
    names = [mount.needles.secret(120, f"name {n}") for n in range(300)]
    for name in names:
        put(here / os.fsdecode(name), b"")
    assert set(os.listdir(os.fsencode(here))) == set(names)
    assert len([entry.stat() for entry in os.scandir(here)]) == 300
    mount.expect_only(*names)


# Less than can be searched for


@direct
def test_below_16_bytes(mount: Watched, here: Path) -> None:
    """Of secrets too short to be searched for, too, nothing is left in the receive buffer and in the window.

    From 6 bytes on they can be searched for in one piece.
    """
    put(here / "large", bytes(MIB))  # from now on the whole receive buffer has been used
    mount.settle()
    assert not any(mount.receive_buffer())
    short = {size: os.urandom(size) for size in range(1, 16)}
    for size, secret in short.items():
        path = here / str(size)
        with opened(path, os.O_RDWR | os.O_CREAT) as fd:
            for _ in range(2):  # Python's way, and the shim's
                assert os.pwrite(fd, secret, 0) == size
                assert os.pread(fd, 100, 0) == secret
                assert_passed_by(mount)
        os.setxattr(path, "user.a", secret)
        assert os.getxattr(path, "user.a") == secret
        assert_passed_by(mount)
        name = secret.replace(b"\0", b"x").replace(b"/", b"x")
        os.symlink(name, here / f"link{size}")
        assert os.readlink(os.fsencode(here / f"link{size}")) == name
        assert_passed_by(mount)
    long_enough = {str(size): secret for size, secret in short.items() if size >= 6}
    mount.settle()
    found = mount.searcher.ask(residue.mask(long_enough, whole=True, pid=mount.daemon, kinds=["ordinary"]))
    assert not any(found["counts"].values())


def assert_passed_by(mount: Watched) -> None:
    """The receive buffer is empty, and where that can be told the window."""
    mount.settle()
    assert not any(mount.receive_buffer())
    assert not mount.secret_areas or not any(mount.window())
