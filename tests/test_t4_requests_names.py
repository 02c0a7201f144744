"""The shim alone: lookups of names that are not there, and unlinks of names that are."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import struct
import time
import zlib
from collections.abc import Iterator

import pytest
from aloneshim import (
    DEFERRED,
    DIRECTORY,
    FILES,
    FORGET,
    GETATTR,
    INO,
    KNOWN,
    LOOKUP,
    NAMES,
    OPEN,
    RELEASE,
    SPARE,
    UNIQUE,
    UNLINK,
    File,
    Memory,
    Shim,
    name_request,
    opened_shim,
    request,
)
from hypothesis import example, given
from hypothesis import strategies as st

NAME_MAX, FULL, NAME_SIZE = 255, 255, 20
OTHER = DIRECTORY + KNOWN
"""A directory whose names have the same places among the known ones."""
NOTHING = struct.pack("=IiQ", 16 + 128, 0, UNIQUE) + struct.pack("=QQQ", 0, 0, 300) + bytes(104)
"""struct fuse_entry_out: there is no such name, and that holds for 300 seconds."""
DONE = struct.pack("=IiQ", 16, 0, UNIQUE)


@ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_void_p, ctypes.c_ssize_t)
def hash_name(name: int, length: int) -> int:
    """A hash of the bytes of a name, also a negative one."""
    return hash_of(ctypes.string_at(name, length))


def hash_of(name: bytes) -> int:
    """The same for Python. Names that begin alike have the same."""
    return zlib.crc32(name[:1]) - (1 << 31)


@pytest.fixture(scope="module")
def shim() -> Iterator[Shim]:
    """The shim, with a hash."""
    with opened_shim() as opened:
        pointer = ctypes.c_void_p.in_dll(opened.library, "secretfs_hash_name")
        pointer.value = ctypes.cast(hash_name, ctypes.c_void_p).value
        yield opened
        pointer.value = None


@contextlib.contextmanager
def there(shim: Shim, directory: int, name: bytes, count: int = 1, ino: int = INO, **fields: int) -> Iterator[File]:
    """A name that is known, and counted, and the file it leads to: in three pieces, with one name and not open."""
    memory = Memory(len(name), SPARE)
    ctypes.memmove(memory.address, name, len(name))
    place = hash_of(name) + directory
    known = shim.known[place % KNOWN]
    known.directory, known.ino, known.length, known.name = directory, ino, len(name), memory.address
    shim.counts[place % NAMES] = count
    file = File(shim, 64, 4096, 100, ino=ino, **{"whole": 1, "opens": 0, **fields})
    yield file
    assert file.data() in (bytes(file.capacity), b"\xa5" * file.capacity)
    assert memory[:] == (name if any(file.data()) else bytes(len(name))), "both are wiped, or none"
    assert memory.edges_are_untouched()
    memory.free()
    file.free()


def attributes(shim: Shim) -> tuple[int, int, int]:
    """Size and times of the directory that changed last."""
    table = (ctypes.c_char * 56).in_dll(shim.library, "secretfs_attributes")
    _, size, _, mtime, ctime = struct.unpack_from("=QQ3q", table.raw)
    return size, mtime, ctime


names = st.one_of(
    st.sampled_from([b"here", b"her", b"here\0", b"hare", b"other", b".", b"..", b"...", b"", b"n" * 255, b"n" * 256]),
    st.binary(max_size=300),
)


@given(
    opcode=st.sampled_from([LOOKUP, UNLINK]),
    directory=st.sampled_from([DIRECTORY, DIRECTORY, OTHER, 0]),
    name=names,
    present=st.sampled_from([b"here", b"here", b".", b"..", b"n" * 255, b"n" * 256]),
    home=st.sampled_from([DIRECTORY, DIRECTORY, OTHER]),
    changed=st.sampled_from([DIRECTORY, DIRECTORY, OTHER, 0]),
    count=st.sampled_from([1, 2, FULL - 1, FULL]),
    ends=st.booleans(),
    whole=st.sampled_from([0, 1, 1]),
    opens=st.sampled_from([0, 0, 1]),
    stranger=st.booleans(),
)
@example(LOOKUP, DIRECTORY, b"other", b"here", DIRECTORY, 0, 1, True, 1, 0, False)
@example(LOOKUP, DIRECTORY, b"n" * 256, b"here", DIRECTORY, 0, 1, True, 1, 0, False)
@example(LOOKUP, DIRECTORY, b"here", b"here", DIRECTORY, 0, 1, True, 1, 0, False)
@example(UNLINK, DIRECTORY, b"here", b"here", DIRECTORY, DIRECTORY, 1, True, 1, 0, False)
@example(UNLINK, DIRECTORY, b"hare", b"here", DIRECTORY, DIRECTORY, 1, True, 1, 0, False)
@example(UNLINK, DIRECTORY, b"here", b"here", DIRECTORY, DIRECTORY, FULL, True, 1, 0, False)
@example(UNLINK, DIRECTORY, b"here", b"here", DIRECTORY, DIRECTORY, 1, False, 1, 0, False)
@example(UNLINK, DIRECTORY, b"here", b"here", DIRECTORY, DIRECTORY, 1, True, 0, 0, False)
@example(UNLINK, DIRECTORY, b"here", b"here", DIRECTORY, DIRECTORY, 1, True, 1, 1, False)
@example(UNLINK, DIRECTORY, b"here", b"here", DIRECTORY, DIRECTORY, 1, True, 1, 0, True)
@example(UNLINK, DIRECTORY, b"here", b"here", DIRECTORY, OTHER, 1, True, 1, 0, False)
@example(UNLINK, DIRECTORY, b"here", b"here", OTHER, DIRECTORY, 1, True, 1, 0, False)
@example(UNLINK, DIRECTORY, b"n" * 255, b"n" * 255, DIRECTORY, DIRECTORY, 1, True, 1, 0, False)
@example(UNLINK, DIRECTORY, b"..", b"..", DIRECTORY, DIRECTORY, 1, True, 1, 0, False)
def test_any_name(
    shim: Shim, opcode, directory, name, present, home, changed, count, ends, whole, opens, stranger
) -> None:  # fmt: skip
    """Just what is surely not there is said to be absent, and just what is known to be there is unlinked: if there is
    nothing of it that is not wiped here.
    """
    shim.clear()
    shim.attributes(changed)
    before = attributes(shim)
    sent = name_request(opcode, directory, name + bytes(ends))
    meant, end, _ = (name + bytes(ends)).partition(b"\0")
    usable = bool(end) and 0 < len(meant) <= NAME_MAX and meant not in (b".", b"..")
    place, here = hash_of(meant) + directory, hash_of(present) + home
    known = shim.known[here % KNOWN]
    with there(shim, home, present, count, whole=whole, opens=opens) as file:
        known.ino += FILES * stranger
        began = time.time_ns()
        result, left, reply = shim.receive(sent)
        wiped = file.data() == bytes(file.capacity)

    absent = opcode == LOOKUP and usable and shim.counts[place % NAMES] == 0
    unlinked = opcode == UNLINK and usable and (meant, directory) == (present, home) and changed == directory
    unlinked = unlinked and bool(whole) and not opens and not stranger
    assert (wiped, file.entry.ino) == ((True, 0) if unlinked else (False, INO))
    assert reply == (NOTHING if absent else DONE if unlinked else None)
    assert (result, left) == ((-errno.EINTR, bytes(len(sent))) if reply else (len(sent), sent))
    assert known.directory == (0 if unlinked else home)
    assert shim.counts[here % NAMES] == count - (unlinked and count < FULL)
    assert shim.number("unlinked").value == shim.number("news").value == unlinked
    if unlinked:
        ((*deferred, when),) = shim.deferred
        assert deferred == [UNLINK, directory, place % KNOWN]
        assert began <= when <= time.time_ns()
        assert attributes(shim) == (before[0] - NAME_SIZE, when, when)
    else:
        assert (shim.deferred, attributes(shim)) == ([], before)


def test_until_python_has_seen_it(shim: Shim) -> None:
    """A name is unlinked once, absent from then on, and no file is opened until Python has come and gone."""
    shim.clear()
    shim.attributes(DIRECTORY)
    with there(shim, DIRECTORY, b"here"), there(shim, DIRECTORY, b"stays", ino=INO + 1):
        assert shim.receive(name_request(UNLINK, DIRECTORY, b"here\0"))[2] == DONE
        assert shim.receive(name_request(LOOKUP, DIRECTORY, b"here\0"))[2] == NOTHING
        assert shim.receive(name_request(LOOKUP, DIRECTORY, b"stays\0"))[2] is None
        assert shim.receive(name_request(UNLINK, DIRECTORY, b"here\0"))[2] is None
        assert shim.receive(request(OPEN, INO + 1))[2] is None
        assert shim.receive(request(GETATTR, DIRECTORY))[2]
        assert shim.receive(request(FORGET, INO))[0] == -errno.EINTR
        assert [opcode for opcode, _, _, _ in shim.deferred] == [UNLINK, FORGET]
        shim.number("unlinked").value = 0
        assert shim.receive(request(OPEN, INO + 1))[2]


def test_open_files_are_not_wiped(shim: Shim) -> None:
    """As long as there is a handle the file lives on, whoever has opened it."""
    shim.clear()
    shim.attributes(DIRECTORY)
    unlink = name_request(UNLINK, DIRECTORY, b"here\0")
    with there(shim, DIRECTORY, b"here", opens=1) as file:
        assert shim.receive(request(RELEASE, INO, handle=1))[2] == DONE
        handles = [struct.unpack_from("=Q", shim.receive(request(OPEN, INO))[2] or b"", 16)[0] for _ in range(2)]
        for handle in handles:
            assert shim.receive(request(RELEASE, INO + FILES, handle=99))[2] == DONE, "of a file in the same place"
            assert shim.receive(unlink)[2] is None
            assert shim.receive(request(RELEASE, INO, handle=handle))[2] == DONE
        assert (file.entry.opens, any(file.data())) == (0, True)
        assert shim.receive(request(RELEASE, INO, handle=handles[0]))[2] == DONE
        assert file.entry.opens == 0
        assert shim.receive(unlink)[2] == DONE
        assert not any(file.data())


def test_no_room(shim: Shim) -> None:
    """Where no more can be left to Python, it is Python that unlinks, and nothing has changed."""
    shim.clear()
    shim.attributes(DIRECTORY)
    for _ in range(DEFERRED):
        shim.receive(request(FORGET, INO))
    before = attributes(shim)
    with there(shim, DIRECTORY, b"here"):
        sent = name_request(UNLINK, DIRECTORY, b"here\0")
        assert shim.receive(sent) == (len(sent), sent, None)
        place = hash_of(b"here") + DIRECTORY
        assert (shim.counts[place % NAMES], shim.known[place % KNOWN].directory) == (1, DIRECTORY)
    assert (attributes(shim), shim.number("unlinked").value) == (before, 0)
