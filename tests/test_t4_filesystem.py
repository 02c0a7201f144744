"""secretfs.filesystem: what single operations do, where the state machine does not look."""

from __future__ import annotations

import errno
import os
import stat
import time
from typing import NamedTuple

import pytest

from secretfs.errors import FileError, LimitError
from secretfs.filesystem import LARGEST_FILE, Filesystem
from secretfs.nodes import LINGER, ROOT
from secretfs.rules import DAY, Changes
from secretfs.testing import FakeBackend

MIB = 1 << 20


class Caller(NamedTuple):
    """Who asks."""

    uid: int = 1000
    gid: int = 1000


ME, SOMEBODY_ROOT = Caller(), Caller(0, 0)


def make(backend, *, size: int = MIB, max_files: int = 100, reserve: bool = False) -> Filesystem:
    """A file system with a root that belongs to ME."""
    return Filesystem(backend, size=size, max_files=max_files, uid=1000, gid=1000, reserve=reserve)


@pytest.fixture
def fs(fake):
    """A file system on a fake."""
    return make(fake)


def errno_of(call, *arguments) -> int:
    """The errno with which a call fails."""
    with pytest.raises(FileError) as caught:
        call(*arguments)
    return caught.value.errno


def read(fs: Filesystem, handle: int, length: int = 100, offset: int = 0) -> bytes:
    """What a reader gets."""
    buffer = bytearray(length)
    return bytes(buffer[: fs.read_into(handle, offset, memoryview(buffer))])


def put(fs: Filesystem, name: bytes, data: bytes, parent: int = ROOT) -> int:
    """Write a whole new file, close it, and return its inode number."""
    handle, node = fs.create(parent, name, 0o600, os.O_EXCL, ME)
    assert fs.write(handle, 0, memoryview(data)) == len(data)
    fs.release(handle)
    return node.ino


def names(fs: Filesystem, handle: int, start: int = 0) -> list[bytes]:
    """The names that readdir gives, without the dots."""
    return [bytes(name) for _, name, _ in fs.readdir(handle, start) if name not in (b".", b"..")]


@pytest.mark.slow
def test_twenty_thousand_small_files_fit_in_five_mib(fake) -> None:
    """20,000 files of 64 bytes with names of 64 bytes take at most 5 MiB of locked memory, all included."""
    fs = make(fake, size=16 * MIB, max_files=20_000, reserve=True)
    for number in range(20_000):
        put(fs, b"%064d" % number, b"k" * 64)
    assert fs.statistics().used == 20_000 * 64
    assert fs.statistics().locked == fake.used <= 5 * MIB
    assert fs.statistics().files == 20_000
    assert errno_of(put, fs, b"one more", b"") == errno.ENOSPC


@pytest.mark.slow
def test_readdir_is_stable_while_entries_come_and_go(fs) -> None:
    """What is there from beginning to end is read exactly once, however much is removed and added in between."""
    for number in range(100):
        put(fs, b"stays-%d" % number if number % 2 else b"goes-%d" % number, b"")
    handle = fs.opendir(ROOT)
    seen, position = [], 0
    while True:
        batch = [each for _, each in zip(range(7), fs.readdir(handle, position), strict=False)]
        if not batch:
            break
        position = batch[-1][0]
        seen += [bytes(name) for _, name, _ in batch]
        gone = len(seen) * 2 % 100
        if fs._tree.root.entries.get(b"goes-%d" % gone) is not None:
            fs.unlink(ROOT, b"goes-%d" % gone)
            put(fs, b"new-%d" % gone, b"")
    assert len(seen) == len(set(seen))
    assert {name for name in seen if name.startswith(b"stays")} == {b"stays-%d" % n for n in range(1, 100, 2)}
    assert not [name for name in seen if name.startswith(b"new")]
    assert b"new-14" in names(fs, handle, 0)


