"""How much room the memory cgroups leave: asked before pages are faulted in, because past the limit the kernel kills.

Both hierarchies are read: cgroup v2 (memory.max, memory.current) and v1 (memory.limit_in_bytes,
memory.usage_in_bytes), for this process's group and every ancestor that is visible (cgroups(7),
Documentation/admin-guide/cgroup-v2.rst). Page cache counts as room, since the kernel drops it first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from secretfs.errors import CgroupLimitExceeded

__all__ = ["Room", "ancestry", "headroom", "leave", "require_headroom", "require_headroom_ahead"]

SPARE = 1 << 20
"""Bytes left alone for page tables, kernel memory and whatever else runs in the group."""
AHEAD = SPARE // 4
"""Bytes that are asked for at once where many small pieces are wanted: a look at the files costs 0.1 ms and more."""
_UNLIMITED = 1 << 60
_asked = 0  # what is left of AHEAD


class _Process:
    """What this process keeps to."""

    spare = SPARE


class Room(NamedTuple):
    """The tightest memory cgroup: bytes left in it (the spare not taken off), and its directory."""

    headroom: int
    path: str


class _Files(NamedTuple):
    limit: str
    usage: str
    cache: tuple[str, ...]


_V2 = _Files("memory.max", "memory.current", ("inactive_file", "active_file"))
_V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))


def leave(spare: int) -> None:
    """From now on leave `spare` bytes alone and not SPARE, in this process and those that it forks."""
    _Process.spare = spare


def require_headroom(wanted: int, *, spare: int | None = None) -> None:
    """Return if `wanted` bytes can be taken without waking the OOM killer of a memory cgroup.

    `spare` bytes are left alone, by default what `leave` has said.

    Raises:
        CgroupLimitExceeded: naming the group.
    """
    room = headroom()
    spare = _Process.spare if spare is None else spare
    if room is not None and wanted + spare > room.headroom:
        raise CgroupLimitExceeded(wanted, headroom=room.headroom, path=room.path, spare=spare)


def require_headroom_ahead(wanted: int) -> None:
    """require_headroom() for a small piece of many: looks once for AHEAD bytes of them.

    What others take in the meantime is not seen; that is at most AHEAD of the SPARE bytes that are left alone.

    Raises:
        CgroupLimitExceeded: naming the group.
    """
    global _asked  # noqa: PLW0603
    if wanted > _asked:
        _asked = 0
        if wanted >= AHEAD:
            require_headroom(wanted)
            return
        try:
            require_headroom(AHEAD)
        except CgroupLimitExceeded:
            require_headroom(wanted)
            return
        _asked = AHEAD
    _asked -= wanted


def headroom() -> Room | None:
    """The tightest limit above this process, or None where no memory cgroup limits it."""
    rooms = [room for files, path in _groups() if (room := _room(files, path)) is not None]
    return min(rooms, default=None)


def ancestry(version: int) -> list[str]:
    """This process's group in the hierarchy of cgroup v1 (of the memory controller) or v2, and all above it."""
    wanted = {1: _V1, 2: _V2}[version]
    return [path for files, path in _groups() if files is wanted]


def _room(files: _Files, path: str) -> Room | None:
    try:
        limit = _read(path, files.limit)
        if limit == "max" or int(limit) >= _UNLIMITED:
            return None
        statistics = dict(line.split() for line in _read(path, "memory.stat").splitlines())
        cache = sum(int(statistics.get(name, 0)) for name in files.cache)
        return Room(int(limit) - int(_read(path, files.usage)) + cache, path)
    except (OSError, ValueError):
        return None  # the root group has no such files


def _read(path: str, name: str) -> str:
    with open(os.path.join(path, name), encoding="ascii") as file:
        return file.read().strip()


def _groups() -> Iterator[tuple[_Files, str]]:
    """This process's memory cgroups and their ancestors, from /proc/self/cgroup and /proc/self/mountinfo."""
    mounts = dict(_mounts())
    try:
        with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return
    for line in lines:
        hierarchy, controllers, group = line.split(":", 2)
        if hierarchy == "0":
            files, mount = _V2, mounts.get("cgroup2")
        elif "memory" in controllers.split(","):
            files, mount = _V1, mounts.get("cgroup")
        else:
            continue
        if mount is not None:
            yield from _ancestors(files, *mount, group)


def _ancestors(files: _Files, root: str, mountpoint: str, group: str) -> Iterator[tuple[_Files, str]]:
    if root != "/" and (group == root or group.startswith(root + "/")):
        group = group[len(root) :]  # a container sees only a part of the tree
    parts = [part for part in group.split("/") if part not in ("", "..")]
    for depth in range(len(parts), -1, -1):
        yield files, os.path.join(mountpoint, *parts[:depth])


def _mounts() -> Iterator[tuple[str, tuple[str, str]]]:
    """(type, (root, mountpoint)) of the cgroup v2 mount and of the v1 mount of the memory controller."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return
    for line in lines:
        mount, _, rest = line.partition(" - ")
        fields, kind = mount.split(), rest.split()
        if kind[0] == "cgroup2" or (kind[0] == "cgroup" and "memory" in kind[2].split(",")):
            yield kind[0], (fields[3], fields[4])
