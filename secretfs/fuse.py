"""pyfuse3's requests, decoded into calls of the file system, and its answers encoded.

It only translates: what an operation means is decided in `filesystem.py`. Errors become errno replies
(`followup.errno_of`). Handlers are plain functions; `_request` makes them the coroutines that pyfuse3 wants.
None of them awaits, so one request is done before the next begins and the reply follows at once.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, SetattrFields, StatvfsData

from secretfs.errors import FileError
from secretfs.fast import FastFiles
from secretfs.filesystem import Changes, Filesystem
from secretfs.followup import FollowUp, errno_of
from secretfs.names import NAME_MAX
from secretfs.native.fallback import AnyShim
from secretfs.nodes import ROOT, Node
from secretfs.pagecache import InodeQueue
from secretfs.pages import PAGE
from secretfs.plaintext import consume
from secretfs.window import Window
from secretfs.xattrs import join_names

__all__ = ["STATUS", "Operations"]

STATUS = b"user.secretfs.status"
"""The extended attribute of the root that answers with the mount's status, for its owner and root."""
_PRIVATE = b"user.secretfs."

log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")
Reply: TypeAlias = Coroutine[Any, Any, R]


def _request(
    *, consumes: bool = False, changes: bool = False, finds: bool = False
) -> Callable[[Callable[Concatenate[Operations, P], R]], Callable[Concatenate[Operations, P], Reply[R]]]:
    """Make a coroutine of a handler, whose errors become replies. It finds a tree that is up to date.

    Args:
        consumes: afterwards wipe the bytes that came with the request: names, targets, data.
        changes: a directory may change: first take back what the shim would say of one.
        finds: it is a step on the way to an open file. Before anything else, what renames have replaced is wiped if it
            has been there for long, or room is short.
    """

    def decorate(handler: Callable[Concatenate[Operations, P], R]) -> Callable[Concatenate[Operations, P], Reply[R]]:
        @functools.wraps(handler)
        async def coroutine(self: Operations, *arguments: P.args, **named: P.kwargs) -> R:
            try:
                self.follow_up.catch_up()
                if not finds:
                    self._filesystem.limit_lingering()
                if changes and self._fast is not None:
                    self._fast.revoke_attributes()
                return handler(self, *arguments, **named)
            except Exception as error:  # noqa: BLE001 - anything else would end the mount
                code = errno_of(error)
            finally:
                if consumes:
                    for argument in arguments:
                        if type(argument) is bytes:
                            consume(argument)
                if self._shim is not None:
                    self._shim.forget_registers()  # other tasks run between requests, and may start a thread
            raise FUSEError(code)  # outside the except block: nothing of the error is kept alive

        return coroutine  # type: ignore[return-value]  # mypy gives wraps() a named `self`

    return decorate


