"""The shim alone, between a real libfuse session and a socket that plays /dev/fuse: requests that no kernel would send.

Nothing here needs a mount. test_t7_sanitizers.py runs all of it once more with the shim built for AddressSanitizer and
UndefinedBehaviorSanitizer: each request then lies in memory of just its size, so that a byte read behind it is found.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from secretfs import native

SHIM = os.environ.get("SECRETFS_TEST_SHIM", native.SHIM)
FILES = 1024
INO = 5 + 3 * FILES
CAPACITY = 8192
WINDOW = 4096
SPARE = 64
"""Bytes around the file and the window that must stay as they are."""
HEADER = struct.Struct("=IIQQIIIHH")
BODY = struct.Struct("=QQIIQII")  # fuse_read_in and fuse_write_in have the same members
LOOKUP, READ, WRITE, INIT = 1, 15, 16, 26
WRITE_CACHE, LOCKOWNER = 1, 2
NEVER, ALWAYS = 0, 1 << 40

libc = ctypes.CDLL(None, use_errno=True)
libc.malloc.restype = ctypes.c_void_p


class Buffer(ctypes.Structure):
    """struct fuse_buf, with room for what later versions add."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("memory", ctypes.c_void_p),
        ("fd", ctypes.c_int),
        ("rest", ctypes.c_uint64 * 8),
    )


