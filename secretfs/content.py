"""The bytes of one file: which block of secret memory each of them lies in.

It alone knows the layout. A file of up to 4096 bytes is one slot of the heap, moved to the next class as it grows
(64, 128, ... 4096 bytes: in all it is copied less than twice). Anything beyond lies in runs of 4096-byte pages that are
never moved; pages that were never written are holes and take no memory.

It is charged for in steps of 64 bytes: for a whole page where there is data behind it, in the last page up to its data.

Sizes are bytes. Callers serialise access.
"""

from __future__ import annotations

import errno
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

from secretfs.errors import FileError, LimitError
from secretfs.heap import SLOT, Block, Heap, slot_size
from secretfs.interface import round_up
from secretfs.pages import PAGE, PagePool, Run
from secretfs.spare import Revocable, Spare

__all__ = ["Content", "Space"]


_NONE: Any = ()
"""No runs: most files have none, and two lists of their own would take as much memory as all else here."""


class Space:
    """What all files of one file system share: the memory, and the count of what of it they may use."""

    def __init__(self, heap: Heap, pages: PagePool, limit: int) -> None:
        """Share `heap` and `pages`; `limit` is how many bytes the data of all files may take."""
        self.heap = heap
        self.pages = pages
        self.limit = limit
        self.charged = 0
        self.spare = Spare(heap)

    @property
    def left(self) -> int:
        """Bytes of the limit that are not charged yet."""
        return self.limit - self.charged

    def charge(self, size: int) -> None:
        """Count `size` more bytes (fewer where negative).

        Raises:
            FileError: ENOSPC, and nothing is counted.
        """
        if size > self.left:
            raise FileError(errno.ENOSPC)
        self.charged += size
        if self.spare.borrower is not None and self.left < self.spare.size:
            self.spare.borrower.revoke()

    def allocate(self, size: int) -> Block:
        """A block from the heap; running out of lockable memory is ENOSPC for whoever writes a file."""
        try:
            return self.heap.allocate(size)
        except LimitError as error:
            if self.spare.give_up():
                return self.allocate(size)
            raise FileError(errno.ENOSPC) from error


