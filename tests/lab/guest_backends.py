#!/usr/bin/python3 -I
"""Runs in a guest: the conformance suite of both backends, and which rule this kernel has for the lock limit.

Prints JSON: for each class how many tests passed, the failures with their reasons, the reasons to skip; and "rule":
"mmap" where mmap(2) of more secret memory than may be locked fails, "fault" where touching it is SIGBUS (newer ones),
"none" where there is no secret memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from collections import Counter
from typing import Any

import pytest

from secretfs import libc
from secretfs.testing import outcome_in_child
from secretfs.testing.children import become_ordinary_user

LIMIT = 1 << 20


class Results:
    """Collects what came of each test."""

    def __init__(self) -> None:
        self.passed: Counter[str] = Counter()
        self.failed: dict[str, str] = {}
        self.skipped: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One phase of one test."""
        name = report.nodeid.partition("::")[2]
        if report.failed:
            self.failed[f"{name} ({report.when})"] = report.longreprtext[-2000:]
        elif report.skipped:
            self.skipped[str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)] += 1
        elif report.when == "call":
            self.passed[name.partition("::")[0]] += 1


def beyond_the_limit() -> str:
    """In a child, as an ordinary user: map more than may be locked, and touch it."""
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (LIMIT, LIMIT))
    become_ordinary_user()
    try:
        fd = libc.memfd_secret(os.O_CLOEXEC)
    except OSError:
        return "none"
    os.ftruncate(fd, 2 * LIMIT)
    try:
        address = libc.mmap_shared(fd, 2 * LIMIT)
    except OSError:
        return "mmap"
    ctypes.memset(address, 1, 2 * LIMIT)
    return "neither"


def main() -> None:
    """All of it."""
    results = Results()
    words = ["-q", "-p", "no:cacheprovider", "--rootdir=/lab", "/lab/test_t1_backends.py"]
    with contextlib.redirect_stdout(sys.stderr):
        code = pytest.main(words, plugins=[results])
    outcome = outcome_in_child(beyond_the_limit)
    told: dict[str, Any] = {
        "code": int(code), "passed": results.passed, "failed": results.failed, "skipped": results.skipped,
        "rule": "fault" if outcome.signal == signal.SIGBUS else outcome.value or outcome.error,
    }  # fmt: skip
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
