"""Mappings of files on a real mount: private ones always, shared ones with --cached."""

from __future__ import annotations

import errno
import mmap
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import Mounted
from sharedmount import here, mount, noise
from workers import Peer, working

from secretfs.testing.children import outcome_in_child

MIB = 1 << 20


@pytest.mark.parametrize("protection", [mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE])
def test_no_shared_mapping(here: Path, protection: int) -> None:
    """A shared mapping is ENODEV, for reading too: direct I/O has no page that could be shared."""
    (here / "f").write_bytes(b"data" * 3000)
    for flags in (mmap.MAP_SHARED, 3):  # MAP_SHARED_VALIDATE
        with open(here / "f", "r+b") as file, pytest.raises(OSError, match="No such device") as refusal:
            mmap.mmap(file.fileno(), 12_000, flags=flags, prot=protection)
        assert refusal.value.errno == errno.ENODEV
    assert (here / "f").read_bytes() == b"data" * 3000


def test_private_mapping(here: Path) -> None:
    """It shows the file to its end, keeps what is written to it for itself, and outlives the file's name."""
    data = noise(10_000)
    (here / "f").write_bytes(data)
    with open(here / "f", "rb") as file:
        mapped = mmap.mmap(file.fileno(), 10_000, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    assert mapped[:] == data
    mapped[5:8] = b"own"
    assert (here / "f").read_bytes() == data
    (here / "f").unlink()
    assert mapped[:] == data[:5] + b"own" + data[8:]
    mapped.close()


def test_private_mapping_of_what_was_written_since(here: Path) -> None:
    """A mapping made after a write shows it, though an older mapping and its page are still there."""
    with open(here / "f", "w+b", buffering=0) as file:
        file.write(b"a" * 8192)
        with mmap.mmap(file.fileno(), 8192, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as old:
            assert old[4090:4100] == b"a" * 10
            os.pwrite(file.fileno(), b"b" * 6, 4093)
            with mmap.mmap(file.fileno(), 8192, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as new:
                assert new[4090:4100] == b"aaabbbbbba"
            os.ftruncate(file.fileno(), 4094)
            os.ftruncate(file.fileno(), 8192)
            with mmap.mmap(file.fileno(), 8192, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as new:
                assert new[4090:4100] == b"aaab" + bytes(6)


def test_mapping_beyond_the_end_is_sigbus(here: Path) -> None:
    """Whoever touches a page of a mapping that lies behind the end of the file gets SIGBUS, as everywhere."""
    (here / "f").write_bytes(b"x" * 5000)
    with open(here / "f", "rb") as file:
        mapped = mmap.mmap(file.fileno(), 5000, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    os.truncate(here / "f", 100)
    assert outcome_in_child(lambda: mapped[4999]).signal == signal.SIGBUS
    assert mapped[:200] == b"x" * 100 + bytes(100)
    mapped.close()


def test_mapping_as_the_buffer_of_a_request(here: Path) -> None:
    """Data that lies in a mapping of one file is written to another, and read into one, without a deadlock."""
    data = noise(MIB + 4321)
    (here / "source").write_bytes(data)
    (here / "target").write_bytes(b"")
    with open(here / "source", "r+b", buffering=0) as source, open(here / "target", "r+b", buffering=0) as target:
        private = {"flags": mmap.MAP_PRIVATE, "prot": mmap.PROT_READ | mmap.PROT_WRITE}
        with mmap.mmap(source.fileno(), len(data), **private) as mapped:
            assert target.write(mapped) == len(data)
            assert source.write(mapped) == len(data), "into the file itself"
        assert (here / "target").read_bytes() == (here / "source").read_bytes() == data
        with mmap.mmap(source.fileno(), len(data), **private) as mapped:
            assert os.preadv(target.fileno(), [mapped], 0) == len(data)
            assert mapped[:] == data


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """One mount with --cached for the module."""
    with Mounted(tmp_path_factory.mktemp("cached") / "mnt", "--cached", "--size", "1M") as mounted:
        yield mounted


def test_shared_mapping_with_cached(cached: Mounted) -> None:
    """With --cached two processes see each other's writes to a shared mapping, and read and write see them too."""
    path = cached.path / "f"
    path.write_bytes(bytes(3 * 4096))

    def other(peer: Peer) -> None:
        with open(path, "r+b", buffering=0) as file, mmap.mmap(file.fileno(), 0) as mapped:
            peer.hear("map")
            assert mapped[5000:5005] == b"first"
            mapped[5005:5011] = b"second"
            peer.say()
            peer.hear("write")
            assert mapped[100:105] == b"third"
            os.pwrite(file.fileno(), b"fourth", 9000)

    with working(other) as (worker,), open(path, "r+b", buffering=0) as file:
        mapped = mmap.mmap(file.fileno(), 0)
        mapped[5000:5005] = b"first"
        worker.say("map")
        worker.hear()
        assert mapped[5000:5011] == os.pread(file.fileno(), 11, 5000) == b"firstsecond"
        os.pwrite(file.fileno(), b"third", 100)
        worker.say("write")
        assert worker.end() == 0
        assert mapped[9000:9006] == b"fourth"
        mapped.flush()
        mapped.close()
    assert path.read_bytes()[5000:5011] == b"firstsecond"


def test_guarantees_with_cached(cached: Mounted, mount: Mounted) -> None:
    """A mount with --cached says which guarantees that costs: when it is made and whenever it is asked."""
    with_pages = {"off_direct_map", "refuses_pinning", "cleared_by_kernel", "not_hibernated"}
    here, there = cached.status(), mount.status()
    assert not any(here["guarantees"][name] for name in with_pages)
    assert with_pages <= set(here["lost"])
    assert "--cached keeps plaintext in the page cache" in cached.said.stderr
    assert {name for name, held in there["guarantees"].items() if held} >= {
        name for name, held in here["guarantees"].items() if held
    }
