"""The tables from which the shim answers requests by itself (secretfs/native/fast.c).

Python publishes a file, the shim uses the entry, and whatever is about to change the file's layout, size, mode or times
takes the entry back first (`Published.revoke`). What the shim has written in the meantime is brought home (`FollowUp`)
before the next request that Python answers, so nothing else here needs to know that the shim exists.

A file stays in the table when it is closed, so that the shim can open it again by itself; Python hears of that later.

Entries are found by inode number modulo their count: a file whose place an open one has is simply answered by Python.
"""

from __future__ import annotations

import ctypes
import struct

from secretfs.nametable import NameTable
from secretfs.nodes import Node
from secretfs.xattrs import has_capabilities

__all__ = ["FILES", "PIECES", "FastFiles", "Published"]

FILES = 1024
PIECES = 16
DEFERRED = 256

# The structures of fast.h, which has the meaning of each field.
_FILE = struct.Struct("=QQqqQQQQQ")
_PIECE = struct.Struct("=QQQ")
_ENTRY = _FILE.size + PIECES * _PIECE.size
_DEFERRED = struct.Struct("=4Q")
_ATTRIBUTES = struct.Struct("=QQ3q4I")
_INO = struct.Struct("=Q")
_WRITTEN = struct.Struct("=QQq")  # how an entry begins
_DIRECT_IO = 1  # FOPEN_DIRECT_IO of linux/fuse.h
OPEN, RELEASE, FORGET, UNLINK = 14, 18, 2, 10
"""Opcodes of linux/fuse.h."""
FIRST_HANDLE = 1 << 62
"""Of those that the shim gives out; the file system's own count from 1."""


class Published:
    """One file's place in the table."""

    __slots__ = ("_at", "_files", "node")

    def __init__(self, files: FastFiles, at: int, node: Node) -> None:
        self._files = files
        self._at = at
        self.node = node

    def revoke(self) -> None:
        """Take it back: from now on Python answers."""
        self._files.withdraw(self._at)
        if self.node.content is not None:
            self.node.content.published = None


class FastFiles:
    """The tables, in the shim's memory."""

    def __init__(self, library: ctypes.CDLL, *, direct_io: bool) -> None:
        """Fill those in `library`. `direct_io`: files are opened to be read and written past the page cache."""

        def memory(name: str, size: int) -> memoryview:
            return memoryview((ctypes.c_char * size).in_dll(library, name)).cast("B")

        ctypes.c_uint32.in_dll(library, "secretfs_open_flags").value = _DIRECT_IO if direct_io else 0
        self._entries = memory("secretfs_files", FILES * _ENTRY)
        self._published: dict[int, Published] = {}  # by place
        self._written = (ctypes.c_uint32 * FILES).in_dll(library, "secretfs_written")
        self._written_count = ctypes.c_uint32.in_dll(library, "secretfs_written_count")
        self._deferred = memory("secretfs_deferred", DEFERRED * _DEFERRED.size)
        self._deferred_count = ctypes.c_uint32.in_dll(library, "secretfs_deferred_count")
        self._attributes = memory("secretfs_attributes", _ATTRIBUTES.size)
        self.news = ctypes.c_uint32.in_dll(library, "secretfs_news")
        """Not 0: there is something for written() and deferred()."""
        self._unlinked = ctypes.c_uint32.in_dll(library, "secretfs_unlinked")
        self.names = NameTable.of(library)

    def publish(self, node: Node, read_until: int, *, openable: bool) -> None:
        """Let the shim answer for `node`, which is open, as far as its first PIECES pieces reach.

        Reads it answers until `read_until` (seconds since 1970), when one changes the access time, and opens where
        that is allowed to whomever the kernel lets through.
        """
        content = node.content
        at = node.ino % FILES * _ENTRY
        other = self._published.get(at)
        if content is None or (other is not None and other.node is not node and other.node.opens):
            return
        pieces = content.pieces(PIECES) or content.borrow()
        if not pieces:
            return
        if other is not None and other.node is not node and other.node.content is not None:
            other.node.content.revoke()
        place = at + _FILE.size
        for block, start, end in pieces:
            _PIECE.pack_into(self._entries, place, start, end, block.address)
            place += _PIECE.size
        writable = node.mode & 0o6000 == 0 and not has_capabilities(node)
        whole = node.nlink == 1 and node.xattrs is None and len(pieces) == content.blocks
        uses = writable, openable, node.opens, whole
        _FILE.pack_into(self._entries, at, node.ino, content.size, 0, read_until, *uses, len(pieces))
        content.published = self._published[at] = Published(self, at, node)

    def withdraw(self, at: int) -> None:
        """The shim answers no more for the file in that place."""
        _INO.pack_into(self._entries, at, 0)
        del self._published[at]

    def written(self) -> list[tuple[int, int, int]]:
        """What was written to since it was last asked for: (inode, its size now, the time in nanoseconds).

        Inode 0 is what is no more: Python has taken the entry back, or the shim has unlinked the file.
        """
        found = []
        for position in range(self._written_count.value):
            at = self._written[position] * _ENTRY
            ino, size, time = _WRITTEN.unpack_from(self._entries, at)
            _WRITTEN.pack_into(self._entries, at, ino, size, 0)
            found.append((ino, size, time))
        self._written_count.value = 0
        self.news.value = self._deferred_count.value
        return found

    def deferred(self) -> list[tuple[int, int, int, int]]:
        """What was left to be done, oldest first, and now is the caller's: (OPEN, inode, new handle, flags),
        (RELEASE, inode, handle, 0), (FORGET, inode, 0, how many references the kernel drops), or (UNLINK, inode of the
        directory, a place in `names`, the time in nanoseconds).
        """
        count = self._deferred_count.value
        self._deferred_count.value = self.news.value = self._unlinked.value = 0
        return list(_DEFERRED.iter_unpack(self._deferred[: count * _DEFERRED.size]))

    def publish_attributes(self, node: Node) -> None:
        """Let the shim say what stat(2) says of a directory that has just changed."""
        times = node.atime, node.mtime, node.ctime
        owner = node.uid, node.gid
        try:
            _ATTRIBUTES.pack_into(self._attributes, 0, node.ino, node.size, *times, node.mode, node.nlink, *owner)
        except struct.error:  # a time after the year 2262
            self.revoke_attributes()

    def revoke_attributes(self) -> None:
        """Take them back, before a directory changes."""
        _INO.pack_into(self._attributes, 0, 0)
