"""Text from outside, such as a path, on its way to a terminal and from there into a shell.

A path may hold any byte but zero: a newline would forge a line of ours, an escape would be the terminal's to obey.
"""

from __future__ import annotations

import os
import shlex

__all__ = ["one_line", "printable", "quoted", "reason_of"]

_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "'": "\\'", "\\": "\\\\"}


def quoted(path: str) -> str:
    """`path` as a shell reads it back: as it is, in quotes, or as $'...' where it holds what cannot be shown."""
    if path.isprintable():
        return shlex.quote(path)
    return f"$'{''.join(map(_escaped, path))}'"


def printable(path: str) -> str:
    """`path` as it is where that can be shown on one line, else as quoted() writes it."""
    return path if path.isprintable() else quoted(path)


def one_line(text: str) -> str:
    """What somebody else's code said, on one line that can be shown."""
    return "".join(c if c.isprintable() else _escaped(c) for c in "; ".join(filter(None, text.splitlines())))


def reason_of(error: BaseException) -> str:
    """What an error comes from, without what it may carry: the system's words, or the name of its kind."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.errno:
            return os.strerror(inner.errno).lower()
        inner = next(iter(getattr(inner, "exceptions", ())), inner.__cause__)  # of a group the first
    return type(error).__name__


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isprintable():
        return character
    undecoded = "\udc80" <= character <= "\udcff"  # how Python keeps a byte that is not UTF-8
    raw = character.encode("utf-8", "surrogateescape" if undecoded else "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in raw)
