"""The searcher that test_t5_residue.py relies on: it finds what is there, counts it once, and holds nothing itself."""

from __future__ import annotations

import errno
import random
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest
import residue
from mounts import needs_root
from needles import HEAD, ID, MARK, RECORD, TAIL, Needles, Searcher
from residue import CHUNK, PAGE, Range

pytestmark = needs_root

SIZE = 3 * CHUNK
HOLDER = f"""
import mmap, os, struct
memory = mmap.mmap(-1, {SIZE}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
while request := os.read(0, 16):
    at, size = struct.unpack("QQ", request)
    os.readv(0, [memoryview(memory)[at : at + size]])
    os.write(1, b"+")
"""


class Holder:
    """A process with a mapping of three blocks; what is put there is nowhere else in it."""

    def __init__(self) -> None:
        command = [sys.executable, "-I", "-c", HOLDER]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self.pid = self.process.pid

    def put(self, at: int, data: bytes) -> None:
        """Let it hold `data`."""
        self.process.stdin.write(struct.pack("QQ", at, len(data)) + data)
        assert self.process.stdout.read(1) == b"+"


@pytest.fixture
def holder() -> Iterator[Holder]:
    """A process to be searched."""
    holder = Holder()
    yield holder
    holder.process.communicate(timeout=20)


@pytest.fixture
def searcher() -> Iterator[Searcher]:
    """The process that searches."""
    with Searcher(Needles()) as searcher:
        yield searcher


PLACES = (0, PAGE - 8, CHUNK - RECORD, *range(CHUNK - RECORD + 1, CHUNK + 3 * RECORD, 77), 2 * CHUNK - 1, SIZE - 64)


@pytest.mark.parametrize("at", PLACES)
def test_each_mark_is_counted_once(holder: Holder, searcher: Searcher, at: int) -> None:
    """A secret is found wherever it lies, also across the blocks in which memory is read, and is known by its marks."""
    secret = searcher.needles.secret(64)
    assert searcher.search(holder.pid).marks == {}
    holder.put(at, secret)
    traces = searcher.search(holder.pid)
    assert traces.marks == {"ordinary": searcher.needles.marks(secret)}
    assert sum(traces.marks["ordinary"].values()) == 8
    assert min(hit["offset"] for hit in traces.hits) == at


@pytest.mark.parametrize("cut", range(RECORD))
def test_what_is_left_is_found(holder: Holder, searcher: Searcher, cut: int) -> None:
    """15 bytes that are left of a secret are found, wherever it was cut."""
    holder.put(CHUNK - 7, searcher.needles.secret(64)[cut : cut + RECORD - 1])
    assert len(searcher.search(holder.pid).hits) >= 1


@pytest.mark.parametrize("bad", [0, CHUNK - PAGE, CHUNK, CHUNK + PAGE, SIZE - PAGE])
def test_pages_that_cannot_be_read_are_left_out(monkeypatch: pytest.MonkeyPatch, bad: int) -> None:
    """All but such a page is searched, once, and it is in the answer how much could not be read."""
    # What cannot be read in the midst of a mapping is rare: it is played by a read of a file that fails.

    def preadv(fd: int, buffers: list[memoryview], at: int) -> int:
        if at // PAGE * PAGE == bad:
            raise OSError(errno.EIO, "")
        stop = min(SIZE, at + len(buffers[0]), bad if at < bad else SIZE)
        buffers[0][: stop - at] = content[at:stop]
        return stop - at

    content = random.Random(1).randbytes(SIZE)
    monkeypatch.setattr(residue.os, "preadv", preadv)
    unreadable: Counter[str] = Counter()
    blocks = residue._masked_blocks(0, Range(0, SIZE, "it", "ordinary"), 8, 16, bytes(range(256)), unreadable)
    seen = bytearray(SIZE)
    for block in blocks:
        assert block.masked == content[block.position - block.lead :][: len(block.masked)]
        assert len(block.masked) >= block.lead + block.size
        here = slice(block.position, block.position + block.size)
        assert not any(seen[here])
        seen[here] = b"x" * block.size
    assert unreadable == {"it": PAGE}
    assert seen == b"x" * bad + bytes(PAGE) + b"x" * (SIZE - PAGE - bad)


def test_all_memory_is_searched(holder: Holder, searcher: Searcher) -> None:
    """What was searched and what could not be read are all memory of a process; only the kernel's own is of those."""
    traces = searcher.search(holder.pid)
    everything = sum(one.size for one in residue.mappings(holder.pid))
    assert traces.searched + sum(traces.unreadable.values()) == everything
    assert set(traces.unreadable) <= {"[vvar]", "[vvar_vclock]", "[vsyscall]"}


def test_the_searcher_holds_nothing(holder: Holder, searcher: Searcher) -> None:
    """It has seen secrets, but none of them is in its memory, nor in its arguments or environment."""
    secret = searcher.needles.secret(5000)
    for at in (10, CHUNK - 1000, 2 * CHUNK + 1):
        holder.put(at, secret)
    assert sum(searcher.search(holder.pid, context=0).marks["ordinary"].values()) > 1800
    with Searcher(searcher.needles) as other:
        assert other.search(searcher.process.pid).marks == {}


def test_marks_are_told_apart() -> None:
    """A record has the length that is said, no two secrets are the same, none has a byte that names may not have."""
    needles = Needles()
    secrets = [needles.secret(size) for size in (16, 17, 255, 4096)]
    assert [len(secret) for secret in secrets] == [16, 17, 255, 4096]
    assert not any(set(secret) & set(b"\0/") for secret in secrets)
    assert len({secret[MARK : MARK + ID] for secret in secrets}) == 4
    for secret in secrets:
        identity = secret[MARK : MARK + ID]
        heads, tails = secret.count(needles.head + identity), secret.count(identity + needles.tail)
        assert heads >= tails == len(secret) // RECORD
        assert needles.marks(secret) == {(HEAD, identity): heads, (TAIL, identity): tails}
