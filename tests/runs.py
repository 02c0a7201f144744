"""What tests of programs under `secretfs run` share: how they are compiled and started, and what the probe observed."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from collections.abc import Sequence
from pathlib import Path

import box
import pytest
from mounts import ROOT, SECRETFS, clean_environment
from shims import WARNINGS

from secretfs import libc

__all__ = [
    "HERE",
    "PROBE",
    "PROGRAMS",
    "compiled",
    "core_dumps",
    "differences",
    "finished",
    "may_emulate",
    "observed",
    "under_run",
]

HERE = Path(__file__).parent
PROBE = sorted((HERE / "secretprobe").glob("*.c"))
PROGRAMS = HERE / "runprograms"
CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")


def _forbidden() -> bool:
    """Whether a seccomp profile answers memfd_secret(2), which no filter of ours can overrule."""
    try:
        os.close(libc.memfd_secret(os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EPERM
    return False


may_emulate = pytest.mark.skipif(_forbidden(), reason="memfd_secret: forbidden here, so that nothing can emulate it")


def compiled(target: Path, *sources: Path, static: bool = False, options: Sequence[str] = ()) -> Path:
    """A program from C; a warning is an error."""
    command = [
        "gcc",
        "-O1",
        "-Wshadow",
        *WARNINGS,
        *(["-static"] if static else []),
        "-o",
        target,
        *sources,
        "-pthread",
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def under_run(words: Sequence[str | Path], *options: str) -> list[str]:
    """A command under `secretfs run` with those options."""
    return [SECRETFS, "run", *options, "--", *map(str, words)]


def finished(words: Sequence[str | Path], folder: Path, *, user: str | None = None, timeout: float = 100.0) -> str:
    """What a command printed that ended well, as root or in a box as another user; in a folder that it can write to."""
    command = list(map(str, words))
    if user is not None:
        if not ROOT:
            pytest.skip("needs root: it becomes another user")
        command = box.command(command, user=user)
    done = subprocess.run(
        command, cwd=folder, env=clean_environment(), capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), (done.returncode, done.stdout[-500:], done.stderr)
    return done.stdout


def observed(output: str) -> dict[str, str]:
    """What the probe printed, by name."""
    lines = output.splitlines()
    found = dict(line.split("=", 1) for line in lines)
    assert len(found) == len(lines), "a name comes twice"
    return found


def differences(real: dict[str, str], found: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Name, one result and the other, where they differ. Without io_uring there are no other lines about it."""
    names = [name for name in real if name == "uring.setup" or not name.startswith("uring.")]
    names = list(real) if found["uring.setup"] == "0 0" else names
    assert list(found) == names, "other lines than on the kernel"
    return {name: (real[name], found[name]) for name in names if real[name] != found[name]}


def core_dumps() -> str:
    """Why the kernel writes no core file into the working directory here, or ""."""
    pattern = CORE_PATTERN.read_text(encoding="ascii").strip()
    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        return "core dumps: the hard limit on their size is 0"
    if pattern.startswith("|") or "/" in pattern or not pattern:
        return f"core dumps: kernel.core_pattern is {pattern!r}, which does not write them here"
    return ""
