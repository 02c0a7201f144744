"""Nothing left behind by requests that end in the middle: refused, out of room, their client killed.

The daemon's memory is searched as in test_t5_residue.py, and looked at in the midst of a request as well: ptrace(2)
holds it where it is about to reply.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mounts import RENAME_NOREPLACE, needs_root, needs_secretmem, renameat2, wait_readable
from needles import Needles, Searcher
from tracing import WRITEV, Stopped
from watched import Watched, opened

pytestmark = [needs_root, pytest.mark.slow]

MIB = 1 << 20
SIZE = 256 << 10
libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module")
def searcher() -> Iterator[Searcher]:
    """The process that searches."""
    with Searcher(Needles()) as searcher:
        yield searcher


@pytest.fixture(scope="module", params=[pytest.param("kernel", marks=needs_secretmem), "emulator"])
def mount(
    request: pytest.FixtureRequest, searcher: Searcher, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    """A small mount of each kind."""
    path = tmp_path_factory.mktemp("interrupted") / "mnt"
    with Watched(path, searcher, "--backend", request.param, "--size", str(SIZE), "--max-files", "8") as mounted:
        yield mounted


@pytest.fixture
def here(mount: Watched) -> Iterator[Path]:
    """Its root. It is emptied at the end, and then nothing of any secret is anywhere."""
    yield mount.path
    subprocess.run(["find", mount.path, "-mindepth", "1", "-delete"], check=True)
    mount.expect_nothing()


# Refused


def refusals(here: Path, secret: Callable[[str], bytes]) -> Iterator[tuple[int, Callable[[], object]]]:
    """Requests with a secret in them, and the errno that each is refused with."""

    def path(about: str, size: int = 200) -> Path:
        return here / os.fsdecode(secret(about)[:size])

    yield errno.ENOSPC, lambda: os.setxattr(here / "f", "user.b", secret("value without room") * 10)
    yield errno.EEXIST, lambda: os.setxattr(here / "f", "user.a", secret("value to create"), os.XATTR_CREATE)
    yield errno.ENODATA, lambda: os.setxattr(here / "f", "user.x", secret("value to replace"), os.XATTR_REPLACE)
    yield errno.EPERM, lambda: os.setxattr(here / "f", "user.secretfs.x", secret("value of ours"))
    yield errno.EOPNOTSUPP, lambda: os.setxattr(here / "f", "system.x", secret("value of the system's"))
    yield errno.EOPNOTSUPP, lambda: os.setxattr(here, "fuse_stacktrace", secret("value for pyfuse3"))
    yield errno.ENODATA, lambda: os.getxattr(here / "f", b"user." + secret("attribute")[:200])
    yield errno.ENODATA, lambda: os.removexattr(here / "f", b"user." + secret("attribute to remove")[:200])
    yield errno.EOPNOTSUPP, lambda: os.getxattr(here / "f", secret("attribute of no kind")[:200])
    yield errno.ENOSPC, lambda: os.symlink(secret("target without room")[:4000], here / "l")
    yield errno.EEXIST, lambda: os.symlink(secret("target")[:4000], here / "f")
    yield errno.ENAMETOOLONG, lambda: os.symlink(secret("target of a long name")[:4000], path("long", 300))
    yield errno.ENOENT, lambda: os.stat(path("not there"))
    yield errno.ENAMETOOLONG, lambda: os.stat(path("too long", 300))
    yield errno.ENAMETOOLONG, lambda: os.open(path("too long to create", 300), os.O_CREAT)
    yield errno.ENAMETOOLONG, lambda: os.rename(here / "f", path("too long to be renamed to", 300))
    yield errno.ENOENT, lambda: os.rename(path("not there to rename"), path("nor this"))
    yield errno.EINVAL, lambda: os.rename(here / "d", here / "d" / path("into itself").name)
    yield errno.EEXIST, lambda: renameat2(here / "f", here / "d" / "secret", RENAME_NOREPLACE)
    yield errno.ENOENT, lambda: os.unlink(path("not there to unlink"))
    yield errno.ENOENT, lambda: os.rmdir(path("not there to remove"))
    yield errno.EPERM, lambda: os.link(here / "d", path("no link to a directory"))
    yield errno.ENOSPC, lambda: os.mkdir(path("too many"))
    yield errno.ENOSPC, lambda: os.mknod(path("too many nodes"))
    yield errno.ENOSPC, lambda: os.open(path("too many files"), os.O_CREAT)


def test_refused_requests(mount: Watched, here: Path) -> None:
    """A request that is refused leaves nothing of what came with it."""
    (here / "f").write_bytes(b"")
    os.setxattr(here / "f", "user.a", b"")
    (here / "d").mkdir()
    (here / "d" / "secret").write_bytes(b"")
    with open(here / "full", "wb", buffering=0) as file:
        assert file.write(bytes(SIZE + 1)) == SIZE
    for number in range(4):
        (here / f"other{number}").mkdir()
    for code, request in refusals(here, lambda about: mount.needles.secret(5000, about)):
        with pytest.raises(OSError, match=r".") as refused:
            request()
        assert refused.value.errno == code
    mount.expect_nothing()


def test_answers_that_do_not_fit(mount: Watched, here: Path) -> None:
    """A value or a list of names that is larger than the client's buffer is read, refused, and leaves nothing."""
    value, name = mount.needles.secret(3000, "value"), b"user." + mount.needles.secret(200, "name")
    (here / "f").write_bytes(b"")
    os.setxattr(here / "f", name, value)
    for size in (0, 1, 100, 2999):
        for code in (call_getxattr(here / "f", name, size), call_listxattr(here / "f", min(size, 199))):
            assert code == (errno.ERANGE if size else 0)
    mount.expect_only(value, name)


