"""Calls that close a reserved descriptor, or put another file at its number: for a supervisor that keeps books.

Only an ordinary user's does (books.py). The kernel carries all of them out.
"""

from __future__ import annotations

from secretfs_emulator.supervisor.call import Call
from secretfs_emulator.supervisor.notify import CONTINUE, Answer

__all__ = ["close", "close_range", "dup2"]

_CLOSE_RANGE_CLOEXEC = 4


def close(call: Call) -> Answer:
    """close(2)."""
    call.session.books.forget(call.process, [call.number(0)])
    return CONTINUE


def close_range(call: Call) -> Answer:
    """close_range(2)."""
    first, last = call.arguments[0] & 0xFFFFFFFF, call.arguments[1] & 0xFFFFFFFF
    if not call.number(2) & _CLOSE_RANGE_CLOEXEC:
        window = call.session.window
        ours = range(max(first, window.first), min(last + 1, window.first + window.count))
        call.session.books.forget(call.process, ours)
    return CONTINUE


def dup2(call: Call) -> Answer:
    """dup2(2) and dup3(2): the new number is closed first."""
    source, fd = call.number(0), call.number(1)
    if source != fd:
        books = call.session.books
        key = books.file(call.process, source)
        books.forget(call.process, [fd])
        if key is not None:
            books.note(call.process, fd, key)
    return CONTINUE
