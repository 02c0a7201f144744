"""A file system in memory as one writes it with pyfuse3 and no thought of secrets: the control of test_t5_residue.py.

naivefs.py DIR     mounts there, says "ready", serves until it is unmounted
"""

from __future__ import annotations

import errno
import os
import stat
import sys

import pyfuse3
import trio


class Node:
    """An inode."""

    def __init__(self, mode: int) -> None:
        self.mode = mode
        self.data = bytearray()
        self.target = b""
        self.xattrs: dict[bytes, bytes] = {}


class NaiveFS(pyfuse3.Operations):
    """One directory. A file's handle is its inode number."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes = {pyfuse3.ROOT_INODE: Node(stat.S_IFDIR | 0o700)}
        self.names: dict[bytes, int] = {}
        self.next = pyfuse3.ROOT_INODE + 1

    def init(self) -> None:
        print("ready", flush=True)

    def attributes(self, ino: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = ino
        entry.st_mode = self.nodes[ino].mode
        entry.st_nlink = 1
        entry.st_size = len(self.nodes[ino].data)
        return entry

    def make(self, name: bytes, mode: int) -> int:
        ino, self.next = self.next, self.next + 1
        self.names[name] = ino
        self.nodes[ino] = Node(mode)
        return ino

    async def getattr(self, inode, ctx):
        return self.attributes(inode)

    async def lookup(self, parent_inode, name, ctx):
        if name not in self.names:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self.attributes(self.names[name])

    async def create(self, parent_inode, name, mode, flags, ctx):
        ino = self.make(name, mode)
        return pyfuse3.FileInfo(fh=ino, direct_io=True, keep_cache=False), self.attributes(ino)

    async def open(self, inode, flags, ctx):
        return pyfuse3.FileInfo(fh=inode, direct_io=True, keep_cache=False)

    async def write(self, fh, off, buf):
        data = self.nodes[fh].data
        data.extend(bytes(max(0, off + len(buf) - len(data))))
        data[off : off + len(buf)] = buf
        return len(buf)

    async def read(self, fh, off, size):
        return bytes(self.nodes[fh].data[off : off + size])

    async def setattr(self, inode, attr, fields, fh, ctx):
        if fields.update_size:
            del self.nodes[inode].data[attr.st_size :]
        return self.attributes(inode)

    async def unlink(self, parent_inode, name, ctx):
        del self.nodes[self.names.pop(name)]

    async def symlink(self, parent_inode, name, target, ctx):
        ino = self.make(name, stat.S_IFLNK | 0o777)
        self.nodes[ino].target = target
        return self.attributes(ino)

    async def readlink(self, inode, ctx):
        return self.nodes[inode].target

    async def setxattr(self, inode, name, value, ctx):
        self.nodes[inode].xattrs[name] = value

    async def getxattr(self, inode, name, ctx):
        if name not in self.nodes[inode].xattrs:
            raise pyfuse3.FUSEError(errno.ENODATA)
        return self.nodes[inode].xattrs[name]

    async def removexattr(self, inode, name, ctx):
        del self.nodes[inode].xattrs[name]


def main(directory: str) -> None:
    """Serve it."""
    pyfuse3.init(NaiveFS(), directory, {"fsname=naive"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=False)


if __name__ == "__main__":
    os.umask(0o077)
    main(sys.argv[1])
