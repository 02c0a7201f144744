"""The heap: many small secrets in few areas, in slots of 64 to 4096 bytes.

It alone decides which slot a small secret gets. A slab is an area cut into slots of one size class (powers of two,
from 64 bytes); a freed slot is wiped at once, so a fresh one is all zeros. Slabs that become empty are given back,
except for one per class, because secret pages are slow to make (about 20 us each).

This is the plain kind of slab that the file system uses. Callers serialise access: nothing here awaits or locks.
"""

from __future__ import annotations

from array import array

from secretfs.area import SecretArea
from secretfs.errors import BoundsError
from secretfs.interface import Backend

__all__ = ["LARGEST", "SLOT", "Block", "Heap", "slot_size"]

SLOT = 64
"""The smallest slot, in bytes."""
LARGEST = 4096
"""The largest slot, in bytes; what is bigger goes into pages of its own (pages.py)."""
SLAB = 64 * 1024
"""A slab's size; it doubles with every DOUBLING slabs of its class, up to LARGEST_SLAB."""
LARGEST_SLAB = 1 << 20
DOUBLING = 16


def slot_size(size: int) -> int:
    """The size class that holds `size` bytes.

    Raises:
        BoundsError: no slot is that large.
    """
    if not 0 <= size <= LARGEST:
        raise BoundsError(f"no slot holds {size} bytes")
    return max(SLOT, 1 << (size - 1).bit_length()) if size else SLOT


class Block:
    """`size` bytes at `offset` of `area`. It belongs to whoever it was given to, until it is freed."""

    __slots__ = ("area", "offset", "size", "slab")

    def __init__(self, area: SecretArea, offset: int, size: int, slab: _Slab | None = None) -> None:
        self.area = area
        self.offset = offset
        self.size = size
        self.slab = slab

    def __repr__(self) -> str:
        return f"<Block {self.size} bytes>"

    @property
    def address(self) -> int:
        """Where it lies, for C code that works on it in place."""
        return (self.area.address if self.slab is None else self.slab.address) + self.offset

    def write(self, at: int, data: bytes | memoryview) -> None:
        """Copy `data` to `at` within the block."""
        self._check(at, len(data))
        self.area.write(data, self.offset + at)

    def read_into(self, at: int, buffer: memoryview) -> None:
        """Fill `buffer` from `at` within the block."""
        self._check(at, len(buffer))
        self.area.read_into(buffer, self.offset + at)

    def equals(self, data: bytes) -> bool:
        """Whether the block begins with `data`."""
        return self.area.equals(data, self.offset)

    def copy_to(self, other: Block, length: int) -> None:
        """Copy the first `length` bytes to the start of `other`."""
        self._check(0, length)
        other._check(0, length)
        self.area.copy_within(self.offset, other.area, other.offset, length)

    def wipe(self, at: int, length: int) -> None:
        """Overwrite `length` bytes from `at` with zeros."""
        self._check(at, length)
        self.area.wipe(self.offset + at, length)

    def _check(self, at: int, length: int) -> None:
        if at < 0 or at + length > self.size:
            raise BoundsError(f"{length} bytes at {at} are outside a block of {self.size} bytes")


class _Slab:
    """One area cut into slots of one class."""

    __slots__ = ("address", "area", "free", "slot", "slots")

    def __init__(self, area: SecretArea, slot: int) -> None:
        self.area = area
        self.address = area.address  # it never moves, and to ask each time is slow
        self.slot = slot
        self.slots = area.size // slot
        self.free = array("I", range(self.slots - 1, -1, -1))  # popped from the end: low addresses first


class _Class:
    """All slabs of one slot size; `open` are those with a free slot."""

    __slots__ = ("open", "slabs")

    def __init__(self) -> None:
        self.slabs: list[_Slab] = []
        self.open: dict[int, _Slab] = {}  # by id(), in the order in which they are to be filled


class Heap:
    """Slots of secret memory."""

    def __init__(self, backend: Backend, *, reserve: bool = False) -> None:
        """Make an empty heap on `backend`.

        Args:
            backend: where areas come from.
            reserve: allocate one slab of each class now, so that the first secrets meet memory whose descriptor was
                closed long ago.
        """
        self._backend = backend
        self._classes = {slot: _Class() for slot in _slot_sizes()}
        self.used = 0
        """Bytes in slots that are handed out."""
        if reserve:
            for slot in self._classes:
                self._grow(slot)

    @property
    def locked(self) -> int:
        """Bytes of all areas."""
        return sum(slab.area.size for group in self._classes.values() for slab in group.slabs)

    def allocate(self, size: int) -> Block:
        """A zeroed block of at least `size` bytes (at most 4096).

        Raises:
            LimitError: no further slab may be locked.
        """
        slot = slot_size(size)
        group = self._classes[slot]
        slab = next(iter(group.open.values())) if group.open else self._grow(slot)
        index = slab.free.pop()
        if not slab.free:
            del group.open[id(slab)]
        self.used += slot
        return Block(slab.area, index * slot, slot, slab)

    def free(self, block: Block) -> None:
        """Wipe the block and take it back.

        Raises:
            BoundsError: it was freed before.
        """
        slab = block.slab
        if slab is None:
            raise BoundsError("this block is not from this heap, or was freed before")
        block.slab = None
        slab.area.write(_ZEROS[slab.slot], block.offset)  # half of the time that wipe() takes
        group = self._classes[slab.slot]
        slab.free.append(block.offset // slab.slot)
        group.open[id(slab)] = slab
        self.used -= slab.slot
        if len(slab.free) == slab.slots and len(group.slabs) > 1:
            group.slabs.remove(slab)
            del group.open[id(slab)]
            slab.area.close()

    def close(self) -> None:
        """Wipe and unmap every slab."""
        for group in self._classes.values():
            while group.slabs:
                group.slabs.pop().area.close()
            group.open.clear()
        self.used = 0

    def _grow(self, slot: int) -> _Slab:
        group = self._classes[slot]
        size = min(LARGEST_SLAB, SLAB << (len(group.slabs) // DOUBLING))
        slab = _Slab(SecretArea(size, backend=self._backend), slot)
        group.slabs.append(slab)
        group.open[id(slab)] = slab
        return slab


def _slot_sizes() -> list[int]:
    return [SLOT << n for n in range((LARGEST // SLOT).bit_length())]


_ZEROS = {slot: bytes(slot) for slot in _slot_sizes()}
