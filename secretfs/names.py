"""Names in secret memory: the entries of a directory, and the extended attributes of an inode.

A name is found by its hash (Python's SipHash of bytes, keyed afresh in every process) and then compared with the
bytes in its block, so that no name stays in ordinary memory. Entries keep the order in which they came.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Generic, TypeVar

from secretfs.content import Space
from secretfs.errors import FileError
from secretfs.heap import Block
from secretfs.plaintext import Plaintext

__all__ = ["NAME_MAX", "Entry", "Names"]

NAME_MAX = 255
T = TypeVar("T")


class Entry(Generic[T]):
    """A name and what it stands for. `live` turns False when it is removed, for those who still hold it."""

    __slots__ = ("_block", "length", "live", "name_hash", "value")

    def __init__(self, block: Block, length: int, name_hash: int, value: T) -> None:
        self._block = block
        self.length = length
        """Bytes of the name."""
        self.name_hash = name_hash
        self.value = value
        self.live = True

    def __repr__(self) -> str:
        return f"<Entry, name of {self.length} bytes>"

    @property
    def address(self) -> int:
        """Where the name lies, for C code that compares it."""
        return self._block.address

    def name(self) -> Plaintext:
        """The name as bytes that wipe themselves: the FUSE library takes nothing else."""
        return Plaintext.read(self.length, lambda buffer: self._block.read_into(0, buffer))


class Names(Generic[T]):
    """A mapping from names to values of one kind."""

    __slots__ = ("_by_hash", "_length", "_space")

    def __init__(self, space: Space) -> None:
        self._space = space
        self._by_hash: dict[int, list[Entry[T]] | Entry[T]] = {}  # a list only where hashes collide
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Entry[T]]:
        for found in self._by_hash.values():
            if isinstance(found, list):
                yield from found
            else:
                yield found

    def get(self, name: bytes) -> Entry[T] | None:
        """The entry of that name, or None."""
        found = self._by_hash.get(hash(name))
        if found is None:
            return None
        for entry in found if isinstance(found, list) else (found,):
            if entry.length == len(name) and entry._block.equals(name):
                return entry
        return None

    def add(self, name: bytes, value: T) -> Entry[T]:
        """Add a name that is not there yet.

        Raises:
            FileError: ENAMETOOLONG, or ENOSPC where no memory can be locked for it.
        """
        if len(name) > NAME_MAX:
            raise FileError(errno.ENAMETOOLONG)
        block = self._space.allocate(len(name))
        block.write(0, name)
        entry = Entry(block, len(name), hash(name), value)
        found = self._by_hash.get(entry.name_hash)
        if found is None:
            self._by_hash[entry.name_hash] = entry
        elif isinstance(found, list):
            found.append(entry)
        else:
            self._by_hash[entry.name_hash] = [found, entry]
        self._length += 1
        return entry

    def remove(self, entry: Entry[T]) -> None:
        """Take `entry` out and wipe its name."""
        found = self._by_hash[entry.name_hash]
        if isinstance(found, list):
            found.remove(entry)
            if len(found) == 1:
                self._by_hash[entry.name_hash] = found[0]
        else:
            del self._by_hash[entry.name_hash]
        entry.live = False
        self._length -= 1
        self._space.heap.free(entry._block)

    def clear(self) -> None:
        """Remove everything."""
        for entry in list(self):
            self.remove(entry)
