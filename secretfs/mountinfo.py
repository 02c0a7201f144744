"""Which secretfs is mounted where: /proc/self/mountinfo (proc(5)) is the only state there is."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

__all__ = ["KIND", "Mount", "find", "mounts", "settled_path"]

KIND = "fuse.secretfs"


@dataclass(frozen=True)
class Mount:
    """One secretfs in a mount namespace."""

    mountpoint: str
    device: str
    """major:minor; the minor is the number of its FUSE connection."""
    user_id: int
    group_id: int
    options: tuple[str, ...]


def mounts(process: int | str = "self") -> list[Mount]:
    """Every secretfs that a process sees, in the order of mounting."""
    with open(f"/proc/{process}/mountinfo", "rb") as file:
        lines = file.read().splitlines()
    return [found for line in lines if (found := _parse(line)) is not None]


def find(path: str) -> Mount | None:
    """The secretfs whose mountpoint is `path` (the topmost, if several were stacked), or None."""
    wanted = settled_path(path)
    return next((mount for mount in reversed(mounts()) if mount.mountpoint == wanted), None)


def settled_path(path: str) -> str:
    """The absolute path that mountinfo would show, without touching a mountpoint that may not answer.

    Only where `path` itself is a symbolic link is it followed.
    """
    path = os.path.abspath(path)
    settled = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    if any(mount.mountpoint == settled for mount in mounts()):
        return settled
    return os.path.realpath(path)


def _parse(line: bytes) -> Mount | None:
    """One line: id parent major:minor root mountpoint options [optional...] - type source super-options."""
    head, _, tail = line.partition(b" - ")
    kind, _, options = tail.split(b" ", 2)
    if kind.decode(errors="replace") != KIND:
        return None
    fields = head.split(b" ")
    words = os.fsdecode(options).split(",")
    ids = dict(word.partition("=")[::2] for word in words)
    return Mount(
        _unescaped(fields[4]), fields[2].decode(), int(ids["user_id"]), int(ids["group_id"]),
        (*os.fsdecode(fields[5]).split(","), *words),
    )  # fmt: skip


def _unescaped(path: bytes) -> str:
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), path))
