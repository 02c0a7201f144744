"""Which descriptors were put into whom: for callers that an ordinary user's supervisor may not look at.

A process that is not dumpable (prctl(2) PR_SET_DUMPABLE) hides its descriptors from its own user. It then is taken to
have what was put into it, and what its parents had: what it has closed or moved is not known.
"""

from __future__ import annotations

from secretfs_emulator.supervisor import target
from secretfs_emulator.supervisor.backing import Key

__all__ = ["Books"]

_GENERATIONS = 32


class Books:
    """Descriptors by process."""

    def __init__(self) -> None:
        self._noted: dict[int, dict[int, Key]] = {}

    def note(self, pid: int, fd: int, key: Key) -> None:
        """A thread of a process was given this."""
        self._noted.setdefault(_process(pid), {})[fd] = key

    def file(self, pid: int, fd: int) -> Key | None:
        """What a descriptor is thought to be."""
        return self._known(pid).get(fd)

    def numbers(self, pid: int) -> set[int]:
        """The numbers that are thought to be taken."""
        return set(self._known(pid))

    def _known(self, pid: int) -> dict[int, Key]:
        process = _process(pid)
        for _ in range(_GENERATIONS):
            if process in self._noted:
                return self._noted[process]
            process = int(_field(process, b"PPid") or b"0")
            if process <= 1:
                break
        return {}


def _process(pid: int) -> int:
    return int(_field(pid, b"Tgid") or b"0")


def _field(pid: int, name: bytes) -> bytes:
    try:
        return target.Status(pid).field(name)
    except OSError:
        return b""
