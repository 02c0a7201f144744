"""The shim alone, between a real libfuse session and a socket that plays /dev/fuse: requests that no kernel would send.

Nothing here needs a mount. test_t7_sanitizers.py runs all of it once more with the shim built for AddressSanitizer and
UndefinedBehaviorSanitizer.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from aloneshim import (
    ALWAYS,
    BODY,
    DEFERRED,
    DIRECTORY,
    FILES,
    FIRST_HANDLE,
    FORGET,
    GETATTR,
    HEADER,
    INIT,
    INO,
    LOCKOWNER,
    LOOKUP,
    NEVER,
    OPEN,
    OPEN_FLAGS,
    PIECES,
    READ,
    RELEASE,
    SMALLEST,
    UNIQUE,
    UNLINK,
    WINDOW,
    WRITE,
    WRITE_CACHE,
    Buffer,
    File,
    Memory,
    Shim,
    answer,
    opened_shim,
    request,
)
from hypothesis import example, given
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def shim() -> Iterator[Shim]:
    """One for the module."""
    with opened_shim() as opened:
        yield opened


@pytest.fixture
def file(shim: Shim) -> Iterator[File]:
    """A file in two pieces, the only one in the table."""
    shim.clear()
    file = File(shim, 8000, 192)
    yield file
    shim.clear()
    file.free()


edges = [0, 1, 99, 100, 101, 511, 512, 513, WINDOW - 1, WINDOW, WINDOW + 1, 5000]
numbers = st.one_of(
    st.sampled_from([*edges, *((1 << bits) + step for bits in (31, 32, 63) for step in (-1, 0)), (1 << 64) - 1]),
    st.integers(0, 7000),
    st.integers(0, (1 << 64) - 1),
)


def told(**fields: int) -> Any:
    """An example: a request that is in order but for these fields."""
    usual = {"opcode": WRITE, "nodeid": INO, "handle": 7, "offset": 0, "size": 10, "flags": 0, "data": 10, "cut": None}
    entry = {"lengths": [512, 512], "known": 100, "read_until": ALWAYS, "writable": 1, "openable": 1}
    return example(**{**usual, **entry, **fields})


@given(
    opcode=st.sampled_from([READ, READ, WRITE, WRITE, OPEN, *SMALLEST, LOOKUP, UNLINK, INIT, 0, 999, (1 << 32) - 1]),
    nodeid=st.sampled_from([INO, INO, INO, INO % FILES, INO + FILES, 0, FILES, DIRECTORY, (1 << 64) - 1]),
    handle=st.sampled_from([7, 7, 0, os.O_RDWR, os.O_RDWR | os.O_APPEND, os.O_WRONLY | os.O_TRUNC, (1 << 64) - 1]),
    offset=numbers,
    size=numbers.map(lambda number: number & 0xFFFFFFFF),
    flags=st.sampled_from([0, LOCKOWNER, LOCKOWNER, WRITE_CACHE, 0xFFFFFFFF]),
    data=st.integers(0, 600),
    cut=st.one_of(st.none(), st.none(), st.integers(1, 120)),
    lengths=st.lists(st.sampled_from([1, 64, 511, 4096]), min_size=1, max_size=PIECES),
    known=st.sampled_from([0, 100, 5000, 1 << 20, (1 << 63) - 1]),
    read_until=st.sampled_from([NEVER, ALWAYS, ALWAYS]),
    writable=st.sampled_from([0, 1, 1]),
    openable=st.sampled_from([0, 1, 1]),
)
@told(offset=(1 << 64) - 1, size=1)
@told(offset=(1 << 64) - 10, size=10)
@told(offset=1 << 40, size=0)
@told(size=(1 << 32) - 1, data=600)
@told(offset=500, size=20, data=19)
@told(offset=1020, size=20, data=20)
@told(offset=500, size=24, data=24)
@told(opcode=READ, flags=LOCKOWNER, offset=(1 << 63) - 2, size=(1 << 32) - 1, known=(1 << 63) - 1)
@told(opcode=READ, flags=LOCKOWNER, offset=(1 << 64) - 1, size=(1 << 32) - 1)
@told(opcode=READ, flags=LOCKOWNER, offset=500, size=500, known=1024)
@told(opcode=OPEN, handle=os.O_RDWR)
@told(opcode=OPEN, handle=os.O_RDWR | os.O_TRUNC)
@told(opcode=OPEN, handle=os.O_RDWR, openable=0)
def test_any_request(
    shim: Shim, opcode, nodeid, handle, offset, size, flags, data, cut, lengths, known, read_until, writable, openable
) -> None:  # fmt: skip
    """Whatever comes, just what the tables cover is answered, rightly, and nothing else changes."""
    shim.clear()
    attributes = shim.attributes(DIRECTORY)
    file = File(shim, *lengths, size=known, read_until=read_until, writable=writable, openable=openable)
    payload = os.urandom(data)
    sent = request(opcode, nodeid, handle=handle, offset=offset, size=size, flags=flags, data=payload)[:cut]
    before, length = file.data(), len(sent)
    result, left, reply = shim.receive(sent)

    body = length - HEADER.size
    whole = opcode in SMALLEST and body >= SMALLEST[opcode]
    taken = max(0, min(size, known - offset))
    reads = whole and opcode == READ and nodeid == INO and flags & LOCKOWNER and read_until == ALWAYS
    reads = reads and taken <= WINDOW and (not taken or offset + taken <= file.capacity)
    writes = whole and opcode == WRITE and nodeid == INO and writable and not flags & WRITE_CACHE
    writes = writes and size and body >= BODY.size + size and offset + size <= file.capacity
    answers: bytes | None = None
    later: list[tuple[int, int, int, int]] = []
    if reads:
        answers = before[offset:][:taken]
    elif writes:
        answers = struct.pack("=II", size, 0)
        before = before[:offset] + payload[:size] + before[offset + size :]
        assert (file.entry.size, file.entry.read_until) == (max(known, offset + size), 0)
        assert (shim.written, file.entry.written > 0) == ([INO % FILES], True)
    elif whole and opcode == GETATTR and nodeid == DIRECTORY:
        answers = attributes
    elif whole and opcode == RELEASE and handle:
        answers = b""
        later = [(RELEASE, nodeid, handle, 0)]
    elif whole and opcode == FORGET:
        later = [(FORGET, nodeid, 0, handle)]
    elif whole and opcode == OPEN and nodeid == INO and openable and not handle & os.O_TRUNC:
        (given,) = struct.unpack_from("=Q", reply or bytes(24), 16)
        assert given >= FIRST_HANDLE
        answers = struct.pack("=QIi", given, OPEN_FLAGS, 0)
        later = [(OPEN, nodeid, given, handle & 0xFFFFFFFF)]

    if answers is not None or (whole and opcode == FORGET):
        assert (result, left) == (-errno.EINTR, bytes(length)), "the request was not wiped"
    else:
        assert (result, left) == ((length, sent) if body >= 0 else (-errno.EIO, sent)), "it is Python's, as it came"
    assert reply == (None if answers is None else struct.pack("=IiQ", 16 + len(answers), 0, UNIQUE) + answers)
    assert shim.deferred == later
    assert shim.number("news").value == len(shim.written) + len(shim.deferred)
    if not writes:
        assert (shim.written, file.entry.size, file.entry.written) == ([], known, 0)
    assert file.data() == before
    assert shim.window[:] == bytes(WINDOW), "the window was not wiped"
    assert shim.window.edges_are_untouched()
    file.free()


def test_holes(shim: Shim, file: File) -> None:
    """What lies between two pieces that do not follow each other, or before the first, is not answered for."""
    file.entry.size = 20_000
    second = file.entry.pieces[1]
    second.start, second.end = 9000, 9192
    for offset, size in ((7990, 20), (7990, 1100), (8500, 10), (8500, 600)):
        assert shim.receive(request(WRITE, INO, offset=offset, size=size, data=bytes(size)))[0] > 0
        assert shim.receive(request(READ, INO, offset=offset, size=size, flags=LOCKOWNER))[0] > 0
    assert shim.receive(request(WRITE, INO, offset=9000, size=192, data=bytes(192)))[0] == -errno.EINTR
    file.entry.count = 0
    assert shim.receive(request(WRITE, INO, size=1, data=b"x"))[0] > 0


def test_table_collisions(shim: Shim, file: File) -> None:
    """Files that share a place in the table are told apart; an entry taken back counts for nobody, not even for 0."""
    for stranger in (INO % FILES, INO + FILES, INO + FILES * (1 << 40)):
        result, _, reply = shim.receive(request(WRITE, stranger, size=4, data=b"evil"))
        assert (result > 0, reply) == (True, None)
    emptied = File(shim, 64, ino=2 * FILES)
    emptied.entry.ino = 0
    for opcode, flags in ((READ, LOCKOWNER), (WRITE, 0)):
        result, _, reply = shim.receive(request(opcode, 0, size=4, flags=flags, data=b"evil"))
        assert (result > 0, reply) == (True, None)
    assert file.data() + emptied.data() == b"\xa5" * (8192 + 64)
    emptied.free()


def test_written_files_are_listed_once_each(shim: Shim) -> None:
    """With the whole table in use and written to again and again, the list of written files stays in bounds."""
    shim.clear()
    files = [File(shim, 64, ino=FILES + number) for number in range(FILES)]
    for ino in [*range(FILES, 2 * FILES), *range(FILES, FILES + 50)]:
        assert shim.receive(request(WRITE, ino, size=8, data=b"12345678"))[0] == -errno.EINTR
    assert sorted(shim.written) == list(range(FILES))
    shim.clear()
    for file in files:
        file.free()


def test_opened_and_closed(shim: Shim, file: File) -> None:
    """Each open gets another handle. What is closed before Python has heard of it, it need not hear of."""
    handles = [struct.unpack_from("=Q", shim.receive(request(OPEN, INO))[2] or b"", 16)[0] for _ in range(3)]
    assert len(set(handles)) == 3
    assert shim.deferred == [(OPEN, INO, handle, 7) for handle in handles]
    shim.receive(request(RELEASE, INO, handle=handles[2]))
    assert shim.deferred == [(OPEN, INO, handle, 7) for handle in handles[:2]]
    shim.receive(request(RELEASE, INO, handle=handles[0]))
    assert shim.deferred[2:] == [(RELEASE, INO, handles[0], 0)]
    assert shim.number("news").value == 3


@pytest.mark.parametrize("opcode", [OPEN, RELEASE, FORGET])
def test_what_is_left_to_python_has_an_end(shim: Shim, file: File, opcode: int) -> None:
    """When so much was left to Python that there is no more room, Python has to do it at once."""
    for _ in range(DEFERRED):
        assert shim.receive(request(opcode, INO))[0] == -errno.EINTR
    sent = request(opcode, INO)
    assert shim.receive(sent) == (len(sent), sent, None)
    assert len(shim.deferred) == shim.number("news").value == DEFERRED


def test_python_gets_its_turn(shim: Shim, file: File) -> None:
    """After 64 requests in a row that need no Python it is Python's turn."""
    for _ in range(100):
        shim.kernel.send(request(WRITE, INO, size=2, data=b"ab"))
    memory = Memory(82)
    buffer = Buffer(memory=memory.address)
    assert shim.library.fuse_session_receive_buf(shim.session, ctypes.byref(buffer)) == -errno.EINTR
    assert len(list(iter(lambda: answer(shim), None))) == 64
    assert shim.library.fuse_session_receive_buf(shim.session, ctypes.byref(buffer)) == -errno.EINTR
    assert len(list(iter(lambda: answer(shim), None))) == 36
    memory.free()


