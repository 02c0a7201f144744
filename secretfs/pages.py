"""Runs of whole pages for what does not fit a slot: the bytes of larger files.

It alone decides which pages a file gets. A run is given where it can grow in place, so that a file that is written
from front to back becomes one long run and nothing is copied as it grows. Freed pages are wiped at once; an area
without pages in use is given back, except for the last one.

Free runs are kept by start and by end (to join neighbours) and in bins by the power of two of their length (to find
one that fits without a search). Callers serialise access.
"""

from __future__ import annotations

from secretfs.area import SecretArea
from secretfs.errors import LimitError
from secretfs.heap import Block
from secretfs.interface import Backend, round_up

__all__ = ["PAGE", "PagePool", "Run"]

PAGE = 4096
"""A page of a file, in bytes, whatever the machine's own page size is."""
SMALLEST_AREA, LARGEST_AREA = 256 * 1024, 4 << 20


class Run(Block):
    """`pages` pages in a row."""

    __slots__ = ("pages", "zone")

    def __init__(self, zone: _Zone, first: int, pages: int) -> None:
        super().__init__(zone.area, first * PAGE, pages * PAGE)
        self.zone = zone
        self.pages = pages

    @property
    def first(self) -> int:
        """The number of its first page within its area."""
        return self.offset // PAGE


class _Zone:
    """One area and its free runs."""

    __slots__ = ("area", "by_end", "by_start", "free", "pages")

    def __init__(self, area: SecretArea) -> None:
        self.area = area
        self.pages = area.size // PAGE
        self.free = 0
        self.by_start: dict[int, int] = {}  # first page of a free run -> its length
        self.by_end: dict[int, int] = {}  # page after a free run -> its first page


class PagePool:
    """Pages of secret memory in runs."""

    def __init__(self, backend: Backend, *, reserve: bool = False) -> None:
        """Make an empty pool on `backend`; with `reserve` its first area is allocated now."""
        self._backend = backend
        self._zones: list[_Zone] = []
        self._bins: list[dict[tuple[int, int], _Zone]] = [{} for _ in range(64)]  # (id of zone, first page) -> zone
        self.used = 0
        """Bytes in runs that are handed out."""
        if reserve:
            self._grow(1)

    @property
    def locked(self) -> int:
        """Bytes of all areas."""
        return sum(zone.area.size for zone in self._zones)

    def allocate(self, pages: int) -> Run:
        """A zeroed run of `pages` pages, or of fewer where memory is short or in pieces; never of none.

        Raises:
            LimitError: no page is left and none may be locked.
        """
        zone, first, length = self._find(pages)
        taken = min(pages, length)
        self._remove(zone, first)
        if length > taken:
            self._insert(zone, first + taken, length - taken)
        return self._taken(Run(zone, first, taken), taken)

    def extend(self, run: Run, pages: int) -> int:
        """Let `run` grow in place by up to `pages` pages and return by how many it did, 0 if its neighbour is used."""
        zone, end = run.zone, run.first + run.pages
        length = zone.by_start.get(end, 0)
        taken = min(pages, length)
        if taken:
            self._remove(zone, end)
            if length > taken:
                self._insert(zone, end + taken, length - taken)
            run.pages += taken
            run.size += taken * PAGE
            self._taken(run, taken)
        return taken

    def trim(self, run: Run, pages: int) -> None:
        """Wipe and take back all but the first `pages` pages of `run`; with 0 it is gone."""
        surplus = run.pages - pages
        if surplus <= 0:
            return
        zone, first = run.zone, run.first + pages
        zone.area.wipe(first * PAGE, surplus * PAGE)
        run.pages = pages
        run.size = pages * PAGE
        self.used -= surplus * PAGE
        self._give_back(zone, first, surplus)

    def close(self) -> None:
        """Wipe and unmap every area."""
        while self._zones:
            self._zones.pop().area.close()
        for group in self._bins:
            group.clear()
        self.used = 0

    def _taken(self, run: Run, pages: int) -> Run:
        self.used += pages * PAGE
        return run

    def _find(self, pages: int) -> tuple[_Zone, int, int]:
        """The free run to take from: one that is surely long enough, else fresh memory, else the longest there is."""
        for group in self._bins[(pages - 1).bit_length() :]:
            for (_, first), zone in group.items():
                return zone, first, zone.by_start[first]
        try:
            zone = self._grow(pages)
        except LimitError:
            for group in reversed(self._bins):
                for (_, first), zone in group.items():
                    return zone, first, zone.by_start[first]
            raise
        return zone, 0, zone.pages

    def _grow(self, pages: int) -> _Zone:
        """A new area: a quarter of what there is, so that areas stay few; under a limit, just what is needed."""
        needed = round_up(pages * PAGE, SMALLEST_AREA)
        size = max(needed, min(LARGEST_AREA, round_up(self.locked // 4, SMALLEST_AREA)))
        area = None
        for attempt in sorted({size, min(size, needed), pages * PAGE}, reverse=True):
            try:
                area = SecretArea(attempt, backend=self._backend)
                break
            except LimitError:
                if attempt == pages * PAGE:
                    raise
        assert area is not None
        zone = _Zone(area)
        self._zones.append(zone)
        self._insert(zone, 0, zone.pages)
        return zone

    def _give_back(self, zone: _Zone, first: int, pages: int) -> None:
        after = zone.by_start.get(first + pages)
        if after is not None:
            self._remove(zone, first + pages)
            pages += after
        before = zone.by_end.get(first)
        if before is not None:
            pages += zone.by_start[before]
            self._remove(zone, before)
            first = before
        self._insert(zone, first, pages)
        if zone.free == zone.pages and len(self._zones) > 1:
            self._remove(zone, 0)
            self._zones.remove(zone)
            zone.area.close()

    def _insert(self, zone: _Zone, first: int, pages: int) -> None:
        zone.by_start[first] = pages
        zone.by_end[first + pages] = first
        zone.free += pages
        self._bins[pages.bit_length() - 1][id(zone), first] = zone

    def _remove(self, zone: _Zone, first: int) -> None:
        pages = zone.by_start.pop(first)
        del zone.by_end[first + pages]
        zone.free -= pages
        del self._bins[pages.bit_length() - 1][id(zone), first]
