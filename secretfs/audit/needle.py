"""What is looked for: a random text that exists in the clear nowhere but where it was planted.

It is made masked, each byte XORed with a key, and stays so wherever the audit has it: in its memory, on its channels,
never in an argument or the environment. It is uncovered byte by byte where it is planted. Memory that is searched is
masked as well before it is compared, and both copies are wiped: where a process searches its own memory, masking the
masked needle uncovers it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from typing import Any, NamedTuple

__all__ = ["LENGTH", "Needle"]

LENGTH = 32
"""Bytes: also what an Ed25519 key has."""
PIECE = 16
"""What is left of a needle is found from this length on, if it begins at a multiple of 8 bytes."""
CHUNK = 1 << 20
# Printable, and nothing that a shell, a path or an environment would treat in a way of its own.
LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


class Needle(NamedTuple):
    """A masked needle, and the key it is masked with."""

    masked: bytes
    key: int

    @classmethod
    def fresh(cls) -> Needle:
        """A new one."""
        key = secrets.randbelow(127) + 128  # so that no masked letter is a letter
        letters = bytes(letter ^ key for letter in LETTERS)
        return cls(bytes(secrets.choice(letters) for _ in range(LENGTH)), key)

    @classmethod
    def from_json(cls, words: Any) -> Needle:
        """The one that `as_json` was made from."""
        return cls(bytes.fromhex(words["masked"]), int(words["key"]))

    def as_json(self) -> dict[str, Any]:
        """For a channel."""
        return {"masked": self.masked.hex(), "key": self.key}

    def uncover_into(self, view: memoryview) -> None:
        """Plant it: write it to the beginning of `view`."""
        for at, byte in enumerate(self.masked):
            view[at] = byte ^ self.key

    def in_buffer(self, buffer: bytearray, *, pieces: bool = False) -> bool:
        """Whether it is there; with `pieces`, whether a part of it is. The buffer is wiped."""
        masked = buffer.translate(self._table())
        try:
            return self._is_in(masked, pieces)
        finally:
            buffer[:] = masked[:] = bytes(len(buffer))

    def in_file(self, fd: int, *, pieces: bool = False, limit: int | None = None) -> bool:
        """Whether it is in what can be read from a descriptor, from its position on, up to `limit` bytes."""
        kept, left = bytearray(), limit
        while left is None or left > 0:
            buffer = bytearray(CHUNK if left is None else min(CHUNK, left))
            got = os.readv(fd, [buffer])
            if not got:
                return False
            left = None if left is None else left - got
            masked = kept + buffer.translate(self._table())[:got]
            buffer[:] = bytes(len(buffer))
            if self._is_in(masked, pieces):
                return True
            kept = masked[-LENGTH:]  # a file's: it has no masked needle that this would uncover
        return False

    def in_files(self, paths: Iterable[str]) -> bool:
        """Whether it is in any file of these; those that cannot be read are passed over."""
        return any(self.in_path(path) for path in paths)

    def in_path(self, path: str) -> bool:
        """Whether it is in a file."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return False
        try:
            return self.in_file(fd)
        except OSError:
            return False
        finally:
            os.close(fd)

    def _table(self) -> bytes:
        return bytes(value ^ self.key for value in range(256))

    def _is_in(self, masked: bytearray, pieces: bool) -> bool:
        wanted = [self.masked]
        if pieces:
            wanted = [self.masked[at : at + PIECE] for at in range(0, LENGTH - PIECE + 1, 8)]
        return any(piece in masked for piece in wanted)
