#!/usr/bin/env python3
"""Searches all memory of a process, or of the machine, for byte strings that it never holds itself.

    residue.py < QUESTION > ANSWER         both JSON

QUESTION  {"pid": N, "key": K, "needles": {NAME: [HEX, ...]}, "kinds": [KIND, ...], "context": BYTES}
          `pid` may be "kcore": all physical memory, through the kernel's direct map (/proc/kcore).
          HEX is a piece of what is looked for, each byte XORed with K (1..255): neither argv nor environment nor this
          process's memory has it in the clear. Memory is XORed in the same way before it is compared.
          `kinds` limits the search to some kinds of mapping: "secretmem" (memfd_secret), "locked" (mlocked and in no
          dump and no fork: the emulator's areas and the window) and "ordinary".
ANSWER    {"searched": BYTES, "mappings": N, "unreadable": {MAPPING: BYTES}, "counts": {NAME: {KIND: N}},
           "hits": [{"needle", "piece", "kind", "mapping", "offset", "before", "after"}, ...]}
          `searched` leaves out what is zero. `counts` counts every piece that was found, `hits` shows some, with
          `context` bytes around each (in the clear, in hex), to find out what left it there.

It needs root and nothing but Python's standard library, so that any machine's Python runs it. `mask` makes a question.
"""

from __future__ import annotations

import json
import os
import random
import re
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

PAGE = 4096
CHUNK = 1 << 20
PIECE = 8
SHOWN = 20
KCORE_TEXT = 0xFFFFFFFF80000000


class Range(NamedTuple):
    """Memory to be searched. `position` is where it begins in the file it is read from."""

    position: int
    size: int
    name: str
    kind: str


def mask(needles: dict[str, bytes], **more: Any) -> dict[str, Any]:
    """A question about `needles`, each cut into pieces: what is left of one is found as well, from 15 bytes on."""
    key = random.randrange(1, 256)
    table = _table(key)
    cut = {
        name: [needle[at : at + PIECE].translate(table).hex() for at in range(0, len(needle) - PIECE + 1, PIECE)]
        for name, needle in needles.items()
    }
    return {"key": key, "needles": cut, **more}


def search(question: dict[str, Any]) -> dict[str, Any]:
    """The answer to a question."""
    table = _table(question["key"])
    pieces = [(name, bytes.fromhex(one)) for name, masked in question["needles"].items() for one in masked]
    overlap = max(len(piece) for _, piece in pieces) - 1
    context = question.get("context", 0)
    path, ranges = _what(question["pid"], question.get("kinds"))
    counts: dict[str, Counter[str]] = {name: Counter() for name in question["needles"]}
    hits: list[dict[str, Any]] = []
    unreadable: Counter[str] = Counter()
    searched = 0
    with open(path, "rb", buffering=0) as memory:
        for one in ranges:
            for at, masked in _masked_blocks(memory.fileno(), one, overlap, table, unreadable):
                searched += min(len(masked), CHUNK)
                for number, (name, piece) in enumerate(pieces):
                    found = masked.count(piece)
                    if not found:
                        continue
                    counts[name][one.kind] += found
                    where = masked.find(piece)
                    end = where + len(piece)
                    hit = {"needle": name, "piece": number, "kind": one.kind, "mapping": one.name}
                    hit["offset"] = at - one.position + where
                    hit["before"] = masked[max(0, where - context) : where].translate(table).hex()
                    hit["after"] = masked[end : end + context].translate(table).hex()
                    hits.append(hit)
    return {
        "searched": searched, "mappings": len(ranges), "unreadable": dict(unreadable),
        "counts": {name: dict(found) for name, found in counts.items()}, "hits": hits[:SHOWN],
    }  # fmt: skip


def _table(key: int) -> bytes:
    return bytes(value ^ key for value in range(256))


def _what(pid: int | str, kinds: list[str] | None) -> tuple[str, list[Range]]:
    """Which file memory is read from, and which ranges of it."""
    if pid == "kcore":
        return "/proc/kcore", list(direct_map())
    return f"/proc/{pid}/mem", [one for one in mappings(int(pid)) if not kinds or one.kind in kinds]


def mappings(pid: int) -> Iterator[Range]:
    """The memory of a process."""
    with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="surrogateescape") as lines:
        start, end, name = 0, 0, ""
        for line in lines:
            if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+ *(.*)", line):
                start, end, name = int(match[1], 16), int(match[2], 16), match[3]
            elif line.startswith("VmFlags:"):
                flags = set(line.split()[1:])
                kind = "secretmem" if "/secretmem" in name else "locked" if {"lo", "dd", "dc"} <= flags else "ordinary"
                yield Range(start, end - start, name or "[anonymous]", kind)


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
    fd: int, one: Range, overlap: int, table: bytes, unreadable: Counter[str]
) -> Iterator[tuple[int, bytearray]]:
    """A range in masked blocks, each with its position and the first `overlap` bytes of the next one.

    Blocks of zeros and pages that cannot be read are left out.
    """
    buffer = bytearray(min(CHUNK + overlap, one.size))
    zeros = bytes(len(buffer))
    at, end = one.position, one.position + one.size
    while at < end:
        wanted = min(len(buffer), end - at)
        try:
            got = os.preadv(fd, [memoryview(buffer)[:wanted]], at)
        except (OSError, OverflowError):
            got = 0
        if got and not buffer.startswith(zeros[:got]):
            masked = buffer.translate(table)  # makes no copy in the clear
            buffer[:] = zeros
            del masked[got:]
            yield at, masked
        if got >= min(CHUNK, end - at):
            at += CHUNK
        else:
            at += got // PAGE * PAGE
            if got < PAGE:
                unreadable[one.name] += PAGE
                at += PAGE


if __name__ == "__main__":
    json.dump(search(json.load(sys.stdin)), sys.stdout)
