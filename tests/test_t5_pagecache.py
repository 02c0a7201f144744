"""What the kernel keeps of a file in its page cache, which lies in its direct map: nothing, once nobody needs it.

mincore(2) tells what is there. Opening a file or mapping it anew would empty its cache, so the mapping that is asked
(`Watch`) is made first and never touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mounts import PATIENCE, Mounted
from sharedmount import mount

PAGE = 4096
SIZE = 5 * PAGE
DATA = random.Random(5).randbytes(SIZE)

_libc = ctypes.CDLL(None, use_errno=True)


class Watch:
    """Sees which pages of a file are in the page cache."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._mapping = mmap.mmap(file.fileno(), SIZE, flags=mmap.MAP_PRIVATE)
        self._start = ctypes.c_char.from_buffer(self._mapping)

    def pages(self) -> int:
        """How many."""
        states = ctypes.create_string_buffer(SIZE // PAGE)
        assert _libc.mincore(ctypes.byref(self._start), ctypes.c_size_t(SIZE), states) == 0, ctypes.get_errno()
        return sum(state & 1 for state in states.raw)

    def wait_for_none(self) -> None:
        """Return when there is none."""
        end = time.monotonic() + PATIENCE
        while self.pages():
            assert time.monotonic() < end, f"{self.pages()} pages of the file stay in the page cache"
            os.sched_yield()


@pytest.fixture
def file(mount: Mounted) -> Iterator[Path]:
    """A file of several pages."""
    path = mount.path / "file"
    path.write_bytes(DATA)
    yield path
    path.unlink(missing_ok=True)


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """A private mapping of the file that has been read from."""
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), SIZE, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    with mapping:
        assert mapping[:] == DATA
        yield mapping


@contextlib.contextmanager
def sent(path: Path) -> Iterator[None]:
    """An open file that sendfile(2) has read."""
    with path.open("rb") as file, open("/dev/null", "wb", buffering=0) as null:
        while os.sendfile(null.fileno(), file.fileno(), None, SIZE):
            pass
        yield


def test_reads_and_writes_pass_it_by(file: Path) -> None:
    """Reading and writing leave no page in the page cache, not even while the file is open."""
    watch = Watch(file)
    with file.open("r+b", buffering=0) as opened:
        assert opened.read() == DATA
        opened.seek(0)
        opened.write(DATA)
        assert watch.pages() == 0


def test_a_private_mapping_needs_it(file: Path) -> None:
    """Reading from a private mapping puts pages into the page cache: what the other tests ask for can be seen."""
    watch = Watch(file)
    with mapped(file):
        assert watch.pages() == SIZE // PAGE


@pytest.mark.parametrize("use", [mapped, sent])
def test_close_empties_it(file: Path, use: Callable[[Path], contextlib.AbstractContextManager[object]]) -> None:
    """When a program that mapped or sent the file has closed it, no page is left, though others have it open."""
    watch = Watch(file)
    with use(file):
        pass
    watch.wait_for_none()


def test_unlink_right_after_close(file: Path) -> None:
    """A file that was mapped and closed and is unlinked at once, while others have it open, leaves no page either."""
    watch = Watch(file)
    with mapped(file):
        pass
    file.unlink()
    watch.wait_for_none()


def test_close_after_unlink_empties_it(file: Path) -> None:
    """The same for a file without a name that others still have open."""
    watch = Watch(file)
    with mapped(file) as mapping:
        file.unlink()
        watch.wait_for_none()
        assert mapping[:] == DATA
        assert watch.pages() == SIZE // PAGE
    watch.wait_for_none()


def unlink(path: Path) -> None:
    """Its only name goes."""
    path.unlink()


def replace(path: Path) -> None:
    """Another file takes its name."""
    other = path.with_name("other")
    other.write_bytes(b"other")
    other.replace(path)


@pytest.mark.parametrize("remove", [unlink, replace])
def test_unlink_empties_it(file: Path, remove: Callable[[Path], None]) -> None:
    """A file that loses its last name is thrown out although it is mapped; the mapping then reads it anew."""
    watch = Watch(file)
    with mapped(file) as mapping:
        remove(file)
        watch.wait_for_none()
        assert mapping[:] == DATA


def open_and_truncate(path: Path) -> None:
    """O_TRUNC."""
    with path.open("wb"):
        pass


def cut_in_the_middle(path: Path) -> None:
    """To a part of the first page."""
    os.truncate(path, 9)


@pytest.mark.parametrize("cut", [open_and_truncate, cut_in_the_middle])
def test_truncate_empties_it(file: Path, cut: Callable[[Path], None]) -> None:
    """A file that is truncated is thrown out although it is mapped."""
    watch = Watch(file)
    with mapped(file):
        cut(file)
        watch.wait_for_none()
