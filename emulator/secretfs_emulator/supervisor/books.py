"""Which descriptors were put into whom: for callers that an ordinary user's supervisor may not look at.

A process that is not dumpable (prctl(2) PR_SET_DUMPABLE) hides its descriptors from its own user. It then is taken to
have what was put into it, and what its parents had: what it has closed or moved is not known.
"""

from __future__ import annotations

import contextlib

from secretfs_emulator.supervisor import target
from secretfs_emulator.supervisor.backing import Key

__all__ = ["Books"]

_GENERATIONS = 32
_PROCESSES = 4096


class Books:
    """Descriptors by process."""

    def __init__(self) -> None:
        self._noted: dict[tuple[int, int], dict[int, Key]] = {}

    def note(self, pid: int, fd: int, key: Key) -> None:
        """A thread of a process was given this."""
        with contextlib.suppress(OSError):
            self._noted.setdefault(target.identity(pid), {})[fd] = key
        if len(self._noted) > _PROCESSES:
            del self._noted[next(iter(self._noted))]

    def file(self, pid: int, fd: int) -> Key | None:
        """What a descriptor is thought to be."""
        return self._known(pid).get(fd)

    def numbers(self, pid: int) -> set[int]:
        """The numbers that are thought to be taken."""
        return set(self._known(pid))

    def _known(self, pid: int) -> dict[int, Key]:
        with contextlib.suppress(OSError):
            for _ in range(_GENERATIONS):
                process = target.identity(pid)
                if process in self._noted:
                    return self._noted[process]
                pid = int(target.Status(pid).field(b"PPid") or b"0")
        return {}
