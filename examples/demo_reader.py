#!/usr/bin/env python3
"""Tries, as root, to read the memory that a secretfs mount keeps its files in. Part of the demo.

    demo_reader.py --connection N [--pid PID]

N is the number of the mount's FUSE connection: the minor number of its device. The daemon is the process that has that
connection open, which kernels that are new enough show in /proc/PID/fdinfo; for older ones, PID says which it is.

First comes a control, an ordinary page of the same process: reading it has to work, or a refusal would prove nothing.
Exits with 1 if anything is not as the backend promises.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

PAGE = os.sysconf("SC_PAGE_SIZE")
MARKER = b"-----BEGIN " + b"PRIVATE KEY-----"
libc = ctypes.CDLL(None, use_errno=True)


class Mapping(NamedTuple):
    """A piece of a process's memory."""

    start: int
    end: int
    name: str
    readable: bool
    flags: frozenset[str]

    def pages(self) -> range:
        """The address of each page."""
        return range(self.start, self.end, PAGE)


Reader = Callable[[int, int], bytes]


def main() -> int:
    """Find the daemon and try."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--connection", type=int, required=True)
    parser.add_argument("--pid", default="")
    asked = parser.parse_args()
    found = daemon_of(asked.connection)
    pid = found or int(asked.pid or 0)
    if not pid:
        print("The daemon was not found in /proc.", file=sys.stderr)
        return 1
    how = f"it has FUSE connection {asked.connection} open" if found else "it says so itself"
    print(f"The mount's daemon is process {pid} ({how}); its memory is tried by uid {os.getuid()}.")
    mappings = list(mappings_of(pid))
    ordinary = next(m for m in mappings if m.name == "[heap]" or (m.name == "" and m.readable and "lo" not in m.flags))
    secret = [m for m in mappings if m.name.startswith("/secretmem")]
    locked = [m for m in mappings if {"lo", "dd"} <= m.flags and m.readable and m.name == ""]
    with Memory(pid) as memory:
        readers: dict[str, Reader] = {"/proc/PID/mem": memory.read, "process_vm_readv": memory.read_remote}
        if not control(ordinary, readers):
            return 0
        return try_secret(secret, readers) if secret else try_emulated(locked, readers)


def control(ordinary: Mapping, readers: dict[str, Reader]) -> bool:
    """An ordinary page can be read, each way."""
    for name, read in readers.items():
        outcome = attempt(read, ordinary.start)
        print(f"  an ordinary page ({ordinary.name or 'anonymous memory'}) by {name}: {outcome}")
        if outcome != "read":
            print("  This root may not read other processes at all (a container?), so there is nothing to show here.")
            return False
    return True


def try_secret(secret: list[Mapping], readers: dict[str, Reader]) -> int:
    """Every page of every secret area is refused, each way."""
    expected = {"/proc/PID/mem": "EIO", "process_vm_readv": "EFAULT"}
    pages = [address for mapping in secret for address in mapping.pages()]
    held = True
    for name, read in readers.items():
        outcomes = Counter(attempt(read, address) for address in pages)
        said = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
        print(f"  the {len(pages)} pages of {len(secret)} secret areas by {name}: {said}")
        held &= set(outcomes) == {expected[name]}
    print("Root is refused every page that files lie in." if held else "SOME PAGES COULD BE READ.")
    return 0 if held else 1


def try_emulated(locked: list[Mapping], readers: dict[str, Reader]) -> int:
    """The emulator's memory can be read by root, and that is said."""
    print("  There is no memfd_secret memory: the emulator is in use, which gives no protection against root.")
    code = 1
    for name, read in readers.items():
        seen = any(MARKER in read(m.start, m.end - m.start) for m in locked)
        print(f"  the {len(locked)} locked areas by {name}: {'the private key is found' if seen else 'no key found'}")
        code = 0 if seen else code
    print("As it says itself, the emulator keeps the key out of swap and core dumps only; root reads it.")
    return code


def attempt(read: Reader, address: int) -> str:
    """ "read", or the name of the error."""
    try:
        read(address, PAGE)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "?")
    return "read"


class Memory:
    """The two ways to read another process's memory."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY)

    def read(self, address: int, length: int) -> bytes:
        """pread(2) of /proc/PID/mem."""
        return os.pread(self._fd, length, address)

    def read_remote(self, address: int, length: int) -> bytes:
        """process_vm_readv(2)."""
        buffer = ctypes.create_string_buffer(length)
        ours = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), length)
        theirs = (ctypes.c_size_t * 2)(address, length)
        if libc.process_vm_readv(self._pid, ours, 1, theirs, 1, 0) < 0:
            raise OSError(ctypes.get_errno(), "process_vm_readv")
        return buffer.raw

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def daemon_of(connection: int) -> int:
    """The process that has the FUSE connection open, or 0."""
    wanted = f"fuse_connection:\t{connection}\n"
    for info in Path("/proc").glob("[0-9]*/fdinfo/*"):
        try:
            if wanted in info.read_text():
                return int(info.parts[2])
        except OSError:
            continue  # closed meanwhile, or a process that has ended
    return 0


def mappings_of(pid: int) -> Iterator[Mapping]:
    """What /proc/PID/smaps shows."""
    head: list[str] = []
    for line in Path(f"/proc/{pid}/smaps").read_text(errors="replace").splitlines():
        fields = line.split(maxsplit=5)
        if fields[0] == "VmFlags:":
            start, end = (int(word, 16) for word in head[0].split("-"))
            name = head[5] if len(head) > 5 else ""
            yield Mapping(start, end, name, head[1].startswith("r"), frozenset(line.split()[1:]))
        elif not fields[0].endswith(":"):
            head = fields


if __name__ == "__main__":
    sys.exit(main())
