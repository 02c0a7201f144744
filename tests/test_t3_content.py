"""secretfs.content: a file's bytes against a bytearray, what they cost, and what is left when space runs out."""

from __future__ import annotations

import errno

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from secretfs.area import SecretArea
from secretfs.content import Content, Space
from secretfs.errors import FileError
from secretfs.heap import Block, Heap
from secretfs.interface import round_up
from secretfs.pages import PAGE, PagePool
from secretfs.testing import FakeBackend

FILES = 3
EDGES = st.sampled_from([0, 1, 63, 64, 65, 128, 4032, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE - 1, 2 * PAGE, 9 * PAGE])
OFFSETS = st.one_of(st.integers(0, 300), EDGES, st.integers(0, 20 * PAGE))
LENGTHS = st.one_of(st.integers(0, 200), EDGES, st.integers(0, 6 * PAGE))


def space(backend, limit: int = 1 << 40) -> Space:
    """Room for files."""
    return Space(Heap(backend), PagePool(backend), limit)


def read(content: Content, offset: int, length: int) -> bytes:
    """What a reader of `length` bytes at `offset` gets."""
    buffer = bytearray(length)
    got = content.read_into(offset, memoryview(buffer))
    assert not any(buffer[got:])
    return bytes(buffer[:got])


def write(content: Content, offset: int, data: bytes) -> int:
    """write(), as the file system calls it."""
    return content.write(offset, memoryview(data))


def write_or_errno(content: Content, offset: int, data: bytes) -> tuple[int, int]:
    """How many bytes were taken, and the errno where it failed."""
    try:
        return write(content, offset, data), 0
    except FileError as error:
        return 0, error.errno


def fill(content: Content, step: int) -> int:
    """Append until that fails with ENOSPC, and return how many bytes were taken."""
    written = 0
    while True:
        taken, code = write_or_errno(content, written, b"x" * step)
        written += taken
        if code:
            assert code == errno.ENOSPC
            return written


class InPlace:
    """Who writes in place, as the shim does: to the pieces that there were when it was let in."""

    def __init__(self, content: Content, pieces: list[tuple[Block, int, int]]) -> None:
        self.content = content
        self.pieces = pieces
        content.published = self

    def revoke(self) -> None:
        self.content.published = None

    def write(self, offset: int, data: bytes) -> int:
        """Write as much of `data` as lies in the pieces, and tell; how much that was."""
        end = min(offset + len(data), self.pieces[-1][2])
        for block, start, stop in self.pieces:
            first, last = max(offset, start), min(end, stop)
            if first < last:
                block.write(first - start, data[first - offset : last - offset])
        if end > offset:
            self.content.written_in_place(max(self.content.size, end))
        return max(0, end - offset)


