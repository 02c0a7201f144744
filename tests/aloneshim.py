"""The shim alone, between a real libfuse session and a socket that plays /dev/fuse. Nothing is mounted.

With SECRETFS_TEST_SHIM it is another build of it: test_t7_sanitizers.py brings one with AddressSanitizer and
UndefinedBehaviorSanitizer. Each request then lies in memory of just its size, so that a byte read behind it is found.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from secretfs import native

SHIM = os.environ.get("SECRETFS_TEST_SHIM", native.SHIM)
FILES, PIECES, DEFERRED, NAMES, KNOWN = 1024, 16, 256, 1 << 20, 1024
INO = 5 + 3 * FILES
DIRECTORY = 77
WINDOW = 4096
SPARE = 64
"""Bytes around the file and the window that must stay as they are."""
UNIQUE = 99
FIRST_HANDLE = 1 << 62
"""Of those that the shim gives out."""
HEADER = struct.Struct("=IIQQIIIHH")
BODY = struct.Struct("=QQIIQII")  # fuse_read_in and fuse_write_in have the same members
LOOKUP, FORGET, GETATTR, UNLINK, OPEN, READ, WRITE, RELEASE, INIT = 1, 2, 3, 10, 14, 15, 16, 18, 26
SMALLEST = {FORGET: 8, GETATTR: 0, OPEN: 8, READ: 40, WRITE: 40, RELEASE: 24}
"""How long what follows the header has to be."""
WRITE_CACHE, LOCKOWNER = 1, 2
NEVER, ALWAYS = 0, 1 << 40
OPEN_FLAGS = 5

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


class Piece(ctypes.Structure):
    """struct secretfs_piece of fast.h."""

    _fields_ = (("start", ctypes.c_uint64), ("end", ctypes.c_uint64), ("memory", ctypes.c_void_p))


class Entry(ctypes.Structure):
    """struct secretfs_file of fast.h."""

    _fields_ = (
        ("ino", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("written", ctypes.c_int64),
        ("read_until", ctypes.c_int64),
        ("writable", ctypes.c_uint64),
        ("openable", ctypes.c_uint64),
        ("opens", ctypes.c_uint64),
        ("whole", ctypes.c_uint64),
        ("count", ctypes.c_uint64),
        ("pieces", Piece * PIECES),
    )


class KnownName(ctypes.Structure):
    """struct secretfs_known_name of fast.h."""

    _fields_ = (
        ("directory", ctypes.c_uint64),
        ("ino", ctypes.c_uint64),
        ("length", ctypes.c_uint64),
        ("name", ctypes.c_void_p),
    )


def request(
    opcode: int, nodeid: int, *, handle: int = 7, offset: int = 0, size: int = 0, flags: int = 0, data: bytes = b""
) -> bytes:
    """A request as the kernel lays it out; `handle` is where one to open has its flags, or to forget its count."""
    body = BODY.pack(handle, offset, size, flags, 0, 0, 0) + data
    return HEADER.pack(HEADER.size + len(body), opcode, UNIQUE, nodeid, 0, 0, 0, 0, 0) + body


def name_request(opcode: int, directory: int, name: bytes) -> bytes:
    """A request that has nothing but a name: `name` with its zero byte at the end, or without."""
    return HEADER.pack(HEADER.size + len(name), opcode, UNIQUE, directory, 0, 0, 0, 0, 0) + name


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


class File:
    """A file that is in the table, in pieces."""

    def __init__(self, shim: Shim, *lengths: int, ino: int = INO, **fields: int) -> None:
        self.memory = [Memory(length, SPARE) for length in lengths]
        self.capacity = sum(lengths)
        known = {"size": 100, "read_until": ALWAYS, "writable": 1, "openable": 1, **fields}
        self.entry = shim.files[ino % FILES]
        ends = list(itertools.accumulate(lengths))
        for piece, end, memory in zip(self.entry.pieces, ends, self.memory, strict=False):
            piece.start, piece.end, piece.memory = end - memory.size, end, memory.address
        for name, value in {**known, "ino": ino, "count": len(lengths)}.items():
            setattr(self.entry, name, value)

    def data(self) -> bytes:
        """What it holds."""
        return b"".join(memory[:] for memory in self.memory)

    def free(self) -> None:
        """Take it away. What lies around its pieces must be as it was."""
        assert all(memory.edges_are_untouched() for memory in self.memory)
        for memory in self.memory:
            memory.free()


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
    def counts(self) -> Any:
        """How many names there are in each place."""
        return (ctypes.c_uint8 * NAMES).in_dll(self.library, "secretfs_names")

    @property
    def known(self) -> Any:
        """The names that are surely there."""
        return (KnownName * KNOWN).in_dll(self.library, "secretfs_known_names")

    @property
    def written(self) -> list[int]:
        """The numbers of the entries that were written to."""
        count = self.number("written_count").value
        return list((ctypes.c_uint32 * FILES).in_dll(self.library, "secretfs_written"))[:count]

    @property
    def deferred(self) -> list[tuple[int, int, int, int]]:
        """What was left to Python: opcode, inode, handle, flags or count."""
        count = self.number("deferred_count").value
        table = (ctypes.c_char * (32 * DEFERRED)).in_dll(self.library, "secretfs_deferred")
        return list(struct.iter_unpack("=4Q", table.raw))[:count]

    def number(self, name: str) -> ctypes.c_uint32:
        """One of the counters."""
        return ctypes.c_uint32.in_dll(self.library, f"secretfs_{name}")

    def clear(self) -> None:
        """Empty all tables."""
        for table in (self.files, self.counts, self.known):
            ctypes.memset(ctypes.addressof(table), 0, ctypes.sizeof(table))
        for name in ("written_count", "deferred_count", "news", "unlinked"):
            self.number(name).value = 0
        self.number("open_flags").value = OPEN_FLAGS
        self.attributes(0)

    def attributes(self, ino: int) -> bytes:
        """Publish the attributes of a directory; what the shim is to answer."""
        table = (ctypes.c_char * 56).in_dll(self.library, "secretfs_attributes")
        table[:] = struct.pack("=QQ3q4I", ino, 60, 1_000_000_005, -1, -3_000_000_000, 0o40750, 2, 11, 12)
        seconds, rest = (1, 2**64 - 1, 2**64 - 3), (5, 999_999_999, 0)
        return struct.pack("=QII6Q10I", 300, 0, 0, ino, 60, 0, *seconds, *rest, 0o40750, 2, 11, 12, 0, 4096, 0)

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
    ctypes.c_int.in_dll(library, "secretfs_shim_answers").value = 1
    yield Shim(library, handle, kernel, ours, window)
    kernel.close()
    ours.detach()
    library.fuse_session_destroy(handle)  # closes it
    window.free()


def answer(shim: Shim) -> bytes | None:
    """The next reply, if there is one."""
    try:
        return shim.kernel.recv(1 << 20)
    except BlockingIOError:
        return None
