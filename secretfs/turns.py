"""Whose turn it is: the one lock for secret memory in a process, and a queue for those who must not wait for it.

A finalizer (of a view, a secret, an area) runs in any thread and inside any line, because a garbage collection may. If
it waited for a lock, two threads could wait for each other for ever; and it must not change what the line that it
interrupts is busy with. So finalizers hand their work to later(): it is done at once where nobody has the lock, else by
whoever has it, when he is done.

There is one lock, not one for each slab or region: whoever has it waits for no other. It is reentrant, because a signal
handler may use secrets too, inside any line of the main thread. Hence the rule for what is done under it: count first,
then act on the counts, so that whoever comes in between finds them right and leaves them so.

A forked child gets a new lock: the old one may belong to a thread that the child has not.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

__all__ = ["at_fork", "catch_up", "late", "later", "lock", "settle"]

lock: Any = threading.RLock()
"""To be taken as `with turns.lock:`, since a fork replaces it. Afterwards: `if turns.late: turns.catch_up()`."""
late: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
"""What finalizers have left to be done."""


def later(work: Callable[..., object], *arguments: Any) -> None:
    """Do it under the lock, now or when whoever has the lock is done. For finalizers: this never waits."""
    late.append((work, arguments))
    catch_up()


def catch_up() -> None:
    """Do what was left, unless somebody has the lock: he looks here when he is done."""
    while late and not lock._is_owned():
        try:
            if not lock.acquire(blocking=False):
                return
            settle()
        finally:  # also where a signal handler raises as soon as the lock is ours
            if lock._is_owned():
                lock.release()


def settle() -> None:
    """Do what was left. The lock is held.

    What puts itself back, because the line that this interrupts is busy with the same, is left once more.
    """
    for _ in range(len(late)):
        if late:
            work, arguments = late.popleft()
            work(*arguments)


def at_fork(**hooks: Callable[[], object]) -> None:
    """os.register_at_fork(), where there is such a thing."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(**hooks)


def _forking() -> None:
    lock.acquire()


def _in_parent() -> None:
    lock.release()


def _forked() -> None:
    global lock  # noqa: PLW0603
    lock = threading.RLock()
    late.clear()


# What is forked is forked between two turns, never in the middle of one.
at_fork(before=_forking, after_in_parent=_in_parent, after_in_child=_forked)
