"""Running a function in a forked child: for what ends a process, and for what must not be seen in one.

It alone decides how a child reports: a pickled value or a traceback through a pipe, or the signal that ended it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import resource
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["ORDINARY_USER", "Outcome", "become_ordinary_user", "in_child", "outcome_in_child"]

ORDINARY_USER = 65534


@dataclass(frozen=True)
class Outcome:
    """How a child ended: with a value, with an exception's traceback, or by a signal."""

    value: Any = None
    error: str = ""
    signal: int = 0


def in_child(function: Callable[[], Any]) -> Any:
    """What `function` returns in a forked child; AssertionError if it raised there or the child was killed."""
    outcome = outcome_in_child(function)
    if outcome.error or outcome.signal:
        raise AssertionError(f"the child failed: {outcome.error or f'signal {outcome.signal}'}")
    return outcome.value


def outcome_in_child(function: Callable[[], Any]) -> Outcome:
    """Run `function` in a forked child, without core dump and without exit handlers."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: a fork with other threads around
        pid = os.fork()
    if pid == 0:
        _child(function, writer)
    os.close(writer)
    with open(reader, "rb") as pipe:
        report = pipe.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return Outcome(signal=os.WTERMSIG(status))
    if not report:
        return Outcome(error=f"it exited with {os.waitstatus_to_exitcode(status)} and reported nothing")
    value, error = pickle.loads(report)  # our own child wrote it
    return Outcome(value, error)


def become_ordinary_user() -> None:
    """Give up root for good, the capability to lock without limit included. For use in a child."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(ORDINARY_USER, ORDINARY_USER, ORDINARY_USER)
        os.setresuid(ORDINARY_USER, ORDINARY_USER, ORDINARY_USER)


def _child(function: Callable[[], Any], writer: int) -> None:
    try:
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            report = function(), ""
        except BaseException:  # noqa: BLE001 - reported to the parent, whatever it is
            report = None, traceback.format_exc()
        with contextlib.suppress(OSError), open(writer, "wb") as pipe:
            pipe.write(pickle.dumps(report))
    finally:
        os._exit(0)
