"""The tables from which the shim answers requests by itself (secretfs/native/fast.c).

Python publishes a file, the shim uses the entry, and whatever is about to change the file's layout, size, mode or times
takes the entry back first (`Published.revoke`). What the shim has written in the meantime is brought home by `collect`
before the next request that Python answers, so nothing else here needs to know that the shim exists.

Entries are found by inode number modulo their count: a file whose place is taken is simply answered by Python.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from typing import Any

from secretfs.nodes import Node
from secretfs.xattrs import has_capabilities

__all__ = ["FILES", "PIECES", "FastFiles", "NameCounts", "Published"]

FILES = 1024
NAMES = 1 << 20
PIECES = 16
DEFERRED = 256

# The structures of fast.h, which has the meaning of each field.
_FILE = struct.Struct("=QQqqQQ")
_PIECE = struct.Struct("=QQQ")
_ENTRY = _FILE.size + PIECES * _PIECE.size
_DEFERRED = struct.Struct("=QQQ")
_ATTRIBUTES = struct.Struct("=QQ3q4I")
_INO = struct.Struct("=Q")
FULL = 0xFF
"""A count that is not trusted any more."""


class Published:
    """One file's place in the table."""

    __slots__ = ("_at", "_node", "_table")

    def __init__(self, table: memoryview, at: int, node: Node) -> None:
        self._table = table
        self._at = at
        self._node = node

    def revoke(self) -> None:
        """Take it back: from now on Python answers."""
        _INO.pack_into(self._table, self._at, 0)
        if self._node.content is not None:
            self._node.content.published = None


class FastFiles:
    """The tables, in the shim's memory."""

    def __init__(self, library: ctypes.CDLL) -> None:
        def memory(name: str, size: int) -> memoryview:
            return memoryview((ctypes.c_char * size).in_dll(library, name)).cast("B")

        self._entries = memory("secretfs_files", FILES * _ENTRY)
        self._written = (ctypes.c_uint32 * FILES).in_dll(library, "secretfs_written")
        self._written_count = ctypes.c_uint32.in_dll(library, "secretfs_written_count")
        self._deferred = memory("secretfs_deferred", DEFERRED * _DEFERRED.size)
        self._deferred_count = ctypes.c_uint32.in_dll(library, "secretfs_deferred_count")
        self._attributes = memory("secretfs_attributes", _ATTRIBUTES.size)
        self.news = ctypes.c_uint32.in_dll(library, "secretfs_news")
        """Not 0: there is something for collect() and deferred()."""

    def publish(self, node: Node, read_until: int) -> None:
        """Let the shim answer for `node`, which is open, as far as its first PIECES pieces reach.

        Reads it answers until `read_until` (seconds since 1970), when one changes the access time.
        """
        content = node.content
        at = node.ino % FILES * _ENTRY
        if content is None or _INO.unpack_from(self._entries, at)[0] not in (0, node.ino):
            return
        pieces = content.pieces(PIECES)
        if not pieces:
            return
        place = at + _FILE.size
        for block, start, end in pieces:
            _PIECE.pack_into(self._entries, place, start, end, block.area.address + block.offset)
            place += _PIECE.size
        writable = node.mode & 0o6000 == 0 and not has_capabilities(node)
        _FILE.pack_into(self._entries, at, node.ino, content.size, 0, read_until, writable, len(pieces))
        content.published = Published(self._entries, at, node)

    def collect(self, get: Callable[[int], Node | None]) -> None:
        """Tell the nodes what was written to them; `get` finds a node by inode number."""
        for position in range(self._written_count.value):
            at = self._written[position] * _ENTRY
            ino, size, written, read_until, writable, count = _FILE.unpack_from(self._entries, at)
            _FILE.pack_into(self._entries, at, ino, size, 0, read_until, writable, count)
            node = get(ino) if ino else None
            if node is not None and node.content is not None:
                node.content.size = size
                node.mtime = node.ctime = written
        self._written_count.value = 0
        self.news.value = self._deferred_count.value

    def deferred(self) -> list[tuple[int, int, int]]:
        """What was left to be done, oldest first, and now is the caller's: (handle to release, inode, 0), or
        (0, inode, how many references the kernel drops).
        """
        count = self._deferred_count.value
        self._deferred_count.value = self.news.value = 0
        return list(_DEFERRED.iter_unpack(self._deferred[: count * _DEFERRED.size]))

    def publish_attributes(self, node: Node) -> None:
        """Let the shim say what stat(2) says of a directory that has just changed."""
        times = node.atime, node.mtime, node.ctime
        _ATTRIBUTES.pack_into(
            self._attributes, 0, node.ino, node.size, *times, node.mode, node.nlink, node.uid, node.gid
        )

    def revoke_attributes(self) -> None:
        """Take them back, before a directory changes."""
        _INO.pack_into(self._attributes, 0, 0)


class NameCounts:
    """How many names share each place in a table, so that the shim can say that a name is surely not there.

    It holds counts and no names: which place is a name's, Python's hash says, whose key is new in every process.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        """Count in `library`, which from now on answers. Where Python's hash cannot be called from C it never does."""
        self._counts = memoryview((ctypes.c_uint8 * NAMES).in_dll(library, "secretfs_names")).cast("B")
        call = _hash_of_bytes()
        if call is not None:
            ctypes.c_void_p.in_dll(library, "secretfs_hash_name").value = ctypes.cast(call, ctypes.c_void_p).value

    def added(self, directory: int, name_hash: int) -> None:
        """One more; a place that is full stays so."""
        place = (name_hash + directory) % NAMES
        if self._counts[place] < FULL:
            self._counts[place] += 1

    def removed(self, directory: int, name_hash: int) -> None:
        """One less."""
        place = (name_hash + directory) % NAMES
        if self._counts[place] < FULL:
            self._counts[place] -= 1


def _hash_of_bytes() -> Any:
    """The C function behind hash(bytes): Py_HashBuffer() since Python 3.14. None where there is none, or another."""
    for name in ("Py_HashBuffer", "_Py_HashBytes"):
        call = getattr(ctypes.pythonapi, name, None)
        if call is not None:
            call.restype, call.argtypes = ctypes.c_ssize_t, (ctypes.c_char_p, ctypes.c_ssize_t)
            if all(call(probe, len(probe)) == hash(probe) for probe in (b"n", b"a name", b"n" * 255)):
                return call
    return None
