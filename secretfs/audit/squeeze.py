"""A memory cgroup of the audit's own, where a victim is squeezed until all of it that can be swapped has been.

A victim joins it before it has a secret: memory stays charged to the group in which it was first touched. The limit is
lowered only as long as the kernel takes to write out what it can; nothing is killed for being above it. Both
hierarchies can do it (Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from secretfs import cgroup
from secretfs.audit.undo import Undo, remove_group

__all__ = ["Group", "memory_group"]


@dataclass(frozen=True)
class Group:
    """A group that is there."""

    path: str
    version: int

    @property
    def means(self) -> str:
        """What squeezes it, in words."""
        return f"cgroup v{self.version}, {_KNOBS[self.version].name}"

    def join(self) -> None:
        """Move this process there."""
        _write(self.path, "cgroup.procs", "0")

    def squeeze(self, undo: Undo) -> None:
        """Let the kernel write out all that it can."""
        knob = _KNOBS[self.version]
        with undo.unless_done("write", os.path.join(self.path, knob.name), knob.open):
            with contextlib.suppress(OSError):  # EBUSY: v1 says so when something is left, as locked memory is
                _write(self.path, knob.name, "0")
            _write(self.path, knob.name, knob.open)


@dataclass(frozen=True)
class _Knob:
    """The limit that has the kernel page out what is above it when it is written, and its greatest value."""

    name: str
    open: str
    settings: tuple[tuple[str, str], ...]
    """What makes it swap, and swap to a file."""


_KNOBS = {
    2: _Knob("memory.high", "max", (("memory.swap.max", "max"), ("memory.zswap.max", "0"))),
    1: _Knob("memory.limit_in_bytes", "-1", (("memory.memsw.limit_in_bytes", "-1"), ("memory.swappiness", "100"))),
}


@contextlib.contextmanager
def memory_group(undo: Undo) -> Iterator[Group | None]:
    """A new group, or None where none can be made; who is still in it at the end is moved to the audit's own."""
    with contextlib.ExitStack() as stack:
        group = None
        for version in (2, 1):
            groups = cgroup.ancestry(version)
            try:
                if groups:
                    group = stack.enter_context(_made(version, groups[0], groups[-1], undo))
                    break
            except OSError:  # not mounted, read-only, or a part of the tree where nothing can be made
                continue
        yield group


@contextlib.contextmanager
def _made(version: int, home: str, top: str, undo: Undo) -> Iterator[Group]:
    path = os.path.join(top, f"secretfs-audit-{os.getpid()}")
    with contextlib.ExitStack() as stack:
        if version == 2:
            stack.enter_context(_controlled(top, undo))
        with undo.unless_done("remove-group", path, home):
            os.mkdir(path)
            try:
                for name, text in _KNOBS[version].settings:
                    with contextlib.suppress(OSError):  # not every kernel has them
                        _write(path, name, text)
                yield Group(path, version)
            finally:
                remove_group(path, home)


@contextlib.contextmanager
def _controlled(top: str, undo: Undo) -> Iterator[None]:
    """Have the memory of the groups below `top` controlled; as it was, at the end."""
    if "memory" in _read(top, "cgroup.subtree_control").split():
        yield
        return
    with undo.unless_done("write", os.path.join(top, "cgroup.subtree_control"), "-memory"):
        _write(top, "cgroup.subtree_control", "+memory")
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # somebody else has begun to use it
                _write(top, "cgroup.subtree_control", "-memory")


def _read(path: str, name: str) -> str:
    with open(os.path.join(path, name), encoding="ascii") as file:
        return file.read()


def _write(path: str, name: str, text: str) -> None:
    fd = os.open(os.path.join(path, name), os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
