"""secretfs.names: a mapping whose keys lie in secret memory, against a dict."""

from __future__ import annotations

import builtins
import errno

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from secretfs import names
from secretfs.content import Space
from secretfs.errors import FileError
from secretfs.heap import SLAB, Heap, slot_size
from secretfs.names import NAME_MAX, Names
from secretfs.pages import PagePool
from secretfs.testing import FakeBackend

NAMES = st.one_of(
    st.sampled_from([b"a", b"b", b"ab", b"a\0", b"\xff" * 64, b"x" * 65, b"y" * NAME_MAX]),
    st.binary(min_size=1, max_size=NAME_MAX),
)


def space(backend) -> Space:
    """Room for names."""
    return Space(Heap(backend), PagePool(backend), 1 << 30)


class NamesMachine(RuleBasedStateMachine):
    """Names against a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.backend = FakeBackend()
        self.space = space(self.backend)
        self.names: Names[int] = Names(self.space)
        self.model: dict[bytes, object] = {}

    @rule(name=NAMES, value=st.integers())
    def add(self, name: bytes, value: int) -> None:
        """A new name is there afterwards, or there was no memory for it and nothing changed."""
        if name in self.model:
            return
        if self.backend.limit is not None and not self.fits(name):
            with pytest.raises(FileError, match="No space left"):
                self.names.add(name, value)
            return
        entry = self.names.add(name, value)
        assert (entry.value, entry.live, entry.name()) == (value, True, name)
        self.model[name] = entry

    def fits(self, name: bytes) -> bool:
        """Whether there is a free slot for a name, or room for one more slab."""
        group = self.space.heap._classes[slot_size(len(name))]
        return bool(group.open) or self.backend.used + SLAB <= self.backend.limit

    @precondition(lambda self: self.model)
    @rule(index=st.integers(0, 1000))
    def remove(self, index: int) -> None:
        """A removed name is gone, and its entry says so to those who hold it."""
        name = list(self.model)[index % len(self.model)]
        entry = self.model.pop(name)
        self.names.remove(entry)
        assert not entry.live

    @rule(name=NAMES)
    def get(self, name: bytes) -> None:
        """A name leads to its entry, another to None."""
        assert self.names.get(name) is self.model.get(name)

    @rule()
    def clear(self) -> None:
        """All names are gone."""
        self.names.clear()
        self.model.clear()

    @rule(slabs=st.one_of(st.none(), st.integers(0, 3)))
    def memory(self, slabs: int | None) -> None:
        """Lockable memory becomes short, or plentiful again."""
        self.backend.limit = None if slabs is None else slabs * SLAB

    @invariant()
    def same_as_the_dict(self) -> None:
        """Length and entries are the dict's, and each is found."""
        assert len(self.names) == len(self.model)
        assert {entry.name(): entry for entry in self.names} == self.model
        assert all(self.names.get(name) is entry for name, entry in self.model.items())

    @invariant()
    def accounts_are_exact(self) -> None:
        """Each name takes its slot, and nothing else does."""
        assert self.space.heap.used == sum(slot_size(len(name)) for name in self.model)

    def teardown(self) -> None:
        """Nothing is left of removed names."""
        self.names.clear()
        assert self.space.heap.used == 0


@pytest.mark.slow
@pytest.mark.parametrize("hashes", [1, 2, 1 << 61])
def test_names_against_a_model(monkeypatch, hashes) -> None:
    """Whatever is added and removed, Names are as a dict, also where all names, or half of them, have one hash."""
    monkeypatch.setattr(names, "hash", lambda name: builtins.hash(name) % hashes, raising=False)
    run_state_machine_as_test(NamesMachine, settings=settings(stateful_step_count=30))


def test_entries_keep_their_order(fake) -> None:
    """Entries come in the order in which they were added."""
    found: Names[int] = Names(space(fake))
    entries = [found.add(b"%d" % number, number) for number in range(50)]
    found.remove(entries[20])
    assert [entry.value for entry in found] == [*range(20), *range(21, 50)]


def test_name_is_found_byte_for_byte(fake, monkeypatch) -> None:
    """A name with the same beginning, hash or length is another name."""
    monkeypatch.setattr(names, "hash", lambda name: 7, raising=False)
    found: Names[int] = Names(space(fake))
    found.add(b"key", 1)
    assert [found.get(name) for name in (b"ke", b"key\0", b"kez", b"KEY", b"")] == [None] * 5


def test_long_names_are_refused(fake) -> None:
    """255 bytes are a name, 256 are ENAMETOOLONG."""
    found: Names[int] = Names(space(fake))
    found.add(b"n" * 255, 1)
    with pytest.raises(FileError) as caught:
        found.add(b"n" * 256, 1)
    assert caught.value.errno == errno.ENAMETOOLONG


def test_removed_name_is_wiped(fake) -> None:
    """The memory of a removed name is zero at once."""
    found: Names[int] = Names(space(fake))
    entry = found.add(b"tell-no-one", 1)
    assert "tell" not in repr(entry) + repr(found)
    block = entry._block
    found.remove(entry)
    assert block.equals(bytes(64))