class ContentMachine(RuleBasedStateMachine):
    """Files that share one space, against bytearrays."""

    def __init__(self, backend) -> None:
        super().__init__()
        self.backend = backend
        self.space = space(backend)
        self.files = [Content(self.space) for _ in range(FILES)]
        self.models = [bytearray() for _ in range(FILES)]
        self.tag = 0

    @rule(file=st.integers(0, FILES - 1), offset=OFFSETS, length=LENGTHS)
    def write(self, file: int, offset: int, length: int) -> None:
        """All is taken, or where space ends a part, or nothing and the file is as it was."""
        model, content = self.models[file], self.files[file]
        self.tag = self.tag % 255 + 1
        data = bytes([self.tag]) * length
        taken, code = write_or_errno(content, offset, data)
        assert code == (0 if taken or not length else errno.ENOSPC)
        assert taken == length or self.scarce(length)
        if taken:
            model.extend(bytes(max(0, offset + taken - len(model))))
            model[offset : offset + taken] = data[:taken]

    @rule(file=st.integers(0, FILES - 1))
    def let_in(self, file: int) -> None:
        """From now on somebody writes to this file in place, also to an empty one if there is room for a slot."""
        content = self.files[file]
        pieces = content.pieces(2) or content.borrow()
        if pieces:
            InPlace(content, pieces)

    @rule(file=st.integers(0, FILES - 1), offset=OFFSETS, length=LENGTHS)
    def write_in_place(self, file: int, offset: int, length: int) -> None:
        """They never have to ask for room."""
        model, published = self.models[file], self.files[file].published
        if isinstance(published, InPlace):
            self.tag = self.tag % 255 + 1
            data = bytes([self.tag]) * length
            taken = published.write(offset, data)
            if taken:
                model.extend(bytes(max(0, offset + taken - len(model))))
                model[offset : offset + taken] = data[:taken]

    def scarce(self, length: int) -> bool:
        """Whether running out is plausible: the limit is nearly reached, or memory was made short."""
        return self.space.left < round_up(length, PAGE) + 2 * PAGE or self.backend.limit is not None

    @rule(file=st.integers(0, FILES - 1), size=OFFSETS)
    def truncate(self, file: int, size: int) -> None:
        """Cut, or grown with zeros; this never fails."""
        self.files[file].truncate(size)
        model = self.models[file]
        del model[size:]
        model.extend(bytes(size - len(model)))

    @rule(file=st.integers(0, FILES - 1), offset=OFFSETS, length=LENGTHS)
    def read(self, file: int, offset: int, length: int) -> None:
        """Any part reads as the model's."""
        assert read(self.files[file], offset, length) == self.models[file][offset : offset + length]

    @rule(file=st.integers(0, FILES - 1))
    def clear(self, file: int) -> None:
        """A cleared file takes nothing."""
        self.files[file].clear()
        self.models[file].clear()
        assert self.files[file].allocated == 0

    @rule(left=st.one_of(st.none(), st.integers(0, 3 * PAGE)))
    def quota(self, left: int | None) -> None:
        """The limit on file data closes in, or goes."""
        self.space.limit = 1 << 40 if left is None else self.space.charged + left
        self.space.charge(0)

    @rule(left=st.one_of(st.none(), st.integers(0, 300)))
    def memory(self, left: int | None) -> None:
        """Lockable memory becomes short, or plentiful again."""
        if isinstance(self.backend, FakeBackend):
            self.backend.limit = None if left is None else self.backend.used + left * 1024

    @invariant()
    def files_are_the_models(self) -> None:
        """Every byte of every file, holes and neighbours included."""
        for content, model in zip(self.files, self.models, strict=True):
            assert content.size == len(model)
            assert read(content, 0, len(model) + 10) == model

    @invariant()
    def accounts_are_exact(self) -> None:
        """What is charged is what the files have, and what they have is what heap and pool gave out."""
        assert self.space.charged == sum(content._charged for content in self.files)
        assert self.space.pages.used == sum(run.size for content in self.files for run in content._runs)
        heads = [content._head for content in self.files if content._head is not None]
        assert self.space.heap.used == sum(head.size for head in heads) + self.idle()
        for content in self.files:
            assert content._head is None or not content._runs
            assert content._runs or content._charged == content._data_end
            assert content._data_end <= content._memory_end()

    def idle(self) -> int:
        """Bytes of the spare slot while nobody has it."""
        spare = self.space.spare
        return spare._block.size if spare._block is not None and spare.borrower is None else 0

    @invariant()
    def spare_slot_is_an_empty_files(self) -> None:
        """At most one file has it, with nothing in it, nothing charged, and room for the charge."""
        having = [content for content in self.files if content._head is not None and content._data_end == 0]
        assert having == [content for content in self.files if content is self.space.spare.borrower]
        for content in having:
            assert (content.size, content.allocated, content.published is None) == (0, 0, False)
            assert self.space.left >= self.space.spare.size == content._head.size
        for content in self.files:
            if isinstance(content.published, InPlace) and content not in having:
                assert content.published.pieces[-1][2] <= content._data_end, "it may write where nothing is charged"

    @invariant()
    def slack_is_zero(self) -> None:
        """Beyond the end of a file nothing is left of what was cut off."""
        for content in self.files:
            if content._head is not None:
                rest = content._head.size - content._data_end
                assert content._head.area.equals(bytes(rest), content._head.offset + content._data_end)
            for start, run in zip(content._starts, content._runs, strict=True):
                end = max(0, min(run.size, content.size - start * PAGE))
                assert run.area.equals(bytes(run.size - end), run.offset + end)

    def teardown(self) -> None:
        """Cleared files leave nothing."""
        for content in self.files:
            content.clear()
        assert (self.space.charged, self.space.heap.used, self.space.pages.used) == (0, self.idle(), 0)
        self.space.heap.close()
        self.space.pages.close()
        assert not isinstance(self.backend, FakeBackend) or self.backend.used == 0


