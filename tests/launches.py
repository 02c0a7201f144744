"""What the tests of `secretfs run` share: the C program that they start, and ways to start it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import box
import pytest
from mounts import PATIENCE, ROOT, SECRETFS, clean_environment

SOURCE = Path(__file__).parent / "run_secret.c"
WHO = ["root", "nobody"] if ROOT else ["me"]
MADE = "made=ok mapped=ok read=EINVAL\n"


@pytest.fixture(scope="session")
def program() -> Iterator[str]:
    """The program, statically linked, where every user can execute it: pytest's folders are closed to others."""
    with open_folder() as folder:
        built = os.path.join(folder, "run_secret")
        subprocess.run(["gcc", "-O1", "-Wall", "-Werror", "-static", "-o", built, SOURCE], check=True)
        yield built


@contextlib.contextmanager
def open_folder() -> Iterator[str]:
    """A folder in which every user may write."""
    with tempfile.TemporaryDirectory(prefix="secretfs-run-", dir="/tmp") as folder:
        os.chmod(folder, 0o777)
        yield folder


def run(*words: str, who: str = "", under: Sequence[str] = (), **options: Any) -> subprocess.CompletedProcess[str]:
    """`secretfs run WORDS`, as another user if `who` says so. It must never show a traceback."""
    command = [SECRETFS, "run", *words]
    if who in ("nobody",):
        command = box.command(command, user=who)
    done = subprocess.run(
        [*under, *command], env=clean_environment(), capture_output=True, text=True, timeout=PATIENCE, check=False,
        **options,
    )  # fmt: skip
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    return done


def parent_of(pid: int) -> int:
    """The parent of a process."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        return int(file.read().rpartition(")")[2].split()[1])


class Looping:
    """`secretfs run --emulate` of the program's loop."""

    def __init__(self, program: str, *options: str) -> None:
        self.process = subprocess.Popen(
            [SECRETFS, "run", "--emulate", *options, "--", program, "loop"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_environment(),
        )  # fmt: skip
        self.command = int(self._line().split()[1])
        self.supervisor = parent_of(self.command)
        self.pidfds = {pid: os.pidfd_open(pid) for pid in (self.command, self.supervisor)}

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self) -> str:
        """Let it make another secret."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._line()

    def finish(self) -> tuple[int, str]:
        """Let it end: the exit code, and what was said on stderr."""
        _, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, errors

    def __enter__(self) -> Looping:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self.pidfds.values():
            os.close(fd)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None and not stream.closed:
                stream.close()
