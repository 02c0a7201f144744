"""The spare slot: one that the empty file which was opened last holds before anything was written to it.

So its first write, too, can be answered by whoever writes in place (fast.py). An empty file has no use for memory, so
there is one such slot in a file system, of the size that the last first write took, and it is not charged for. Memory
for its charge is kept free as long as it is lent.
"""

from __future__ import annotations

from typing import Protocol

from secretfs.errors import SecretFSError
from secretfs.heap import LARGEST, Block, Heap, slot_size

__all__ = ["Revocable", "Spare"]


class Revocable(Protocol):
    """Who uses memory in place, until it is told not to."""

    def revoke(self) -> None:
        """Stop."""


class Spare:
    """The spare slot of one file system. All of its bytes are zero while it is nobody's own."""

    __slots__ = ("_block", "_heap", "borrower", "size")

    def __init__(self, heap: Heap) -> None:
        """One from `heap`, as soon as somebody asks for it."""
        self._heap = heap
        self._block: Block | None = None
        self.size = LARGEST
        """Bytes, a size class of the heap. To be set to what files turn out to need."""
        self.borrower: Revocable | None = None
        """Who has it: told to give it back (`returned`) when another wants it, or the memory for its charge."""

    def lend(self, borrower: Revocable) -> Block | None:
        """The slot, or None where no memory can be locked for it."""
        if self.borrower is not None:
            self.borrower.revoke()
        if self._block is not None and self._block.size != self.size:
            self._heap.free(self._block)
            self._block = None
        if self._block is None:
            try:
                self._block = self._heap.allocate(self.size)
            except SecretFSError:
                return None
        self.borrower = borrower
        return self._block

    def give_up(self) -> bool:
        """Back to the heap with it, whoever has it; whether there was one."""
        if self.borrower is not None:
            self.borrower.revoke()
        if self._block is None:
            return False
        self._heap.free(self._block)
        self._block = None
        return True

    def returned(self) -> None:
        """The borrower had no use for it."""
        self.borrower = None

    def kept(self, used: int) -> None:
        """The slot is the borrower's own from now on; it has written to the first `used` bytes."""
        self.borrower = self._block = None
        self.size = slot_size(used)
