"""Secrets that can be found again, whole or in pieces, and the question where in a process's memory they are.

A secret is one record of 16 bytes, repeated: HEAD, two bytes that tell which secret it is, TAIL. So what is left of it
shows HEAD or TAIL from 15 bytes on, wherever it was cut. Both are random and known to this process only: residue.py,
which searches for them, is another process, and gets them masked. No byte is 0 or "/", so a secret may be a name.
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

MARK, ID = 7, 2
RECORD = MARK + ID + MARK
_BYTES = bytes(set(range(1, 256)) - set(b"/"))
_random = random.SystemRandom()


def _marker(length: int) -> bytes:
    return bytes(_random.choices(_BYTES, k=length))


class Needles:
    """A family of secrets, all found with one search."""

    def __init__(self) -> None:
        self.head, self.tail = _marker(MARK), _marker(MARK)
        self._made: set[bytes] = set()
        self._record = re.compile(re.escape(self.head) + b"(..)", re.DOTALL)

    def secret(self, size: int) -> bytes:
        """A fresh secret of `size` bytes, at least 16."""
        assert size >= RECORD
        identity = _marker(ID)
        while identity in self._made:
            identity = _marker(ID)
        self._made.add(identity)
        return ((self.head + identity + self.tail) * (size // RECORD + 1))[:size]

    def count(self, *data: bytes) -> Counter[bytes]:
        """How often each secret's record is in `data`."""
        return Counter(identity for one in data for identity in self._record.findall(one))


@dataclass
class Traces:
    """Where secrets were found."""

    searched: int
    """Bytes."""
    unreadable: dict[str, int]
    """Name of mapping -> bytes."""
    records: dict[str, Counter[bytes]]
    """Kind of mapping (residue.py) -> secret -> how many of its records. A record that is torn counts as 0 of them."""
    hits: list[dict[str, Any]]
    """Some of them, with what lies around."""

    def __str__(self) -> str:
        shown = [
            f"  {hit['kind']} {hit['mapping']} at {hit['offset']:#x}:"
            f" {bytes.fromhex(hit['before'])!r} {hit['needle']} {bytes.fromhex(hit['after'])!r}"
            for hit in self.hits[:6]
        ]
        return "\n".join([f"records found: { {kind: sum(n.values()) for kind, n in self.records.items()} }", *shown])


class Searcher:
    """The process that searches. It needs root."""

    def __init__(self, needles: Needles) -> None:
        self.needles = needles
        self._process = subprocess.Popen(
            [sys.executable, "-I", residue.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def search(self, pid: int) -> Traces:
        """Search all memory of a process."""
        marks = {"head": self.needles.head, "tail": self.needles.tail}
        answer = self.ask(residue.mask(marks, whole=True, pid=pid, around=[ID, ID], context=40))
        records: dict[str, Counter[bytes]] = {}
        for mark, kinds in answer["around"].items():
            for kind, surroundings in kinds.items():
                found = records.setdefault(kind, Counter())
                for around, times in surroundings.items():
                    identity = bytes.fromhex(around)[-ID:] if mark == "head" else bytes.fromhex(around)[:ID]
                    found[identity] += times if mark == "head" else 0
        return Traces(answer["searched"], answer["unreadable"], records, answer["hits"])

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The answer to any question (residue.py)."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=20)

    def __enter__(self) -> Searcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