def test_resuming_never_repeats_or_skips(fs) -> None:
    """A directory read one entry at a time gives the same names as one read at once."""
    for number in range(10):
        put(fs, b"%d" % number, b"")
    handle = fs.opendir(ROOT)
    one_by_one, position = [], 0
    while batch := [each for _, each in zip(range(1), fs.readdir(handle, position), strict=False)]:
        position = batch[0][0]
        one_by_one.append(bytes(batch[0][1]))
    assert one_by_one == [bytes(name) for _, name, _ in fs.readdir(handle, 0)]


def test_dots_are_no_references(fs) -> None:
    """The entries "." and ".." come first, with the right inodes, and count as nobody's reference."""
    directory = fs.mkdir(ROOT, b"d", 0o700, ME)
    handle = fs.opendir(directory.ino)
    assert [(bytes(name), node.ino) for _, name, node in fs.readdir(handle, 0)] == [
        (b".", directory.ino),
        (b"..", ROOT),
    ]
    assert directory.lookups == 1


def test_lookup_of_dots(fs) -> None:
    """lookup() knows "." and "..", of the root too."""
    ino = fs.mkdir(ROOT, b"d", 0o700, ME).ino
    assert fs.lookup(ROOT, b"none") is None
    assert [fs.lookup(*each).ino for each in ((ino, b"."), (ino, b".."), (ROOT, b".."))] == [ino, ROOT, ROOT]


def test_owner_of_what_is_created_is_the_caller(fs) -> None:
    """A new file has the caller's user and group, the type and the permission bits asked for."""
    node = fs.create(ROOT, b"f", 0o4640, 0, Caller(7, 8))[1]
    assert (node.uid, node.gid, node.mode) == (7, 8, stat.S_IFREG | 0o4640)


def test_set_group_id_directory_gives_its_group(fs) -> None:
    """In a set-group-ID directory what is created gets its group, and a directory its bit."""
    parent = fs.mkdir(ROOT, b"d", 0o2770, Caller(1, 55)).ino
    assert fs.create(parent, b"f", 0o600, 0, ME)[1].gid == 55
    inner = fs.mkdir(parent, b"d", 0o700, ME)
    assert (inner.gid, stat.S_IMODE(inner.mode)) == (55, 0o2700)


@pytest.mark.parametrize(("mode", "after"), [(0o6777, 0o777), (0o4755, 0o755), (0o2745, 0o2745), (0o755, 0o755)])
def test_write_takes_privileges_away(fs, mode, after) -> None:
    """Writing clears set-user-ID, and set-group-ID where it is a privilege and not a mark for locking."""
    handle, node = fs.create(ROOT, b"f", mode, 0, ME)
    fs.write(handle, 0, memoryview(b"x"))
    assert stat.S_IMODE(node.mode) == after


def test_chown_takes_privileges_away_and_directories_keep_them(fs) -> None:
    """A new owner gets no set-user-ID program; a directory's bits are no privilege."""
    node = fs.create(ROOT, b"f", 0o6777, 0, ME)[1]
    assert stat.S_IMODE(fs.setattr(node.ino, Changes(uid=0), SOMEBODY_ROOT).mode) == 0o777
    directory = fs.mkdir(ROOT, b"d", 0o2770, ME)
    assert stat.S_IMODE(fs.setattr(directory.ino, Changes(gid=5), SOMEBODY_ROOT).mode) == 0o2770


def test_setattr_changes_what_it_was_told(fs) -> None:
    """Mode, owner and times are set one by one, and ctime moves; the type bits stay."""
    node = fs.create(ROOT, b"f", 0o600, 0, ME)[1]
    node.ctime = 0
    fs.setattr(node.ino, Changes(mode=stat.S_IFDIR | 0o640, gid=9, atime=5, mtime=6), ME)
    assert (node.mode, node.uid, node.gid, node.atime, node.mtime) == (stat.S_IFREG | 0o640, 1000, 9, 5, 6)
    assert node.ctime > 0


