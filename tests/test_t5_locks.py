"""Locks on a real mount, between processes: flock(2), fcntl(2), and those that belong to an open file description."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import signal
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import Mounted
from workers import Peer, wait_until, working

SHARED, EXCLUSIVE, NONE = fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN
_TYPES = {SHARED: fcntl.F_RDLCK, EXCLUSIVE: fcntl.F_WRLCK, NONE: fcntl.F_UNLCK}
_FLOCK = struct.Struct("hhqqi0q")  # struct flock of fcntl(2): type, whence, start, length, pid


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """One mount for the module."""
    with Mounted(tmp_path_factory.mktemp("locks") / "mnt", "--size", "1M") as mounted:
        yield mounted


@pytest.fixture
def file(mount: Mounted) -> Iterator[Path]:
    """A file to lock."""
    path = mount.path / "file"
    path.write_bytes(bytes(1000))
    yield path
    path.unlink()


class Kind:
    """One kind of lock."""

    def __init__(self, command: int | None = None, waiting: int | None = None) -> None:
        self._command, self._waiting = command, waiting

    def __call__(self, fd: int, how: int, *, wait: bool = True) -> None:
        """Lock the whole file, or unlock it."""
        if self._command is None or self._waiting is None:
            fcntl.flock(fd, how | (0 if wait else fcntl.LOCK_NB))
        else:
            request = _FLOCK.pack(_TYPES[how], os.SEEK_SET, 0, 0, 0)
            fcntl.fcntl(fd, self._waiting if wait else self._command, request)


KINDS = {
    "flock": Kind(),
    "fcntl": Kind(fcntl.F_SETLK, fcntl.F_SETLKW),
    "open file description": Kind(fcntl.F_OFD_SETLK, fcntl.F_OFD_SETLKW),
}
every_kind = pytest.mark.parametrize("lock", KINDS.values(), ids=KINDS)


def refused(lock: Kind, fd: int, how: int) -> bool:
    """Whether that lock cannot be had at once; if it can, it is taken."""
    try:
        lock(fd, how, wait=False)
    except BlockingIOError:
        return True
    return False


def waiting(file: Path) -> int:
    """How many are in the kernel's queue for a lock on that file (proc(5): /proc/locks); it does not always say who."""
    status = file.stat()
    which = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    return sum("->" in line and which in line.split() for line in lines)


