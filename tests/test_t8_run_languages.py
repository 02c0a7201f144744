"""Real programs in Go and Rust, from Debian's compilers, under `secretfs run --emulate`: they know nothing of it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from launches import open_folder
from mounts import ROOT
from runs import PROGRAMS, finished, may_emulate, under_run

GO, RUST = Path("/usr/bin/go"), Path("/usr/bin/rustc")
WORK = ("8", "40")
pytestmark = [pytest.mark.languages, may_emulate, pytest.mark.timeout(300)]
VARIANTS = {
    "tmpfs": (None, ("--emulate", "--backing", "tmpfs")),
    "strict": (None, ("--emulate", "--strict")),
    "user": ("nobody", ("--emulate",)),
}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Where the programs lie; every user may execute them."""
    with open_folder() as path:
        yield Path(path)


@pytest.fixture(scope="module")
def go(folder: Path) -> Path:
    """The program in Go: static, with raw system calls."""
    environment = {**os.environ, "CGO_ENABLED": "0", "GO111MODULE": "off", "GOCACHE": str(folder / "cache")}
    command = [GO, "build", "-o", folder / "goroutines", PROGRAMS / "goroutines" / "main.go"]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    return folder / "goroutines"


@pytest.fixture(scope="module")
def rust(folder: Path) -> Path:
    """The program in Rust: the standard library, and a system call by an instruction of its own."""
    command = [RUST, "--edition", "2021", "-O", "-D", "warnings", "-o", folder / "threads", PROGRAMS / "threads.rs"]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "threads"


def run(program: Path, variant: str) -> str:
    """What it prints in a variant."""
    user, options = VARIANTS[variant]
    if user is None and not ROOT:
        pytest.skip("needs root: only root has the tmpfs backing")
    return finished(under_run([program, *WORK], *options), program.parent, user=user)


@pytest.mark.parametrize("variant", VARIANTS)
def test_go(go: Path, variant: str) -> None:
    """Eight goroutines make 40 secrets each, with garbage collection and preemption, and so does a child."""
    assert run(go, variant) == "320 ok\n320 ok\n"


@pytest.mark.parametrize("variant", VARIANTS)
def test_rust(rust: Path, variant: str) -> None:
    """Eight threads make 40 secrets each, half of them without the C library."""
    assert run(rust, variant) == "320 ok\n"