def call_getxattr(path: Path, name: bytes, size: int) -> int:
    """The errno of getxattr(2) into a buffer of so many bytes."""
    buffer = ctypes.create_string_buffer(size + 1)
    return errno_of(libc.getxattr(os.fsencode(path), name, buffer, ctypes.c_size_t(size)))


def call_listxattr(path: Path, size: int) -> int:
    """The errno of listxattr(2) into a buffer of so many bytes."""
    buffer = ctypes.create_string_buffer(size + 1)
    return errno_of(libc.listxattr(os.fsencode(path), buffer, ctypes.c_size_t(size)))


def errno_of(result: int) -> int:
    """0 where a call of the C library succeeded."""
    return ctypes.get_errno() if result < 0 else 0


def test_out_of_room(mount: Watched, here: Path) -> None:
    """A write that takes the last room is cut, the next is refused, and of neither anything is left but what fits."""
    cut, refused, beyond = (mount.needles.secret(SIZE, about) for about in ("cut", "refused", "beyond any file"))
    with opened(here / "f", os.O_WRONLY | os.O_CREAT) as fd:
        taken = os.pwrite(fd, cut, 100_000)
        assert 100_000 < taken < SIZE
        for offset in (100_000 + taken, 1 << 40):
            with pytest.raises(OSError, match="No space"):
                os.pwrite(fd, refused, offset)
        with pytest.raises(OSError, match=r"too large|Invalid"):
            os.pwrite(fd, beyond, (1 << 63) - 10)
    with opened(here / "f", os.O_WRONLY | os.O_APPEND) as fd, pytest.raises(OSError, match="No space"):
        os.write(fd, refused)
    mount.expect_only(cut[:taken])


# Interrupted

CLIENT = """
import os, sys
path, how, offset = sys.argv[1], sys.argv[2], int(sys.argv[3])
fd = os.open(path, os.O_RDWR)
size = os.fstat(fd).st_size
data = sys.stdin.buffer.read(int(sys.argv[4]))
if how == "unlink":
    os.close(fd)
print("ready", flush=True)
sys.stdin.buffer.read(1)
if how == "read":
    os.pread(fd, size, offset)
elif how == "unlink":
    os.unlink(path)
else:
    os.pwrite(fd, data, offset)
"""


