#!/usr/bin/env python3
"""Searches all memory of a process, or of the machine, for byte strings that it never holds itself.

    residue.py < QUESTIONS > ANSWERS       JSON, one object a line, until end of file

QUESTION  {"pid": N, "key": K, "needles": {NAME: [HEX, ...]}} and, if wanted,
          {"kinds": [KIND, ...], "context": BYTES, "around": [BYTES, BYTES]}
          `pid` may be "kcore": all physical memory, through the kernel's direct map (/proc/kcore).
          HEX is a piece of what is looked for, each byte XORed with K (1..255): neither argv nor environment nor this
          process's memory has it in the clear. Memory is XORed in the same way before it is compared.
          `kinds` limits the search to some kinds of mapping: "secretmem" (memfd_secret), "locked" (mlocked and in no
          dump and no fork: the emulator's areas and the window) and "ordinary".
ANSWER    {"searched": BYTES, "mappings": N, "unreadable": {MAPPING: BYTES}, "counts": {NAME: {KIND: N}},
           "around": {NAME: {KIND: {HEX: N}}},
           "hits": [{"needle", "piece", "kind", "mapping", "offset", "before", "after"}, ...]}
          `searched` is what could be read. `counts` counts every piece that was found; `around` counts them by what
          lies so many bytes before and after them (in the clear), which tells one hit from another. `hits` shows some,
          with `context` bytes on either side (in the clear, in hex), to find out what left them there.

It needs root and nothing but Python's standard library, so that any machine's Python runs it. `mask` makes a question.
"""

from __future__ import annotations

import json
import os
import random
import re
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

PAGE = 4096
CHUNK = 1 << 20
PIECE = 8
SHOWN = 20
PATIENCE = 60
"""Seconds to wait for a process to come to rest."""
KCORE_TEXT = 0xFFFFFFFF80000000


class Range(NamedTuple):
    """Memory to be searched. `position` is where it begins in the file it is read from."""

    position: int
    size: int
    name: str
    kind: str
    flags: frozenset[str] = frozenset()  # VmFlags of proc(5)


def main() -> None:
    """Answer each question."""
    for line in sys.stdin:
        print(json.dumps(search(json.loads(line))), flush=True)


def mask(needles: dict[str, bytes], *, whole: bool = False, **more: Any) -> dict[str, Any]:
    """A question about `needles`.

    Each is cut into pieces, so that what is left of one is found as well, from 15 bytes on; or taken `whole`.
    """
    key = random.randrange(1, 256)
    table = _table(key)
    cut = {
        name: [needle] if whole else [needle[at : at + PIECE] for at in range(0, len(needle) - PIECE + 1, PIECE)]
        for name, needle in needles.items()
    }
    masked = {name: [piece.translate(table).hex() for piece in pieces] for name, pieces in cut.items()}
    return {"key": key, "needles": masked, **more}


def search(question: dict[str, Any]) -> dict[str, Any]:
    """The answer to a question."""
    found = _Findings(question)
    table = _table(question["key"])
    searched = 0
    unreadable: Counter[str] = Counter()
    path, ranges = _what(question["pid"], question.get("kinds"))
    with open(path, "rb", buffering=0) as memory:
        for one in ranges:
            for block in _masked_blocks(memory.fileno(), one, found.lead, found.trail, table, unreadable):
                searched += block.size
                found.look(one, block)
    around = found.around()
    counts = {name: {kind: sum(n.values()) for kind, n in kinds.items()} for name, kinds in around.items()}
    return {
        "searched": searched, "mappings": len(ranges), "unreadable": dict(unreadable),
        "counts": counts, "around": around, "hits": found.hits,
    }  # fmt: skip


def _table(key: int) -> bytes:
    return bytes(value ^ key for value in range(256))


class _Block(NamedTuple):
    """A piece of memory, masked: `lead` bytes that the block before has too, `size` bytes, and some of the next."""

    position: int
    lead: int
    size: int
    masked: bytes

    def places(self, piece: bytes) -> Iterator[int]:
        """Where `piece` begins within `masked`; what begins in another block is left to that."""
        where = self.masked.find(piece, self.lead)
        while 0 <= where < self.lead + self.size:
            yield where
            where = self.masked.find(piece, where + 1)


