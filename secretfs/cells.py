"""Which cell a small secret gets: size classes, slabs that come and go.

Small secrets share slabs of 16 KiB, one size class to a slab; what is larger, or is to be alone, has a slab of its own.
Freed cells are zero, so a secret that was never written needs no window to be made or closed. A slab whose last secret
is gone is given back, but for a few that wait for the next secrets of any class: secret pages are slow to make (about
20 us each).

All of it happens under the lock of `turns.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from secretfs import libc, turns
from secretfs.errors import BoundsError
from secretfs.interface import Backend, Region, round_up
from secretfs.slab import CANARY, Cell, Sealer, Slab, map_region

__all__ = ["LARGEST", "CellHeap"]

SIZES = (16, 32, 64, 128, 256, 512, 1024, 2048)
LARGEST = SIZES[-1]
"""The most bytes that a cell of a shared slab holds."""
SLAB = 16 * 1024
LONGEST = 1 << 40
EMPTY = 2
"""How many empty slabs of a class wait for further secrets, besides the current one."""
POOLED, POOLED_SIZE = 8, 64 * 1024
"""How many slabs of secrets that were alone wait for further ones, and how large they may be."""


class _Class:
    """The slabs of one size: `current`, from which cells are taken, and others that have free ones."""

    __slots__ = ("current", "others", "slot")

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.current: Slab | None = None
        self.others: dict[int, Slab] = {}  # by id()


class CellHeap:
    """Cells for secrets of one kind: one backend, one mode."""

    def __init__(self, backend: Backend, *, uncached: bool = False, sealer: Sealer | None = None) -> None:
        """Make it empty."""
        self.backend = backend
        self.uncached = uncached
        self.sealer = sealer
        # by the bit length of the secret's length minus one
        self._classes = [_Class(max(SIZES[0], 1 << n)) for n in range(LARGEST.bit_length())]
        for n in range(SIZES[0].bit_length() - 1):
            self._classes[n] = self._classes[SIZES[0].bit_length() - 1]
        self.slabs: dict[int, Slab] = {}
        """All that are mapped, by id()."""
        self._pool: list[Slab] = []

    @property
    def locked(self) -> int:
        """Bytes of all slabs."""
        return sum(slab.size for slab in list(self.slabs.values()))

    def allocate(self, length: int, *, alone: bool = False) -> Cell:
        """A cell for a secret of `length` bytes.

        Raises:
            BoundsError: no secret can be that long.
            LimitError: no further page may be locked.
        """
        if not 0 < length <= LONGEST:
            raise BoundsError(f"a secret has 1 to {LONGEST} bytes, not {length}")
        try:
            with turns.lock:
                if alone or length > LARGEST:
                    cell = self._alone(length)
                else:
                    group = self._classes[(length - 1).bit_length()]
                    slab = group.current
                    if slab is None or not slab.free:
                        slab = self._next(group)
                    cell = slab.free.pop()
                cell.take(length)
        finally:
            if turns.late:
                turns.catch_up()
        return cell

    def adopt(self, region: Region, length: int) -> Cell:
        """The cell of a secret of `length` bytes that lies at the end of `region` already."""
        cell = self._single(self._take_over(region), length, fresh=False)
        cell.take(length)
        cell.touched = True
        return cell

    def free(self, cell: Cell) -> bool:
        """Wipe a cell and take it back; while a view of it is left, wipe it now and take it back when that is gone.

        Returns whether there is one. The lock is held. Twice is fine, and so is a slab that is closed.
        """
        slab = cell.slab
        if slab.closed or not cell.taken:
            return False
        cell.closing = cell.opens > 0
        cell.clear()
        if cell.closing:
            return True  # the last view frees it again
        cell.taken = False
        if not slab.slot:
            self._pool_or_give_back(slab)
        else:
            slab.free.append(cell)
            self._keep_or_give_back(slab)
        return False

    def close(self) -> None:
        """Wipe and unmap everything; secrets in it can no longer be used.

        Raises:
            BufferError: something is revealed; its memory is wiped and goes with the last view of it.
        """
        with turns.lock, contextlib.ExitStack() as stack:
            slabs = list(self.slabs.values())
            self.slabs.clear()
            self._pool.clear()
            for group in self._classes:
                group.current = None
                group.others.clear()
            for slab in slabs:
                stack.callback(slab.close)

    def _keep_or_give_back(self, slab: Slab) -> None:
        group = self._classes[(slab.slot - 1).bit_length()]
        if slab is group.current:
            return
        group.others[id(slab)] = slab
        if len(slab.free) == slab.cells:
            empty = [one for one in group.others.values() if len(one.free) == one.cells]
            if len(empty) > EMPTY:
                del group.others[id(slab)]
                self._give_back(slab)

    def _next(self, group: _Class) -> Slab:
        """The slab to take cells from, now that the current one is full."""
        if group.others:
            _, group.current = group.others.popitem()
        else:
            slab = self._slab(SLAB)
            with self._kept(slab):
                slab.cut(group.slot)
            group.current = slab
        return group.current

    def _alone(self, length: int) -> Cell:
        size = round_up(length + CANARY, libc.PAGE_SIZE)
        for slab in list(self._pool):
            if slab.size == size:
                with contextlib.suppress(ValueError):  # a signal handler has taken it meanwhile
                    self._pool.remove(slab)
                    return self._single(slab, length)
        return self._single(self._slab(size), length)

    def _single(self, slab: Slab, length: int, *, fresh: bool = True) -> Cell:
        with self._kept(slab):
            return slab.single(length, fresh=fresh)

    @contextlib.contextmanager
    def _kept(self, slab: Slab) -> Iterator[None]:
        """Make it ready, or give it back."""
        try:
            yield
        except BaseException:
            self._give_back(slab)
            raise

    def _pool_or_give_back(self, slab: Slab) -> None:
        if len(self._pool) < POOLED and slab.size <= POOLED_SIZE:
            self._pool.append(slab)
        else:
            self._give_back(slab)

    def _slab(self, size: int) -> Slab:
        return self._take_over(map_region(self.backend, size))

    def _take_over(self, region: Region) -> Slab:
        slab = Slab(region, vacated=self.free, uncached=self.uncached, sealer=self.sealer)
        self.slabs[id(slab)] = slab
        return slab

    def _give_back(self, slab: Slab) -> None:
        self.slabs.pop(id(slab), None)
        slab.close()