def test_setattr_is_all_or_nothing(fs) -> None:
    """If the size cannot be had, the rest is not changed either."""
    node = fs.mkdir(ROOT, b"d", 0o700, ME)
    assert errno_of(fs.setattr, node.ino, Changes(size=5, mode=0o777), ME) == errno.EISDIR
    assert stat.S_IMODE(node.mode) == 0o700


def test_reading_is_seen_in_atime_as_with_relatime(fs) -> None:
    """A read moves atime when it is not newer than the last change, or a day old, and not otherwise."""
    handle, node = fs.create(ROOT, b"f", 0o600, 0, ME)
    node.mtime = node.ctime = time.time_ns() - 2 * DAY
    for atime, moves in (
        (node.mtime, True),
        (time.time_ns() - DAY // 2, False),
        (time.time_ns() - DAY - 10**9, True),
    ):
        node.atime = atime
        read(fs, handle)
        assert (node.atime != atime) == moves


def test_flags_of_the_mount_reach_reading(fake) -> None:
    """Under noatime a read moves nothing, however old the access time is."""
    fs = Filesystem(fake, size=MIB, max_files=9, uid=1000, gid=1000, reserve=False, flags=("noatime",))
    handle, node = fs.create(ROOT, b"f", 0o600, 0, ME)
    node.atime = 5
    read(fs, handle)
    list(fs.readdir(fs.opendir(ROOT), 0))
    root = fs.getattr(ROOT)
    assert (node.atime, root.atime) == (5, min(root.atime, root.mtime))


def test_file_lives_as_long_as_a_handle(fs) -> None:
    """A file that was unlinked while open can be read and written; closing wipes it and opening is ESTALE."""
    handle, node = fs.create(ROOT, b"f", 0o600, 0, ME)
    fs.write(handle, 0, memoryview(b"before"))
    fs.unlink(ROOT, b"f")
    fs.write(handle, 6, memoryview(b"-after"))
    assert read(fs, handle) == b"before-after"
    fs.release(handle)
    assert fs.statistics().used == 0
    assert errno_of(fs.open, node.ino, 0, ME) == errno.ESTALE


def test_replaced_files_linger(fs):
    """What a rename replaces can be opened until end_lingering(), by who has found it before, and is wiped then."""
    fs.let_linger()
    old = put(fs, b"name", b"old")
    fs.lookup(ROOT, b"name")
    put(fs, b"new", b"fresh!")
    fs.rename(ROOT, b"new", ROOT, b"name")
    handle = fs.open(old, os.O_RDONLY, ME)
    fs.end_lingering()
    assert (read(fs, handle), fs.statistics().used) == (b"old", 128)
    fs.release(handle)
    assert (errno_of(fs.open, old, 0, ME), fs.statistics().used) == (errno.ESTALE, 64)
    put(fs, b"newest", b"")
    replaced = fs.lookup(ROOT, b"name")
    fs.rename(ROOT, b"newest", ROOT, b"name")
    assert fs.statistics().files == 2
    fs.end_lingering()
    assert (errno_of(fs.open, replaced.ino, 0, ME), fs.statistics().used, fs.statistics().files) == (errno.ESTALE, 0, 1)


@pytest.mark.parametrize(
    ("size", "max_files", "lingers"), [(64 * MIB, 100, True), (MIB, 100, False), (64 * MIB, 2, False)]
)
def test_how_long_a_replaced_file_lingers(fake, monkeypatch, size, max_files, lingers) -> None:
    """Others may make requests meanwhile, for some time and as long as there is room."""
    fs = make(fake, size=size, max_files=max_files)
    now = time.monotonic_ns()
    monkeypatch.setattr(time, "monotonic_ns", lambda: now)
    fs.let_linger()
    put(fs, b"name", b"old")
    put(fs, b"new", b"new")
    old = fs.lookup(ROOT, b"name").ino
    fs.rename(ROOT, b"new", ROOT, b"name")
    fs.limit_lingering()
    if lingers:
        handle = fs.open(old, 0, ME)
        assert read(fs, handle) == b"old"
        fs.release(handle)
        now += LINGER + 1
        fs.limit_lingering()
    assert (errno_of(fs.open, old, 0, ME), fs.statistics().files) == (errno.ESTALE, 1)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda fs, f, d: fs.getattr(999), errno.ESTALE),
        (lambda fs, f, d: fs.lookup(ROOT, b"n" * 256), errno.ENAMETOOLONG),
        (lambda fs, f, d: fs.unlink(ROOT, b"n" * 256), errno.ENAMETOOLONG),
        (lambda fs, f, d: fs.mkdir(ROOT, b"n" * 256, 0o700, ME), errno.ENAMETOOLONG),
        (lambda fs, f, d: fs.rename(ROOT, b"f", ROOT, b"n" * 256), errno.ENAMETOOLONG),
        (lambda fs, f, d: fs.rename(ROOT, b"f", ROOT, b"g", 4), errno.EINVAL),
        (lambda fs, f, d: fs.rename(ROOT, b"f", ROOT, b"g", 3), errno.EINVAL),
        (lambda fs, f, d: fs.rename(ROOT, b"d", d, b"below"), errno.EINVAL),
        (lambda fs, f, d: fs.lookup(f, b"x"), errno.ENOTDIR),
        (lambda fs, f, d: fs.readlink(f), errno.EINVAL),
        (lambda fs, f, d: fs.open(d, 0, ME), errno.EISDIR),
        (lambda fs, f, d: fs.opendir(f), errno.ENOTDIR),
        (lambda fs, f, d: fs.setattr(f, Changes(size=-1), ME), errno.EINVAL),
        (lambda fs, f, d: fs.setattr(f, Changes(size=LARGEST_FILE + 1), ME), errno.EFBIG),
        (lambda fs, f, d: fs.write(fs.open(f, 0, ME), LARGEST_FILE, memoryview(b"x")), errno.EFBIG),
        (lambda fs, f, d: fs.setxattr(f, b"user.x", bytes(65537)), errno.E2BIG),
        (lambda fs, f, d: fs.setxattr(f, b"system.x", b""), errno.EOPNOTSUPP),
        (lambda fs, f, d: fs.getxattr(f, b"user.x"), errno.ENODATA),
        (lambda fs, f, d: fs.removexattr(f, b"user.x"), errno.ENODATA),
        (lambda fs, f, d: fs.read_into(999, 0, memoryview(bytearray(1))), errno.EBADF),
        (lambda fs, f, d: fs.read_into(fs.opendir(d), 0, memoryview(bytearray(1))), errno.EBADF),
        (lambda fs, f, d: list(fs.readdir(fs.open(f, 0, ME), 0)), errno.EBADF),
    ],
)
def test_failure_is_the_system_calls(fs, call, expected) -> None:
    """Each misuse has the errno of the system call, and changes nothing."""
    f, d = put(fs, b"f", b"data"), fs.mkdir(ROOT, b"d", 0o700, ME).ino
    before = fs.statistics()
    assert errno_of(call, fs, f, d) == expected
    assert fs.statistics() == before
    assert names(fs, fs.opendir(ROOT)) == [b"f", b"d"]


