"""Which descriptors were put into whom: for callers that an ordinary user's supervisor may not look at.

A process that is not dumpable (prctl(2) PR_SET_DUMPABLE) hides its descriptors from its own user. It then is taken to
have what was put into it, but for what it closed since, and what its parents had when it first made a secret.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from secretfs_emulator.supervisor import target
from secretfs_emulator.supervisor.backing import Key

__all__ = ["Books"]

_GENERATIONS = 32
_PROCESSES = 4096


@dataclass
class _Page:
    """One process: what its numbers are, and those that it gave back, in that order."""

    files: dict[int, Key] = field(default_factory=dict)
    freed: dict[int, None] = field(default_factory=dict)


class Books:
    """Descriptors by process."""

    def __init__(self) -> None:
        self._pages: dict[tuple[int, int], _Page] = {}

    def note(self, pid: int, fd: int, key: Key) -> None:
        """A thread of a process was given this."""
        with contextlib.suppress(OSError):
            page = self._own(pid)
            page.files[fd] = key
            page.freed.pop(fd, None)

    def forget(self, pid: int, fds: Iterable[int]) -> None:
        """It is about to close these."""
        with contextlib.suppress(OSError):
            page = self._own(pid)
            for fd in fds:
                if page.files.pop(fd, None) is not None:
                    page.freed[fd] = None

    def file(self, pid: int, fd: int) -> Key | None:
        """What a descriptor is thought to be."""
        return self._known(pid).files.get(fd)

    def free_number(self, pid: int, numbers: Iterable[int]) -> int | None:
        """One of the numbers that is thought to be free; one that was given back only if there is no other, and the
        earliest first: the call that closes it may still be under way.
        """
        page, numbers = self._known(pid), list(numbers)
        fresh = next((number for number in numbers if number not in page.files and number not in page.freed), None)
        return fresh if fresh is not None else next((number for number in page.freed if number in numbers), None)

    def _own(self, pid: int) -> _Page:
        process = target.identity(pid)
        if process not in self._pages:
            known = self._known(pid)
            self._pages[process] = _Page(dict(known.files), dict(known.freed))
            if len(self._pages) > _PROCESSES:
                del self._pages[next(iter(self._pages))]
        return self._pages[process]

    def _known(self, pid: int) -> _Page:
        with contextlib.suppress(OSError):
            for _ in range(_GENERATIONS):
                process = target.identity(pid)
                if process in self._pages:
                    return self._pages[process]
                pid = int(target.Status(pid).field(b"PPid") or b"0")
        return _Page()
