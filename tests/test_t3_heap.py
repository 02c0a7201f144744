"""secretfs.heap: slots that are zero when given, never overlap, and are counted exactly."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from secretfs.errors import BoundsError, ClosedError, LimitError
from secretfs.heap import LARGEST, SLAB, SLOT, Heap, slot_size
from secretfs.testing import FakeBackend


def content(block) -> bytes:
    """All bytes of a block."""
    buffer = bytearray(block.size)
    block.read_into(0, memoryview(buffer))
    return bytes(buffer)


class HeapMachine(RuleBasedStateMachine):
    """A heap against a list of (block, what was written to it)."""

    def __init__(self, backend) -> None:
        super().__init__()
        self.backend = backend
        self.heap = Heap(backend)
        self.blocks: list[tuple[object, bytes]] = []
        self.tag = 0

    @rule(size=st.one_of(st.integers(0, LARGEST), st.sampled_from([0, 1, 63, 64, 65, 2048, 4095, 4096])))
    def allocate(self, size: int) -> None:
        """A fresh block is zero and large enough; without memory nothing changes."""
        before = self.heap.used, self.heap.locked
        try:
            block = self.heap.allocate(size)
        except LimitError:
            assert (self.heap.used, self.heap.locked) == before
            return
        assert block.size == slot_size(size) >= size
        assert content(block) == bytes(block.size)
        self.tag = self.tag % 255 + 1
        written = bytes([self.tag]) * block.size
        block.write(0, written)
        self.blocks.append((block, written))

    @rule(number=st.integers(20, 80), size=st.integers(0, LARGEST))
    def allocate_many(self, number: int, size: int) -> None:
        """Enough blocks for several slabs."""
        for _ in range(number):
            self.allocate(size)

    @precondition(lambda self: self.blocks)
    @rule(start=st.integers(0, 500), number=st.integers(1, 200), step=st.integers(1, 5))
    def free(self, start: int, number: int, step: int) -> None:
        """The memory of a freed block is zero at once."""
        start %= len(self.blocks)
        chosen = self.blocks[start::step][:number]
        self.blocks = [each for each in self.blocks if each not in chosen]
        for block, _ in chosen:
            self.heap.free(block)
            if not block.area.closed:
                assert content(block) == bytes(block.size)

    @rule(pages=st.one_of(st.none(), st.integers(0, 40)))
    def limit(self, pages: int | None) -> None:
        """Memory becomes short, or plentiful again (a fake only)."""
        if isinstance(self.backend, FakeBackend):
            self.backend.limit = None if pages is None else pages * SLAB // 4

    @invariant()
    def blocks_are_as_written(self) -> None:
        """No block was touched by what happened to others."""
        for block, written in self.blocks:
            assert block.area.equals(written, block.offset)

    @invariant()
    def blocks_do_not_overlap(self) -> None:
        """Each byte belongs to one block at most, and lies inside its area."""
        spans = sorted((id(block.area), block.offset, block.offset + block.size) for block, _ in self.blocks)
        for (area, _, end), (next_area, start, _) in pairwise(spans):
            assert area != next_area or end <= start
        assert all(block.offset + block.size <= block.area.size for block, _ in self.blocks)

    @invariant()
    def accounts_are_exact(self) -> None:
        """used is the sum of the blocks, locked that of the areas, and one empty slab per class at most is kept."""
        assert self.heap.used == sum(block.size for block, _ in self.blocks)
        assert self.heap.locked >= self.heap.used
        if isinstance(self.backend, FakeBackend):
            assert self.heap.locked == self.backend.used
        for group in self.heap._classes.values():
            empty = [slab for slab in group.slabs if len(slab.free) == slab.slots]
            assert len(empty) <= 1 or len(group.slabs) == 1

    def teardown(self) -> None:
        """Everything freed is nothing used; everything closed is nothing taken."""
        for block, _ in self.blocks:
            self.heap.free(block)
        assert self.heap.used == 0
        assert all(len(group.slabs) <= 1 for group in self.heap._classes.values())
        self.heap.close()
        assert self.heap.locked == 0
        if isinstance(self.backend, FakeBackend):
            assert self.backend.used == 0


@pytest.mark.slow
def test_heap_against_a_model(backend) -> None:
    """Whatever is allocated and freed, blocks are zero when given, keep their bytes, and are counted exactly."""
    if isinstance(backend, FakeBackend):
        run_state_machine_as_test(lambda: HeapMachine(FakeBackend()), settings=settings(stateful_step_count=25))
    else:
        run_state_machine_as_test(
            lambda: HeapMachine(backend), settings=settings(max_examples=8, stateful_step_count=25)
        )


@pytest.mark.parametrize(
    ("size", "slot"),
    [(0, 64), (1, 64), (64, 64), (65, 128), (128, 128), (129, 256), (1025, 2048), (4095, 4096), (4096, 4096)],
)
def test_slots_are_powers_of_two(size, slot) -> None:
    """A secret gets the smallest power of two from 64 that holds it."""
    assert slot_size(size) == slot


@pytest.mark.parametrize("size", [-1, 4097])
def test_other_sizes_have_no_slot(size) -> None:
    """Nothing negative and nothing above a page has a slot."""
    with pytest.raises(BoundsError):
        slot_size(size)


def test_double_free_is_refused(fake) -> None:
    """Freeing twice raises, and the second owner of the slot keeps it."""
    heap = Heap(fake)
    block = heap.allocate(10)
    heap.free(block)
    heir = heap.allocate(10)
    heir.write(0, b"mine")
    with pytest.raises(BoundsError):
        heap.free(block)
    assert heir.equals(b"mine")
    assert heap.used == SLOT


def test_freed_slot_is_reused(fake) -> None:
    """A freed slot serves again before anything is grown."""
    heap = Heap(fake)
    blocks = [heap.allocate(64) for _ in range(SLAB // 64)]
    heap.free(blocks[5])
    heap.allocate(64)
    assert heap.locked == SLAB


def test_empty_slab_is_given_back_but_for_one(fake) -> None:
    """Of two slabs of a class that are empty, one goes, wiped."""
    heap = Heap(fake)
    blocks = [heap.allocate(4096) for _ in range(2 * SLAB // 4096)]
    assert heap.locked == 2 * SLAB
    for block in blocks:
        heap.free(block)
    assert heap.locked == fake.used == SLAB


def test_reserve_has_a_slab_of_each_class(fake) -> None:
    """With reserve the first secret of any size needs no new memory."""
    heap = Heap(fake, reserve=True)
    fake.limit = fake.used
    for size in (1, 100, 200, 500, 1000, 2000, 4000):
        heap.allocate(size)


@pytest.mark.parametrize(("at", "length"), [(-1, 1), (0, 65), (60, 5), (64, 1)])
def test_block_has_bounds(fake, at, length) -> None:
    """A block cannot be used beyond its end, where its neighbour lies."""
    heap = Heap(fake)
    block, other = heap.allocate(64), heap.allocate(64)
    with pytest.raises(BoundsError):
        block.write(at, b"y" * length)
    with pytest.raises(BoundsError):
        block.read_into(at, memoryview(bytearray(length)))
    with pytest.raises(BoundsError):
        block.wipe(at, length)
    with pytest.raises(BoundsError):
        other.copy_to(block, 65)
    assert content(other) == content(block) == bytes(64)


def test_block_copies_its_beginning(fake) -> None:
    """copy_to() copies the first bytes, and no more."""
    heap = Heap(fake)
    small, large = heap.allocate(64), heap.allocate(200)
    small.write(0, b"abcdef")
    small.copy_to(large, 3)
    assert content(large) == b"abc" + bytes(253)


def test_repr_of_a_block_has_no_bytes(fake) -> None:
    """repr() tells the size only."""
    block = Heap(fake).allocate(64)
    block.write(0, b"tell-no-one")
    assert repr(block) == "<Block 64 bytes>"


def test_closed_heap_has_wiped(emulator) -> None:
    """close() ends every area: its blocks are dead."""
    heap = Heap(emulator)
    block = heap.allocate(64)
    heap.close()
    with pytest.raises(ClosedError):
        block.write(0, b"x")
    assert (heap.used, heap.locked) == (0, 0)
