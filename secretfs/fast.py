"""The table of open files whose reads and writes the shim answers by itself (secretfs/native/fast.c).

Python publishes a file, the shim uses the entry, and whatever is about to change the file's layout, size, mode or times
takes the entry back first (`Published.revoke`). What the shim has written in the meantime is brought home by `collect`
before the next request that Python answers, so nothing else here needs to know that the shim exists.

Entries are found by inode number modulo their count: a file whose place is taken is simply answered by Python.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from secretfs.nodes import Node

__all__ = ["FILES", "Entry", "FastFiles", "Published"]

FILES = 1024
DAY = 24 * 3600
NANO = 10**9


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


class Published:
    """One file's place in the table."""

    __slots__ = ("_entry", "_node")

    def __init__(self, entry: Entry, node: Node) -> None:
        self._entry = entry
        self._node = node

    def revoke(self) -> None:
        """Take it back: from now on Python answers."""
        self._entry.ino = 0
        if self._node.content is not None:
            self._node.content.published = None


class FastFiles:
    """The table, in the shim's memory."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._entries = (Entry * FILES).in_dll(library, "secretfs_files")
        self._numbers = (ctypes.c_uint32 * FILES).in_dll(library, "secretfs_written")
        self.written = ctypes.c_uint32.in_dll(library, "secretfs_written_count")
        """How many entries collect() has to look at."""

    def publish(self, node: Node) -> None:
        """Let the shim answer for `node`, which is open, if its first bytes lie in one piece."""
        content = node.content
        piece = None if content is None else content.first_piece()
        entry = self._entries[node.ino % FILES]
        if content is None or piece is None or entry.ino not in (0, node.ino):
            return
        block, capacity = piece
        entry.memory = block.area.address + block.offset
        entry.capacity = capacity
        entry.size = content.size
        entry.written = 0
        entry.writable = node.mode & 0o6000 == 0
        entry.read_until = node.atime // NANO + DAY if node.atime > max(node.mtime, node.ctime) else 0
        entry.ino = node.ino
        content.published = Published(entry, node)

    def collect(self, get: Callable[[int], Node | None]) -> None:
        """Tell the nodes what was written to them; `get` finds a node by inode number."""
        for position in range(self.written.value):
            entry = self._entries[self._numbers[position]]
            node = get(entry.ino) if entry.ino else None
            if node is not None and node.content is not None:
                node.content.size = entry.size
                node.mtime = node.ctime = entry.written
            entry.written = 0
        self.written.value = 0