class Entry(ctypes.Structure):
    """struct secretfs_file of fast.h."""

    _fields_ = (
        ("ino", ctypes.c_uint64),
        ("memory", ctypes.c_void_p),
        ("capacity", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("written", ctypes.c_int64),
        ("read_until", ctypes.c_int64),
        ("writable", ctypes.c_uint64),
    )


def request(opcode: int, nodeid: int, *, offset: int = 0, size: int = 0, flags: int = 0, data: bytes = b"") -> bytes:
    """A request as the kernel lays it out."""
    body = BODY.pack(7, offset, size, flags, 0, 0, 0) + data
    return HEADER.pack(HEADER.size + len(body), opcode, 99, nodeid, 0, 0, 0, 0, 0) + body


class Memory:
    """Bytes from malloc, with a known pattern around them (or none, so that a sanitizer watches the edges)."""

    def __init__(self, size: int, spare: int = 0) -> None:
        self.size, self.spare = size, spare
        self.base = libc.malloc(size + 2 * spare)
        ctypes.memset(self.base, 0xA5, size + 2 * spare)
        self.address = self.base + spare

    def __getitem__(self, part: slice) -> bytes:
        return ctypes.string_at(self.address, self.size)[part]

    def edges_are_untouched(self) -> bool:
        """Whether the pattern around it is there."""
        ends = ctypes.string_at(self.base, self.spare) + ctypes.string_at(self.address + self.size, self.spare)
        return ends == b"\xa5" * len(ends)

    def free(self) -> None:
        """Give it back."""
        libc.free(ctypes.c_void_p(self.base))


@dataclass
class Shim:
    """The loaded shim, a libfuse session, and the other end of its socket."""

    library: ctypes.CDLL
    session: ctypes.c_void_p
    kernel: socket.socket
    ours: socket.socket
    window: Memory

    @property
    def files(self) -> Any:
        """The table of open files."""
        return (Entry * FILES).in_dll(self.library, "secretfs_files")

    @property
    def written(self) -> list[int]:
        """The numbers of the entries that were written to."""
        count = ctypes.c_uint32.in_dll(self.library, "secretfs_written_count").value
        return list((ctypes.c_uint32 * FILES).in_dll(self.library, "secretfs_written"))[:count]

    def clear(self) -> None:
        """Empty the table."""
        ctypes.memset(ctypes.addressof(self.files), 0, ctypes.sizeof(self.files))
        ctypes.c_uint32.in_dll(self.library, "secretfs_written_count").value = 0

    def receive(self, sent: bytes) -> tuple[int, bytes, bytes | None]:
        """Let the shim receive it into memory of just that size: its result, that memory afterwards, and its reply."""
        self.kernel.send(sent)
        memory = Memory(len(sent))
        buffer = Buffer(memory=memory.address)
        result = self.library.fuse_session_receive_buf(self.session, ctypes.byref(buffer))
        left = memory[:]
        memory.free()
        try:
            reply = self.kernel.recv(1 << 20)
        except BlockingIOError:
            reply = None
        return result, left, reply


@contextlib.contextmanager
def opened_shim() -> Iterator[Shim]:
    """The shim with a session. Nothing is mounted: libfuse takes any descriptor as /dev/fuse."""
    library = ctypes.CDLL(SHIM)
    kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    kernel.setblocking(False)
    for one in (kernel, ours):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    window = Memory(WINDOW, SPARE)
    ctypes.memset(window.address, 0, WINDOW)
    assert library.secretfs_shim_prepare(ctypes.c_void_p(window.address), ctypes.c_size_t(WINDOW), 0) == 0

    class Arguments(ctypes.Structure):
        _fields_ = (("argc", ctypes.c_int), ("argv", ctypes.POINTER(ctypes.c_char_p)), ("allocated", ctypes.c_int))

    arguments = Arguments(1, (ctypes.c_char_p * 2)(b"test", None), 0)
    operations = ctypes.create_string_buffer(512)
    library.fuse_session_new.restype = ctypes.c_void_p
    session = library.fuse_session_new(ctypes.byref(arguments), operations, ctypes.c_size_t(256), None)
    assert session
    handle = ctypes.c_void_p(session)
    assert library.fuse_session_mount(handle, b"/dev/fd/%d" % ours.fileno()) == 0
    ours.setblocking(False)
    yield Shim(library, handle, kernel, ours, window)
    kernel.close()
    ours.detach()
    library.fuse_session_destroy(handle)  # closes it
    window.free()


@pytest.fixture(scope="module")
def shim() -> Iterator[Shim]:
    """One for the module."""
    with opened_shim() as opened:
        yield opened


@pytest.fixture
def file(shim: Shim) -> Iterator[Memory]:
    """The memory of a file that is in the table."""
    memory = Memory(CAPACITY, SPARE)
    shim.clear()
    shim.files[INO % FILES] = Entry(INO, memory.address, CAPACITY, 100, 0, ALWAYS, 1)
    yield memory
    shim.clear()
    memory.free()


edges = [0, 1, 99, 100, 101, WINDOW, CAPACITY - 1, CAPACITY, CAPACITY + 1]
numbers = st.one_of(
    st.sampled_from([*edges, *((1 << bits) + step for bits in (31, 32, 63) for step in (-1, 0)), (1 << 64) - 1]),
    st.integers(0, CAPACITY + 10),
    st.integers(0, (1 << 64) - 1),
)


@given(
    opcode=st.sampled_from([READ, READ, WRITE, WRITE, LOOKUP, INIT, 0, 999, (1 << 32) - 1]),
    nodeid=st.sampled_from([INO, INO, INO, INO % FILES, INO + FILES, 0, FILES, (1 << 64) - 1]),
    offset=numbers,
    size=numbers.map(lambda number: number & 0xFFFFFFFF),
    flags=st.sampled_from([0, LOCKOWNER, LOCKOWNER, WRITE_CACHE, 0xFFFFFFFF]),
    data=st.integers(0, 300),
    cut=st.one_of(st.none(), st.integers(1, 120)),
    known=st.sampled_from([0, 100, CAPACITY, CAPACITY + 50, (1 << 63) - 1]),
    read_until=st.sampled_from([NEVER, ALWAYS, ALWAYS]),
    writable=st.booleans(),
)
@example(opcode=WRITE, nodeid=INO, offset=(1 << 64) - 1, size=1, flags=0, data=1, cut=None, known=0,
         read_until=NEVER, writable=True)  # fmt: skip
@example(opcode=WRITE, nodeid=INO, offset=0, size=(1 << 32) - 1, flags=0, data=300, cut=None, known=0,
         read_until=NEVER, writable=True)  # fmt: skip
@example(opcode=READ, nodeid=INO, offset=(1 << 63) - 2, size=(1 << 32) - 1, flags=LOCKOWNER, data=0, cut=None,
         known=(1 << 63) - 1, read_until=ALWAYS, writable=True)  # fmt: skip
def test_any_request(
    shim: Shim, opcode, nodeid, offset, size, flags, data, cut, known, read_until, writable
) -> None:  # fmt: skip
    """Whatever comes, just the reads and writes that an entry covers are answered, rightly, and nothing else changes."""
    file = Memory(CAPACITY, SPARE)
    shim.clear()
    shim.files[INO % FILES] = Entry(INO, file.address, CAPACITY, known, 0, read_until, writable)
    payload = os.urandom(data)
    sent = request(opcode, nodeid, offset=offset, size=size, flags=flags, data=payload)[:cut]
    before, length = file[:], len(sent)
    result, left, reply = shim.receive(sent)
    entry = shim.files[INO % FILES]

    whole = length >= HEADER.size + BODY.size and nodeid == INO
    taken = max(0, min(size, known - offset))
    reads = whole and opcode == READ and flags & LOCKOWNER and read_until == ALWAYS
    reads = reads and taken <= WINDOW and (not taken or offset + taken <= CAPACITY)
    writes = whole and opcode == WRITE and writable and not flags & WRITE_CACHE
    writes = writes and length >= HEADER.size + BODY.size + size and offset + size <= CAPACITY
    if reads:
        assert (result, reply) == (-errno.EINTR, struct.pack("=IiQ", 16 + taken, 0, 99) + before[offset:][:taken])
    elif writes:
        assert (result, reply) == (-errno.EINTR, struct.pack("=IiQII", 24, 0, 99, size, 0))
        assert file[offset : offset + size] == payload[:size]
        assert (entry.size, entry.read_until) == (max(known, offset + size), 0)
        assert (shim.written, entry.written > 0) == ([INO % FILES], True)
        before = before[:offset] + payload[:size] + before[offset + size :]
    elif length < HEADER.size:
        assert (result, reply) == (-errno.EIO, None)
    else:
        assert (result, left, reply) == (length, sent, None), "it was not left to Python as it came"
    if reads or writes:
        assert left == bytes(length), "the request was not wiped"
    if not writes:
        assert (shim.written, entry.size, entry.written) == ([], known, 0)
    assert file[:] == before
    assert file.edges_are_untouched()
    assert shim.window[:] == bytes(WINDOW), "the window was not wiped"
    assert shim.window.edges_are_untouched()
    file.free()


def test_table_collisions(shim: Shim, file: Memory) -> None:
    """Files that share a place in the table are told apart, an entry taken back counts for nobody, not even for 0."""
    for stranger in (INO % FILES, INO + FILES, INO + FILES * (1 << 40)):
        result, _, reply = shim.receive(request(WRITE, stranger, size=4, data=b"evil"))
        assert (result > 0, reply) == (True, None)
    shim.files[0] = Entry(0, file.address, CAPACITY, 100, 0, ALWAYS, 1)
    for opcode, flags in ((READ, LOCKOWNER), (WRITE, 0)):
        result, _, reply = shim.receive(request(opcode, 0, size=4, flags=flags, data=b"evil"))
        assert (result > 0, reply) == (True, None)
    assert file[:] == b"\xa5" * CAPACITY


def test_written_files_are_listed_once_each(shim: Shim) -> None:
    """With every entry of the table in use and written to again and again, the list of written files stays in bounds."""
    memory = Memory(64)
    shim.clear()
    for number in range(FILES):
        shim.files[number] = Entry(FILES + number, memory.address, 64, 0, 0, NEVER, 1)
    for ino in [*range(FILES, 2 * FILES), *range(FILES, FILES + 50)]:
        assert shim.receive(request(WRITE, ino, size=8, data=b"12345678"))[0] == -errno.EINTR
    assert sorted(shim.written) == list(range(FILES))
    shim.clear()
    memory.free()


def test_python_gets_its_turn(shim: Shim, file: Memory) -> None:
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


def answer(shim: Shim) -> bytes | None:
    """The next reply, if there is one."""
    try:
        return shim.kernel.recv(1 << 20)
    except BlockingIOError:
        return None


def test_a_lost_reply_leaves_nothing(shim: Shim, file: Memory) -> None:
    """A reply that cannot be written is given up: window and request are wiped, and the next one is answered."""
    shim.files[INO % FILES].size = CAPACITY
    with pytest.raises(BlockingIOError):
        while True:
            shim.ours.send(bytes(WINDOW))
    shim.kernel.send(request(READ, INO, size=WINDOW, flags=LOCKOWNER))
    memory = Memory(80)
    buffer = Buffer(memory=memory.address)
    assert shim.library.fuse_session_receive_buf(shim.session, ctypes.byref(buffer)) == -errno.EINTR
    assert (memory[:], shim.window[:]) == (bytes(80), bytes(WINDOW))
    assert set(iter(lambda: answer(shim), None)) == {bytes(WINDOW)}, "the reply came through"
    assert len(shim.receive(request(READ, INO, size=WINDOW, flags=LOCKOWNER))[2] or b"") == 16 + WINDOW
    memory.free()


@pytest.mark.parametrize("opcode", [READ, LOOKUP, 999])
def test_processed_requests_are_wiped(shim: Shim, opcode: int) -> None:
    """What libfuse has processed is wiped, also what it refuses, and a read without a lock owner is told from others."""
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
