"""secretfs.nametable: names that share a place in the shim's tables."""

from __future__ import annotations

import itertools
import stat

import pytest
from treemachine import ME, Counts

from secretfs.filesystem import Filesystem
from secretfs.nametable import FULL, KNOWN, NAMES
from secretfs.nodes import ROOT
from secretfs.testing import FakeBackend


@pytest.fixture
def table() -> Counts:
    """The table of the file system that is made next."""
    return Counts()


@pytest.fixture
def fs(table: Counts) -> Filesystem:
    """An empty one."""
    made = Filesystem(FakeBackend(), size=1 << 20, max_files=1000, uid=0, gid=0)
    made.watch_names(table)
    return made


def sharing(count: int, places: int) -> list[bytes]:
    """So many names in the root that share a place among so many."""
    groups: dict[int, list[bytes]] = {}
    for number in itertools.count():
        name = b"name %d" % number
        group = groups.setdefault((hash(name) + ROOT) % places, [])
        group.append(name)
        if len(group) == count:
            return group
    raise AssertionError


def test_the_newest_has_the_place(fs: Filesystem, table: Counts) -> None:
    """When it goes nobody has it, and when another goes it stays."""
    first, second, third = sharing(3, KNOWN)
    for name in (first, second, third):
        fs.mknod(ROOT, name, stat.S_IFREG | 0o600, 0, ME)
    assert table.known() == [(ROOT, third)]
    fs.unlink(ROOT, first)
    assert table.known() == [(ROOT, third)]
    fs.unlink(ROOT, third)
    assert table.known() == []
    fs.rename(ROOT, second, ROOT, first)
    assert table.known() == [(ROOT, first)]


def test_directories_are_not_among_them(fs: Filesystem, table: Counts) -> None:
    """Nor a name that has come to stand for one."""
    fs.mkdir(ROOT, b"directory", 0o700, ME)
    fs.mknod(ROOT, b"file", stat.S_IFREG | 0o600, 0, ME)
    assert table.known() == [(ROOT, b"file")]
    fs.rename(ROOT, b"file", ROOT, b"directory", 2)  # RENAME_EXCHANGE
    assert table.known() == [(ROOT, b"directory")]


def test_what_the_shim_has_counted_down(fs: Filesystem, table: Counts) -> None:
    """A name that the shim has unlinked is counted once, also where a place is full."""
    node = fs.mknod(ROOT, b"file", stat.S_IFREG | 0o600, 0, ME)
    place = hash(b"file") + ROOT
    for count, left in ((3, 2), (FULL, FULL), (FULL - 1, FULL - 2)):
        table._counts[place % NAMES] = count - (count < FULL)  # as the shim does
        entry = table.taken(ROOT, place % KNOWN)
        assert entry.value is node
        fs.unlink_entry(ROOT, entry, 1)
        assert table._counts[place % NAMES] == left
        table._counts[place % NAMES] = 0
        node = fs.mknod(ROOT, b"file", stat.S_IFREG | 0o600, 0, ME)
