"""Programs of which one system call fails once: which process's, which call, which one of them, and with which errno.

failingserver.py starts them and failing.c watches over them until nobody is left, so that a process that stays behind
is noticed as one that does not end.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mounts import PATIENCE, clean_environment
from shims import HERE, WARNINGS

__all__ = ["LOST", "Ended", "Failing", "Failure", "begin", "end", "failing", "failures", "name_of", "numbers"]

MARK = 0x5EC2E7F5
"""The option of a prctl(2) that does nothing but tell where calls are looked at from; the next one ends that."""
_libc = ctypes.CDLL(None)
LOST = ("close",)
"""Calls that do their work all the same when they say that they failed."""


@cache
def numbers() -> dict[str, int]:
    """The numbers of the system calls here, by name."""
    done = subprocess.run(
        ["gcc", "-E", "-dM", "-include", "sys/syscall.h", "-x", "c", os.devnull],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    words = (line.split() for line in done.stdout.splitlines() if line.startswith("#define __NR_"))
    return {line[1].removeprefix("__NR_"): int(line[2]) for line in words if line[2].isdigit()}


@cache
def name_of(number: int) -> str:
    """The name of a system call."""
    return next((name for name, known in numbers().items() if known == number), str(number))


@dataclass(frozen=True)
class Failure:
    """Call `name` of process `process` (in the order of their beginning) fails the `occurrence`th time it is made."""

    process: int
    name: str
    occurrence: int
    code: int

    def __str__(self) -> str:
        return f"{self.name} {self.occurrence} of process {self.process} with {errno.errorcode[self.code]}"


@dataclass(frozen=True)
class Ended:
    """How it ended, and what was seen; `counts` are calls by name, for each process."""

    status: int
    stdout: str
    stderr: str
    failed: bool
    hung: bool
    counts: tuple[dict[str, int], ...]


class Failing:
    """A server of one kind of programs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(
        self,
        *words: str | Path,
        failure: Failure | None = None,
        mark: tuple[str, int, int] = ("prctl", 0, MARK),
        environment: Mapping[str, str] | None = None,
    ) -> Ended:
        """Run it. `mark`: calls count from one on that has a certain argument: its name, which argument, the value."""
        plan = {
            "patience": PATIENCE, "mark_number": numbers()[mark[0]], "mark_index": mark[1], "mark": mark[2],
        }  # fmt: skip
        if failure is not None:
            plan |= {
                "process": failure.process, "number": numbers()[failure.name], "occurrence": failure.occurrence,
                "error": failure.code, "after": failure.name in LOST,
            }  # fmt: skip
        job = {"words": list(map(str, words)), "plan": plan, "environment": dict(environment or {})}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the server has ended"
        said = json.loads(line)
        counts = tuple({name_of(int(number)): count for number, count in each.items()} for each in said["counts"])
        return Ended(said["status"], said["stdout"], said["stderr"], bool(said["failed"]), bool(said["hung"]), counts)


@contextmanager
def failing(kind: str, *modules: str, under: Sequence[str] = ()) -> Iterator[Failing]:
    """A server: "command" for what the script `secretfs` does, "program" for any, "scenario" for Python functions."""
    with tempfile.TemporaryDirectory(prefix="secretfs-failing-") as folder:
        os.chmod(folder, 0o755)
        library = os.path.join(folder, "failing.so")
        subprocess.run(
            ["gcc", "-O1", *WARNINGS, "-shared", "-fPIC", "-o", library, HERE / "failing.c"], check=True
        )  # fmt: skip
        process = subprocess.Popen(
            [*under, sys.executable, "-B", HERE / "failingserver.py", library, kind, *modules],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/", env=clean_environment(),
        )  # fmt: skip
        try:
            yield Failing(process)
        finally:
            process.communicate(timeout=PATIENCE)


def failures(
    counts: Sequence[Mapping[str, int]], kinds: Mapping[str, Sequence[int]], *, every: bool
) -> Iterator[Failure]:
    """All that can fail where so many calls were counted, with each errno that `kinds` has for it; or, not `every`, the
    first and the last of a kind, with one.
    """
    for process, calls in enumerate(counts):
        for name, count in calls.items():
            codes = kinds.get(name, ())
            for occurrence in range(1, count + 1) if every else sorted({1, count}):
                for code in codes if every else codes[:1]:
                    yield Failure(process, name, occurrence, code)


def begin() -> None:
    """In a scenario: what comes now is to be looked at."""
    _libc.prctl(ctypes.c_int(MARK), 0, 0, 0, 0)


def end() -> None:
    """In a scenario: that was it."""
    _libc.prctl(ctypes.c_int(MARK + 1), 0, 0, 0, 0)
