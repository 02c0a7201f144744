"""The memory cgroup in which the audit squeezes a victim: who is in it, and what is left. The lab has the swapping."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from audits import PATIENCE
from mounts import clean_environment, needs_root

from secretfs.audit.squeeze import memory_group
from secretfs.audit.undo import Undo

pytestmark = needs_root


def _groups(pid: int | str) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8")


def test_a_squeezed_group_is_taken_away() -> None:
    """A process in the audit's memory cgroup is squeezed and lives; its limit is open again, then the group is gone."""
    with Undo() as undo, memory_group(undo) as group:
        if group is None:
            pytest.skip("needs a writable memory cgroup")
        knob = Path(group.path, "memory.high" if group.version == 2 else "memory.limit_in_bytes")
        before = knob.read_text(encoding="ascii")
        process = subprocess.Popen(["sleep", "300"], preexec_fn=group.join)  # noqa: PLW1509 - one thread
        assert Path(group.path).name in _groups(process.pid)
        group.squeeze(undo)
        assert knob.read_text(encoding="ascii") == before
        assert process.poll() is None
    assert not Path(group.path).exists()
    assert _groups(process.pid) == _groups("self")
    process.kill()
    process.wait()


KILLED = """
import os, signal, subprocess
from secretfs.audit.squeeze import memory_group
from secretfs.audit.undo import Undo
with Undo() as undo, memory_group(undo) as group:
    if group is not None:
        nothing = subprocess.DEVNULL
        process = subprocess.Popen(["sleep", "300"], preexec_fn=group.join, stdout=nothing, stderr=nothing)
        print(group.path, process.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_group_is_taken_away_after_kill() -> None:
    """If the audit is killed its helper moves who is in the memory cgroup back, and removes it."""
    done = subprocess.run(
        [sys.executable, "-B", "-c", KILLED], env=clean_environment(), capture_output=True, text=True, cwd="/",
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    if not done.stdout:
        pytest.skip("needs a writable memory cgroup")
    path, pid = done.stdout.split()
    try:
        assert not Path(path).exists()  # the helper, which has the same standard output, has ended
        assert _groups(pid) == _groups("self")
    finally:
        os.kill(int(pid), signal.SIGKILL)