class Client:
    """A program that makes one request for a file when it is told to."""

    def __init__(self, path: Path, how: str, data: bytes = b"", offset: int = 0) -> None:
        command = [sys.executable, "-I", "-c", CLIENT, os.fspath(path), how, str(offset), str(len(data))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self.pidfd = os.pidfd_open(self._process.pid)
        self._process.stdin.write(data)
        assert self._process.stdout.readline() == b"ready\n"

    def go(self) -> None:
        """Now."""
        self._process.stdin.write(b"!")

    def kill(self) -> None:
        """With SIGKILL; while its request is being answered it cannot die."""
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        wait_readable(self.pidfd)
        os.close(self.pidfd)
        self._process.communicate()


@pytest.mark.parametrize("answered_by", ["python", "shim"])
def test_killed_reader(mount: Watched, here: Path, answered_by: str) -> None:
    """A client that is killed while its read is being answered leaves nothing: what was in the window is wiped."""
    secret = mount.needles.secret(200_000)
    (here / "f").write_bytes(secret)
    with opened(here / "f", os.O_RDONLY) as fd, Client(here / "f", "read") as client:
        if answered_by == "shim":
            os.pread(fd, 100, 0)
        assert ("read" in mount.answered_by_shim(here / "f", 65536)) == (answered_by == "shim")
        with Stopped(mount.daemon) as daemon:
            client.go()
            daemon.run_to_call(WRITEV)
            assert copies(mount, secret)["locked"] == 1 + (not mount.secret_areas)
            client.kill()
    mount.expect_only(secret)


@pytest.mark.parametrize("answered_by", ["python", "shim"])
def test_killed_writer(mount: Watched, here: Path, answered_by: str) -> None:
    """A client that is killed while its write is being answered leaves nothing but what it has written."""
    before, secret = mount.needles.secret(200_000, "before"), mount.needles.secret(200_000, "written")
    (here / "f").write_bytes(before)
    offset = 16_000 if answered_by == "python" else 0
    with opened(here / "f", os.O_RDONLY), Client(here / "f", "write", secret, offset) as client:
        mount.settle()
        with Stopped(mount.daemon) as daemon:
            client.go()
            daemon.run_to_call(WRITEV)
            assert mount.written_by_the_shim() == (answered_by == "shim")
            assert copies(mount, secret).get("ordinary", 0) == (answered_by == "shim")  # in the receive buffer
            client.kill()
    mount.expect_only(secret, before[:offset])


def test_first_write_answered_in_c(mount: Watched, here: Path) -> None:
    """The first write to a new file may be answered by the shim, in memory that was lent to the file."""
    secret = mount.needles.secret(4096)
    (here / "f").write_bytes(bytes(4096))  # so many are lent from now on
    with opened(here / "new", os.O_RDWR | os.O_CREAT), Client(here / "new", "write", secret) as client:
        mount.settle()
        with Stopped(mount.daemon) as daemon:
            client.go()
            daemon.run_to_call(WRITEV)
            assert mount.written_by_the_shim() == 1
            client.kill()
    mount.expect_only(secret)
    assert (here / "new").read_bytes() == secret


@pytest.mark.parametrize("what", ["small", "large", "with a hole", "with an attribute"])
def test_unlinked_answered_in_c(mount: Watched, here: Path, what: str) -> None:
    """The shim unlinks files that it knows, if it knows all that there is of them. When the answer to an unlink goes,
    whoever gives it, data and attributes are wiped already, and the name but for the request itself.
    """
    size, times = (100, 1) if what == "small" else (20_000, 1) if what == "large" else (5000, 2)
    secret, name = mount.needles.secret(size), mount.needles.secret(200, "name")
    path = here / os.fsdecode(name)
    path.write_bytes(secret)
    if what == "with a hole":
        with opened(path, os.O_WRONLY) as fd:
            os.pwrite(fd, secret, MIB)
    if what == "with an attribute":
        os.setxattr(path, "user.a", secret)
    assert path.read_bytes()[:size] == secret
    (here / "other").touch()  # the shim unlinks in the directory that changed last
    with Client(path, "unlink") as client:
        mount.expect_only(*[secret] * times, name)
        os.stat(here)  # so that the kernel does not ask what the directory looks like
        with Stopped(mount.daemon) as daemon:
            client.go()
            daemon.run_to_call(WRITEV)
            assert mount.unlinked_by_the_shim() == (times == 1)
            assert not any(copies(mount, secret).values())
            assert sum(copies(mount, name).values()) == (times == 1), "the request itself, if the shim has it"
            client.kill()
    mount.expect_nothing()
    assert os.listdir(here) == ["other"]


def copies(mount: Watched, secret: bytes) -> dict[str, int]:
    """How often a secret is in the memory of the daemon, which is stopped, by kind of mapping."""
    once = mount.needles.marks(secret)
    found = mount.searcher.search(mount.daemon).marks
    return {kind: marks[next(iter(once))] // once[next(iter(once))] for kind, marks in found.items()}


@pytest.mark.parametrize("how", ["read", "write"])
def test_killed_before_it_is_answered(mount: Watched, here: Path, how: str) -> None:
    """A client that is killed while its request waits for the daemon leaves nothing, and the daemon goes on."""
    before, secret = mount.needles.secret(200_000, "before"), mount.needles.secret(200_000, "written")
    (here / "f").write_bytes(before)
    with Client(here / "f", how, secret) as client:
        mount.settle()
        mount.kill(signal.SIGSTOP, mount.daemon)
        client.go()
        wait_for_request(mount.daemon)
        client.kill()
        wait_readable(client.pidfd)
        mount.kill(signal.SIGCONT, mount.daemon)
    mount.expect_only(before)


def wait_for_request(pid: int) -> None:
    """Return when a request can be read from the daemon's /dev/fuse."""
    folder = f"/proc/{pid}/fd"
    (number,) = (int(name) for name in os.listdir(folder) if os.readlink(f"{folder}/{name}") == "/dev/fuse")
    pidfd = os.pidfd_open(pid)
    try:
        device = libc.syscall(438, pidfd, number, 0)  # pidfd_getfd(2)
        assert device >= 0
        wait_readable(device)
        os.close(device)
    finally:
        os.close(pidfd)


def test_killed_again_and_again(mount: Watched, here: Path) -> None:
    """Clients that are killed anywhere in what they do leave nothing but what is in their file."""
    script = "import os, sys\nfd = os.open(sys.argv[1], os.O_RDWR)\ndata = sys.stdin.buffer.read()\nprint(flush=True)\n"
    script += "while True:\n os.pwrite(fd, data, 0)\n os.pread(fd, len(data), 0)\n"
    script += " os.setxattr(fd, 'user.a', data[:9000])"
    (here / "f").write_bytes(b"")
    os.setxattr(here / "f", "user.a", b"")
    for turn in range(10):
        secret = mount.needles.secret(100_000 + turn * 10_000, f"turn {turn}")
        command = [sys.executable, "-I", "-c", script, here / "f"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
            client.stdin.write(secret)
            client.stdin.close()
            assert client.stdout.readline() == b"\n"
            for _ in range(turn):
                mount.settle()
            client.kill()
        mount.expect_only((here / "f").read_bytes(), os.getxattr(here / "f", "user.a"))
