"""How the command line speaks: stderr for what went wrong and what to do, never a traceback, never a byte of a file."""

from __future__ import annotations

import os
import sys

from secretfs.errors import SecretFSError
from secretfs.quoting import one_line

__all__ = ["complain", "discard_output", "note", "open_streams", "warn"]


def open_streams() -> None:
    """Open what the caller has closed of stdin, stdout and stderr, or the next file would take its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115


def discard_output() -> None:
    """Forget what stdout could not take: Python would try again at exit, and complain in its own way."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(error: SecretFSError, *, name: str = "secretfs") -> None:
    """Show an error and its remedy."""
    print(f"{name}: error: {one_line(str(error))}", file=sys.stderr)
    _hint(error.hint, name)


def warn(message: str, hint: str = "", *, name: str = "secretfs") -> None:
    """Show a warning and its remedy."""
    print(f"{name}: warning: {one_line(message)}", file=sys.stderr)
    _hint(hint, name)


def note(message: str) -> None:
    """Tell a person at a terminal what was done; a script is not told."""
    if sys.stderr.isatty():
        print(f"secretfs: {one_line(message)}", file=sys.stderr)


def _hint(hint: str, name: str) -> None:
    if hint:
        print(f"{name}: hint: {one_line(hint)}", file=sys.stderr)
