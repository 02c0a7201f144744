"""Clients that end in the middle of what they do, or that are slow about it: the mount neither waits nor forgets."""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mounts import Mounted
from sharedmount import mount
from workers import Peer, Worker, wait_until, working

MIB = 1 << 20

pytestmark = pytest.mark.slow


@pytest.fixture
def here(mount: Mounted) -> Iterator[Path]:
    """A directory in the mount. In the end all files are removed: one that is still there has a handle that leaked."""
    before = mount.held(), descriptors(mount)
    folder = mount.path / "here"
    folder.mkdir()
    yield folder
    expect_windows(folder)
    subprocess.run(["rm", "-rf", folder], check=True)
    wait_until(
        lambda: mount.held() == before[0]
    )  # the kernel closes what a process that ended had open in its own time
    assert descriptors(mount) == before[1]


def descriptors(mount: Mounted) -> list[str]:
    """Those of the daemon, which only root may see."""
    return sorted(os.listdir(f"/proc/{mount.daemon}/fd")) if os.geteuid() == 0 else []


def expect_windows(folder: Path) -> None:
    """The largest replies there are can be made: nothing that they go through is still in somebody's hands."""
    data = random.Random(1).randbytes(2 * MIB)
    for offset in (0, 1):  # the shim answers, or Python
        with open(folder / "windows", "w+b", buffering=0) as file:
            assert os.pwrite(file.fileno(), data, offset) == len(data)
            assert os.pread(file.fileno(), len(data), offset) == data
    assert "windows" in os.listdir(folder)


def state(worker: Worker) -> str:
    """A letter: R while it runs, S or D while it waits (proc(5))."""
    return Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[0]


# Cancelled


def requests(folder: Path, number: int) -> list[Callable[[], object]]:
    """What a client may be in the middle of; each may be repeated, and leaves open what it opens."""
    shared, own = folder / "shared", folder / f"own{number}"
    data = bytes([number]) * MIB

    def listing() -> None:
        with os.scandir(folder) as entries:
            next(entries, None)

    return [
        shared.read_bytes,
        lambda: os.pwrite(os.open(shared, os.O_RDWR), data, 0),
        lambda: os.write(os.open(own, os.O_RDWR | os.O_CREAT), data[: 4096 * number]),
        lambda: os.open(own, os.O_RDWR | os.O_CREAT | os.O_TRUNC),
        lambda: os.open(folder, os.O_RDONLY | os.O_DIRECTORY),
        listing,
        lambda: os.setxattr(shared, "user.x", data[:5000]),
        lambda: os.getxattr(shared, "user.x"),
        lambda: os.truncate(shared, MIB),
        lambda: own.unlink(missing_ok=True),
        lambda: own.exists() and own.rename(folder / f"other{number}"),
        lambda: mmap.mmap(os.open(shared, os.O_RDONLY), MIB, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)[MIB - 1],
    ]


def prepare(folder: Path) -> None:
    """Make the file that they share."""
    (folder / "shared").write_bytes(bytes(MIB))
    os.setxattr(folder / "shared", "user.x", b"x")


