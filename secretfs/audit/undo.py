"""Putting everything back, also when the audit is killed: a process that waits for the audit's end and then does it.

What is to be undone is told before it is done. The helper is in a session of its own and ignores signals; it ends when
the pipe to it is closed, which the kernel does when the audit ends, in whatever way.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

__all__ = ["Undo", "remove_group", "started"]


_TRIES = 100


class Undo:
    """Deeds that are undone at the end, the last one first."""

    def __init__(self) -> None:
        self._noted = 0
        reader, self._writer = os.pipe2(os.O_CLOEXEC)
        self._pid = os.fork()
        if self._pid == 0:
            _wait_and_undo(reader, self._writer)
        os.close(reader)

    @contextlib.contextmanager
    def unless_done(self, deed: str, *arguments: str | int) -> Iterator[None]:
        """A block that does the deed of `_DEEDS` itself; if the audit does not live to see its end, it is done here."""
        self._noted += 1
        number = self._noted
        self._tell(number, deed, *arguments)
        yield
        self._tell(number)  # not after an exception: what was to be done may not be

    def _tell(self, *words: str | int) -> None:
        os.write(self._writer, json.dumps(words).encode() + b"\n")

    def close(self) -> None:
        """Undo everything now, and return when that is done."""
        os.close(self._writer)
        os.waitpid(self._pid, 0)

    def __enter__(self) -> Undo:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _wait_and_undo(reader: int, writer: int) -> None:
    """The helper's life. Never returns."""
    try:
        os.close(writer)
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        with open(reader, encoding="utf-8") as lines:
            deeds: dict[int, list[Any]] = {}
            for number, *deed in map(json.loads, lines):
                deeds[number] = deed
        for name, *arguments in filter(None, reversed(deeds.values())):
            with contextlib.suppress(Exception):  # the others must be undone all the same
                _DEEDS[name](*arguments)
    finally:
        os._exit(0)


def _kill(pid: int, start: str) -> None:
    if started(pid) == start:  # else the number is another process's by now
        os.kill(pid, signal.SIGKILL)


def started(pid: int) -> str:
    """When a process was started, in the kernel's ticks: with its number, its identity (proc(5), stat)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def remove_group(path: str, home: str) -> None:
    """Remove a cgroup. Who is in it is moved to the group `home`; who is about to end may be counted for a while."""
    for _ in range(_TRIES):
        with contextlib.suppress(FileNotFoundError), open(f"{path}/cgroup.procs", encoding="ascii") as file:
            for pid in file.read().split():
                with contextlib.suppress(OSError), open(f"{home}/cgroup.procs", "w", encoding="ascii") as target:
                    target.write(pid)
        try:
            os.rmdir(path)
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.1)
        else:
            return


def _umount(path: str) -> None:
    quiet: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([sys.executable, "-m", "secretfs", "umount", "--lazy", path], check=False, timeout=30, **quiet)


def _umount_system(path: str) -> None:
    from secretfs import libc

    libc.umount(path, libc.MNT_DETACH)


def _write(path: str, text: str) -> None:
    with open(path, "a" if path.endswith("_events") else "w", encoding="utf-8") as file:
        file.write(text)


def _swapoff(path: str) -> None:
    from secretfs.audit import calls

    calls.swapoff(path)


_DEEDS: dict[str, Any] = {
    "kill": _kill,
    "umount": _umount,
    "umount-system": _umount_system,
    "remove": lambda path: shutil.rmtree(path, ignore_errors=True),
    "rmdir": os.rmdir,
    "remove-group": remove_group,
    "unlink": os.unlink,
    "write": _write,
    "swapoff": _swapoff,
}
