"""secretfs.attributes: times and privileges when attributes change, as on a tmpfs."""

from __future__ import annotations

import os
import stat
import time

import pytest
from test_t4_filesystem import ME, SOMEBODY_ROOT, make

from secretfs.nodes import ROOT
from secretfs.rules import Changes

LONG_AGO = 10**9
CAPABILITIES = b"security.capability"


@pytest.fixture
def fs(fake):
    """A file system on a fake."""
    return make(fake)


def old_file(fs, data: bytes = b"", mode: int = 0o600):
    """An open file that was changed long ago: (handle, node)."""
    handle, node = fs.create(ROOT, b"f", mode, os.O_EXCL, ME)
    if data:
        fs.write(handle, 0, memoryview(data), privileged=True)
    node.atime = node.mtime = node.ctime = LONG_AGO
    return handle, node


@pytest.mark.parametrize(
    ("data", "size", "opened", "changes"),
    [
        (b"", 0, False, False),
        (b"", 0, True, True),
        (b"x", 1, False, True),
        (b"x", 0, False, True),
        (b"", 9, False, True),
    ],
)
def test_truncating_sets_times(fs, data, size, opened, changes) -> None:
    """All but a truncate(2) to the same size of a file without memory sets modification and change time."""
    _, node = old_file(fs, data)
    fs.setattr(node.ino, Changes(size=size), ME, opened=opened)
    assert ((node.mtime, node.ctime) != (LONG_AGO, LONG_AGO)) == changes
    assert node.mtime == node.ctime


def test_truncating_nothing_still_takes_privileges(fs) -> None:
    """An ordinary user's truncate(2) takes the set-user-ID bit, with or without a new mode from the kernel."""
    _, node = old_file(fs)
    for mode in (None, 0o755):
        node.mode = stat.S_IFREG | 0o4755
        fs.setattr(node.ino, Changes(size=0, mode=mode), ME)
        assert stat.S_IMODE(node.mode) == 0o755
        assert node.mtime == node.ctime == LONG_AGO


def test_new_file_keeps_its_mode(fs) -> None:
    """O_TRUNC is no truncation where the file has just been created."""
    _, node = fs.create(ROOT, b"f", 0o6755, os.O_TRUNC, ME)
    assert stat.S_IMODE(node.mode) == 0o6755


def test_present_time(fs) -> None:
    """Where the modification time is set to now the change time is the same, else it is the time of the call."""
    _, node = old_file(fs)
    now = time.time_ns()
    fs.setattr(node.ino, Changes(mtime=now), ME)
    assert (node.mtime, node.ctime) == (now, now)
    fs.setattr(node.ino, Changes(mtime=LONG_AGO), ME)
    assert node.mtime == LONG_AGO
    assert node.ctime > now


@pytest.mark.parametrize("change", ["write", "truncate", "chown"])
def test_capabilities_go_when_a_file_changes(fs, change) -> None:
    """A changed program has no capabilities any more, whoever changed it; other attributes stay."""
    handle, node = old_file(fs, b"program")
    for name in (CAPABILITIES, b"user.a"):
        fs.setxattr(node.ino, name, b"value")
    if change == "write":
        fs.write(handle, 0, memoryview(b"x"), privileged=True)
    else:
        changes = Changes(size=3) if change == "truncate" else Changes(uid=5)
        fs.setattr(node.ino, changes, SOMEBODY_ROOT)
    assert fs.listxattr(node.ino, ME) == [b"user.a"]


def test_directories_keep_theirs(fs) -> None:
    """On a directory it is an attribute like any other, and set-group-ID no privilege."""
    node = fs.mkdir(ROOT, b"d", 0o2755, ME)
    fs.setxattr(node.ino, CAPABILITIES, b"value")
    node.mode |= stat.S_ISGID
    fs.setattr(node.ino, Changes(uid=5), SOMEBODY_ROOT)
    assert fs.listxattr(node.ino, ME) == [CAPABILITIES]
    assert node.mode & stat.S_ISGID


@pytest.mark.parametrize("privileged", [True, False])
def test_privileged_writes(fs, privileged) -> None:
    """Who has CAP_FSETID may write without taking the set-user-ID bit."""
    handle, node = old_file(fs, mode=0o4755)
    fs.write(handle, 0, memoryview(b"x"), privileged=privileged)
    assert bool(node.mode & stat.S_ISUID) == privileged


@pytest.mark.parametrize("change", ["setxattr", "link", "unlink", "rename"])
def test_shim_is_sent_away_when_the_change_time_is_set(fs, change) -> None:
    """The next read sets the access time, so it must not be answered without the file system."""
    _, node = old_file(fs, b"x")
    fs.link(node.ino, ROOT, b"second")

    class Published:
        sent_away = False

        def revoke(self) -> None:
            self.sent_away = True

    assert node.content is not None
    published = node.content.published = Published()
    {
        "setxattr": lambda: fs.setxattr(node.ino, b"user.a", b"1"),
        "link": lambda: fs.link(node.ino, ROOT, b"third"),
        "unlink": lambda: fs.unlink(ROOT, b"second"),
        "rename": lambda: fs.rename(ROOT, b"f", ROOT, b"g"),
    }[change]()
    assert published.sent_away
