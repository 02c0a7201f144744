"""What the tests of `secretfs run` share: programs compiled for them, the command in a box, what the probe observed.

`python -I -m`-less and relocatable: the command is the installed one, so an ordinary user can start it too.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import box
import pytest
from mounts import ROOT, SECRETFS, clean_environment
from shims import WARNINGS

__all__ = ["HERE", "PROBE", "PROGRAMS", "compiled", "differences", "finished", "observed", "places", "under_run"]

HERE = Path(__file__).parent
PROBE = sorted((HERE / "secretprobe").glob("*.c"))
PROGRAMS = HERE / "runprograms"
LIMIT = 8 << 20
"""Bytes that may be locked, for all of them: what an ordinary user has by default."""


def compiled(target: Path, *sources: Path, static: bool = False) -> Path:
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


def places(factory: pytest.TempPathFactory) -> Path:
    """A folder in which every user may write and execute."""
    folder = factory.mktemp("run")
    for path in (folder, *folder.parents):
        if path.stat().st_mode & 0o005 != 0o005 and path.owner() != "nobody" and path.is_relative_to("/tmp"):
            path.chmod(0o755)
    folder.chmod(0o777)
    return folder
