"""How the command line speaks: stderr for what went wrong and what to do, never a traceback, never a byte of a file."""

from __future__ import annotations

import sys

from secretfs.errors import SecretFSError

__all__ = ["complain", "note", "warn"]


def complain(error: SecretFSError, *, name: str = "secretfs") -> None:
    """Show an error and its remedy."""
    print(f"{name}: error: {error}", file=sys.stderr)
    _hint(error.hint, name)


def warn(message: str, hint: str = "", *, name: str = "secretfs") -> None:
    """Show a warning and its remedy."""
    print(f"{name}: warning: {message}", file=sys.stderr)
    _hint(hint, name)


def note(message: str) -> None:
    """Tell a person at a terminal what was done; a script is not told."""
    if sys.stderr.isatty():
        print(f"secretfs: {message}", file=sys.stderr)


def _hint(hint: str, name: str) -> None:
    if hint:
        print(f"{name}: hint: {hint}", file=sys.stderr)