class _Findings:
    """What has been found for a question."""

    def __init__(self, question: dict[str, Any]) -> None:
        self._clear = _table(question["key"])
        self._pieces = [
            (name, number, bytes.fromhex(piece))
            for name, pieces in question["needles"].items()
            for number, piece in enumerate(pieces)
        ]
        self._context = question.get("context", 0)
        self._before, self._after = question.get("around", (0, 0))
        self.lead = max(self._before, self._context)
        self.trail = max(self._after, self._context) + max(len(piece) for _, _, piece in self._pieces)
        self._surroundings: dict[tuple[str, str], Counter[tuple[bytes, bytes]]] = {}  # masked
        self.hits: list[dict[str, Any]] = []

    def look(self, one: Range, block: _Block) -> None:
        """Search a block of `one` for every piece."""
        for name, number, piece in self._pieces:
            surroundings = self._surroundings.setdefault((name, one.kind), Counter())
            for where in block.places(piece):
                end = where + len(piece)
                before = block.masked[max(0, where - self._before) : where]
                surroundings[before, block.masked[end : end + self._after]] += 1
                if len(self.hits) < SHOWN:
                    hit = {"needle": name, "piece": number, "kind": one.kind, "mapping": one.name}
                    hit["offset"] = block.position - one.position - block.lead + where
                    hit["before"] = self._unmasked(block.masked[max(0, where - self._context) : where])
                    hit["after"] = self._unmasked(block.masked[end : end + self._context])
                    self.hits.append(hit)

    def around(self) -> dict[str, dict[str, dict[str, int]]]:
        """How many pieces were found, by what lies around them."""
        found: dict[str, dict[str, dict[str, int]]] = {name: {} for name, _, _ in self._pieces}
        for (name, kind), surroundings in self._surroundings.items():
            if surroundings:
                unmasked = {self._unmasked(before + after): n for (before, after), n in surroundings.items()}
                found[name][kind] = unmasked
        return found

    def _unmasked(self, masked: bytes) -> str:
        return masked.translate(self._clear).hex()


def _what(pid: int | str, kinds: list[str] | None) -> tuple[str, list[Range]]:
    """Which file memory is read from, and which ranges of it."""
    if pid == "kcore":
        return "/proc/kcore", list(direct_map())
    let_finish(int(pid))
    return f"/proc/{pid}/mem", [one for one in mappings(int(pid)) if not kinds or one.kind in kinds]


def let_finish(pid: int) -> None:
    """Wait until none of its threads runs: who has got an answer may be here before the answerer has wiped its own."""
    end = time.monotonic() + PATIENCE
    while pid != os.getpid() and any(state(thread) == "R" for thread in os.listdir(f"/proc/{pid}/task")):
        if time.monotonic() > end:
            raise TimeoutError(f"process {pid} never rests")
        time.sleep(0.001)


def state(thread: str) -> str:
    """Of a process or thread: R while it runs or could (proc(5)); empty where it has ended."""
    try:
        with open(f"/proc/{thread}/stat", encoding="utf-8", errors="surrogateescape") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def mappings(pid: int) -> Iterator[Range]:
    """The memory of a process."""
    with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="surrogateescape") as lines:
        start, end, name = 0, 0, ""
        for line in lines:
            if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+ *(.*)", line):
                start, end, name = int(match[1], 16), int(match[2], 16), match[3]
            elif line.startswith("VmFlags:"):
                flags = frozenset(line.split()[1:])
                kind = "secretmem" if "/secretmem" in name else "locked" if {"lo", "dd", "dc"} <= flags else "ordinary"
                yield Range(start, end - start, name or "[anonymous]", kind, flags)


def direct_map() -> Iterator[Range]:
    """The parts of /proc/kcore that are the kernel's view of physical memory: those with a physical address."""
    with open("/proc/kcore", "rb", buffering=0) as core:
        head = core.read(64)
        offset, size, count = struct.unpack_from("<Q", head, 32)[0], *struct.unpack_from("<HH", head, 54)
        table = os.pread(core.fileno(), size * count, offset)
    for at in range(0, size * count, size):
        kind, _, position, virtual, physical, length = struct.unpack_from("<IIQQQQ", table, at)
        if kind == 1 and physical != (1 << 64) - 1 and virtual < KCORE_TEXT:
            yield Range(position, length, f"physical {physical:#x}", "physical")


def _masked_blocks(
    fd: int, one: Range, before: int, trail: int, table: bytes, unreadable: Counter[str]
) -> Iterator[_Block]:
    """All of a range that can be read; what is zero anyway comes as no bytes. Nothing in the clear is left here."""
    buffer = bytearray(min(before + CHUNK + trail, one.size))
    zeros = memoryview(bytes(len(buffer)))
    at, lead, end = one.position, 0, one.position + one.size
    while at < end:
        with memoryview(buffer)[: min(lead + CHUNK + trail, end - at + lead)] as wanted:
            try:
                got = os.preadv(fd, [wanted], at - lead) - lead
            except (OSError, OverflowError):
                got = -lead
        size = max(0, min(got, CHUNK))
        if size and buffer.startswith(zeros[: lead + got]):
            yield _Block(at, lead, size, b"")
        elif size:
            masked = buffer.translate(table)
            buffer[:] = zeros
            yield _Block(at, lead, size, bytes(masked[: lead + got]))
        at, lead = at + size, min(before, size)
        if size < CHUNK and at < end:  # the page that follows cannot be read
            skipped = PAGE - at % PAGE
            unreadable[one.name] += skipped
            at, lead = at + skipped, 0


if __name__ == "__main__":
    main()
