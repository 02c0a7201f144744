"""What each file system operation does to the tree and to the bytes of files.

It alone says what open, write, rename or setxattr mean. It knows no FUSE: inode numbers, names and buffers come in,
nodes and counts go out, and what fails raises FileError with the errno of the system call. Tests drive it directly,
`fuse.py` drives it from a mount, and later sources may change it from inside.

Rights: the kernel checks modes, owners and the sticky bit before a request gets here (mount option
default_permissions). What a caller's identity still decides is here: the owner of what is created, set-group-ID
directories, and `_decide_open`. One request at a time: nothing here awaits.

A written byte: fuse.write -> Filesystem.write -> Content.write -> Block.write -> SecretArea.write -> the region's view.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Collection, Iterable, Iterator

from secretfs import attributes, xattrs
from secretfs.attributes import LARGEST_FILE
from secretfs.content import Space
from secretfs.errors import FileError
from secretfs.heap import Heap
from secretfs.interface import Backend
from secretfs.nodes import ROOT, DirectoryHandle, FileHandle, Node, NodeEntry, Tree
from secretfs.pages import PagePool
from secretfs.plaintext import Plaintext
from secretfs.rules import AccessTimes, Caller, Changes, Statistics, check_replaceable, drop_privileges

__all__ = ["Caller", "Changes", "Filesystem", "Statistics"]

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
LINK_MAX = 4095


class Filesystem:
    """A file system in secret memory."""

    def __init__(
        self,
        backend: Backend,
        *,
        size: int,
        max_files: int,
        uid: int,
        gid: int,
        mode: int = 0o700,
        reserve: bool = True,
        flags: Collection[str] = (),
    ) -> None:
        """Make one with an empty root directory.

        Args:
            backend: where the memory comes from.
            size: how many bytes the data of all files may take, counted in steps of 64 bytes.
            max_files: how many files, directories and links there may be.
            uid: the owner of the root.
            gid: the group of the root.
            mode: the permission bits of the root.
            reserve: allocate the first areas now and not with the first file.
            flags: those of the mount; AccessTimes tells which matter.

        Raises:
            LimitError: there is not even memory for the first areas.
        """
        self._space = Space(Heap(backend, reserve=reserve), PagePool(backend, reserve=reserve), size)
        root = Node(ROOT, stat.S_IFDIR | stat.S_IMODE(mode), uid, gid, time.time_ns())
        self._tree = Tree(self._space, max_files, root)
        self._handles: dict[int, FileHandle | DirectoryHandle] = {}
        self._next_handle = 1
        self.known, self.watch_names = self._tree.known, self._tree.watch
        self.let_linger, self.limit_lingering = self._tree.let_linger, self._tree.limit_lingering
        self.end_lingering = self._tree.end_lingering
        """As the tree has them."""
        self.access_times = AccessTimes(flags)

    # Names

    def lookup(self, parent: int, name: bytes) -> Node | None:
        """The node that `name` in directory `parent` leads to, or None; "." and ".." too. Counts as a reference."""
        directory, entry = self._tree.find(parent, name)
        if entry is not None:
            node = entry.value
        elif name == b".":
            node = directory
        elif name == b".." and directory.parent is not None:
            node = directory.parent
        else:
            return None
        return self.refer(node)

    def refer(self, node: Node) -> Node:
        """Count one more reference that the kernel has to `node`."""
        node.lookups += 1
        return node

    def forget(self, references: Iterable[tuple[int, int]]) -> None:
        """The kernel drops references: (inode number, how many)."""
        for ino, count in references:
            self._tree.forget(ino, count)

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Node:
        """A new file of any type but directory and symbolic link; EEXIST where the name is taken."""
        node = self._create(parent, name, mode, caller)
        node.rdev = rdev if stat.S_ISBLK(mode) or stat.S_ISCHR(mode) else 0
        return self.refer(node)

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Node:
        """A new directory."""
        return self.refer(self._create(parent, name, stat.S_IFDIR | stat.S_IMODE(mode), caller))

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Node:
        """A new symbolic link; its target lies in secret memory like a file's bytes."""
        if len(target) > LINK_MAX:
            raise FileError(errno.ENAMETOOLONG)
        node = self._create(parent, name, stat.S_IFLNK | 0o777, caller)
        assert node.content is not None
        try:
            if node.content.write(0, memoryview(target)) < len(target):
                raise FileError(errno.ENOSPC)
        except FileError:
            self.unlink(parent, name)
            raise
        return self.refer(node)

    def readlink(self, ino: int) -> bytes:
        """The target of a symbolic link."""
        node = self._tree.get(ino)
        if not stat.S_ISLNK(node.mode) or node.content is None:
            raise FileError(errno.EINVAL)
        self.access_times.touch(node)
        return xattrs.read_all(node.content)

    def link(self, ino: int, parent: int, name: bytes) -> Node:
        """One more name for a file."""
        node = self._tree.get(ino)
        directory = self._free(parent, name)
        self._tree.link(node, directory, name, time.time_ns())
        return self.refer(node)

    def unlink(self, parent: int, name: bytes) -> int:
        """Remove a name; with the last one and without a handle the data is wiped. Returns an inode, as `release`."""
        _, entry = self._existing(parent, name)
        if entry.value.is_dir():
            raise FileError(errno.EISDIR)
        return self.unlink_entry(parent, entry, time.time_ns())

    def unlink_entry(self, parent: int, entry: NodeEntry, now: int) -> int:
        """The same for an entry of `parent` that a NameWatcher knows, and is no directory, at time `now`."""
        self._tree.unlink(self._tree.get(parent), entry, now)
        return entry.value.in_page_cache

    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory."""
        directory, entry = self._existing(parent, name)
        if not entry.value.is_dir():
            raise FileError(errno.ENOTDIR)
        self._tree.unlink(directory, entry, time.time_ns())

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0) -> int:
        """rename(2) with the flags of renameat2(2) NOREPLACE and EXCHANGE. Returns an inode, as `release`."""
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise FileError(errno.EINVAL)
        old, entry = self._existing(parent, name)
        new, target = self._tree.find(new_parent, new_name)
        now = time.time_ns()
        if entry.value.is_dir() and self._tree.is_below(new, entry.value):
            raise FileError(errno.EINVAL)
        if target is None:
            if flags == RENAME_EXCHANGE:
                raise FileError(errno.ENOENT)
            self._tree.move(old, entry, new, new_name, now)
        elif flags == RENAME_NOREPLACE:
            raise FileError(errno.EEXIST)
        elif flags == RENAME_EXCHANGE:
            self._exchange(old, entry, new, target, now)
        elif target.value is not entry.value:
            victim = target.value
            check_replaceable(entry.value, victim)
            self._tree.replace(old, entry, new, target, now)
            return victim.in_page_cache
        return 0

    # Attributes

    def getattr(self, ino: int) -> Node:
        """The node with that number."""
        return self._tree.get(ino)

    def setattr(self, ino: int, changes: Changes, caller: Caller, *, opened: bool = False) -> Node:
        """chmod, chown, truncate and utimensat; all or nothing. No changes at all are a chown(2) that sets nothing.

        `opened`: it is ftruncate(2), which always sets the times.
        """
        return attributes.change(self._tree.get(ino), changes, caller, opened=opened)

    def statistics(self) -> Statistics:
        """How full it is."""
        space, tree = self._space, self._tree
        locked = space.heap.locked + space.pages.locked
        return Statistics(space.limit, space.charged, tree.files, tree.max_files, locked)

    # Extended attributes

    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int = 0) -> None:
        """Set one attribute, with the flags of setxattr(2); an existing one keeps its value if the new is too big."""
        node = self._tree.get(ino)
        xattrs.set_value(self._space, node, name, value, flags)
        node.changed(time.time_ns())

    def getxattr(self, ino: int, name: bytes) -> Plaintext:
        """The value of one attribute; ENODATA where there is none."""
        return xattrs.get_value(self._tree.get(ino), name)

    def listxattr(self, ino: int, caller: Caller) -> list[Plaintext]:
        """The names of all attributes that the caller may see: trusted ones are root's."""
        return xattrs.list_names(self._tree.get(ino), trusted=caller.uid == 0)

    def removexattr(self, ino: int, name: bytes) -> None:
        """Wipe one attribute; ENODATA where there is none."""
        node = self._tree.get(ino)
        xattrs.remove(node, name)
        node.changed(time.time_ns())

    # Open files

    def create(self, parent: int, name: bytes, mode: int, flags: int, caller: Caller) -> tuple[int, Node]:
        """Create a regular file and open it; one that is there already is opened, unless O_EXCL forbids it."""
        directory, entry = self._tree.find(parent, name)
        if entry is None:
            node = self._create_in(directory, name, stat.S_IFREG | stat.S_IMODE(mode), caller)
            flags &= ~os.O_TRUNC  # which takes set-user-ID bits away
        elif flags & os.O_EXCL:
            raise FileError(errno.EEXIST)
        else:
            node = entry.value
        return self._open(node, flags, caller), self.refer(node)

    def open(self, ino: int, flags: int, caller: Caller) -> int:
        """Open a file and return a handle; with O_TRUNC it is emptied."""
        return self._open(self._tree.get(ino), flags, caller)

    def _open(self, node: Node, flags: int, caller: Caller) -> int:
        self._decide_open(node, flags, caller)
        if flags & os.O_TRUNC:
            attributes.truncate(node, 0, caller, time.time_ns())
        node.opens += 1
        return self._handle(FileHandle(node, flags))

    def opened_freely(self, ino: int, handle: int, flags: int) -> None:
        """Take note of an open that nobody had to ask for (`opens_freely`), under a handle of the opener's choice."""
        node = self._tree.get(ino)
        node.opens += 1
        self._handles[handle] = FileHandle(node, flags)

    def opened(self, handle: int) -> FileHandle:
        """The open file with that handle; EBADF where there is none."""
        file = self._handles.get(handle)
        if not isinstance(file, FileHandle):
            raise FileError(errno.EBADF)
        return file

    def read_into(self, handle: int, offset: int, buffer: memoryview, *, touching: bool = True) -> int:
        """Fill `buffer`, which must be zeroed, and return how many bytes lie before the end of the file.

        `touching`: it may set the access time.
        """
        node = self.opened(handle).node
        assert node.content is not None
        if touching:
            self.access_times.touch(node)
        return node.content.read_into(offset, buffer)

    def write(self, handle: int, offset: int, data: memoryview, *, privileged: bool = False) -> int:
        """Write `data` and return how many bytes were taken: fewer only where space ended in the middle.

        `privileged`: set-user-ID and set-group-ID bits stay.
        """
        file = self.opened(handle)
        node = file.node
        assert node.content is not None
        if file.flags & os.O_APPEND:
            offset = node.content.size
        if offset + len(data) > LARGEST_FILE:
            raise FileError(errno.EFBIG)
        taken = node.content.write(offset, data)
        if not privileged:
            drop_privileges(node)
        xattrs.drop_capabilities(node)
        node.mtime = node.ctime = time.time_ns()
        return taken

    def release(self, handle: int) -> int:
        """Close a file; one without a name is wiped now.

        Returns the inode number if its pages must be thrown out of the kernel's page cache, else 0.
        """
        file = self.opened(handle)
        node = file.node
        del self._handles[handle]
        node.opens -= 1
        node.page_cached -= file.page_cached
        self._tree.settle(node)
        return node.ino if file.page_cached else 0

    def opendir(self, ino: int) -> int:
        """Open a directory and return a handle."""
        node = self._tree.get(ino)
        if node.entries is None:
            raise FileError(errno.ENOTDIR)
        node.opens += 1
        return self._handle(DirectoryHandle(node))

    def readdir(self, handle: int, start: int, *, touching: bool = True) -> Iterator[tuple[int, bytes, Node]]:
        """The entries from position `start` on: (position of the next one, name, node).

        What the directory held when reading began, last at 0; an entry that was removed since is left out. "." and
        ".." come first, and are not references.
        """
        directory = self._directory(handle)
        node = directory.node
        if start == 0 or directory.entries is None:
            assert node.entries is not None
            directory.entries = list(node.entries)
            if touching:
                self.access_times.touch(node)
        for position, (name, special) in enumerate(((b".", node), (b"..", node.parent or node))):
            if position >= start:
                yield position + 1, name, special
        for position in range(max(start, 2), len(directory.entries) + 2):
            entry = directory.entries[position - 2]
            if entry.live:
                yield position + 1, entry.name(), entry.value

    def releasedir(self, handle: int) -> None:
        """Close a directory."""
        node = self._directory(handle).node
        del self._handles[handle]
        node.opens -= 1
        self._tree.settle(node)

    def close(self) -> None:
        """Wipe everything. The file system is unusable afterwards."""
        self._handles.clear()
        self._space.heap.close()
        self._space.pages.close()

    def _decide_open(self, node: Node, flags: int, caller: Caller) -> None:
        """The one place where an open is allowed or refused. The kernel has checked modes and owners already."""
        if node.is_dir():
            raise FileError(errno.EISDIR)
        if node.content is None or (node.nlink == 0 and node.opens == 0):
            raise FileError(errno.ESTALE)  # wiped with its last name; ESTALE makes the kernel look the name up again

    def opens_freely(self, node: Node) -> bool:
        """Whether `_decide_open` would say yes to every caller, as long as nothing about the file changes."""
        return node.content is not None and node.nlink > 0

    def _create(self, parent: int, name: bytes, mode: int, caller: Caller) -> Node:
        return self._create_in(self._free(parent, name), name, mode, caller)

    def _free(self, parent: int, name: bytes) -> Node:
        directory, entry = self._tree.find(parent, name)
        if entry is not None:
            raise FileError(errno.EEXIST)
        return directory

    def _create_in(self, directory: Node, name: bytes, mode: int, caller: Caller) -> Node:
        gid = caller.gid
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            mode |= stat.S_ISGID if stat.S_ISDIR(mode) else 0
        return self._tree.create(directory, name, mode, caller.uid, gid, time.time_ns())

    def _existing(self, parent: int, name: bytes) -> tuple[Node, NodeEntry]:
        directory, entry = self._tree.find(parent, name)
        if entry is None:
            raise FileError(errno.ENOENT)
        return directory, entry

    def _exchange(self, old: Node, entry: NodeEntry, new: Node, target: NodeEntry, now: int) -> None:
        if target.value.is_dir() and self._tree.is_below(old, target.value):
            raise FileError(errno.EINVAL)
        if entry.value is not target.value:
            self._tree.exchange(old, entry, new, target, now)

    def _handle(self, opened: FileHandle | DirectoryHandle) -> int:
        handle = self._next_handle
        self._next_handle += 1
        self._handles[handle] = opened
        return handle

    def _directory(self, handle: int) -> DirectoryHandle:
        directory = self._handles.get(handle)
        if not isinstance(directory, DirectoryHandle):
            raise FileError(errno.EBADF)
        return directory
