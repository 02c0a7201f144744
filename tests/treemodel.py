"""A file system as dicts: what secretfs.filesystem is compared with."""

from __future__ import annotations

import errno

from secretfs.filesystem import RENAME_EXCHANGE, RENAME_NOREPLACE
from secretfs.nodes import ROOT

MAX_FILES = 12
XATTR_SPACES = (b"user.", b"trusted.", b"security.")


class Fail(Exception):
    """The model says that the call fails with this errno."""


class Entry:
    """A name's place in its directory; `live` until it is removed."""

    def __init__(self, node: Inode) -> None:
        self.node = node
        self.live = True


class Inode:
    """A file of the model: "d", "f" or "l"."""

    def __init__(self, ino: int, kind: str) -> None:
        self.ino = ino
        self.kind = kind
        self.data = bytearray()
        self.children: dict[bytes, Entry] = {}
        self.xattrs: dict[bytes, bytes] = {}
        self.parent = self
        self.nlink = 2 if kind == "d" else 0
        self.opens = 0
        self.lookups = 0
        self.gone = False  # for good, once it had neither a name nor a handle: a removed directory may be opened again


class Model:
    """The file system as dicts. Every method is one call, and raises Fail where that fails."""

    def __init__(self) -> None:
        self.root = Inode(ROOT, "d")
        self.nodes = {ROOT: self.root}

    @property
    def files(self) -> int:
        return sum(not node.gone for node in self.nodes.values()) - 1

    def get(self, ino: int) -> Inode:
        if ino not in self.nodes:
            raise Fail(errno.ESTALE)
        return self.nodes[ino]

    def find(self, parent: int, name: bytes, *, must: bool = False) -> tuple[Inode, Entry | None]:
        directory = self.get(parent)
        if directory.kind != "d":
            raise Fail(errno.ENOTDIR)
        entry = directory.children.get(name)
        if must and entry is None:
            raise Fail(errno.ENOENT)
        return directory, entry

    def check_create(self, parent: int, name: bytes) -> None:
        directory, entry = self.find(parent, name)
        if entry is not None:
            raise Fail(errno.EEXIST)
        if self.files >= MAX_FILES:
            raise Fail(errno.ENOSPC)
        if not directory.nlink:
            raise Fail(errno.ENOENT)

    def create(self, parent: int, name: bytes, kind: str, ino: int) -> Inode:
        node = self.nodes[ino] = Inode(ino, kind)
        directory = self.nodes[parent]
        directory.children[name] = Entry(node)
        self.count(node, directory, 1)
        return node

    def count(self, node: Inode, directory: Inode, sign: int) -> None:
        """A name of `node` in `directory` comes or goes."""
        if node.kind == "d":
            directory.nlink += sign
            node.nlink = 2 if sign > 0 else 0
            node.parent = directory if sign > 0 else node.parent
        else:
            node.nlink += sign
        self.settle(node)

    def settle(self, node: Inode) -> None:
        if not node.nlink and not node.opens:
            node.gone = True
            node.data.clear()
            node.xattrs.clear()
            if node.lookups <= 0:
                self.nodes.pop(node.ino, None)

    def check_link(self, ino: int, parent: int, name: bytes) -> None:
        node = self.get(ino)
        directory, entry = self.find(parent, name)
        if entry is not None:
            raise Fail(errno.EEXIST)
        if node.kind == "d":
            raise Fail(errno.EPERM)
        if not node.nlink or not directory.nlink:
            raise Fail(errno.ENOENT)

    def remove(self, parent: int, name: bytes, *, directory: bool) -> None:
        where, entry = self.find(parent, name, must=True)
        node = entry.node
        if (node.kind == "d") != directory:
            raise Fail(errno.ENOTDIR if directory else errno.EISDIR)
        if node.children:
            raise Fail(errno.ENOTEMPTY)
        self.drop(where, name)
        self.count(node, where, -1)

    @staticmethod
    def drop(directory: Inode, name: bytes) -> None:
        directory.children.pop(name).live = False

    def is_below(self, node: Inode, ancestor: Inode) -> bool:
        while node is not ancestor and node is not self.root:
            node = node.parent
        return node is ancestor

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        old, entry = self.find(parent, name, must=True)
        new, target = self.find(new_parent, new_name)
        node = entry.node
        if node.kind == "d" and self.is_below(new, node):
            raise Fail(errno.EINVAL)
        if target is None:
            if flags == RENAME_EXCHANGE or not new.nlink:
                raise Fail(errno.ENOENT)
            self.drop(old, name)
            new.children[new_name] = Entry(node)
            self.moved(node, old, new)
        elif flags == RENAME_NOREPLACE:
            raise Fail(errno.EEXIST)
        elif flags == RENAME_EXCHANGE:
            if target.node.kind == "d" and self.is_below(old, target.node):
                raise Fail(errno.EINVAL)
            entry.node, target.node = target.node, node
            self.moved(node, old, new)
            self.moved(entry.node, new, old)
        elif target.node is not node:
            self.replace(old, name, new, target)

    def replace(self, old: Inode, name: bytes, new: Inode, target: Entry) -> None:
        node, victim = old.children[name].node, target.node
        if (node.kind == "d") != (victim.kind == "d"):
            raise Fail(errno.ENOTDIR if node.kind == "d" else errno.EISDIR)
        if victim.children:
            raise Fail(errno.ENOTEMPTY)
        self.drop(old, name)
        target.node = node
        self.moved(node, old, new)
        self.count(victim, new, -1)

    @staticmethod
    def moved(node: Inode, old: Inode, new: Inode) -> None:
        if node.kind == "d" and old is not new:
            old.nlink -= 1
            new.nlink += 1
            node.parent = new

    @staticmethod
    def resize(node: Inode, size: int) -> None:
        del node.data[size:]
        node.data.extend(bytes(size - len(node.data)))

    def check_xattr(self, ino: int, name: bytes) -> None:
        if name not in self.get(ino).xattrs:
            raise Fail(errno.ENODATA if name.startswith(XATTR_SPACES) else errno.EOPNOTSUPP)
