"""Secrets that can be found again, whole or in pieces, and the question where in a process's memory they are.

A secret is one record of 16 bytes, repeated: HEAD, four bytes that tell which secret it is, TAIL. So whatever is left
of it shows HEAD or TAIL from 15 bytes on, wherever it was cut. (In secrets of more than 64 KiB noise lies between
records, so that there are not too many to count, and pieces are found from 63 bytes on.) Both are random and known to
this process only: residue.py, which searches for them, is another process, and gets them masked. No byte is 0 or "/",
so a secret may be a name.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import residue

MARK, ID = 6, 4
RECORD = MARK + ID + MARK
DENSE = 1 << 16
HEAD, TAIL = "head", "tail"
_BYTES = bytes(set(range(1, 256)) - set(b"/"))
_random = random.SystemRandom()


def _noise(length: int) -> bytes:
    return bytes(_random.choices(_BYTES, k=length))


class Needles:
    """A family of secrets, all found with one search."""

    def __init__(self) -> None:
        self.head, self.tail = _noise(MARK), _noise(MARK)
        self._noise = _noise(3 * RECORD)
        self._made: dict[bytes, str] = {}
        self._heads = re.compile(re.escape(self.head) + b"(.{0,4})", re.DOTALL)
        self._tails = re.compile(b"(.{0,4})" + re.escape(self.tail), re.DOTALL)

    def secret(self, size: int, about: str = "") -> bytes:
        """A fresh secret of `size` bytes, at least 16; `about` is what a failed test says of it."""
        assert size >= RECORD
        identity = _noise(ID)
        while identity in self._made:
            identity = _noise(ID)
        self._made[identity] = about or f"{size} bytes"
        record = self.head + identity + self.tail + (self._noise if size > DENSE else b"")
        return (record * (size // len(record) + 1))[:size]

    def marks(self, *data: bytes) -> Counter[tuple[str, bytes]]:
        """How many marks of each secret there are in `data`; those whose secret cannot be told are counted for b""."""
        found: Counter[tuple[str, bytes]] = Counter()
        for mark, pattern in ((HEAD, self._heads), (TAIL, self._tails)):
            for identity, times in Counter(one for each in data for one in pattern.findall(each)).items():
                found[mark, self.known(identity)] += times
        return found

    def known(self, identity: bytes) -> bytes:
        """`identity`, or b"" if no secret has that one."""
        return identity if identity in self._made else b""

    def about(self, identity: bytes) -> str:
        """What a secret is about."""
        return self._made.get(identity, "a piece of one")


@dataclass
class Traces:
    """Where secrets were found."""

    searched: int
    """Bytes."""
    unreadable: dict[str, int]
    """Name of mapping -> bytes."""
    marks: dict[str, Counter[tuple[str, bytes]]]
    """Kind of mapping (residue.py) -> (HEAD or TAIL, secret) -> how often; b"" where it is torn from its secret."""
    hits: list[dict[str, Any]]
    """Some of them, with what lies around."""

    def told(self, needles: Needles, allowed: Counter[tuple[str, bytes]]) -> str:
        """For people: what is more than allowed, and some hits."""
        counted = [
            f"  {needles.about(identity)}: {kind}, {times} times its {mark}, not {allowed[mark, identity]} times"
            for kind, marks in self.marks.items()
            for (mark, identity), times in marks.items()
            if kind != "locked" or times > allowed[mark, identity]
        ]
        shown = [
            f"  {hit['kind']} {hit['mapping']} at {hit['offset']:#x}:"
            f" {bytes.fromhex(hit['before'])!r} {hit['needle']} {bytes.fromhex(hit['after'])!r}"
            for hit in self.hits
        ]
        return "\n".join(["found in memory:", *counted[:12], *shown[:6]])


class Searcher:
    """The process that searches. It needs root."""

    def __init__(self, needles: Needles) -> None:
        self.needles = needles
        self.process = subprocess.Popen(
            [sys.executable, "-I", residue.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def search(self, pid: int, *, context: int = 40) -> Traces:
        """Search all memory of a process; `context` is how many bytes around a hit are shown."""
        marks = {HEAD: self.needles.head, TAIL: self.needles.tail}
        answer = self.ask(residue.mask(marks, whole=True, pid=pid, around=[ID, ID], context=context))
        found: dict[str, Counter[tuple[str, bytes]]] = {}
        for mark, kinds in answer["around"].items():
            for kind, surroundings in kinds.items():
                for around, times in surroundings.items():
                    identity = bytes.fromhex(around)[-ID:] if mark == HEAD else bytes.fromhex(around)[:ID]
                    found.setdefault(kind, Counter())[mark, self.needles.known(identity)] += times
        return Traces(answer["searched"], answer["unreadable"], found, answer["hits"])

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The answer to any question (residue.py)."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return dict(json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        """End it."""
        self.process.communicate(timeout=20)

    def __enter__(self) -> Searcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
