"""Where a function of the C library is: in its file, and in a process."""

from __future__ import annotations

import ctypes
import os
from typing import NamedTuple

from secretfs.audit.model import NotTriedError
from secretfs.audit.spaces import Place, mappings

__all__ = ["Symbol", "address_in", "find"]


class Symbol(NamedTuple):
    """A function."""

    path: str
    """The file, as this process has mapped it."""
    offset: int
    """From the file's beginning, which is what uprobes want."""


def find(name: str) -> Symbol:
    """A function of this process's C library, which every victim has too."""
    address = ctypes.cast(getattr(ctypes.CDLL(None), name), ctypes.c_void_p).value or 0
    for one, offset in _code(os.getpid()):
        if one.start <= address < one.end:
            return Symbol(one.name, address - one.start + offset)
    raise NotTriedError(f"{name} was not found in the C library")


def address_in(pid: int, name: str) -> int:
    """Where that function is in another process."""
    symbol = find(name)
    for one, offset in _code(pid):
        if one.name == symbol.path and offset <= symbol.offset < offset + one.size:
            return one.start + symbol.offset - offset
    raise NotTriedError(f"process {pid} has not mapped {symbol.path}")


def _code(pid: int) -> list[tuple[Place, int]]:
    """The mappings of executable files, and where in the file each begins."""
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as lines:
        offsets = {line.split("-", 1)[0]: int(line.split()[2], 16) for line in lines}
    return [
        (one, offsets.get(f"{one.start:x}", offsets.get(f"{one.start:08x}", 0)))
        for one in mappings(pid)
        if "x" in one.rights and one.name.startswith("/")
    ]