class Content:
    """The bytes of one file."""

    __slots__ = ("_charged", "_data_end", "_head", "_pages", "_runs", "_space", "_starts", "published", "size")

    def __init__(self, space: Space) -> None:
        self._space = space
        self.size = 0
        """Bytes, holes included: what stat(2) calls st_size."""
        self._head: Block | None = None  # all the data there is, while that is within the first page
        self._data_end = 0  # from here on, a multiple of SLOT, all bytes are zero: there is no need to charge for them
        self._charged = 0
        self._pages = 0  # in all runs
        self._starts: list[int] = _NONE  # the file's page number at which each run begins, ascending
        self._runs: list[Run] = _NONE
        self.published: Revocable | None = None
        """Who else reads and writes these bytes in place; it is sent away before anything changes."""

    @property
    def allocated(self) -> int:
        """Bytes of secret memory that are its own: what stat(2) counts in st_blocks."""
        return self._pages * PAGE if self._runs else self._charged

    def write(self, offset: int, data: memoryview) -> int:
        """Copy `data` to `offset` and return how many bytes were taken: fewer where space ended in the middle.

        Raises:
            FileError: ENOSPC where not one byte could be taken; the file is as it was.
        """
        unfit = self._borrows()  # else this would hardly have come here
        self.revoke()
        if not data:
            return 0
        end = self._affordable(offset, offset + len(data))
        if end <= offset:
            raise FileError(errno.ENOSPC)
        if end <= PAGE and not self._runs:
            if unfit:
                self._space.spare.size = slot_size(end)
            self._grow_head(end)
            assert self._head is not None
            self._head.write(offset, data[: end - offset])
        else:
            end = self._write_pages(offset, data[: end - offset])
        self._data_end = max(self._data_end, round_up(end, SLOT))
        self._charge()
        self.size = max(self.size, end)
        return end - offset

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill `buffer`, which must be zeroed, from `offset` on, and return how many bytes lie before the end."""
        end = min(self.size, offset + len(buffer))
        if offset >= end:
            return 0
        if self._head is not None:
            stop = min(end, self._data_end)
            if stop > offset:
                self._head.read_into(offset, buffer[: stop - offset])
        for run, at, start, stop in self._pieces(offset, end):
            run.read_into(at, buffer[start - offset : stop - offset])
        return end - offset

    def truncate(self, size: int) -> None:
        """Cut to `size` bytes, wiping what is beyond, or grow to it with a hole."""
        self.revoke()
        if size < self.size:
            self._cut_head(size)
            self._cut_runs(size)
            self._data_end = min(self._data_end, round_up(size, SLOT), self._memory_end())
            self._charge()
        self.size = size

    def clear(self) -> None:
        """Wipe everything and give it back."""
        if self._runs:
            self.truncate(0)
            return
        self.revoke()
        if self._head is not None:  # of most files that is all
            self._drop_head()
        self._space.charge(-self._charged)
        self._charged = self._data_end = self.size = 0

    def pieces(self, most: int) -> list[tuple[Block, int, int]]:
        """Where the first bytes lie: up to `most` blocks, each with its first byte of the file and the one after its
        last. They follow each other, up to the first hole. Of an empty file the slot that it is lent.
        """
        if self._head is not None:
            return [(self._head, 0, self._data_end or self._head.size)]
        found: list[tuple[Block, int, int]] = []
        expected = 0
        for start, run in zip(self._starts[:most], self._runs, strict=False):
            begin = start * PAGE
            end = min(begin + run.size, self._data_end)
            if begin != expected or end <= begin:
                break
            found.append((run, begin, end))
            expected = end
        return found

    @property
    def blocks(self) -> int:
        """How many blocks there are, holes aside."""
        return len(self._runs) or (self._head is not None)

    def borrow(self) -> list[tuple[Block, int, int]]:
        """`pieces` of an empty file: the spare slot, or nothing. It is the file's own when something is written there,
        and given back with revoke() before that.
        """
        if self.size or self._runs or self._head is not None or self._space.left < self._space.spare.size:
            return []
        self._head = self._space.spare.lend(self)
        return [] if self._head is None else [(self._head, 0, self._head.size)]

    def written_in_place(self, size: int) -> None:
        """Whoever writes to `pieces` has done so, and the file has `size` bytes now."""
        self.size = size
        if not self._borrows():
            return
        assert self._head is not None
        self._space.spare.kept(size)
        self._data_end = round_up(size, SLOT)
        self._charge()
        if self._data_end < self._head.size:
            self.revoke()  # what lies beyond is not charged for
            self._shrink_head(size)

    def revoke(self) -> None:
        """Send away whoever uses these bytes in place, before anything about the file changes."""
        if self.published is not None:
            self.published.revoke()
        if self._borrows():
            self._space.spare.returned()
            self._head = None

    def _borrows(self) -> bool:
        return self._space.spare.borrower is self

    def _memory_end(self) -> int:
        """The byte after the last one that has memory."""
        if self._runs:
            return self._starts[-1] * PAGE + self._runs[-1].size
        return 0 if self._head is None else self._head.size

    # What it costs.

    def _charge(self) -> None:
        """Charge for what there is now; what is more than before has been found affordable."""
        if self._runs:
            cost = self._pages * PAGE - max(0, self._memory_end() - self._data_end)
        else:
            cost = self._data_end if self._head is not None else 0
        self._space.charge(cost - self._charged)
        self._charged = cost

    def _affordable(self, offset: int, end: int) -> int:
        """Up to which byte a write from `offset` to `end` can be charged for; not beyond `offset` if not at all."""
        while end > offset:
            over = self._cost_of_writing(offset, end) - self._charged - self._space.left
            if over <= 0:
                return end
            start_of_page = (end - 1) // PAGE * PAGE
            end = max(start_of_page, (end - over) // SLOT * SLOT)
        return offset

    def _cost_of_writing(self, offset: int, end: int) -> int:
        data_end = max(self._data_end, round_up(end, SLOT))
        if end <= PAGE and not self._runs:
            return data_end
        first, stop = offset // PAGE, round_up(end, PAGE) // PAGE
        pages = self._pages + stop - first - self._pages_within(first, stop)
        if self._head is not None and first > 0:
            pages += 1  # the head moves into a page
        last = max(stop, self._starts[-1] + self._runs[-1].pages if self._runs else 0) * PAGE
        return pages * PAGE - max(0, last - data_end)

    def _pages_within(self, first: int, stop: int) -> int:
        """How many pages from `first` to `stop` have memory."""
        return sum(piece_end - start for _, _, start, piece_end in self._pieces(first * PAGE, stop * PAGE)) // PAGE

    # The head: a file within one page.

    def _grow_head(self, end: int) -> None:
        """Make the head hold `end` bytes, moving it to a larger slot if it must."""
        old = self._head
        if old is None or old.size < end:
            new = self._space.allocate(end)
            if old is not None:
                old.copy_to(new, self._data_end)
                self._space.heap.free(old)
            self._head = new

    def _leave_head(self) -> None:
        """Move the head into the file's first page, because the file is getting larger than that."""
        head = self._head
        if head is None:
            return
        run = self._allocate_pages(1)
        head.copy_to(run, self._data_end)
        self._drop_head()
        self._insert(0, run)

    def _cut_head(self, size: int) -> None:
        if self._head is None or size >= self._data_end:
            return
        if size == 0:
            self._drop_head()
            return
        self._head.wipe(size, self._data_end - size)
        self._shrink_head(size)

    def _shrink_head(self, size: int) -> None:
        """Move to a smaller slot if that can be had: what truncate(2) gave back must not stay locked."""
        old = self._head
        assert old is not None
        if slot_size(size) == old.size:
            return
        try:
            new = self._space.heap.allocate(size)
        except LimitError:
            return
        old.copy_to(new, size)
        self._space.heap.free(old)
        self._head = new

    def _drop_head(self) -> None:
        assert self._head is not None
        self._space.heap.free(self._head)
        self._head = None

    # The runs: a file of more than one page.

    def _write_pages(self, offset: int, data: memoryview) -> int:
        """Write to pages, and return up to which byte there was memory for it."""
        self._leave_head()
        end = self._fill(offset, offset + len(data))
        if end <= offset:
            self._charge()  # the head may have moved
            raise FileError(errno.ENOSPC)
        for run, at, start, stop in self._pieces(offset, end):
            run.write(at, data[start - offset : stop - offset])
        return end

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[Run, int, int, int]]:
        """Where the bytes from `start` to `stop` lie: (run, offset in it, start, stop of the piece); holes left out."""
        index = max(0, bisect_right(self._starts, start // PAGE) - 1)
        while index < len(self._runs) and self._starts[index] * PAGE < stop:
            run, begin = self._runs[index], self._starts[index] * PAGE
            first, last = max(start, begin), min(stop, begin + run.size)
            if first < last:
                yield run, first - begin, first, last
            index += 1

    def _fill(self, start: int, stop: int) -> int:
        """Give every page from `start` to `stop` memory, and return up to which byte that could be done."""
        page, end = start // PAGE, round_up(stop, PAGE) // PAGE
        while page < end:
            index = bisect_right(self._starts, page) - 1
            after = self._starts[index] + self._runs[index].pages if index >= 0 else 0
            if page < after:
                page = after
                continue
            hole_end = self._starts[index + 1] if index + 1 < len(self._starts) else end
            before = self._runs[index] if index >= 0 and page == after else None
            got = self._add(page, min(end, hole_end) - page, before)
            if not got:
                break
            page += got
        return min(stop, max(start, page * PAGE))

    def _add(self, page: int, wanted: int, before: Run | None) -> int:
        """Give up to `wanted` pages from `page` on memory, best by growing the run `before` in place."""
        got = self._space.pages.extend(before, wanted) if before is not None else 0
        self._pages += got
        if not got:
            try:
                run = self._allocate_pages(wanted)
            except FileError:
                return 0
            got = run.pages
            self._insert(page, run)
        return got

    def _allocate_pages(self, pages: int) -> Run:
        try:
            return self._space.pages.allocate(pages)
        except LimitError as error:
            raise FileError(errno.ENOSPC) from error

    def _insert(self, page: int, run: Run) -> None:
        if self._runs is _NONE:
            self._starts, self._runs = [], []
        index = bisect_right(self._starts, page)
        self._starts.insert(index, page)
        self._runs.insert(index, run)
        self._pages += run.pages

    def _cut_runs(self, size: int) -> None:
        keep = round_up(size, PAGE) // PAGE
        while self._runs and self._starts[-1] + self._runs[-1].pages > keep:
            run = self._runs[-1]
            pages = max(0, keep - self._starts[-1])
            self._pages += pages - run.pages
            self._space.pages.trim(run, pages)
            if pages:
                break
            self._runs.pop()
            self._starts.pop()
        if not self._runs:
            self._starts = self._runs = _NONE
        for run, at, start, stop in self._pieces(size, keep * PAGE):
            run.wipe(at, stop - start)