def test_killed_anywhere(mount: Mounted, here: Path) -> None:
    """Clients that are killed at any moment leave no handle, no window and no lock behind, nor harm others."""
    prepare(here)

    def restless(number: int, peer: Peer) -> None:
        choice = random.Random(number)
        fcntl.flock(os.open(here / f"lock{number}", os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)
        peer.say()
        while True:
            for request in choice.sample(requests(here, number), 6):
                request()
            os.closerange(20, 10_000)

    for turn in range(6):
        with working(
            *[lambda peer, n=number: restless(n, peer) for number in range(turn * 4, turn * 4 + 4)]
        ) as clients:
            for client in clients:
                client.hear()
            for client in clients:
                for _ in range(turn * 5):
                    os.statvfs(mount.path)  # let some requests be answered
                client.kill()
                assert client.end() == -signal.SIGKILL
        for number in range(turn * 4, turn * 4 + 4):
            with open(here / f"lock{number}", "rb") as lock:
                wait_until(lambda lock=lock: can_lock(lock.fileno()))


def can_lock(fd: int) -> bool:
    """Whether a flock on it can be had at once."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def test_killed_while_waiting(mount: Mounted, here: Path) -> None:
    """Clients that are killed while the daemon has not got to their request end at once, and leave nothing."""
    prepare(here)
    count = len(requests(here, 0))

    def one(number: int, peer: Peer) -> None:
        request = requests(here, number)[number]
        (here / f"own{number}").touch()
        peer.say()
        peer.hear()
        peer.say("asking")
        request()

    with working(*[lambda peer, n=number: one(n, peer) for number in range(count)]) as clients:
        for client in clients:
            client.hear()
        mount.kill(signal.SIGSTOP, mount.daemon)
        try:
            for client in clients:
                client.say()
                client.hear("asking")
            for client in clients:
                wait_until(lambda client=client: state(client) in "SD")
                client.kill()
                assert client.end() == -signal.SIGKILL
        finally:
            mount.kill(signal.SIGCONT, mount.daemon)


def test_interrupted_by_a_signal(mount: Mounted, here: Path) -> None:
    """A client whose request is answered while signals come in gets whole answers: handlers run, no call is lost."""
    data = random.Random(2).randbytes(MIB)
    (here / "f").write_bytes(data)

    def counting(peer: Peer) -> None:
        heard = []
        signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
        peer.say()
        while len(heard) < 50:
            assert (here / "f").read_bytes() == data
            (here / "g").write_bytes(data)
            assert (here / "g").stat().st_size == MIB
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        peer.say("enough")

    with working(counting) as (client,):
        client.hear()
        while client.is_silent():
            client.signal(signal.SIGUSR1)
            os.statvfs(mount.path)
        client.hear("enough")
        assert client.end() == 0


# Slow


def work(folder: Path) -> None:
    """What another client does meanwhile; each of it must be answered."""
    for number in range(20):
        path = folder / f"work{number}"
        path.write_bytes(b"x" * 100_000)
        path.chmod(0o600)
        path.rename(folder / "worked")
        assert (folder / "worked").read_bytes() == b"x" * 100_000
        assert "worked" in os.listdir(folder)
        (folder / "worked").unlink()


def test_stopped_client(here: Path) -> None:
    """While a client with a file, a listing, a lock and a mapping open is stopped, another one works in its files."""
    prepare(here)

    def holder(peer: Peer) -> None:
        with open(here / "shared", "r+b", buffering=0) as file, os.scandir(here) as entries:
            fcntl.lockf(file, fcntl.LOCK_EX, 10, 0)
            mapped = mmap.mmap(file.fileno(), MIB, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
            next(entries, None)
            peer.say()
            peer.hear()
            assert file.read(5) == b"other"
            mapped.close()

    with working(holder) as (client,):
        client.hear()
        client.signal(signal.SIGSTOP)
        wait_until(lambda: state(client) == "T")
        work(here)
        with open(here / "shared", "r+b", buffering=0) as file:
            file.write(b"other")
            with pytest.raises(BlockingIOError):
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)
        client.signal(signal.SIGCONT)
        client.say()
        assert client.end() == 0


@pytest.mark.parametrize("how", ["write", "read"])
def test_client_stuck_in_its_buffer(mount: Mounted, here: Path, tmp_path: Path, how: str) -> None:
    """A client whose buffer cannot be had keeps nobody waiting: it lies in a file of a mount that does not answer.

    Who writes holds the file's lock in the kernel, as on a tmpfs: others read that file, and write to all others.
    """
    prepare(here)
    with Mounted(tmp_path / "other", "--size", "1M") as other:
        (other.path / "buffer").write_bytes(b"b" * 8192)

        def stuck(name: str, peer: Peer) -> None:
            with open(other.path / "buffer", "rb") as file:
                buffer = mmap.mmap(file.fileno(), 8192, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
            with open(here / name, "r+b", buffering=0) as file:
                peer.say()
                peer.hear()
                peer.say("asking")
                assert (file.write(buffer) if how == "write" else file.readinto(buffer)) == 8192

        (here / "another").write_bytes(bytes(MIB))
        with working(*(lambda peer, n=name: stuck(n, peer) for name in ("shared", "another"))) as (client, killed):
            for each in (client, killed):
                each.hear()
            other.kill(signal.SIGSTOP, other.daemon)
            try:
                for each in (client, killed):
                    each.say()
                    each.hear("asking")
                    wait_until(lambda each=each: state(each) in "SD")
                work(here)
                assert (here / "shared").read_bytes() == bytes(MIB)
                killed.kill()
            finally:
                other.kill(signal.SIGCONT, other.daemon)
            assert client.end() == 0
        assert (here / "shared").read_bytes()[:8192] == (b"b" * 8192 if how == "write" else bytes(8192))


def test_clients_that_wait_for_each_other(here: Path) -> None:
    """Clients that wait for a lock, a FIFO's other end or a connection do so in the kernel, and not in the daemon."""
    (here / "lock").touch()
    os.mkfifo(here / "fifo")
    mine = os.open(here / "lock", os.O_RDWR)
    fcntl.flock(mine, fcntl.LOCK_EX)
    fcntl.lockf(mine, fcntl.LOCK_EX)
    waits: list[Callable[[], object]] = [
        lambda: fcntl.flock(os.open(here / "lock", os.O_RDWR), fcntl.LOCK_EX),
        lambda: fcntl.lockf(os.open(here / "lock", os.O_RDWR), fcntl.LOCK_EX),
        lambda: os.open(here / "fifo", os.O_RDONLY),
        lambda: os.open(here / "fifo", os.O_RDONLY),
    ]

    def waiting(wait: Callable[[], object], peer: Peer) -> None:
        peer.say()
        wait()

    with working(*[lambda peer, wait=wait: waiting(wait, peer) for wait in waits]) as clients:
        for client in clients:
            client.hear()
            wait_until(lambda client=client: state(client) == "S")
        work(here)
        fcntl.flock(mine, fcntl.LOCK_UN)
        fcntl.lockf(mine, fcntl.LOCK_UN)
        os.close(mine)
        os.close(os.open(here / "fifo", os.O_WRONLY))
        assert [client.end() for client in clients] == [0] * len(waits)
