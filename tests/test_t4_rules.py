"""secretfs.rules: when reading sets an access time, under each flag of the mount that says so."""

from __future__ import annotations

import stat
import time
from typing import NamedTuple

import pytest

from secretfs.filesystem import Filesystem
from secretfs.nodes import ROOT
from secretfs.rules import DAY, NANO, AccessTimes

NOW = time.time_ns()
FRESH, STALE, OLD = NOW - NANO, NOW - 5 * NANO, NOW - DAY - 60 * NANO
CHANGED = NOW - 3 * NANO
FILE = stat.S_IFREG | 0o600


class Caller(NamedTuple):
    """Who asks."""

    uid: int = 0
    gid: int = 0


@pytest.mark.parametrize(
    ("flags", "name", "moves"),
    [
        ((), b"file", {STALE, OLD}),
        ((), b"folder", {STALE, OLD}),
        (("noatime",), b"file", set()),
        (("noatime",), b"folder", set()),
        (("nodiratime", "noexec"), b"file", {STALE, OLD}),
        (("nodiratime",), b"folder", set()),
        (("strictatime",), b"file", {FRESH, STALE, OLD}),
        (("noatime", "strictatime"), b"file", {FRESH, STALE, OLD}),
    ],
)
def test_access_times(fake, flags: tuple[str, ...], name: bytes, moves: set[int]) -> None:
    """The access time moves as mount(8) says; until when it does not is what the shim is told."""
    times = AccessTimes(flags)
    fs = Filesystem(fake, size=4096, max_files=9, uid=0, gid=0, reserve=False)
    read = fs.mkdir(ROOT, name, 0o700, Caller()) if name == b"folder" else fs.mknod(ROOT, name, FILE, 0, Caller())
    for atime in (FRESH, STALE, OLD):
        read.atime = atime
        read.mtime = read.ctime = min(CHANGED, atime - NANO) if atime == OLD else CHANGED
        assert (times.fresh_until(read) * NANO < NOW) == (atime in moves)
        times.touch(read)
        assert (read.atime != atime) == (atime in moves)
        assert read.atime in (atime, pytest.approx(time.time_ns(), abs=60 * NANO))
