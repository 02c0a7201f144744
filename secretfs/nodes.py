"""The tree: inodes, the names that lead to them, lookup counts and open handles.

It alone changes the tree, through `create`, `link`, `unlink`, `move` and `exchange`, and alone says when an inode is
gone: when no name leads to it, the kernel has forgotten it and nobody has it open. It decides nothing about rights and
touches no byte of a file; a file's data goes earlier, as soon as no name and no handle is left.
"""

from __future__ import annotations

import errno
import stat
import time
from collections import deque
from functools import lru_cache
from typing import Protocol, TypeAlias

from secretfs.content import Content, Space
from secretfs.errors import FileError
from secretfs.names import NAME_MAX, Entry, Names

__all__ = ["ROOT", "Attribute", "DirectoryHandle", "FileHandle", "NameWatcher", "Node", "NodeEntry", "Tree"]

ROOT = 1
"""The inode number of the root, as FUSE wants it."""
MAX_LINKS = 65000
LINGER = 2_000_000
"""Nanoseconds for which what a rename has replaced can still be opened by who has found it, on a busy mount."""
TIGHT = 4 << 20
"""Bytes; where fewer are left, room is not kept from others for that."""


@lru_cache(maxsize=256)
def _one(number: int) -> int:
    """The same object for the same number: thousands of files have few modes and owners."""
    return number


class Node:
    """An inode. Times are nanoseconds since the epoch; `mode` has the type bits.

    `content` is None for what has no bytes of its own; `entries` is None for anything but a directory.
    """

    __slots__ = (
        "atime", "content", "ctime", "entries", "gid", "gone", "ino", "lookups", "mode",
        "mtime", "nlink", "opens", "page_cached", "parent", "rdev", "uid", "xattrs",
    )  # fmt: skip

    def __init__(self, ino: int, mode: int, uid: int, gid: int, now: int) -> None:
        self.ino = ino
        self.mode = _one(mode)
        self.uid = _one(uid)
        self.gid = _one(gid)
        self.rdev = 0
        self.nlink = 0
        self.atime = self.mtime = self.ctime = now
        self.lookups = 0
        self.opens = 0
        self.page_cached = 0  # how many of its handles have filled the kernel's page cache
        self.gone = False  # it has neither a name nor a handle any more, and is not counted
        self.content: Content | None = None
        self.entries: Names[Node] | None = None
        self.parent: Node | None = None  # of a directory
        self.xattrs: Names[Content] | None = None

    def __repr__(self) -> str:
        return f"<Node {self.ino} mode {self.mode:o} nlink {self.nlink}>"

    @property
    def size(self) -> int:
        """What stat(2) calls st_size; a directory's is the number of its entries times that of a slot, as on tmpfs."""
        if self.content is not None:
            return self.content.size
        return 0 if self.entries is None else 20 * (len(self.entries) + 2)

    @property
    def allocated(self) -> int:
        """Bytes of secret memory that its data takes."""
        return 0 if self.content is None else self.content.allocated

    @property
    def in_page_cache(self) -> int:
        """Its number if an open handle has filled the kernel's page cache with its data, else 0."""
        return self.ino if self.page_cached else 0

    def changed(self, now: int) -> None:
        """Its attributes have; the next read sets the access time again."""
        self.ctime = now
        if self.content is not None:
            self.content.revoke()

    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return self.entries is not None


NodeEntry: TypeAlias = Entry[Node]
Attribute: TypeAlias = Entry[Content]


class FileHandle:
    """An open file."""

    __slots__ = ("flags", "in_use", "node", "page_cached")

    def __init__(self, node: Node, flags: int) -> None:
        self.node = node
        self.flags = flags
        self.in_use = False
        """Whether something was written through it: more is likely to follow."""
        self.page_cached = False
        """Whether the kernel has read some of it into its page cache, for a private mapping or sendfile(2)."""

    def note_page_cached(self) -> None:
        """It has."""
        if not self.page_cached:
            self.page_cached = True
            self.node.page_cached += 1


class DirectoryHandle:
    """An open directory. `entries` is what it held when reading began: nothing is skipped and nothing comes twice.

    None until then.
    """

    __slots__ = ("entries", "node")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.entries: list[NodeEntry] | None = None


