"""The address space of a process, as /proc shows it (proc(5)), and reading all of it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from secretfs.audit.needle import LENGTH, Needle

__all__ = ["Place", "holds", "mappings", "protected"]

_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \S+ *(.*)")
_LIMIT = 1 << 30
"""Bytes of one mapping that are searched: what is larger is reserved addresses."""
_CHUNK = 1 << 20


class Place(NamedTuple):
    """Addresses in a process: a mapping, or a part of one."""

    start: int
    end: int
    rights: str = ""
    name: str = ""
    flags: frozenset[str] = frozenset()
    """VmFlags of proc(5)."""

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start


def mappings(pid: int) -> list[Place]:
    """All of it. PermissionError where /proc does not show it."""
    found = []
    with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            if match := _LINE.match(line):
                found.append(Place(int(match[1], 16), int(match[2], 16), match[3], match[4]))
            elif line.startswith("VmFlags:"):
                found[-1] = found[-1]._replace(flags=frozenset(line.split()[1:]))
    return found


def protected(pid: int) -> list[Place]:
    """The mappings where a secret would be: memfd_secret(2), or locked and left out of dumps."""
    return [one for one in mappings(pid) if "/secretmem" in one.name or {"lo", "dd"} <= one.flags]


def holds(pid: int, needle: Needle, memory: int, *, pieces: bool = False) -> bool:
    """Whether a needle is anywhere in a process, read through the descriptor `memory` of its /proc/PID/mem."""
    return any(_in_range(memory, one, needle, pieces) for one in mappings(pid) if one.size <= _LIMIT)


def _in_range(memory: int, one: Place, needle: Needle, pieces: bool) -> bool:
    return any(needle.in_buffer(buffer, pieces=pieces) for buffer in _blocks(memory, one))


def _blocks(memory: int, one: Place) -> Iterator[bytearray]:
    """What of it can be read, each block beginning with the end of the one before."""
    at = one.start
    while at < one.end:
        start = max(one.start, at - LENGTH)
        buffer = bytearray(min(_CHUNK + at - start, one.end - start))
        try:
            got = os.preadv(memory, [buffer], start)
        except (OSError, OverflowError):
            got = 0
        if got > at - start:
            yield buffer
            at = start + got
        else:
            at += _CHUNK
