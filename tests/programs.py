"""Tiny Python programs, each in a process of its own: for what ends a process, and for what a fresh one must show."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import textwrap
from typing import Any

import pytest
from mounts import have_secretmem

HEADER = """
import contextlib, ctypes, gc, os, signal, sys, threading
import secretfs
from secretfs import ClosedError, Secret, SecretArea
"""
BACKENDS = [
    "emulator",
    pytest.param("kernel", marks=pytest.mark.skipif(not have_secretmem(), reason="memfd_secret: there is none here")),
]


def program(text: str, *words: str, backend: str = "auto", header: str = HEADER, **options: Any) -> Any:
    """Run `text` with SECRETFS_BACKEND set; its words are sys.argv[1:]. It leaves no core file, unless told to."""
    command = [sys.executable, "-I", "-B", "-W", "ignore", "-c", header + textwrap.dedent(text), *words]
    environment = {**os.environ, "LC_ALL": "C.UTF-8", **options.pop("env", {})}
    environment.pop("SECRETFS_BACKEND", None)
    if backend != "auto":
        environment["SECRETFS_BACKEND"] = backend
    core = options.pop("core", 0), resource.getrlimit(resource.RLIMIT_CORE)[1]
    return subprocess.run(
        [*options.pop("under", []), *command],
        env=environment, timeout=60, check=False, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, core), **options,
    )  # fmt: skip


def works(text: str, *words: str, **options: Any) -> str:
    """What a program printed that ended well and without a word on stderr."""
    done = program(text, *words, **options)
    assert (done.returncode, done.stderr) == (0, ""), (done.returncode, done.stderr)
    return str(done.stdout).strip()


def dies(number: int, text: str, *words: str, **options: Any) -> str:
    """The last line on stderr of a program that a signal ended, after it had printed "before" and nothing more."""
    done = program(text, *words, **options)
    assert (done.returncode, done.stdout) == (-number, "before\n"), done.stderr
    return str(done.stderr).strip().rpartition("\n")[2]
