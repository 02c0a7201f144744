"""A mount whose daemon's memory is searched, and what root can read in it directly. All of it needs root."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import residue
from mounts import Mounted
from needles import Searcher, Traces
from tracing import Stopped

from secretfs import fast, native

PAGE = 4096
LARGEST_REQUEST = (1 << 20) + 80
"""Bytes: a write of a MiB with its struct fuse_in_header and struct fuse_write_in."""
UNREADABLE = {"[vvar]", "[vvar_vclock]", "[vsyscall]", "/secretmem (deleted)"}
ATTEMPTS = 5
"""The daemon answers before it comes to rest, and on a busy machine it is searched in between."""


class Watched(Mounted):
    """A mount, and who searches its daemon."""

    def __init__(self, path: Path, searcher: Searcher, *flags: str) -> None:
        super().__init__(path, *flags)
        self.searcher = searcher
        self.needles = searcher.needles
        self.secret_areas = self.status()["backend"] == "kernel"

    def settle(self) -> None:
        """Return when earlier requests are over: they are answered one after another, and this is not cached."""
        os.statvfs(self.path)

    def search(self) -> Traces:
        """Search all the daemon's memory, and make sure that it was all of it. Its registers hold nothing."""
        self.settle()
        for thread in os.listdir(f"/proc/{self.daemon}/task"):
            with Stopped(int(thread)) as stopped:
                assert self.needles.marks(stopped.registers()) == {}
        for _ in range(ATTEMPTS):
            traces = self.searcher.search(self.daemon)
            if set(traces.unreadable) <= UNREADABLE:
                break  # else Python has given a piece of its stack back (16 KiB) after it was listed
        assert traces.searched > 16 << 20
        assert set(traces.unreadable) <= UNREADABLE
        return traces

    def expect_only(self, *live: bytes) -> None:
        """The secrets are nowhere but in areas: those in `live` once each, all others nowhere.

        Secret memory cannot be searched. The emulator's areas are, and `live` may be torn where it goes on elsewhere.
        """
        traces = self.search()
        allowed = Counter() if self.secret_areas else self.needles.marks(*live)
        for kind, marks in traces.marks.items():
            assert kind == "locked" and not self.secret_areas, traces.told(self.needles, allowed)
            for (mark, identity), times in marks.items():
                enough = times <= allowed[mark, identity] if identity else bool(live)
                assert enough, traces.told(self.needles, allowed)

    def expect_nothing(self) -> None:
        """No secret is anywhere, not even a piece of one."""
        self.expect_only()

    # What root reads.

    def read(self, address: int, size: int) -> bytes:
        """The daemon's memory."""
        with open(f"/proc/{self.daemon}/mem", "rb", buffering=0) as memory:
            return os.pread(memory.fileno(), size, address)

    def shim_variable(self, name: str, at: int, size: int) -> bytes:
        """Bytes of one of the shim's variables."""
        library = ctypes.CDLL(native.SHIM)
        here = ctypes.addressof(ctypes.c_char.in_dll(library, name))
        return self.read(here - _base("self") + _base(self.daemon) + at, size)

    def answered_by_shim(self, path: Path, size: int) -> str:
        """Which requests for the first `size` bytes of an open file the shim answers: "", "write" or "read write"."""
        ino = os.stat(path).st_ino
        entry = self.shim_variable("secretfs_files", ino % fast.FILES * fast._ENTRY, fast._ENTRY)
        found, _, _, read_until, writable, _, _, _, pieces = fast._FILE.unpack_from(entry)
        if found != ino or not writable or not pieces:
            return ""
        start, end, _ = fast._PIECE.unpack_from(entry, fast._FILE.size)
        assert start == 0
        if end < size:
            return ""
        return "read write" if read_until > time.time() else "write"

    def written_by_the_shim(self) -> int:
        """How many files the shim has written to since Python answered a request."""
        return int.from_bytes(self.shim_variable("secretfs_written_count", 0, 4), sys.byteorder)

    def unlinked_by_the_shim(self) -> bool:
        """Whether it has unlinked something since Python answered a request."""
        return any(self.shim_variable("secretfs_unlinked", 0, 4))

    def opened_by_the_shim(self) -> int:
        """How many opens it has answered so far."""
        next_handle = self.shim_variable("secretfs_next_handle", 0, 8)
        return int.from_bytes(next_handle, sys.byteorder) - fast.FIRST_HANDLE

    def receive_buffer(self) -> bytes:
        """libfuse's receive buffer, as far as requests reach: behind that is what was there before malloc gave it out.

        It is the one piece of malloc's that is locked. Where in its first page it begins is told by malloc's header:
        the size of the piece, in the word before, with three flags in the lowest bits (malloc/malloc.c of glibc).
        """
        (where,) = (one for one in residue.mappings(self.daemon) if {"lo", "dd"} <= one.flags and "dc" not in one.flags)
        end = where.position + where.size
        first = self.read(where.position, PAGE)
        for at in range(PAGE - 16, 0, -16):  # the last one: before it may be what is left of an older header
            (header,) = struct.unpack_from("N", first, at - 8)
            start, size = where.position + at, (header & ~7) - 8
            if size > 1 << 20 and -(-(start + size) // PAGE) * PAGE == end:
                return self.read(start, min(size, LARGEST_REQUEST))
        raise AssertionError("the receive buffer was not found")

    def window(self) -> bytes:
        """The window; with secret areas it is the one piece of locked memory that can be read."""
        assert self.secret_areas
        (where,) = (one for one in residue.mappings(self.daemon) if one.kind == "locked")
        return self.read(where.position, where.size)


@contextlib.contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """A descriptor."""
    fd = os.open(path, flags, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def _base(pid: int | str) -> int:
    """Where a process has the shim."""
    lines = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines()
    return min(int(line.partition("-")[0], 16) for line in lines if re.search(r"/libsecretfs-shim\.so$", line))