class Flag:
    """A byte that is shared with forked processes."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 1)

    def set(self) -> None:
        """Set it."""
        self._memory[0] = 1

    def __bool__(self) -> bool:
        return bool(self._memory[0])


@every_kind
def test_exclusive_shuts_out(file: Path, lock: Kind) -> None:
    """While one process holds the exclusive lock another gets neither kind; shared locks bear each other."""
    mine = os.open(file, os.O_RDWR)

    def other(peer: Peer) -> None:
        fd = os.open(file, os.O_RDWR)
        peer.hear("held")
        assert refused(lock, fd, EXCLUSIVE) and refused(lock, fd, SHARED)
        peer.say("refused")
        peer.hear("shared")
        assert refused(lock, fd, EXCLUSIVE) and not refused(lock, fd, SHARED)

    with working(other) as (worker,):
        lock(mine, EXCLUSIVE)
        worker.say("held")
        worker.hear("refused")
        lock(mine, SHARED)
        worker.say("shared")
        assert worker.end() == 0
    assert not refused(lock, mine, EXCLUSIVE), "the lock of a process that has ended is still there"
    os.close(mine)


@every_kind
@pytest.mark.parametrize("held", [SHARED, EXCLUSIVE])
def test_waits_for_the_lock(file: Path, lock: Kind, held: int) -> None:
    """A process that asks for a lock sleeps until its holder lets go, and then has it."""
    mine, released = os.open(file, os.O_RDWR), Flag()
    lock(mine, held)

    def other(peer: Peer) -> None:
        fd = os.open(file, os.O_RDWR)
        lock(fd, EXCLUSIVE)
        assert released
        peer.say("have it")
        peer.hear()

    with working(other) as (worker,):
        wait_until(lambda: waiting(file))
        released.set()
        lock(mine, NONE)
        worker.hear("have it")
        assert refused(lock, mine, SHARED)
        worker.say()
        assert worker.end() == 0
    os.close(mine)


@every_kind
def test_upgrade(file: Path, lock: Kind) -> None:
    """Of two that share a lock one gets it for itself when the other lets go, not before, and not with LOCK_NB."""
    mine, released = os.open(file, os.O_RDWR), Flag()
    lock(mine, SHARED)

    def other(peer: Peer) -> None:
        fd = os.open(file, os.O_RDWR)
        lock(fd, SHARED)
        assert refused(lock, fd, EXCLUSIVE)
        lock(fd, SHARED)  # a flock that could not be converted is lost: flock(2)
        peer.say()
        lock(fd, EXCLUSIVE)
        assert released
        peer.say("upgraded")
        peer.hear()

    with working(other) as (worker,):
        worker.hear()
        wait_until(lambda: waiting(file))
        released.set()
        lock(mine, NONE)
        worker.hear("upgraded")
        assert refused(lock, mine, SHARED)
        worker.say()
        assert worker.end() == 0
    os.close(mine)


@every_kind
def test_kill_releases(file: Path, lock: Kind) -> None:
    """A lock goes to the next in the queue when its holder is killed, and one who is killed while waiting gets none."""

    def holder(peer: Peer) -> None:
        lock(os.open(file, os.O_RDWR), EXCLUSIVE)
        peer.say()
        peer.hear()

    def heir(peer: Peer) -> None:
        fd = os.open(file, os.O_RDWR)
        lock(fd, EXCLUSIVE)
        peer.say("have it")
        peer.hear()
        os.close(fd)

    with working(holder) as (first,):
        first.hear()
        with working(heir, heir) as (victim, second):
            wait_until(lambda: waiting(file) == 2)
            victim.kill()
            wait_until(lambda: waiting(file) == 1)
            assert second.is_silent()
            first.kill()
            second.hear("have it")
            second.say()
            assert second.end() == 0
    mine = os.open(file, os.O_RDWR)
    assert not refused(lock, mine, EXCLUSIVE)
    os.close(mine)


@every_kind
def test_signal_ends_the_wait(file: Path, lock: Kind) -> None:
    """A signal takes a process out of the queue, and the lock is not lost with it."""
    mine = os.open(file, os.O_RDWR)
    lock(mine, EXCLUSIVE)

    def other(peer: Peer) -> None:
        def give_up(*_: object) -> None:
            raise InterruptedError

        signal.signal(signal.SIGUSR1, give_up)
        with pytest.raises(InterruptedError):
            lock(os.open(file, os.O_RDWR), EXCLUSIVE)

    with working(other) as (worker,):
        wait_until(lambda: waiting(file))
        worker.signal(signal.SIGUSR1)
        assert worker.end() == 0
    assert not waiting(file)
    os.close(mine)


def test_ranges_and_owner(file: Path) -> None:
    """fcntl locks hold for a range, tell who has it, and one that would wait for itself is refused with EDEADLK."""
    mine = os.open(file, os.O_RDWR)
    fcntl.lockf(mine, EXCLUSIVE, 10, 0)

    def other(peer: Peer) -> None:
        fd = os.open(file, os.O_RDWR)
        fcntl.lockf(fd, EXCLUSIVE, 10, 10)
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 5, 100, 0)
        _, _, start, length, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, asked))
        assert (start, length, pid) == (0, 10, os.getppid())
        peer.say()
        fcntl.lockf(fd, EXCLUSIVE, 10, 0)

    with working(other) as (worker,):
        worker.hear()
        wait_until(lambda: waiting(file))
        with pytest.raises(OSError, match="deadlock") as refusal:
            fcntl.lockf(mine, EXCLUSIVE, 10, 15)
        assert refusal.value.errno == errno.EDEADLK
        fcntl.lockf(mine, NONE, 10, 0)
        assert worker.end() == 0
    os.close(mine)


def test_whose_lock_it_is(file: Path) -> None:
    """Closing any descriptor drops a process's fcntl lock; a flock or OFD lock stays until the last of its own."""
    for name, lock in KINDS.items():
        mine, another = os.open(file, os.O_RDWR), os.open(file, os.O_RDWR)
        duplicate = os.dup(mine)
        lock(mine, EXCLUSIVE)
        os.close(os.open(file, os.O_RDONLY))
        os.close(mine)

        def try_it(_: Peer, lock: Kind = lock) -> None:
            assert not refused(lock, os.open(file, os.O_RDWR), EXCLUSIVE)

        with working(try_it) as (worker,):
            if name == "fcntl":
                assert worker.end() == 0
        if name != "fcntl":
            assert refused(lock, another, EXCLUSIVE)
        os.close(duplicate)
        assert not refused(lock, another, EXCLUSIVE)
        os.close(another)
