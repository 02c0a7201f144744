"""What the shim knows of names (secretfs/native/names.c): which are surely not there, and which surely are.

For the first there are counts, for the second addresses of names in secret memory. Which place is a name's, Python's
hash says, whose key is new in every process. The file system tells of every name (`secretfs.nodes.NameWatcher`).
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any

from secretfs.nodes import NodeEntry

__all__ = ["KNOWN", "NAMES", "NameTable"]

# The sizes and the structure of fast.h.
NAMES = 1 << 20
KNOWN = 1024
_KNOWN = struct.Struct("=QQQQ")
_DIRECTORY = struct.Struct("=Q")
FULL = 0xFF
"""A count that is not trusted any more."""


class NameTable:
    """The tables, in the shim's memory."""

    def __init__(self, counts: memoryview, known: memoryview) -> None:
        """Fill these two, which are zero: NAMES bytes, and KNOWN entries."""
        self._counts = counts
        self._known = known
        self._entries: list[NodeEntry | None] = [None] * KNOWN

    @classmethod
    def of(cls, library: ctypes.CDLL) -> NameTable:
        """Those of the shim, which answers from now on; where Python's hash cannot be called from C it never does."""

        def memory(name: str, size: int) -> memoryview:
            return memoryview((ctypes.c_uint8 * size).in_dll(library, name)).cast("B")

        call = _hash_of_bytes()
        if call is not None:
            ctypes.c_void_p.in_dll(library, "secretfs_hash_name").value = ctypes.cast(call, ctypes.c_void_p).value
        return cls(memory("secretfs_names", NAMES), memory("secretfs_known_names", KNOWN * _KNOWN.size))

    def added(self, directory: int, entry: NodeEntry) -> None:
        """There is one more name; a count that is full stays so."""
        place = entry.name_hash + directory
        if self._counts[place % NAMES] < FULL:
            self._counts[place % NAMES] += 1
        self.changed(directory, entry)

    def removed(self, directory: int, entry: NodeEntry) -> None:
        """There is one less."""
        place = entry.name_hash + directory
        if self._counts[place % NAMES] < FULL:
            self._counts[place % NAMES] -= 1
        self._forget(place % KNOWN, entry)

    def changed(self, directory: int, entry: NodeEntry) -> None:
        """It leads to another node: only what is no directory can be unlinked."""
        place = (entry.name_hash + directory) % KNOWN
        if entry.value.entries is None:
            self._entries[place] = entry
            _KNOWN.pack_into(self._known, place * _KNOWN.size, directory, entry.value.ino, entry.length, entry.address)
        else:
            self._forget(place, entry)

    def _forget(self, place: int, entry: NodeEntry) -> None:
        if self._entries[place] is entry:
            self._entries[place] = None
            _DIRECTORY.pack_into(self._known, place * _KNOWN.size, 0)

    def taken(self, directory: int, place: int) -> NodeEntry:
        """The entry that the shim has unlinked, for the caller to remove it. That will count it down once more."""
        entry = self._entries[place]
        assert entry is not None
        count = (entry.name_hash + directory) % NAMES
        if self._counts[count] < FULL:
            self._counts[count] += 1
        return entry


def _hash_of_bytes() -> Any:
    """The C function behind hash(bytes): Py_HashBuffer() since Python 3.14. None where there is none, or another."""
    for name in ("Py_HashBuffer", "_Py_HashBytes"):
        call = getattr(ctypes.pythonapi, name, None)
        if call is not None:
            call.restype, call.argtypes = ctypes.c_ssize_t, (ctypes.c_char_p, ctypes.c_ssize_t)
            if all(call(probe, len(probe)) == hash(probe) for probe in (b"n", b"a name", b"n" * 255)):
                return call
    return None
