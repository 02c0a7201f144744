"""`secretfs mount --guard`: nobody else can trace the daemon, and nothing else changes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from audits import results, some
from mounts import Mounted, needs_root, proc_status

from secretfs import libc

pytestmark = [pytest.mark.mount, pytest.mark.slow]

SEIZE = 0x4206


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Mounted]:
    """A mount with a guard."""
    with Mounted(tmp_path / "mount", "--guard") as mount:
        yield mount


def guard_of(mount: Mounted) -> int:
    """The process that traces the daemon."""
    return int(proc_status(mount.daemon)["TracerPid"])


def test_they_trace_each_other(guarded: Mounted) -> None:
    """The daemon's tracer is the guard, the guard's is the daemon, and both are undumpable or gone from view."""
    guard = guard_of(guarded)
    assert guard == guarded.parent
    assert int(proc_status(guard)["TracerPid"]) == guarded.daemon
    assert os.stat(f"/proc/{guard}/mem").st_uid == 0


@needs_root
def test_nobody_else_can_trace(guarded: Mounted) -> None:
    """Root's ptrace of either is refused, while one of an ordinary process is not."""
    for pid in (guarded.daemon, guard_of(guarded)):
        with pytest.raises(PermissionError):
            libc.ptrace(SEIZE, pid, 0, 0)
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    try:
        libc.ptrace(SEIZE, child, 0, 0)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_it_serves_and_ends_as_ever(guarded: Mounted) -> None:
    """Files are written and read; SIGTERM to the daemon detaches, wipes and ends all three."""
    file = guarded.path / "file"
    file.write_bytes(b"a" * 100_000)
    assert file.read_bytes() == b"a" * 100_000
    guarded.kill(signal.SIGTERM, guarded.daemon)
    guarded.wait_for_end()


def test_it_cannot_be_stopped(guarded: Mounted) -> None:
    """SIGSTOP does not stop a guarded daemon: it goes on serving."""
    guarded.kill(signal.SIGSTOP, guarded.daemon)
    (guarded.path / "file").write_bytes(b"a")
    assert (guarded.path / "file").read_bytes() == b"a"


@pytest.mark.parametrize("who", ["daemon", "guard"])
def test_whoever_kills_one_has_killed_both(guarded: Mounted, who: str) -> None:
    """kill -9 of either ends both, and the mount is taken away."""
    guarded.kill(signal.SIGKILL, guarded.daemon if who == "daemon" else guarded.parent)
    guarded.wait_for_end()


@needs_root
def test_the_audit_shows_it() -> None:
    """Under --guard injected code does not get a mount's secret; without, it does."""
    code, told = some("ptrace-inject", guard=True, subjects=["mount"])
    assert code == 0
    assert results(told)["ptrace-inject"]["mount"] == "held"
    assert "EPERM" in told["attacks"][0]["why"]["mount"]
    code, told = some("ptrace-inject", subjects=["mount"])
    assert results(told)["ptrace-inject"]["mount"] == "leaked"


@needs_root
def test_as_an_ordinary_user() -> None:
    """An ordinary user's mount can be guarded as well."""
    code, told = some("proc-mem-user", "ptrace-inject-user", guard=True, subjects=["mount"], box={"user": "nobody"})
    assert code == 0
    assert {found["mount"] for found in results(told).values()} == {"held"}