@pytest.mark.slow
def test_contents_against_a_model() -> None:
    """Whatever is written, cut and read, also when space or memory end, files are as bytearrays would be."""
    run_state_machine_as_test(
        lambda: ContentMachine(FakeBackend()), settings=settings(max_examples=200, stateful_step_count=30)
    )


@pytest.fixture
def copied(monkeypatch) -> list[int]:
    """The lengths of all copies from one place in secret memory to another."""
    lengths: list[int] = []
    real = SecretArea.copy_within

    def counting(self, source, target, offset, length):
        lengths.append(length)
        return real(self, source, target, offset, length)

    monkeypatch.setattr(SecretArea, "copy_within", counting)
    return lengths


@pytest.mark.parametrize("step", [64, 4096])
def test_growing_file_is_not_copied_again_and_again(fake, copied, step) -> None:
    """A MiB appended in small steps copies two pages' worth in all, and ends in few runs."""
    content = Content(space(fake))
    for offset in range(0, 1 << 20, step):
        assert write(content, offset, bytes([offset // step % 255 + 1]) * step) == step
    assert sum(copied) <= 2 * PAGE
    assert content.allocated == 1 << 20
    assert len(content._runs) <= 4
    assert read(content, 777 * step % (1 << 20), 1) != b"\0"


def test_two_growing_files_are_not_copied_either(fake, copied) -> None:
    """Two files that grow in turn, and so in each other's way, are copied no more: a page each, once."""
    shared = space(fake)
    one, other = Content(shared), Content(shared)
    for offset in range(0, 1 << 20, PAGE):
        write(one, offset, b"1" * PAGE)
        write(other, offset, b"2" * PAGE)
    assert sum(copied) <= 2 * PAGE
    assert read(one, 0, 1 << 20) == b"1" * (1 << 20)
    assert read(other, 0, 1 << 20) == b"2" * (1 << 20)


def test_lent_slot_is_what_new_files_need(fake) -> None:
    """An empty file is lent as much as the last new one took, and keeps no more than it takes itself."""
    shared = space(fake)
    files = [Content(shared) for _ in range(6)]
    lent = []
    for file, size, in_place in zip(files, (100, 100, 60, 3000, 64), (False, True, True, False, True), strict=False):
        pieces = file.borrow()
        lent.append(pieces[0][0].size)
        if in_place:
            InPlace(file, pieces).write(0, b"x" * size)
        else:
            write(file, 0, b"x" * size)
    assert lent == [4096, 128, 128, 64, 4096]
    assert [file._head.size for file in files[:5]] == [128, 128, 64, 4096, 64]
    assert files[5].borrow()[0][0].size == 64
    assert shared.heap.used == 128 + 128 + 64 + 4096 + 64 + 64
    assert shared.charged == 128 + 128 + 64 + 3008 + 64


@pytest.mark.parametrize("lent", [False, True], ids=["idle", "lent"])
def test_lent_slot_is_not_missed(fake, lent) -> None:
    """Where no more memory can be locked, the slot goes to whoever needs it."""
    shared = Space(Heap(fake, reserve=True), PagePool(fake), 1 << 40)
    fake.limit = fake.used
    empty, files = Content(shared), [Content(shared) for _ in range(17)]
    InPlace(empty, empty.borrow())
    if not lent:
        empty.revoke()
    assert [write_or_errno(file, 0, b"x" * 4096)[1] for file in files] == [0] * 16 + [errno.ENOSPC]
    assert (empty.published, empty.size) == (None, 0)


def test_lent_slot_goes_to_the_newest(fake) -> None:
    """There is one: whoever had it before has to ask again."""
    shared = space(fake)
    first, second = Content(shared), Content(shared)
    InPlace(first, first.borrow())
    InPlace(second, second.borrow())
    assert (first.published, first._head, first.size) == (None, None, 0)
    assert shared.heap.used == 4096
    second.clear()
    assert first.borrow() != []


@pytest.mark.parametrize(("size", "charged"), [(0, 0), (1, 64), (64, 64), (65, 128), (4000, 4032), (4096, 4096)])
def test_small_files_are_charged_in_steps_of_64(fake, size, charged) -> None:
    """A file within one page is charged its bytes, rounded up to 64."""
    shared = space(fake)
    write(Content(shared), 0, b"x" * size)
    assert shared.charged == charged


def test_holes_cost_nothing_and_read_as_zeros(fake) -> None:
    """A byte a terabyte out takes one page; all before it reads as zeros."""
    shared = space(fake)
    content = Content(shared)
    write(content, 1 << 40, b"x")
    assert (content.size, content.allocated, shared.charged) == ((1 << 40) + 1, PAGE, 64)
    assert read(content, (1 << 40) - 5, 100) == bytes(5) + b"x"
    assert read(content, 12345, 100) == bytes(100)


@pytest.mark.parametrize("size", [100, PAGE, 2 * PAGE])
def test_cut_within_a_hole(fake, size) -> None:
    """Where truncate leaves nothing but a hole, the file is as a new one of that size."""
    shared = space(fake)
    content = Content(shared)
    write(content, 8 * PAGE, b"x" * 5000)
    content.truncate(size)
    assert (content.allocated, shared.charged) == (0, 0)
    write(content, 50, b"y")
    assert (content.allocated, shared.charged) == (64, 64)
    assert read(content, 0, 3 * PAGE) == bytes(50) + b"y" + bytes(size - 51)
    write(content, 60, b"z" * 2 * PAGE)
    assert read(content, 0, 3 * PAGE) == bytes(50) + b"y" + bytes(9) + b"z" * 2 * PAGE


def test_cut_bytes_do_not_come_back(fake) -> None:
    """What truncate cut is zeros when the file grows again: in a slot, in a page, and from a page that goes."""
    for size in (100, PAGE + 100, 5 * PAGE):
        content = Content(space(fake))
        write(content, 0, b"x" * size)
        content.truncate(50)
        content.truncate(size)
        assert read(content, 0, size) == b"x" * 50 + bytes(size - 50)


def test_cut_bytes_do_not_come_back_within_a_slot(fake) -> None:
    """What truncate cut is wiped also where the file keeps its slot: a later write beyond it finds zeros before it."""
    content = Content(space(fake))
    write(content, 0, b"x" * 120)
    content.truncate(70)
    write(content, 110, b"y")
    assert read(content, 0, 200) == b"x" * 70 + bytes(40) + b"y"


@pytest.mark.parametrize("before", [0, 50, 100, 4000, PAGE, 3 * PAGE])
@pytest.mark.parametrize("left", [0, 63, 64, 1000, PAGE])
def test_quota_leaves_the_file_intact(fake, before, left) -> None:
    """A write past the limit takes what fits or nothing; what was there is there, and the count is exact."""
    shared = space(fake)
    content, other = Content(shared), Content(shared)
    write(content, 0, b"a" * before)
    write(other, 0, b"b" * 100)
    shared.limit = shared.charged + left
    taken, code = write_or_errno(content, before, b"c" * 5 * PAGE)
    assert code == (0 if taken else errno.ENOSPC)
    assert taken < 5 * PAGE
    assert read(content, 0, 1 << 20) == b"a" * before + b"c" * taken
    assert read(other, 0, 1 << 20) == b"b" * 100
    assert shared.charged == content._charged + other._charged <= shared.limit


def test_every_limit_of_memory_leaves_the_file_intact() -> None:
    """Wherever lockable memory ends, a growing file keeps what it has and the accounts stay exact."""
    for pages in range(0, 100, 3):
        fake = FakeBackend(limit=pages * PAGE)
        shared = space(fake)
        content = Content(shared)
        written = fill(content, 1000)
        assert read(content, 0, written + 5000) == b"x" * written
        assert shared.charged == content._charged
        assert fake.used <= pages * PAGE
        content.clear()
        assert (shared.charged, shared.heap.used, shared.pages.used) == (0, 0, 0)


def test_full_memory_is_used_to_the_last_page() -> None:
    """A file can take all pages that may be locked, but for the slabs of its beginning."""
    fake = FakeBackend(limit=1 << 20)
    assert fill(Content(space(fake)), PAGE) >= (1 << 20) - 64 * 1024
