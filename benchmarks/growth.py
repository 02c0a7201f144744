"""What a file costs when there are many: time to create, look up and unlink one, and the daemon's memory for it."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from mount import cpus_for, run_client
from systems import System

SIZES = (100, 1_000, 10_000, 100_000)
MS_REMOUNT = 32
_libc = ctypes.CDLL(None, use_errno=True)


def measure(
    client: Path, systems: Sequence[System], *, rounds: int, sizes: Sequence[int], progress: Callable[[str], None]
) -> dict[str, Any]:
    """summary[system][operation][files]: median microseconds per file; client and daemon share a CPU."""
    cpus = cpus_for("same")
    assert cpus is not None
    samples: dict[str, Any] = {}
    for system in systems:
        system.pin(cpus[1])
    for number in range(rounds):
        for files in sizes:
            for system in systems:
                for operation in ("create", "lookup", "unlink"):
                    found = run_client(client, system, [f"{operation}:{files}"], cpus[0])[operation]
                    cell = samples.setdefault(system.name, {}).setdefault(operation, {}).setdefault(str(files), [])
                    cell.append(1e6 / found["rate"])
                    forget_names(system.mountpoint)
            progress(f"growth: round {number + 1} of {rounds}, {files:,} files")
    return {
        system: {
            op: {files: round(median(cell), 2) for files, cell in by_files.items()} for op, by_files in ops.items()
        }
        for system, ops in samples.items()
    }


def forget_names(mountpoint: Path) -> None:
    """Make the kernel drop the names and inodes it has cached of one mount: remounting does."""
    if _libc.mount(None, os.fsencode(mountpoint), None, MS_REMOUNT, None):
        raise OSError(ctypes.get_errno(), "remount")


def memory(client: Path, system: System, operation: str, *, files: int) -> dict[str, Any]:
    """Bytes per file that a fresh daemon takes for `files` of them, and what it keeps when they are unlinked.

    "ordinary" is anonymous memory (RssAnon) that is no part of an area, VmRSS all that is resident, locked_bytes the
    areas. "create" makes empty files, "fill" files of 64 bytes.
    """
    cpus = cpus_for("free")
    assert cpus is not None
    run_client(client, system, ["create:1000", "unlink:1000"], cpus[0])
    forget_names(system.mountpoint)
    before = _memory(system)
    run_client(client, system, [f"{operation}:{files}"], cpus[0])
    forget_names(system.mountpoint)
    full = _memory(system)
    run_client(client, system, [f"unlink:{files}"], cpus[0])
    forget_names(system.mountpoint)
    after = _memory(system)
    return {
        "there": {name: round((full[name] - before[name]) / files) for name in before},
        "unlinked": {name: round((after[name] - before[name]) / files) for name in before},
    }


def _memory(system: System) -> dict[str, int]:
    locked = json.loads(os.getxattr(system.mountpoint, "user.secretfs.status"))["locked_bytes"]
    found = {}
    for line in Path(f"/proc/{system.daemon()}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("RssAnon", "VmRSS"):
            found[name] = int(value.split()[0]) * 1024
    anonymous = found.pop("RssAnon")
    areas = 0 if system.name == "kernel" else locked  # secret memory is no anonymous memory, the emulator's is
    return {"ordinary": anonymous - areas, "VmRSS": found["VmRSS"], "locked_bytes": locked}
