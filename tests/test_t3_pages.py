"""secretfs.pages: runs of pages that are zero when given, never overlap, join when free, and are counted exactly."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from secretfs.errors import LimitError
from secretfs.pages import PAGE, SMALLEST_AREA, PagePool
from secretfs.testing import FakeBackend

PER_AREA = SMALLEST_AREA // PAGE


class PoolMachine(RuleBasedStateMachine):
    """A pool against a list of [run, the tag of each of its pages]."""

    def __init__(self, backend) -> None:
        super().__init__()
        self.backend = backend
        self.pool = PagePool(backend)
        self.runs: list[tuple[object, list[int]]] = []
        self.tag = 0

    def tagged(self, run, first: int) -> list[int]:
        """Write a tag of its own to each page from `first` on, which must be zero."""
        tags = []
        for page in range(first, run.pages):
            assert run.area.equals(bytes(PAGE), run.offset + page * PAGE)
            self.tag = self.tag % 255 + 1
            run.write(page * PAGE, bytes([self.tag]) * PAGE)
            tags.append(self.tag)
        return tags

    @rule(pages=st.one_of(st.integers(1, 9), st.integers(1, 3 * PER_AREA)))
    def allocate(self, pages: int) -> None:
        """A run has the pages asked for, or fewer where memory is short, all zeros; with none left nothing changes."""
        before = self.pool.used, self.pool.locked
        try:
            run = self.pool.allocate(pages)
        except LimitError:
            assert (self.pool.used, self.pool.locked) == before
            assert self.backend.limit is not None
            assert self.pool.used == self.pool.locked  # every page is in use
            return
        assert 1 <= run.pages <= pages
        assert run.size == run.pages * PAGE
        assert run.pages == pages or self.backend.limit is not None
        self.runs.append((run, self.tagged(run, 0)))

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), pages=st.integers(1, 20))
    def extend(self, data: st.DataObject, pages: int) -> None:
        """A run grows in place by what it says, into zeros."""
        run, tags = self.runs[data.draw(st.integers(0, len(self.runs) - 1))]
        before = run.pages, run.offset
        got = self.pool.extend(run, pages)
        assert 0 <= got <= pages
        assert (run.pages, run.offset, run.size) == (before[0] + got, before[1], run.pages * PAGE)
        tags += self.tagged(run, before[0])

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def trim(self, data: st.DataObject) -> None:
        """What is taken from a run is zero at once."""
        index = data.draw(st.integers(0, len(self.runs) - 1))
        run, tags = self.runs[index]
        keep = data.draw(st.integers(0, run.pages + 1))
        before = run.pages
        self.pool.trim(run, keep)
        assert run.pages == min(before, keep)
        del tags[keep:]
        if not keep:
            self.runs.pop(index)
        if not run.area.closed:
            lost = (before - run.pages) * PAGE
            assert run.area.equals(bytes(lost), run.offset + run.pages * PAGE)

    @rule(areas=st.one_of(st.none(), st.integers(0, 6)), odd=st.integers(0, 3))
    def limit(self, areas: int | None, odd: int) -> None:
        """Memory becomes short, or plentiful again (a fake only)."""
        if isinstance(self.backend, FakeBackend):
            self.backend.limit = None if areas is None else areas * SMALLEST_AREA + odd * PAGE

    @invariant()
    def runs_are_as_written(self) -> None:
        """No page was touched by what happened to others."""
        for run, tags in self.runs:
            for page, tag in enumerate(tags):
                assert run.area.equals(bytes([tag]) * PAGE, run.offset + page * PAGE)

    @invariant()
    def every_page_has_one_place(self) -> None:
        """In each area runs and free runs cover every page once, no two free ones meet, and the free are zero."""
        for zone in self.pool._zones:
            used = [(run.first, run.pages, False) for run, _ in self.runs if run.zone is zone]
            free = [(first, pages, True) for first, pages in zone.by_start.items()]
            at, was_free = 0, False
            for first, pages, is_free in sorted(used + free):
                assert first == at
                assert not (was_free and is_free)
                at, was_free = first + pages, is_free
                if is_free:
                    assert zone.area.equals(bytes(pages * PAGE), first * PAGE)
            assert at == zone.pages
            assert zone.by_end == {first + pages: first for first, pages in zone.by_start.items()}
            assert zone.free == sum(zone.by_start.values())

    @invariant()
    def bins_are_the_free_runs(self) -> None:
        """Each free run is in the bin of its length, and in no other."""
        zones = self.pool._zones
        expected = {(id(z), first, pages.bit_length() - 1) for z in zones for first, pages in z.by_start.items()}
        assert expected == {(*key, number) for number, group in enumerate(self.pool._bins) for key in group}

    @invariant()
    def accounts_are_exact(self) -> None:
        """used is the sum of the runs, locked that of the areas; only one area may be without a run."""
        assert self.pool.used == sum(run.size for run, _ in self.runs)
        if isinstance(self.backend, FakeBackend):
            assert self.pool.locked == self.backend.used
        assert sum(zone.free == zone.pages for zone in self.pool._zones) <= 1

    def teardown(self) -> None:
        """Everything trimmed is nothing used; everything closed is nothing taken."""
        for run, _ in self.runs:
            self.pool.trim(run, 0)
        assert self.pool.used == 0
        self.pool.close()
        assert self.pool.locked == 0
        if isinstance(self.backend, FakeBackend):
            assert self.backend.used == 0


@pytest.mark.slow
def test_pool_against_a_model() -> None:
    """Whatever is allocated, grown and trimmed, runs are zero when given, keep their bytes, and are counted exactly."""
    run_state_machine_as_test(lambda: PoolMachine(FakeBackend()), settings=settings(stateful_step_count=30))


def test_run_grows_in_place(fake) -> None:
    """The first run of an area can take all of it, page by page, without moving."""
    pool = PagePool(fake)
    run = pool.allocate(1)
    assert [pool.extend(run, 1) for _ in range(PER_AREA)] == [1] * (PER_AREA - 1) + [0]
    assert (run.offset, run.size, pool.locked) == (0, SMALLEST_AREA, SMALLEST_AREA)


def test_neighbour_stops_growth(fake) -> None:
    """A run does not grow into another one."""
    pool = PagePool(fake)
    run = pool.allocate(2)
    pool.allocate(1)
    assert pool.extend(run, 1) == 0


def test_freed_neighbours_join(fake) -> None:
    """Three runs freed in any order are one free run again."""
    pool = PagePool(fake)
    runs = [pool.allocate(3) for _ in range(3)]
    pool.allocate(PER_AREA - 9)
    fake.limit = fake.used
    for index in (0, 2, 1):
        pool.trim(runs[index], 0)
    again = pool.allocate(9)
    assert (again.pages, again.offset) == (9, 0)


def test_short_memory_is_given_in_pieces(fake) -> None:
    """Where no new area may be locked, the pages that are left are given, and then LimitError."""
    pool = PagePool(fake)
    first = pool.allocate(PER_AREA - 5)
    fake.limit = fake.used
    assert pool.allocate(100).pages == 5
    with pytest.raises(LimitError):
        pool.allocate(1)
    pool.trim(first, 1)
    assert pool.allocate(1).pages == 1


def test_odd_rest_of_the_limit_is_used(fake) -> None:
    """Under a limit that leaves less than a whole area, an area of just what is needed is made."""
    fake.limit = 3 * PAGE
    assert PagePool(fake).allocate(3).pages == 3


def test_reserve_is_memory_now(fake) -> None:
    """With reserve the first run needs no new memory."""
    pool = PagePool(fake, reserve=True)
    fake.limit = fake.used
    assert pool.allocate(8).pages == 8


def test_huge_request_is_one_run(fake) -> None:
    """A run larger than the largest area gets an area of its own."""
    pool = PagePool(fake)
    assert pool.allocate(2000).pages == 2000
