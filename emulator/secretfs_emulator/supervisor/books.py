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
from secretfs_emulator.supervisor.target import Process

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
        self._pages: dict[Process, _Page] = {}

    def note(self, process: Process, fd: int, key: Key) -> None:
        """It was given this."""
        page = self._own(process)
        page.files[fd] = key
        page.freed.pop(fd, None)

    def forget(self, process: Process, fds: Iterable[int]) -> None:
        """It is about to close these."""
        page = self._own(process)
        for fd in fds:
            if page.files.pop(fd, None) is not None:
                page.freed[fd] = None

    def file(self, process: Process, fd: int) -> Key | None:
        """What a descriptor is thought to be."""
        return self._known(process).files.get(fd)

    def free_number(self, process: Process, numbers: Iterable[int]) -> int | None:
        """One of the numbers that is thought to be free; one that was given back only if there is no other, and the
        earliest first: the call that closes it may still be under way.
        """
        page, numbers = self._known(process), list(numbers)
        fresh = next((number for number in numbers if number not in page.files and number not in page.freed), None)
        return fresh if fresh is not None else next((number for number in page.freed if number in numbers), None)

    def _own(self, process: Process) -> _Page:
        if process not in self._pages:
            known = self._known(process)
            self._pages[process] = _Page(dict(known.files), dict(known.freed))
            if len(self._pages) > _PROCESSES:
                del self._pages[next(iter(self._pages))]
        return self._pages[process]

    def _known(self, process: Process) -> _Page:
        with contextlib.suppress(OSError, ValueError):
            for _ in range(_GENERATIONS):
                if process in self._pages:
                    return self._pages[process]
                process = target.identity(int(target.Status(process[0]).field(b"PPid")))
        return _Page()
