"""Test suites of applications, which the tests of the pytest plug-in make and run: one folder, one process for each."""

from __future__ import annotations

import os

import pytest

__all__ = ["EXPECTED", "HEADER", "run", "suite"]

HEADER = """
import ctypes, errno, mmap, os, pytest
libc = ctypes.CDLL(None, use_errno=True)

def made():
    "0, or the errno of memfd_secret(2) or of the mapping"
    if "failing:1" in os.environ.get("SECRETFS_TESTING_MODE", ""):
        os.close(libc.syscall(447, 0))
    fd = libc.syscall(447, 0)
    if fd == -1:
        return ctypes.get_errno()
    try:
        os.ftruncate(fd, 65536)
        mmap.mmap(fd, 65536).close()
        return 0
    except OSError as error:
        return error.errno
    finally:
        os.close(fd)
"""
EXPECTED = {
    "with": 0,
    "emulated": 0,
    "without": 38,
    "over-limit": 11,
    "failing": 1,
    "failing:0:EMFILE": 24,
    "failing:1": 1,
}
"""Modes, and what made() then is."""


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder for a suite, which starts without a mode."""
    for name in [name for name in os.environ if name.startswith("SECRETFS_")]:
        monkeypatch.delenv(name)
    pytester.makeini("[pytest]\naddopts = --strict-markers -p no:trio -p no:hypothesispytest\nfilterwarnings = error\n")
    return pytester


def run(suite: pytest.Pytester, *words: str, test: str = "") -> pytest.RunResult:
    """Run a suite of that text in a process of its own."""
    if test:
        suite.makepyfile(HEADER + test)
    return suite.runpytest_subprocess("-p", "no:cacheprovider", "-rA", *words, timeout=60)