def test_handle_is_dead_after_release(fs) -> None:
    """A handle that was released is EBADF, twice too, and never given again."""
    handle = fs.create(ROOT, b"f", 0o600, 0, ME)[0]
    fs.release(handle)
    assert errno_of(fs.release, handle) == errno.EBADF
    assert fs.open(fs.lookup(ROOT, b"f").ino, 0, ME) != handle


def test_what_leaves_the_page_cache(fs) -> None:
    """A file that a handle has put into the page cache leaves it with that handle, or with a name while it is open."""
    ino = put(fs, b"f", b"data")
    put(fs, b"other", b"data")
    fs.link(ino, ROOT, b"again")
    fs.link(ino, ROOT, b"third")
    direct, mapped = fs.open(ino, 0, ME), fs.open(ino, 0, ME)
    assert fs.unlink(ROOT, b"third") == 0
    fs.opened(mapped).note_page_cached()
    fs.opened(mapped).note_page_cached()
    assert fs.release(direct) == 0
    assert fs.unlink(ROOT, b"again") == ino
    assert fs.rename(ROOT, b"f", ROOT, b"moved") == 0
    assert fs.rename(ROOT, b"other", ROOT, b"moved") == ino
    assert fs.release(mapped) == ino
    assert fs.unlink(ROOT, b"moved") == 0


