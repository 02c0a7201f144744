"""Attacks by the front door: being whom the file belongs to, and looking where secrets are left lying about."""

from __future__ import annotations

import os
from collections.abc import Iterator

from secretfs.audit.model import NotTriedError
from secretfs.audit.subjects import Target, become

__all__ = ["command_line", "environment", "file_as_is", "file_as_owner", "file_as_root", "log"]


def file_as_is(target: Target) -> bool:
    """Open the file and read it."""
    _require_file(target)
    fd = os.open(target.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return target.needle.in_file(fd)
    finally:
        os.close(fd)


def file_as_root(target: Target) -> bool:
    """Open the file as root, and read it."""
    if target.subject == "mount" and target.uid == 0:
        raise NotTriedError("root owns this mount: no ordinary user can mount here")
    return file_as_is(target)


def file_as_owner(target: Target) -> bool:
    """Become the owner and open the file, as root can."""
    _require_file(target)
    become(target.uid)
    return file_as_is(target)


def environment(target: Target) -> bool:
    """Read the environment of the process and of its children."""
    return target.needle.in_files(f"/proc/{pid}/environ" for pid in _family(target))


def command_line(target: Target) -> bool:
    """Read the arguments of the process and of its children, as ps(1) does."""
    return target.needle.in_files(f"/proc/{pid}/cmdline" for pid in _family(target))


def log(target: Target) -> bool:
    """Read what the program has printed and logged."""
    return target.needle.in_path(target.log)


def _require_file(target: Target) -> None:
    if target.subject not in ("ordinary", "mount"):
        raise NotTriedError("it is no file")


def _family(target: Target) -> Iterator[int]:
    """The processes of a subject."""
    for pid in {target.pid, target.client}:
        yield pid
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            yield from map(int, file.read().split())