class NameWatcher(Protocol):
    """Is told of every name in every directory, by the directory's inode number."""

    def added(self, directory: int, entry: NodeEntry) -> None:
        """There is one more."""

    def removed(self, directory: int, entry: NodeEntry) -> None:
        """There is one less."""

    def changed(self, directory: int, entry: NodeEntry) -> None:
        """It leads to another node."""


class Tree:
    """All inodes of one file system, by number."""

    def __init__(self, space: Space, max_files: int, root: Node) -> None:
        """A tree that holds just `root`, a directory."""
        self._space = space
        self._max_files = max_files
        self._next = ROOT + 1
        root.entries = Names(space)
        root.nlink = 2
        root.lookups = 1
        root.parent = root
        self.root = root
        self._nodes = {root.ino: root}
        self.files = 0
        """How many inodes there are besides the root, unlinked ones that are still open included."""
        self._lets_linger = False
        self._lingering: deque[tuple[Node, int]] = deque()  # with the time on the monotonic clock
        self._watcher: NameWatcher | None = None

    @property
    def max_files(self) -> int:
        """How many inodes there may be besides the root."""
        return self._max_files

    def watch(self, watcher: NameWatcher) -> None:
        """Tell `watcher` of every name in every directory. To be called before there is one."""
        self._watcher = watcher

    def let_linger(self) -> None:
        """From now on files that a rename replaces live on until end_lingering(): who has found one may open it yet."""
        self._lets_linger = True

    def get(self, ino: int) -> Node:
        """The node with that number.

        Raises:
            FileError: ESTALE.
        """
        try:
            return self._nodes[ino]
        except KeyError:
            raise FileError(errno.ESTALE) from None

    def known(self, ino: int) -> Node | None:
        """The node with that number, or None."""
        return self._nodes.get(ino)

    def find(self, parent: int, name: bytes) -> tuple[Node, NodeEntry | None]:
        """The directory with number `parent`, and its entry `name` or None.

        Raises:
            FileError: ESTALE, ENOTDIR, ENAMETOOLONG.
        """
        directory = self.get(parent)
        if directory.entries is None:
            raise FileError(errno.ENOTDIR)
        if len(name) > NAME_MAX:
            raise FileError(errno.ENAMETOOLONG)
        return directory, directory.entries.get(name)

    def create(self, directory: Node, name: bytes, mode: int, uid: int, gid: int, now: int) -> Node:
        """A new node under a new name; the name must be free.

        Raises:
            FileError: ENOENT in a removed directory, ENAMETOOLONG, ENOSPC, EMLINK.
        """
        if self.files >= self._max_files:
            raise FileError(errno.ENOSPC)
        node = Node(self._next, mode, uid, gid, now)
        if stat.S_ISDIR(mode):
            node.entries = Names(self._space)
        elif stat.S_ISREG(mode) or stat.S_ISLNK(mode):
            node.content = Content(self._space)
        self._add_name(directory, name, node, now)
        self._next += 1
        self._nodes[node.ino] = node
        self.files += 1
        return node

    def link(self, node: Node, directory: Node, name: bytes, now: int) -> None:
        """One more name for `node`.

        Raises:
            FileError: ENOENT, EMLINK, EPERM for a directory, ENAMETOOLONG, ENOSPC.
        """
        if node.entries is not None:
            raise FileError(errno.EPERM)
        if node.nlink == 0:
            raise FileError(errno.ENOENT)
        self._add_name(directory, name, node, now)
        node.changed(now)

    def unlink(self, directory: Node, entry: NodeEntry, now: int) -> None:
        """Remove a name; for a directory, which must be empty, the directory.

        Raises:
            FileError: ENOTEMPTY.
        """
        node = entry.value
        if node.entries:
            raise FileError(errno.ENOTEMPTY)
        self._leave(directory, entry)
        directory.mtime = directory.ctime = now
        node.changed(now)
        if node.is_dir():
            directory.nlink -= 1
            node.nlink = 0
        else:
            node.nlink -= 1
        self.settle(node)

    def move(self, old: Node, entry: NodeEntry, new: Node, name: bytes, now: int) -> None:
        """Give what `entry` names the free name `name` in `new`, and take its old one away."""
        node = entry.value
        self._require_room(new)
        self._enter(new, name, node)  # first what can fail
        self._leave(old, entry)
        self._moved(node, old, new)
        old.mtime = old.ctime = new.mtime = new.ctime = now
        node.changed(now)

    def replace(self, old: Node, entry: NodeEntry, new: Node, target: NodeEntry, now: int) -> None:
        """Let `target` in `new` name what `entry` names, and take the old name away; what it named loses a link."""
        node, victim = entry.value, target.value
        if self._lets_linger and not victim.is_dir():
            victim.opens += 1
            self._lingering.append((victim, time.monotonic_ns()))
        self._point(new, target, node)
        self._leave(old, entry)
        self._moved(node, old, new)
        if victim.is_dir():
            new.nlink -= 1
            victim.nlink = 0
        else:
            victim.nlink -= 1
        old.mtime = old.ctime = new.mtime = new.ctime = now
        node.changed(now)
        victim.changed(now)
        self.settle(victim)

    def end_lingering(self) -> None:
        """Wipe what renames have replaced, but for what is open."""
        self._end_lingering(None)

    def limit_lingering(self) -> None:
        """Wipe what has lingered for LINGER, or, where room is short, all of it."""
        if self._lingering:
            short = self._space.left < TIGHT or self.files >= self._max_files
            self._end_lingering(None if short else time.monotonic_ns() - LINGER)

    def _end_lingering(self, before: int | None) -> None:
        while self._lingering and (before is None or self._lingering[0][1] < before):
            node, _ = self._lingering.popleft()
            node.opens -= 1
            self.settle(node)

    def exchange(self, old: Node, entry: NodeEntry, new: Node, target: NodeEntry, now: int) -> None:
        """Swap what two names stand for."""
        first, second = entry.value, target.value
        self._point(old, entry, second)
        self._point(new, target, first)
        self._moved(first, old, new)
        self._moved(second, new, old)
        old.mtime = old.ctime = new.mtime = new.ctime = now
        first.changed(now)
        second.changed(now)

    def forget(self, ino: int, count: int) -> None:
        """The kernel drops `count` references."""
        node = self._nodes.get(ino)
        if node is not None and node is not self.root:
            node.lookups -= count
            self.settle(node)

    def settle(self, node: Node) -> None:
        """Wipe the data of a node that has neither name nor handle, and drop it once the kernel has forgotten it."""
        if node.nlink or node.opens or node is self.root:
            return
        if node.content is not None:
            node.content.clear()
        self.clear_xattrs(node)
        if not node.gone:  # the kernel may take its time to forget; room for another file is there at once
            node.gone = True
            self.files -= 1
        if node.lookups <= 0:
            self._nodes.pop(node.ino, None)

    def clear_xattrs(self, node: Node) -> None:
        """Wipe all extended attributes."""
        if node.xattrs is not None:
            for attribute in node.xattrs:
                attribute.value.clear()
            node.xattrs.clear()
            node.xattrs = None

    def is_below(self, node: Node, ancestor: Node) -> bool:
        """Whether the directory `node` is `ancestor` or lies below it."""
        step: Node | None = node
        while step is not None and step is not self.root:
            if step is ancestor:
                return True
            step = step.parent
        return ancestor is self.root

    def _add_name(self, directory: Node, name: bytes, node: Node, now: int) -> None:
        self._require_room(directory)
        if node.nlink >= MAX_LINKS or (node.is_dir() and directory.nlink >= MAX_LINKS):
            raise FileError(errno.EMLINK)
        self._enter(directory, name, node)
        directory.mtime = directory.ctime = now
        if node.is_dir():
            node.nlink = 2
            node.parent = directory
            directory.nlink += 1
        else:
            node.nlink += 1

    def _enter(self, directory: Node, name: bytes, node: Node) -> None:
        assert directory.entries is not None
        entry = directory.entries.add(name, node)
        if self._watcher is not None:
            self._watcher.added(directory.ino, entry)

    def _leave(self, directory: Node, entry: NodeEntry) -> None:
        assert directory.entries is not None
        directory.entries.remove(entry)
        if self._watcher is not None:
            self._watcher.removed(directory.ino, entry)

    def _point(self, directory: Node, entry: NodeEntry, node: Node) -> None:
        entry.value = node
        if self._watcher is not None:
            self._watcher.changed(directory.ino, entry)

    def _require_room(self, directory: Node) -> None:
        if directory.entries is None:
            raise FileError(errno.ENOTDIR)
        if directory.nlink == 0:
            raise FileError(errno.ENOENT)

    @staticmethod
    def _moved(node: Node, old: Node, new: Node) -> None:
        if node.is_dir() and old is not new:
            old.nlink -= 1
            new.nlink += 1
            node.parent = new