def test_a_lost_reply_leaves_nothing(shim: Shim, file: File) -> None:
    """A reply that cannot be written is given up: window and request are wiped, and the next one is answered."""
    file.entry.size = file.capacity
    with contextlib.suppress(BlockingIOError):
        while shim.ours.send(bytes(WINDOW)):
            pass
    shim.kernel.send(request(READ, INO, size=WINDOW, flags=LOCKOWNER))
    memory = Memory(80)
    buffer = Buffer(memory=memory.address)
    assert shim.library.fuse_session_receive_buf(shim.session, ctypes.byref(buffer)) == -errno.EINTR
    assert (memory[:], shim.window[:]) == (bytes(80), bytes(WINDOW))
    assert set(iter(lambda: answer(shim), None)) == {bytes(WINDOW)}, "the reply came through"
    assert len(shim.receive(request(READ, INO, size=WINDOW, flags=LOCKOWNER))[2] or b"") == 16 + WINDOW
    memory.free()


def test_a_lost_open_leaves_no_handle(shim: Shim, file: File) -> None:
    """Where the answer to an open cannot be written, Python hears of no open."""
    with contextlib.suppress(BlockingIOError):
        while shim.ours.send(bytes(WINDOW)):
            pass
    with contextlib.suppress(BlockingIOError):
        while shim.ours.send(b"x"):
            pass
    shim.kernel.send(request(OPEN, INO))
    memory = Memory(80)
    buffer = Buffer(memory=memory.address)
    assert shim.library.fuse_session_receive_buf(shim.session, ctypes.byref(buffer)) == -errno.EINTR
    assert (shim.deferred, shim.number("news").value) == ([], 0)
    assert set(iter(lambda: answer(shim), None)) <= {bytes(WINDOW), b"x"}, "the reply came through"
    memory.free()


@pytest.mark.parametrize("opcode", [READ, LOOKUP, 999])
def test_processed_requests_are_wiped(shim: Shim, opcode: int) -> None:
    """What libfuse has processed is wiped, also what it refuses; a read without a lock owner is told from others."""
    told = ctypes.c_int.in_dll(shim.library, "secretfs_shim_page_cache_read")
    sent = request(opcode, INO, size=4, data=b"secret" * 10)
    memory = Memory(len(sent))
    ctypes.memmove(memory.address, sent, len(sent))
    buffer = Buffer(size=len(sent), memory=memory.address)
    shim.library.fuse_session_process_buf(shim.session, ctypes.byref(buffer))
    assert memory[:] == bytes(len(sent))
    assert told.value == (opcode == READ)
    assert struct.unpack("=Ii", (answer(shim) or b"")[:8])[1] < 0
    memory.free()