def test_special_files_have_no_bytes(fs) -> None:
    """Fifos, sockets and devices are names with a type; a device has its number."""
    fifo = fs.mknod(ROOT, b"fifo", stat.S_IFIFO | 0o600, 5, ME)
    null = fs.mknod(ROOT, b"null", stat.S_IFCHR | 0o600, os.makedev(1, 3), SOMEBODY_ROOT)
    assert (fifo.rdev, fifo.size, null.rdev) == (0, 0, os.makedev(1, 3))
    assert errno_of(fs.setattr, fifo.ino, Changes(size=1), ME) == errno.EINVAL


def test_trusted_attributes_are_roots(fs) -> None:
    """Only root is told the names of trusted attributes."""
    for name in (b"trusted.t", b"user.u"):
        fs.setxattr(ROOT, name, b"v")
    assert [bytes(name) for name in fs.listxattr(ROOT, ME)] == [b"user.u"]
    assert [bytes(name) for name in fs.listxattr(ROOT, SOMEBODY_ROOT)] == [b"trusted.t", b"user.u"]


def test_largest_attribute_comes_back(fs) -> None:
    """64 KiB are a value, which counts as data until it is removed."""
    value = bytes(range(256)) * 256
    fs.setxattr(ROOT, b"user.big", value)
    assert fs.getxattr(ROOT, b"user.big") == value
    assert fs.statistics().used == 65536
    fs.removexattr(ROOT, b"user.big")
    assert fs.statistics().used == 0


def test_attribute_without_room_keeps_its_old_value(fake) -> None:
    """Where the new value does not fit beside the old one, the old one stays."""
    fs = make(fake, size=1024)
    fs.setxattr(ROOT, b"user.a", b"old" * 200)
    assert errno_of(fs.setxattr, ROOT, b"user.a", b"new" * 200) == errno.ENOSPC
    assert fs.getxattr(ROOT, b"user.a") == b"old" * 200
    assert fs.statistics().used == 640


def test_everything_survives_memory_that_ends_anywhere() -> None:
    """Wherever lockable memory ends during a series of operations, each fails with ENOSPC or is done, whole."""
    for pages in range(0, 200, 4):
        fake = FakeBackend(limit=pages * 4096)
        fs = make(fake)
        operations = [
            lambda fs: fs.mkdir(ROOT, b"d", 0o700, ME),
            lambda fs: fs.symlink(ROOT, b"l", b"t" * 1000, ME),
            lambda fs: fs.setxattr(ROOT, b"user.x", b"v" * 3000),
            lambda fs: put(fs, b"f" * 200, b"x" * 500),
            lambda fs: put(fs, b"g" * 100, b"y" * 5000),
            lambda fs: fs.rename(ROOT, b"d", ROOT, b"e" * 130),
        ]
        for operation in operations:
            before = names(fs, fs.opendir(ROOT)), len(fs.listxattr(ROOT, ME))
            try:
                operation(fs)
            except FileError as error:
                known = error.errno
                after = names(fs, fs.opendir(ROOT)), len(fs.listxattr(ROOT, ME))
                created = {b"f" * 200, b"g" * 100}  # put() is two operations
                assert [name for name in after[0] if name not in created] == [n for n in before[0] if n not in created]
                assert after[1] == before[1]
                if known != errno.ENOSPC:
                    assert (known, operation) == (errno.ENOENT, operations[-1])
        fs.close()
        assert fake.used == 0


