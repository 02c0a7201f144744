"""Runs what is to be watched by failing.c, one job for each line on standard input: forked from here, so that Python
has started and its modules are there. Answers with one line. See failing.py, which starts this.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
import traceback
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

PROCESSES, CALLS = 8, 512
_libc = ctypes.CDLL(None)
_INTS = ("process", "number", "occurrence", "error", "after", "mark_number")
_RESULTS = ("failed", "hung", "processes", "status")


class Plan(ctypes.Structure):
    """struct plan of failing.c."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in _INTS),
        ("mark", ctypes.c_uint64),
        *((name, ctypes.c_int32) for name in ("mark_index", "patience", *_RESULTS)),
        ("counts", ctypes.c_uint32 * CALLS * PROCESSES),
    )


def command(words: list[str]) -> int:
    """What the script `secretfs` does."""
    from secretfs import cli

    return cli.main(words)


def program(words: list[str]) -> int:
    """Become a program."""
    os.execv(words[0], words)


def scenario(words: list[str]) -> int:
    """A function of a module of the tests."""
    return int(getattr(import_module(words[0]), words[1])(*words[2:]))


def main() -> None:
    """Serve."""
    library = ctypes.CDLL(sys.argv[1])
    kind = {"command": command, "program": program, "scenario": scenario}[sys.argv[2]]
    for module in sys.argv[3:]:
        import_module(module)
    if kind is command:
        from secretfs import cli

        found = {entry.name: entry for entry in entry_points(group=cli.ENTRY_POINTS)}
        for entry in found.values():
            entry.load()
        cli._foreign_command = lambda words: found.get(words[0])  # looking it up takes longer than all the rest
    for line in sys.stdin:
        print(json.dumps(_done(library, kind, json.loads(line))), flush=True)


def _done(library: Any, kind: Any, job: dict[str, Any]) -> dict[str, Any]:
    plan = Plan(**job["plan"])
    out, err = os.memfd_create("out"), os.memfd_create("err")
    held, ready = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _begin(held, ready, out, err, job.get("environment", {}))
        if kind is command:
            _libc.prctl(ctypes.c_int(plan.mark), 0, 0, 0, 0)
        with contextlib.suppress(BaseException):
            _end(kind, job["words"])
        os._exit(70)
    os.close(held)
    if library.failing_run(pid, ready, ctypes.byref(plan)) != 0:
        raise SystemExit("failing_run() failed")
    answer = {name: getattr(plan, name) for name in _RESULTS}
    answer["status"] = os.waitstatus_to_exitcode(plan.status)
    answer["counts"] = [
        {number: plan.counts[process][number] for number in range(CALLS) if plan.counts[process][number]}
        for process in range(plan.processes)
    ]
    for name, fd in (("stdout", out), ("stderr", err)):
        answer[name] = os.pread(fd, 1 << 20, 0).decode(errors="replace")
        os.close(fd)
    return answer


def _begin(held: int, ready: int, out: int, err: int, environment: dict[str, str]) -> None:
    os.close(ready)
    os.read(held, 1)
    for fd, number in ((os.open(os.devnull, os.O_RDONLY), 0), (out, 1), (err, 2)):
        os.dup2(fd, number)
    os.closerange(3, 64)
    os.environ.update(environment)


def _end(kind: Any, words: list[str]) -> None:
    """As a Python program ends, with what it has to say."""
    try:
        code = kind(words)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    import atexit

    atexit._run_exitfuncs()
    os._exit(code)


if __name__ == "__main__":
    main()