class Operations(pyfuse3.Operations):
    """The request handlers of one mount.

    O_APPEND is the kernel's: it sends such writes with the right offset, and fcntl(2) can turn it on and off later.
    flush, fsync and fsyncdir are not among them: nothing is buffered and there is no disk. The kernel is told so once
    (ENOSYS, from pyfuse3's own class), answers them itself from then on, and saves a request for every close(2).
    """

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = False

    def __init__(
        self,
        filesystem: Filesystem,
        window: Window,
        *,
        owner: int,
        cached: bool,
        status: dict[bytes, Callable[[], bytes]],
        ready: Callable[[], None],
        shim: AnyShim | None,
        fast: FastFiles | None,
    ) -> None:
        """Serve `filesystem`.

        Args:
            filesystem: what the requests are about.
            window: where replies to reads are bounced.
            owner: the user whose mount it is.
            cached: let the kernel keep file data in its page cache.
            status: read-only attributes of the root, by name, for the owner and root.
            ready: called when the kernel asks for the first time.
            shim: what has seen the requests and put some in another way (rewrite.c); None where nothing has.
            fast: the table of files whose reads and writes the shim answers, if there is a shim.
        """
        super().__init__()
        self._filesystem = filesystem
        self._window = window
        self._owner = owner
        self._cached = cached
        self._status = status
        self._ready = ready
        self._shim = shim
        self._fast = fast
        self.page_cached = InodeQueue()
        """Inodes whose pages are to be thrown out of the page cache."""
        self.follow_up = FollowUp(filesystem, self.page_cached, shim, fast)

    def init(self) -> None:
        """The kernel and libfuse have agreed on a protocol."""
        self._ready()

    def stacktrace(self) -> None:
        """Do nothing: any user may ask for it through an extended attribute, and a stack can hold secrets."""

    # Names

    @_request(consumes=True, finds=True)
    def lookup(self, parent: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        node = self._filesystem.lookup(parent, name)
        return _NOTHING if node is None else _entry(node)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        self.follow_up.catch_up()
        self._filesystem.forget(inode_list)

    @_request(consumes=True, changes=True)
    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        return self._added(parent, self._filesystem.mknod(parent, name, mode, rdev, ctx))

    @_request(consumes=True, changes=True)
    def mkdir(self, parent: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return self._added(parent, self._filesystem.mkdir(parent, name, mode, ctx))

    @_request(consumes=True, changes=True)
    def symlink(self, parent: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._added(parent, self._filesystem.symlink(parent, name, target, ctx))

    @_request()
    def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return self._filesystem.readlink(inode)

    @_request(consumes=True, changes=True)
    def link(self, inode: int, parent: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._added(parent, self._filesystem.link(inode, parent, name))

    @_request(consumes=True, changes=True)
    def unlink(self, parent: int, name: bytes, ctx: RequestContext) -> None:
        self.page_cached.put(self._filesystem.unlink(parent, name))
        self.follow_up.changes(parent)

    @_request(consumes=True, changes=True)
    def rmdir(self, parent: int, name: bytes, ctx: RequestContext) -> None:
        self._filesystem.rmdir(parent, name)
        self.follow_up.changes(parent)

    @_request(consumes=True, changes=True)
    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, ctx: RequestContext
    ) -> None:
        self.page_cached.put(self._filesystem.rename(parent, name, new_parent, new_name, flags))
        self.follow_up.changes(new_parent)

    # Attributes

    @_request(finds=True)
    def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return _entry(self._filesystem.getattr(inode))

    @_request(changes=True)
    def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        changes = Changes(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime=attr.st_atime_ns if fields.update_atime else None,
            mtime=attr.st_mtime_ns if fields.update_mtime else None,
        )
        return _entry(self._filesystem.setattr(inode, changes, ctx, opened=fh is not None))

    @_request()
    def statfs(self, ctx: RequestContext) -> StatvfsData:
        self._filesystem.end_lingering()
        full = self._filesystem.statistics()
        data = StatvfsData()
        data.f_bsize = data.f_frsize = PAGE
        data.f_blocks = full.size // PAGE
        data.f_bfree = data.f_bavail = (full.size - full.used) // PAGE
        data.f_files = full.max_files
        data.f_ffree = data.f_favail = full.max_files - full.files
        data.f_namemax = NAME_MAX
        return data

    @_request(consumes=True, changes=True)
    def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        if name.startswith(_PRIVATE):
            raise FileError(errno.EPERM)
        self._filesystem.setxattr(inode, name, value, self._shim.xattr_flags() if self._shim else 0)

    @_request()
    def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        try:
            if inode == ROOT and name in self._status and ctx.uid in (0, self._owner):
                self._filesystem.end_lingering()
                return self._status[name]()
            if not name:  # how the shim puts a listxattr
                return join_names(self._filesystem.listxattr(inode, ctx))
            return self._filesystem.getxattr(inode, name)
        finally:
            if self._shim:  # else pyfuse3 may be asking on behalf of setxattr, and needs the name again
                consume(name)

    @_request()  # without the shim
    def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        return self._filesystem.listxattr(inode, ctx)

    @_request(consumes=True, changes=True)
    def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        self._filesystem.removexattr(inode, name)

    # Open files and directories

    @_request(consumes=True, changes=True)
    def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        handle, node = self._filesystem.create(parent, name, mode, flags & ~os.O_APPEND, ctx)
        self.follow_up.uses(handle)
        return self._file_info(handle), self._added(parent, node)

    @_request(finds=True)
    def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        handle = self._filesystem.open(inode, flags & ~os.O_APPEND, ctx)
        self.follow_up.uses(handle)
        return self._file_info(handle)

    @_request()
    def read(self, fh: int, off: int, size: int) -> memoryview:  # type: ignore[override]  # any buffer will do
        window = self._window.lend(size)
        length = self._filesystem.read_into(fh, off, window, touching=self._touches())
        if not self._cached and (self._shim is None or self._shim.fills_page_cache()):
            self._filesystem.opened(fh).note_page_cached()
        self.follow_up.uses(fh)
        return window[:length]

    @_request(consumes=True)
    def write(self, fh: int, off: int, buf: bytes) -> int:
        file = self._filesystem.opened(fh)
        privileged = not self._cached and self._shim is not None and self._shim.keeps_privileges()
        taken = self._filesystem.write(fh, off, memoryview(buf), privileged=privileged)
        if file.in_use:  # most new files are written once and closed
            self.follow_up.uses(fh)
        file.in_use = True
        return taken

    @_request()
    def release(self, fh: int) -> None:
        self.page_cached.put(self._filesystem.release(fh))

    @_request()
    def opendir(self, inode: int, ctx: RequestContext) -> int:
        return self._filesystem.opendir(inode)

    @_request(changes=True)
    def readdir(self, fh: int, start_id: int, token: Any) -> None:
        for position, name, node in self._filesystem.readdir(fh, start_id, touching=self._touches()):
            if not pyfuse3.readdir_reply(token, name, _entry(node), position):
                break
            if name not in (b".", b".."):
                self._filesystem.refer(node)

    @_request()
    def releasedir(self, fh: int) -> None:
        self._filesystem.releasedir(fh)

    def _touches(self) -> bool:
        """Whether the read in hand may set the access time."""
        return self._shim is None or not self._shim.leaves_atime()

    def _added(self, parent: int, node: Node) -> EntryAttributes:
        self.follow_up.changes(parent)
        return _entry(node)

    def _file_info(self, handle: int) -> FileInfo:
        """Direct I/O: the data passes the page cache by, which is in the kernel's direct map."""
        return FileInfo(fh=handle, direct_io=not self._cached, keep_cache=False)


def _entry(node: Node) -> EntryAttributes:
    """A node's attributes as pyfuse3 wants them. All changes go through this kernel, so it may cache them."""
    entry = EntryAttributes()
    entry.st_ino = node.ino
    entry.st_mode = node.mode
    entry.st_nlink = node.nlink
    entry.st_uid = node.uid
    entry.st_gid = node.gid
    entry.st_rdev = node.rdev
    entry.st_size = node.size
    entry.st_blocks = -(-node.allocated // 512)
    entry.st_atime_ns = node.atime
    entry.st_mtime_ns = node.mtime
    entry.st_ctime_ns = node.ctime
    return entry


_NOTHING = EntryAttributes()
"""The answer that there is no such name, which the kernel may remember until the name is created."""
_NOTHING.st_ino = 0