def test_reserve_is_refused_where_it_does_not_fit() -> None:
    """A file system that cannot have its first areas is a LimitError at once, and keeps none."""
    fake = FakeBackend(limit=300 * 1024)
    with pytest.raises(LimitError):
        make(fake, reserve=True)
    assert fake.used == 0


def test_close_wipes_all(emulator) -> None:
    """After close() no area is left."""
    fs = make(emulator)
    put(fs, b"f", b"x" * 10_000)
    fs.close()
    assert fs.statistics().locked == 0


def test_append_goes_to_the_end(fs) -> None:
    """With O_APPEND the offset does not count."""
    put(fs, b"f", b"start")
    handle = fs.open(fs.lookup(ROOT, b"f").ino, os.O_APPEND, ME)
    fs.write(handle, 0, memoryview(b"+1"))
    fs.write(handle, 0, memoryview(b"+2"))
    assert read(fs, handle) == b"start+1+2"


def test_link_counts(fs) -> None:
    """Directories have two links and one for each below; names of a file share its inode until the last is gone."""
    a, f = fs.mkdir(ROOT, b"a", 0o700, ME), put(fs, b"f", b"data")
    assert (fs.getattr(ROOT).nlink, a.nlink) == (3, 2)
    assert fs.link(f, a.ino, b"g").nlink == 2
    fs.unlink(ROOT, b"f")
    assert fs.lookup(a.ino, b"g").ino == f
    assert fs.getattr(f).nlink == 1


def test_directory_takes_its_link_along(fs) -> None:
    """A directory that moves counts as a link of its new parent, no more of its old one, and ".." follows."""
    a, b = (fs.mkdir(ROOT, name, 0o700, ME) for name in (b"a", b"b"))
    moving = fs.mkdir(a.ino, b"d", 0o700, ME)
    fs.rename(a.ino, b"d", b.ino, b"d")
    assert (a.nlink, b.nlink, fs.lookup(moving.ino, b"..")) == (2, 3, b)


def test_removed_entry_is_left_out_of_a_listing_that_has_begun(fs) -> None:
    """What is removed while a directory is read does not come any more."""
    for name in (b"1", b"2", b"3"):
        put(fs, name, b"")
    handle = fs.opendir(ROOT)
    listing = fs.readdir(handle, 0)
    assert [bytes(next(listing)[1]) for _ in range(3)] == [b".", b"..", b"1"]
    fs.unlink(ROOT, b"2")
    assert names(fs, handle, 3) == [b"3"]


def test_nothing_is_made_in_a_removed_directory(fs) -> None:
    """A directory that was removed while somebody is in it takes no new names."""
    ino = fs.mkdir(ROOT, b"d", 0o700, ME).ino
    put(fs, b"f", b"")
    fs.rmdir(ROOT, b"d")
    assert errno_of(put, fs, b"x", b"", ino) == errno.ENOENT
    assert errno_of(fs.rename, ROOT, b"f", ino, b"x") == errno.ENOENT
    assert errno_of(fs.link, fs.lookup(ROOT, b"f").ino, ino, b"x") == errno.ENOENT


def test_repr_of_a_node_has_no_bytes(fs) -> None:
    """What could end in a log shows numbers only."""
    put(fs, b"tell-no-name", b"tell-no-one")
    node = fs.lookup(ROOT, b"tell-no-name")
    handle = fs._handles[fs.open(node.ino, 0, ME)]
    assert "tell" not in f"{node!r} {handle!r} {node.content!r} {fs!r} {list(fs._tree.root.entries)!r}"
