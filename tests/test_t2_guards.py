"""Guard pages of SecretArea: a byte beyond either end is a fault, whatever way the area came to be; what they cost."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import resource
import signal
from collections.abc import Callable

import pytest

from secretfs import SecretArea, libc, sharing
from secretfs.errors import LimitError, LockLimitExceeded
from secretfs.heap import Heap
from secretfs.interface import Backend, MappedRegion
from secretfs.pages import PagePool
from secretfs.refusals import mappings
from secretfs.testing import in_child, outcome_in_child
from secretfs.testing.children import become_ordinary_user
from secretfs.testing.memory import descriptors, mapped_bytes, mapping

PAGE = libc.PAGE_SIZE
LARGE = 4 << 20
_keep: list[object] = []
"""What must outlive the function that makes it, in a child that ends soon."""


@pytest.fixture(params=["emulator", "kernel"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend that has pages."""
    found: Backend = request.getfixturevalue(request.param)
    return found


def kept(area: SecretArea) -> SecretArea:
    """An area that stays until the process ends."""
    _keep.append(area)
    return area


def made(backend: Backend) -> SecretArea:
    """A plain one, with one of another size on either side."""
    row = [kept(SecretArea(pages * PAGE, backend=backend)) for pages in (1, 2, 3)]
    return row[1]


def resized(backend: Backend, *, shared: bool = False) -> SecretArea:
    """One that has grown, and shrunk."""
    area = kept(SecretArea(2 * PAGE, backend=backend, shared=shared))
    area.resize(9 * PAGE)
    area.resize(4 * PAGE)
    return area


def attached(backend: Backend) -> SecretArea:
    """One that came as a descriptor."""
    return kept(SecretArea.attach(kept(SecretArea.share(3 * PAGE, backend=backend)).fileno()))


def inherited(backend: Backend) -> SecretArea:
    """A shared one of the process that this one is forked from, which never returns."""
    area = kept(SecretArea.share(3 * PAGE, backend=backend))
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            signal.signal(-code, signal.SIG_DFL)
            os.kill(os.getpid(), -code)
        os._exit(code)
    return area


def in_a_heap(backend: Backend) -> SecretArea:
    """The area of a small file."""
    heap = Heap(backend)
    _keep.append(heap)
    return heap.allocate(64).area


def of_pages(backend: Backend) -> SecretArea:
    """The area of a larger file."""
    pool = PagePool(backend)
    _keep.append(pool)
    return pool.allocate(3).area


WAYS = {
    "made": made,
    "resized": resized,
    "shared and resized": lambda backend: resized(backend, shared=True),
    "attached": attached,
    "inherited": inherited,
    "in a heap": in_a_heap,
    "of pages": of_pages,
}


@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
@pytest.mark.parametrize("way", WAYS)
def test_a_byte_beyond_is_a_fault(backend: Backend, way: str, write: bool) -> None:
    """The byte before an area and the byte after it are SIGSEGV; its first and its last are its own."""

    def touch(which: Callable[[SecretArea], int]) -> int:
        def child() -> bool:
            area = WAYS[way](backend)
            byte = ctypes.c_ubyte.from_address(area.address + which(area))
            if write:
                byte.value = 7
            return byte.value in (0, 7)

        outcome = outcome_in_child(child)
        assert outcome.value is True or outcome.signal, outcome.error
        return outcome.signal

    assert touch(lambda area: 0) == 0
    assert touch(lambda area: area.size - 1) == 0
    assert touch(lambda area: -1) == signal.SIGSEGV
    assert touch(lambda area: area.size) == signal.SIGSEGV


def test_what_lies_beside_an_area(backend: Backend) -> None:
    """The mappings before and behind are no memory, and no two areas are nearer than two pages, also where others were
    closed and resized in between.
    """
    areas = [SecretArea(pages * PAGE, backend=backend) for pages in (1, 2, 3, 1, 2, 3, 1, 2)]
    areas.pop(3).close()
    areas[4].resize(5 * PAGE)
    areas += [SecretArea(PAGE, backend=backend), SecretArea(2 * PAGE, backend=backend)]
    for area in areas:
        own = mapping(area.address)
        assert (own.start, own.end) == (area.address, area.address + area.size)
        for beside in (mapping(area.address - 1), mapping(area.address + area.size)):
            assert not beside.flags & {"rd", "wr", "ex", "lo"}
            assert (beside.name, beside.resident) == ("", 0)
    row = sorted((area.address, area.size) for area in areas)
    assert all(start + size + 2 * PAGE <= after for (start, size), (after, _) in itertools.pairwise(row))
    for area in areas:
        area.close()


