"""Many processes and threads at work in one mount at once: nothing is lost, nobody waits for long, nothing stays open.

Each worker keeps its own account of what it did, and in the end all accounts are compared with what is there.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import random
import shutil
import struct
import threading
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mounts import Mounted
from workers import Peer, wait_until, working

PROCESSES, THREADS = 8, 4  # of each
STRIPE = 8192
RECORD = struct.Struct("<IIIQI")  # process, thread, number, filling, checksum of what is before

pytestmark = pytest.mark.slow


@pytest.fixture(params=[[], ["--cached"]], ids=["direct", "cached"])
def mount(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mounted]:
    """A mount that must be as empty as before afterwards, and whose daemon as idle."""
    with Mounted(tmp_path / "mnt", "--size", "32M", *request.param) as mounted:
        before = daemon_holds(mounted)
        yield mounted
        for entry in list(mounted.path.iterdir()):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        wait_until(lambda: mounted.held() == (0, 0))
        assert daemon_holds(mounted) == before


def daemon_holds(mount: Mounted) -> tuple[int, list[str]]:
    """Threads (those that trio keeps for later left out) and descriptors of the daemon."""
    names = [Path(task, "comm").read_text() for task in Path(f"/proc/{mount.daemon}/task").iterdir()]
    descriptors = os.listdir(f"/proc/{mount.daemon}/fd") if os.geteuid() == 0 else []
    return sum("Trio" not in name for name in names), sorted(descriptors)


class Hammer:
    """One thread's work. Each method listed in `blows` does one thing and checks it; they are called at random."""

    def __init__(self, top: Path, process: int, thread: int) -> None:
        self.top, self.process, self.thread = top, process, thread
        self.random = random.Random(process * 100 + thread)
        self.number = process * THREADS + thread
        self.done: Counter[str] = Counter()
        self.model = bytearray()
        self.own = top / f"own{self.number}"
        self.own.touch()

    def blows(self) -> list[Callable[[], None]]:
        """What it can do."""
        return [
            self.own_file, self.own_file, self.mapping, self.stripe, self.stripe, self.log, self.log, self.count_flock,
            self.count_fcntl, self.count_exclusive, self.replace, self.read_replaced, self.folder, self.links,
            self.unlinked,
        ]  # fmt: skip

    def run(self, end: float) -> None:
        """Work until then."""
        blows = self.blows()
        while time.monotonic() < end:
            blow = self.random.choice(blows)
            blow()
            self.done[blow.__name__] += 1
        assert self.own.read_bytes() == self.model

    def own_file(self) -> None:
        """Write, cut, append and rename a file of its own."""
        with open(self.own, "r+b", buffering=0) as file:
            for _ in range(self.random.randrange(1, 5)):
                at, size = self.random.randrange(40_000), self.random.choice((1, 60, 4096, 30_000))
                data = self.random.randbytes(size)
                assert os.pwrite(file.fileno(), data, at) == size
                self.model.extend(bytes(max(0, at + size - len(self.model))))
                self.model[at : at + size] = data
            if self.random.random() < 0.3:
                cut = self.random.randrange(len(self.model) + 1)
                os.ftruncate(file.fileno(), cut)
                del self.model[cut:]
            assert os.pread(file.fileno(), 100_000, 0) == self.model
        self.own = self.own.rename(self.top / f"own{self.number}-{self.random.randrange(3)}")

    def mapping(self) -> None:
        """Look at its own file through a private mapping."""
        if self.model:
            with open(self.own, "rb") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE) as mapped:
                assert mapped[:] == self.model

    def stripe(self) -> None:
        """Write and read its part of a file that all write to."""
        data = self.random.randbytes(STRIPE)
        with open(self.top / "shared", "r+b", buffering=0) as file:
            at = self.number * STRIPE
            assert os.pwrite(file.fileno(), data, at) == STRIPE
            assert os.pread(file.fileno(), STRIPE, at) == data
            assert len(os.pread(file.fileno(), 1 << 20, 0)) == PROCESSES * THREADS * STRIPE

    def log(self) -> None:
        """Append a record to a file that all append to."""
        head = RECORD.pack(self.process, self.thread, self.done["log"], self.random.getrandbits(64), 0)[:-4]
        with open(self.top / "log", "ab", buffering=0) as file:
            file.write(head + struct.pack("<I", zlib.crc32(head)))

    def _count(self, name: str) -> None:
        path = self.top / name
        path.write_bytes(b"%d" % (int(path.read_bytes()) + 1))

    def count_flock(self) -> None:
        """Count up under a flock."""
        with open(self.top / "lock", "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._count("count_flock")

    def count_fcntl(self) -> None:
        """Count up under a lock of the process, and one among its threads."""
        with fcntl_turn, open(self.top / "lock2", "r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            self._count("count_fcntl")

    def count_exclusive(self) -> None:
        """Count up, if it is the one whose O_EXCL succeeds."""
        try:
            fd = os.open(self.top / "exclusive", os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            self.done["count_exclusive"] -= 1
            return
        self._count("count_exclusive")
        os.close(fd)
        (self.top / "exclusive").unlink()

    def replace(self) -> None:
        """Replace a file that all replace by rename."""
        data = self.random.randbytes(self.random.randrange(1, 20_000))
        path = self.top / f"new{self.number}"
        path.write_bytes(data + struct.pack("<I", zlib.crc32(data)))
        path.rename(self.top / f"current{self.random.randrange(3)}")

    def read_replaced(self) -> None:
        """Whatever file has the name is whole."""
        data = (self.top / f"current{self.random.randrange(3)}").read_bytes()
        assert struct.unpack("<I", data[-4:])[0] == zlib.crc32(data[:-4])

    def folder(self) -> None:
        """Make, list, move and remove a folder."""
        folder = self.top / f"folder{self.number}"
        folder.mkdir()
        names = {f"f{number}" for number in range(self.random.randrange(1, 20))}
        for name in names:
            (folder / name).write_bytes(name.encode() * 20)
        moved = folder.rename(self.top / f"moved{self.number}")
        assert set(os.listdir(moved)) == names
        for name in names:
            assert (moved / name).read_bytes() == name.encode() * 20
            (moved / name).unlink()
        moved.rmdir()

    def links(self) -> None:
        """Give its own file another name, a symbolic one and an attribute for a moment."""
        name = self.top / f"link{self.number}"
        os.link(self.own, name)
        os.setxattr(name, "user.number", b"%d" % self.number)
        assert self.own.stat().st_nlink == 2
        assert os.getxattr(self.own, "user.number") == b"%d" % self.number
        name.unlink()
        name.symlink_to(self.own.name)
        assert name.read_bytes() == self.model
        name.unlink()

    def unlinked(self) -> None:
        """Use a file that has no name any more."""
        path, data = self.top / f"gone{self.number}", self.random.randbytes(self.random.randrange(1, 300_000))
        with open(path, "w+b", buffering=0) as file:
            path.unlink()
            file.write(data)
            assert os.pread(file.fileno(), 400_000, 0) == data


fcntl_turn = threading.Lock()


def hammer(top: Path, process: int, seconds: float, peer: Peer) -> None:
    """One process: its threads, and then their accounts in a file."""
    workers = [Hammer(top, process, thread) for thread in range(THREADS)]
    peer.say()
    peer.hear()
    end = time.monotonic() + seconds
    failed: list[str] = []

    def run(worker: Hammer) -> None:
        try:
            worker.run(end)
        except BaseException:
            failed.append(f"{worker.number}: {traceback.format_exc()}")

    threads = [threading.Thread(target=run, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, "\n".join(failed)
    (top / f"account{process}").write_text(json.dumps([worker.done for worker in workers]), encoding="utf-8")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seconds", [4, pytest.param(60, marks=pytest.mark.long)])
def test_hammer(mount: Mounted, seconds: float) -> None:
    """8 processes with 4 threads each: no write, record, count or file is lost, and no one of them is stuck."""
    top = mount.path / "top"
    top.mkdir()
    (top / "shared").write_bytes(bytes(PROCESSES * THREADS * STRIPE))
    for name in ("lock", "lock2", "log"):
        (top / name).touch()
    for name in ("count_flock", "count_fcntl", "count_exclusive"):
        (top / name).write_bytes(b"0")
    for number in range(3):
        (top / f"current{number}").write_bytes(struct.pack("<I", 0))

    with working(*[lambda peer, n=number: hammer(top, n, seconds, peer) for number in range(PROCESSES)]) as workers:
        for worker in workers:
            worker.hear()
        for worker in workers:
            worker.say()
        assert [worker.end(seconds + 90) for worker in workers] == [0] * PROCESSES

    accounts = [json.loads((top / f"account{process}").read_text()) for process in range(PROCESSES)]
    total = sum((Counter(account) for process in accounts for account in process), Counter())
    print(dict(total))
    assert all(sum(account.values()) > 0 for process in accounts for account in process)
    for name in ("count_flock", "count_fcntl", "count_exclusive"):
        assert int((top / name).read_bytes()) == total[name] > 0
    records = list(RECORD.iter_unpack((top / "log").read_bytes()))
    assert len(records) == total["log"]
    expected = {
        (process, thread, number)
        for process in range(PROCESSES)
        for thread in range(THREADS)
        for number in range(accounts[process][thread].get("log", 0))
    }
    assert {record[:3] for record in records} == expected
    for record in records:
        assert zlib.crc32(RECORD.pack(*record)[:-4]) == record[-1]
