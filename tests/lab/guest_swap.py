#!/usr/bin/python3 -I
"""Runs in a guest: the attack by swap as it goes without a memory cgroup, and with cgroup v1; an audit that is killed.

Prints JSON: {"none": RESULTS, "v1": RESULTS or null, "killed": [WHAT WAS THERE], "left": [WHAT IS LEFT]}, where
RESULTS are {SUBJECT: [RESULT, WHY]}. With cgroup v2 it is part of guest_audit.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from secretfs import libc
from secretfs.audit import engine
from secretfs.audit.table import named

GROUPS = "/sys/fs/cgroup"
SUBJECTS = ("emulator", "kernel", "secret-open", "secret-closed", "mount")
PATIENCE = 120.0


def main() -> None:
    """One after the other."""
    if sys.argv[1:]:
        attack()
        return
    libc.umount(GROUPS, 0)
    told: dict[str, object] = {"none": attack(), "v1": None}
    try:
        libc.mount("none", GROUPS, "cgroup", 0, "memory")
    except OSError as error:
        print(f"no cgroup v1: {error}", file=sys.stderr)
    else:
        told["v1"] = attack()
        libc.umount(GROUPS, 0)
    libc.mount("none", GROUPS, "cgroup2", 0, "")
    told["killed"], told["left"] = kill()
    json.dump(told, sys.stdout)


def attack() -> dict[str, tuple[str, str]]:
    """The row by itself."""
    audit = engine.run([named("swap")], machine=True, subjects=SUBJECTS, progress=lambda *step: None)
    return {subject: (cell.result, cell.why) for (_, subject), cell in audit.cells.items()}


def kill() -> tuple[list[str], list[str]]:
    """End an audit, the attacker and the victims with SIGKILL while a victim is swapped out; what there was, and is."""
    audit = subprocess.Popen([sys.executable, "-I", __file__, "attack"], start_new_session=True)
    if not wait_until(lambda: any("swapped" in one for one in traces()) or audit.poll() is not None):
        sys.exit("the audit swaps nothing")
    before = list(traces())
    os.killpg(audit.pid, signal.SIGKILL)
    audit.wait()
    wait_until(lambda: not any(traces()))
    return before, list(traces())


def traces() -> Iterator[str]:
    """What an audit has changed, as long as it is so."""
    for line in Path("/proc/swaps").read_text(encoding="utf-8").splitlines()[1:]:
        yield f"swap: {line.split()[0]}"
    yield from (f"file: {path}" for folder in ("/tmp", "/var/tmp") for path in Path(folder).glob("secretfs-audit-*"))
    if Path(GROUPS, "cgroup.subtree_control").read_text(encoding="ascii").strip():
        yield "controlled: memory"
    for group in Path(GROUPS).glob("secretfs-audit-*"):
        yield f"cgroup: {group}"
        try:
            pids = (group / "cgroup.procs").read_text(encoding="ascii").split()
            yield from (f"swapped: {pid}" for pid in pids if libc.proc_status("VmSwap", pid) not in ("", "0 kB"))
        except OSError:
            pass
    yield from (f"mount: {line}" for line in Path("/proc/self/mountinfo").read_text().splitlines() if "fuse" in line)


def wait_until(condition: Callable[[], bool]) -> bool:
    """Whether `condition` holds in the end; there is nothing to wait on, so it is asked again and again."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            return False
        os.sched_yield()
    return True


if __name__ == "__main__":
    main()