def test_closing_gives_the_guard_pages_back(backend: Backend) -> None:
    """Nothing is left at the addresses of an area that was closed, resized or dropped."""
    SecretArea(LARGE, backend=backend).close()
    before = mappings()[0], mapped_bytes()
    for _ in range(20):
        with SecretArea(PAGE, backend=backend) as area:
            area.resize(3 * PAGE)
        with SecretArea.share(PAGE, backend=backend) as area, SecretArea.attach(area.fileno()):
            pass
        SecretArea(LARGE, backend=backend)
    assert mappings()[0] <= before[0] + 2  # what Python has allocated
    assert mapped_bytes() < before[1] + LARGE


def test_guard_pages_are_not_locked(backend: Backend) -> None:
    """As many areas of a page fit the lock limit as it has pages."""

    def child() -> tuple[int, int]:
        become_ordinary_user()
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (8 * PAGE, 8 * PAGE))
        areas = [SecretArea(PAGE, backend=backend) for _ in range(8)]
        locked = libc.locked_bytes()
        with pytest.raises(LockLimitExceeded):
            SecretArea(PAGE, backend=backend)
        return len(areas), locked

    assert in_child(child) == (8, 8 * PAGE)


@pytest.mark.parametrize("call", ["reserve", "mremap"])
def test_without_guard_pages_there_is_no_area(backend: Backend, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where guard pages cannot be had, making, growing and attaching raise LimitError, and leave nothing."""

    def fails(*_: int) -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with SecretArea.share(PAGE, backend=backend) as area:
        area.write(b"kept")
        before = descriptors(), libc.locked_bytes()
        room = mapped_bytes() + LARGE
        monkeypatch.setattr(libc, call, fails)
        attempts: list[Callable[[], object]] = [
            lambda: SecretArea(LARGE, backend=backend),
            lambda: SecretArea.share(LARGE, backend=backend),
            lambda: SecretArea.attach(area.fileno()),
            lambda: area.resize(LARGE),
        ]
        for attempt in attempts:
            with pytest.raises(LimitError, match=r"cannot map \d+ bytes: "):
                attempt()
            assert (descriptors(), libc.locked_bytes()) == before
            assert mapped_bytes() < room
        monkeypatch.undo()
        assert area.equals(b"kept")  # who could not attach has wiped nothing
        with SecretArea.attach(area.fileno()) as other:
            assert other.equals(b"kept")


@pytest.mark.slow
def test_when_mappings_run_out(backend: Backend) -> None:
    """At vm.max_map_count an area is a LimitError that says so and leaves nothing, however many mappings are left."""

    def child() -> tuple[set[str], set[int], int]:
        SecretArea(PAGE, backend=backend).close()
        most = mappings()[1]
        base, taken = libc.reserve(2 * most * PAGE), 0
        with contextlib.suppress(OSError):
            for taken in range(most):
                libc.mprotect(base + 2 * taken * PAGE, PAGE, libc.PROT_READ)
        said, left = set(), set()
        for more in itertools.count(1):
            there = mappings()[0], libc.locked_bytes(), len(descriptors())
            try:
                kept(SecretArea(PAGE, backend=backend))
            except LimitError as error:
                said.add(f"{error}; {error.hint}")
                left.add(there == (mappings()[0], libc.locked_bytes(), len(descriptors())))
            else:
                break
            libc.mprotect(base + 2 * (taken - more) * PAGE, PAGE, libc.PROT_NONE)
        return said, left, more

    said, left, attempts = in_child(child)
    assert len(said) == 1
    assert "mappings that vm.max_map_count allows" in said.pop()
    assert left == {True}
    assert 1 < attempts < 10


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [1_500, pytest.param(20_000, marks=pytest.mark.long)])
def test_areas_take_two_mappings(backend: Backend, number: int) -> None:
    """So 20,000 areas of a page fit the usual vm.max_map_count; each has bytes of its own."""
    limit = libc.lock_limit()
    if limit is not None and limit < 2 * number * PAGE:
        pytest.skip("needs root: an ordinary user may not lock so much")

    def child() -> tuple[int, int]:
        before = mappings()[0]
        areas = {n.to_bytes(4, "little"): SecretArea(PAGE, backend=backend) for n in range(number)}
        for name, area in areas.items():
            area.write(name, PAGE - 4)
        wrong = sum(not area.equals(name, PAGE - 4) for name, area in areas.items())
        return wrong, mappings()[0] - before

    wrong, taken = in_child(child)
    assert wrong == 0
    assert taken < 2.1 * number


def test_a_region_that_cannot_be_moved(emulator: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend may do without: what overrides enclose() serves without guard pages."""
    monkeypatch.setattr(MappedRegion, "enclose", lambda region: None)
    with SecretArea.share(PAGE, backend=emulator) as area, SecretArea.attach(area.fileno()) as other:
        area.write(b"there")
        assert other.equals(b"there")
        assert sharing.attach(area.fileno(), emulator)[1].size == PAGE
