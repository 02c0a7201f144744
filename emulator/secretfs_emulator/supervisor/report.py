"""What --log writes and what --stats says: numbers, names and errnos, never what a pointer leads to."""

from __future__ import annotations

import errno
import os
import sys

from secretfs_emulator.supervisor.backing import Backing
from secretfs_emulator.supervisor.call import Call, Session
from secretfs_emulator.supervisor.failure import RunError
from secretfs_emulator.supervisor.notify import CONTINUE, Answer

__all__ = ["Journal", "open_log", "say_plain", "summary"]

_NAME = "secretfs run: "
_SHOWN = {"memfd_secret": 1, "mmap": 6, "ioctl": 2, "fcntl": 3, "ftruncate": 2, "ptrace": 3, "memfd_create": 2}
_ARGUMENTS = 1


def open_log(path: str | None) -> int | None:
    """The file that --log names, to be appended to.

    Raises:
        RunError: it cannot be written.
    """
    if path is None:
        return None
    try:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except (OSError, ValueError) as error:
        what = (getattr(error, "strerror", None) or str(error)).lower()
        raise RunError(
            f"the log {path!r} cannot be written: {what}", hint="name a file in a directory of yours"
        ) from error


class Journal:
    """Counts answers, and writes them into the log if there is one."""

    def __init__(self, log: int | None, *, checked: bool = False) -> None:
        """`checked`: the first call is our own (launch.py), and nothing to tell of."""
        self._log = log
        self._began = not checked
        self.keep: tuple[int, ...] = () if log is None else (log,)

    def begin(self, backing: Backing | None) -> None:
        """Say what is in force."""
        self._write("\n".join(_in_force(backing)))

    def note(self, session: Session, call: Call, name: str, answer: Answer) -> None:
        """One call. What the kernel itself answers is not logged."""
        if not self._began:
            self._began = True
            return
        if answer is CONTINUE:
            session.counts["left to the kernel"] += 1
            return
        session.counts[name] += 1
        if self._log is not None:
            shown = ", ".join(f"{argument:#x}" for argument in call.arguments[: _SHOWN.get(name, _ARGUMENTS)])
            self._write(f"{_NAME}[{call.pid}] {name}({shown}) = {_result(answer)}")

    def end(self, text: str) -> None:
        """The last words."""
        self._write(text)

    def _write(self, text: str) -> None:
        if self._log is not None:
            try:
                os.write(self._log, text.encode() + b"\n")
            except OSError:
                self._log = None  # a full disk must not stop a program


def _result(answer: Answer) -> str:
    return errno.errorcode.get(-answer.error, str(answer.error)) if answer.error else str(answer.value)


def _in_force(backing: Backing | None) -> list[str]:
    if backing is None:
        return [f"{_NAME}the kernel's own memfd_secret, with failures injected"]
    what = "the kernel's own secret memory" if backing.name == "kernel" else "memfd_secret is emulated"
    return [f"{_NAME}{what}, backing {backing.name}", *(f"{_NAME}not as natively: {lack}" for lack in backing.lacks)]


def summary(session: Session) -> str:
    """The report at the end."""
    counts = session.counts
    numbers = ", ".join(f"{name} {count}" for name, count in counts.most_common()) or "none"
    return "\n".join([*_in_force(session.backing), f"{_NAME}calls answered: {numbers}"])


def say_plain(what: str, log: int | None, *, stats: bool) -> None:
    """Where no supervisor is started, there is nothing to tell at the end: it is told now."""
    if log is not None:
        Journal(log).end(f"{_NAME}{what}")
    if stats:
        print(f"{_NAME}{what}", file=sys.stderr, flush=True)
