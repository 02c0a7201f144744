"""A peer of the benchmarks: an in-memory file system with mfusepy, as one would write it first. Nothing is secret here.

peer_mfusepy.py MOUNTPOINT
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import sys
import time
from typing import Any

import mfusepy

TIMEOUT = 300  # seconds: what the other systems use


class Memory(mfusepy.Operations):
    """One flat directory of bytearrays."""

    use_ns = True

    def __init__(self) -> None:
        self._files: dict[str, tuple[bytearray, dict[str, Any]]] = {}
        self._open: dict[int, tuple[bytearray, dict[str, Any]]] = {}
        self._handles = itertools.count(1)
        self._root = self._attributes(stat.S_IFDIR | 0o700, 2)

    @staticmethod
    def _attributes(mode: int, links: int) -> dict[str, Any]:
        now = time.time_ns()
        return {"st_mode": mode, "st_nlink": links, "st_uid": os.getuid(), "st_gid": os.getgid(), "st_size": 0,
                "st_atime": now, "st_mtime": now, "st_ctime": now}  # fmt: skip

    def _file(self, path: str, fh: int | None = None) -> tuple[bytearray, dict[str, Any]]:
        found = self._open.get(fh) if fh else None
        found = found or self._files.get(path)
        if found is None:
            raise mfusepy.FuseOSError(errno.ENOENT)
        return found

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        return self._root if path == "/" else self._file(path, fh)[1]

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        self._files[path] = (bytearray(), self._attributes(stat.S_IFREG | mode, 1))
        return self.open(path, 0)

    def open(self, path: str, flags: int) -> int:
        handle = next(self._handles)
        self._open[handle] = self._file(path)
        return handle

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return bytes(memoryview(self._open[fh][0])[offset : offset + size])

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        content, attributes = self._open[fh]
        end = offset + len(data)
        if end > len(content):
            content.extend(bytes(end - len(content)))
            attributes["st_size"] = end
        memoryview(content)[offset:end] = data
        attributes["st_mtime"] = time.time_ns()
        return len(data)

    def truncate(self, path: str, length: int, fh: int | None = None) -> None:
        content, attributes = self._file(path, fh)
        content[length:] = bytes(max(0, length - len(content)))
        attributes["st_size"] = length

    def release(self, path: str, fh: int) -> int:
        del self._open[fh]
        return 0

    def unlink(self, path: str) -> None:
        del self._files[path]

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *(name[1:] for name in self._files)]


if __name__ == "__main__":
    mfusepy.FUSE(
        Memory(), sys.argv[1], foreground=True, nothreads=True, direct_io=True, hard_remove=True,
        attr_timeout=TIMEOUT, entry_timeout=TIMEOUT, fsname="mfusepy-memory",
    )  # fmt: skip
