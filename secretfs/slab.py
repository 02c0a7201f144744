"""A slab: secret pages between guard pages, cut into cells, out of reach but while a window is open.

It alone opens and closes windows, and alone decides where in its cell a secret lies: at the end, so that the canary
follows its last byte. All pages of a slab are opened together (mprotect(2) of a whole mapping costs a third of that of
a part): while one secret is revealed, the others of its slab can be read too. `cells.py` hands cells out.

    guard page | canary | cell | canary | cell | canary ... | guard page
    guard page | ... canary | one large secret | guard page

Windows are counted, and what the counts say is done, under the lock of `turns.py`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable
from typing import Any, Protocol

from secretfs import cachelines, cgroup, libc, turns
from secretfs.area import wipe_all
from secretfs.errors import ClosedError, SecretFSError
from secretfs.interface import Access, Backend, Guarantees, MappedRegion, Region, round_up
from secretfs.living import Living

__all__ = ["CANARY", "Cell", "Sealer", "Slab", "check_canaries", "close_slabs", "forget_slabs", "map_region"]

CANARY = 16
"""Bytes around each cell that nobody may write."""
BUSY = "a secret at rest cannot be revealed by a signal handler that interrupts its like being enciphered"
FORKED = "this secret belongs to the process that this one was forked from"
_NONE, _READ, _WRITE = Access.NONE, Access.READ, Access.WRITE
_canary = os.urandom(CANARY)
_slabs: Living[Slab] = Living()


class Sealer(Protocol):
    """Keeps bytes enciphered where they lie."""

    busy: bool
    """Whether something is half enciphered: then a signal handler has interrupted that, and must not look."""

    def seal(self, address: int, length: int, note: Callable[[Any], object]) -> None:
        """Encipher `length` bytes at `address` in place. `note` is given what opens them again, which is no secret, at
        once: whatever fails then, the bytes are not lost.
        """

    def unseal(self, address: int, length: int, sealed: Any, note: Callable[[None], object]) -> None:
        """Decipher them in place; `note` is given None as soon as they are."""


class Cell:
    """A place for one secret: `length` bytes at `address`. The bytes of a free cell are zero."""

    __slots__ = ("_sealed", "address", "closing", "end", "front", "length", "opens", "slab", "taken", "touched")

    def __init__(self, slab: Slab, front: int, end: int) -> None:
        self.slab = slab
        self.front = front
        """The address of its first byte, after a canary."""
        self.end = end
        self.take(0)
        self.taken = False
        self.touched = False
        """Whether it may hold anything but zeros."""

    def take(self, length: int) -> None:
        """Make it a secret of `length` bytes."""
        self.length = length
        self.address = self.end - length
        self.opens = 0
        self.taken = True
        self.closing = False
        self._sealed: Any = None

    def open(self, write: bool) -> None:
        """Open a window: until shut() the bytes can be read, with `write` also written. The lock is held.

        Raises:
            ClosedError: in a forked child, or after the slab was closed.
        """
        slab = self.slab
        if slab.sealer is not None and slab.sealer.busy:
            raise SecretFSError(BUSY)
        slab.open(write)
        self.opens += 1
        if write:
            self.touched = True
        if self._sealed is not None:
            try:
                self._unseal()
            except BaseException:
                self._shut_unread(write)
                raise

    def shut(self, write: bool) -> None:
        """Close a window. With the last one the bytes are out of reach, and gone if the secret was closed meanwhile.

        The lock is held.
        """
        slab = self.slab
        self.opens -= 1
        last = not self.opens and not slab.closed
        try:
            if last and slab.sealer is not None and self.touched and not self.closing:
                self._seal()
            if last and slab.uncached:
                cachelines.flush(self.address, self.length)
        finally:
            slab.shut(write)
        if last and self.closing:
            slab.vacated(self)

    def clear(self) -> None:
        """Wipe it, after a look at the canaries around it. The lock is held."""
        if not self.touched:
            return
        slab = self.slab
        with slab.opened():
            slab.check(self)
            libc.wipe(self.address, self.length)
            if slab.uncached:
                cachelines.flush(self.address, self.length)
            self._sealed = None
            self.touched = self.opens > 0

    def _note(self, sealed: Any) -> None:
        self._sealed = sealed

    def _shut_unread(self, write: bool) -> None:
        self.opens -= 1
        self.slab.shut(write)

    def _seal(self) -> None:
        sealer = self.slab.sealer
        assert sealer is not None
        if sealer.busy:
            turns.late.append((self._seal, ()))
            return
        sealer.busy = True  # from here on no signal handler opens it, so now the counts can be trusted
        try:
            if self.touched and self._sealed is None and not self.opens and not self.slab.closed:
                with self.slab.opened():
                    sealer.seal(self.address, self.length, self._note)
        finally:
            sealer.busy = False

    def _unseal(self) -> None:
        sealer = self.slab.sealer
        assert sealer is not None
        sealer.busy = True
        try:
            if self._sealed is not None:
                with self.slab.opened():
                    sealer.unseal(self.address, self.length, self._sealed, self._note)
        finally:
            sealer.busy = False


def map_region(backend: Backend, size: int) -> Region:
    """A region of `size` bytes, rounded up to whole pages.

    Raises:
        LimitError: they cannot be locked; nothing is left behind.
    """
    size = round_up(size, libc.PAGE_SIZE)
    cgroup.require_headroom_ahead(size)
    return backend.map(size)


class Slab:
    """Pages that are opened and closed together. `cut` or `single` makes it ready, closed."""

    def __init__(
        self,
        region: Region,
        *,
        vacated: Callable[[Cell], object],
        uncached: bool = False,
        sealer: Sealer | None = None,
    ) -> None:
        """Take over a region, to which there is no view yet; map_region() makes one.

        Args:
            region: the pages.
            vacated: called with a cell whose secret was closed while it was revealed, once its last view is gone.
            uncached: flush a secret's cache lines when its last window closes.
            sealer: keeps secrets enciphered while no window is open.
        """
        self._region = region
        self._protect: Callable[[Access], None] = region.protect
        if isinstance(region, MappedRegion):
            region.enclose()
            # Whether the region is alive is checked here already; asking twice would cost a tenth of a window.
            self._protect = region.protect_pages
        self._view = self._region.view()
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._view))
        self.size = region.size
        self.slot = 0
        """Bytes of each cell; 0 for a slab with a single one."""
        self._readers = self._writers = 0
        self.closed = False
        self._why_closed = "this secret was released"
        self._owner = os.getpid()
        self.uncached = uncached
        self.sealer = sealer
        self.vacated = vacated
        self.free: list[Cell] = []
        self.cells = 0
        """How many there are, free ones included."""
        self._used = False  # was it ever open: canaries need no look otherwise
        _slabs.add(self)

    @property
    def guarantees(self) -> Guarantees:
        """What its region promises."""
        return self._region.guarantees

    @property
    def guarded(self) -> bool:
        """Whether there are guard pages; a foreign backend may have regions of another kind."""
        return isinstance(self._region, MappedRegion)

    def cut(self, slot: int) -> None:
        """Make cells of `slot` bytes, with canaries around them."""
        self.slot = slot
        fronts = range(self.address + CANARY, self.address + self.size - slot - CANARY + 1, slot + CANARY)
        pattern = (_canary + bytes(slot)) * len(fronts) + _canary
        self._view[: len(pattern)] = pattern
        self.free = [Cell(self, front, front + slot) for front in reversed(fronts)]  # low addresses are popped first
        self.cells = len(self.free)
        self._protect(_NONE)

    def single(self, length: int, *, fresh: bool = True) -> Cell:
        """Make one cell of `length` bytes, which end where the guard page begins; not `fresh`: they are there."""
        self._protect(_WRITE)
        if fresh:
            self._region.wipe()  # of the canary of the secret that was here before
        end = self.address + self.size
        self._mark(end - length - CANARY)
        self.cells = 1
        self._protect(_NONE)
        return Cell(self, end - length, end)

    def open(self, write: bool) -> None:
        """Count one more window. The lock is held."""
        if self.closed:
            raise ClosedError(self._why_closed)
        if os.getpid() != self._owner:
            raise ClosedError(FORKED)
        try:
            if write:
                self._writers += 1
                self._used = True
            else:
                self._readers += 1
            self._fit()
        except BaseException:
            self.shut(write)
            raise

    def shut(self, write: bool) -> None:
        """Count one window fewer. The lock is held."""
        if write:
            self._writers -= 1
        else:
            self._readers -= 1
        if self.closed:
            if not self._writers and not self._readers:
                self._region.close()
        else:
            self._fit()

    def _fit(self) -> None:
        """Make the pages as open as the counts say; once more if a signal handler has changed these meanwhile."""
        done = None
        while done is not (wanted := _WRITE if self._writers else _READ if self._readers else _NONE):
            self._protect(wanted)
            done = wanted

    @contextlib.contextmanager
    def opened(self) -> Any:
        """A window of our own. The lock is held."""
        self.open(True)
        try:
            yield
        finally:
            self.shut(True)

    def check(self, cell: Cell) -> None:
        """End the process if what lies around a secret was overwritten. A window is open."""
        slack = cell.address - cell.front
        if (
            not self._holds(cell.front - CANARY, _canary)
            or (self.slot and not self._holds(cell.end, _canary))
            or (slack and not self._holds(cell.front, bytes(slack)))
        ):
            _end_overwritten()

    def check_all(self) -> None:
        """End the process if any canary was overwritten. The lock is held."""
        if self.closed or not self._used:
            return
        last = self.address + self.size - CANARY
        at = range(self.address, last + 1, self.slot + CANARY) if self.slot else ()
        with self.opened():
            if not all(self._holds(address, _canary) for address in at):
                _end_overwritten()

    def close(self) -> None:
        """Wipe and unmap. The lock is held.

        Raises:
            BufferError: a window is open; the memory is wiped, and goes with the last one.
        """
        if self.closed:
            return
        self.closed = True
        self._view.release()
        if not self._readers and not self._writers:
            self._region.close()
            return
        self._protect(_WRITE)  # what is revealed still reads, as zeros
        self._region.wipe()
        raise BufferError("a secret is revealed; its memory is wiped already and goes with the last view of it")

    def _mark(self, address: int) -> None:
        at = address - self.address
        self._view[at : at + CANARY] = _canary

    def _holds(self, address: int, expected: bytes) -> bool:
        at = address - self.address
        return self._view[at : at + len(expected)] == expected


def check_canaries() -> None:
    """End the process if a secret anywhere was written past its bounds."""
    with turns.lock:
        for slab in _slabs.all():
            with contextlib.suppress(ClosedError):  # in a forked child
                slab.check_all()


def close_slabs() -> None:
    """Wipe and unmap all slabs of this process, as at its end."""
    with turns.lock:
        for slab in _slabs.all():
            with contextlib.suppress(BufferError, OSError, ClosedError):
                slab.close()


def forget_slabs() -> None:
    """In a forked child: none of them is here."""
    for slab in _slabs.all():
        slab.closed = True
        slab._why_closed = FORKED
    _slabs.clear()


def _end_overwritten() -> None:
    """The last words of a process in which somebody wrote past the bounds of a secret (or before it)."""
    os.write(2, b"secretfs: fatal: a secret was written past its bounds; ending before more is lost\n")
    close_slabs()
    wipe_all()
    os.abort()
