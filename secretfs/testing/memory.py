"""What the kernel says about a piece of this process's memory: for tests that do not believe a backend.

It alone reads /proc/self/smaps and /proc/self/fd for tests.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass

from secretfs import libc

__all__ = ["Mapping", "address_of", "can_read", "descriptors", "mapped_bytes", "mapping"]


@dataclass(frozen=True)
class Mapping:
    """One entry of /proc/self/smaps (proc(5))."""

    start: int
    end: int
    name: str
    resident: int
    flags: frozenset[str]


def address_of(view: memoryview) -> int:
    """Where the first byte of a writable view lies."""
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def can_read(address: int, *, expected: bytes = b"") -> bool:
    """Whether there is readable memory at `address`, and `expected` in it if given.

    The kernel reads it for us, with write(2) into a pipe, and says EFAULT where nothing is mapped.
    """
    length = max(1, len(expected))
    reader, writer = os.pipe()
    try:
        os.write(writer, (ctypes.c_char * length).from_address(address))
    except OSError:
        return False
    else:
        return os.read(reader, length).startswith(expected)
    finally:
        os.close(reader)
        os.close(writer)


def descriptors() -> frozenset[int]:
    """The open descriptors of this process."""
    found = {int(name) for name in os.listdir("/proc/self/fd")}
    return frozenset(fd for fd in found if _is_open(fd))  # the one that listdir used is gone by now


def mapped_bytes() -> int:
    """The size of this process's address space (VmSize of proc(5))."""
    return int(libc.proc_status("VmSize").split()[0]) * 1024


def mapping(address: int) -> Mapping:
    """The mapping that `address` lies in.

    Raises:
        LookupError: nothing is mapped there.
    """
    with open("/proc/self/smaps", encoding="utf-8", errors="replace") as file:
        lines = iter(file.read().splitlines())
    for line in lines:
        span, _, rest = line.partition(" ")
        start, dash, end = span.partition("-")
        if not dash or not int(start, 16) <= address < int(end, 16):
            continue
        details = _details(lines)
        name = rest.split(maxsplit=4)[4] if len(rest.split(maxsplit=4)) > 4 else ""
        resident = int(details.get("Rss", "0 kB").split()[0]) * 1024
        return Mapping(int(start, 16), int(end, 16), name, resident, frozenset(details["VmFlags"].split()))
    raise LookupError(f"nothing is mapped at {address:#x}")


def _details(lines: Iterator[str]) -> dict[str, str]:
    """The fields of one entry, up to VmFlags, its last."""
    found: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        found[name] = value.strip()
        if name == "VmFlags":
            break
    return found


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
