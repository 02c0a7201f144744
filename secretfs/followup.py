"""What follows a request once it is answered, and what the shim has left to be done (secretfs/native/fast.c).

A client that has its answer takes some ten microseconds to wake up: what its next request needs is prepared then. What
nobody waits for at all is done before the next request that Python answers, or when the daemon comes to rest.

It is also where an error becomes an errno, and where one that nobody waits for ends.
"""

from __future__ import annotations

import errno
import logging
import os
import traceback
from collections.abc import Callable

from secretfs.errors import FileError, LimitError, SecretFSError
from secretfs.fast import FORGET, RELEASE, UNLINK, FastFiles
from secretfs.filesystem import Filesystem
from secretfs.native.fallback import AnyShim
from secretfs.pagecache import InodeQueue

__all__ = ["FollowUp", "errno_of"]

log = logging.getLogger(__name__)


def errno_of(error: Exception) -> int:
    """The errno that a caller gets for `error`; what is not an error of ours is logged."""
    if isinstance(error, LimitError):
        return errno.ENOSPC  # what a full file system says, whichever limit it was
    if isinstance(error, SecretFSError):
        return error.errno
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    _log(error)
    return errno.EIO


def _log(error: Exception) -> None:
    """Without its message, which may have a secret in it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    log.error("a request failed: %s at %s:%s", type(error).__name__, last.filename, last.lineno)


def _surely(task: Callable[..., None], *cases: tuple[int, ...]) -> None:
    """Do, for each case, what nobody waits for: where one fails the others are done, and the mount goes on."""
    for case in cases:
        try:
            task(*case)
        except Exception as error:  # noqa: BLE001 - anything else would end the mount
            _log(error)


class FollowUp:
    """What follows the requests of one mount (`secretfs.loop.Served`: its wait calls, and no other does)."""

    def __init__(
        self, filesystem: Filesystem, page_cached: InodeQueue, shim: AnyShim | None, fast: FastFiles | None
    ) -> None:
        """Keep `filesystem` and the shim's tables up to date with each other.

        Args:
            filesystem: what the requests are about.
            page_cached: where inodes go whose pages are to be thrown out of the page cache.
            shim: what tells of replies that did not arrive.
            fast: the tables, if there is a shim that answers from them.
        """
        self._filesystem = filesystem
        self._page_cached = page_cached
        self._shim = shim
        self._fast = fast
        self._handle = self._directory = 0

    def uses(self, handle: int) -> None:
        """The request in hand is about this open file: let the shim answer further reads and writes of it."""
        self._handle = handle

    def changes(self, directory: int) -> None:
        """It changes this directory: let the shim say what it looks like when the kernel asks."""
        self._directory = directory

    def replied(self) -> None:
        """A reply has gone."""
        if self._handle or self._directory:
            _surely(self._tell, ())

    def rest(self) -> None:
        """Nobody waits. From the first time on, which shows that there is such a time, files may linger."""
        self._filesystem.let_linger()
        _surely(self.catch_up, ())
        _surely(self._filesystem.end_lingering, ())

    def pause(self) -> None:
        """Others get their turn."""
        _surely(self.catch_up, ())
        _surely(self._filesystem.limit_lingering, ())

    def catch_up(self) -> None:
        """Take over what the shim has answered since Python answered last, and close what was opened in vain."""
        self._handle = self._directory = 0  # with a wait that is not ours nobody has told the shim: it does not answer
        if self._shim is not None and self._shim.lost_handle.value:
            self._close_lost(self._shim.lost_handle.value)
            self._shim.lost_handle.value = 0
        if self._fast is None or not self._fast.news.value:
            return
        _surely(self._note_written, *self._fast.written())
        _surely(self._do, *self._fast.deferred())

    def _note_written(self, inode: int, size: int, time: int) -> None:
        node = self._filesystem.known(inode)
        if node is not None and node.content is not None:
            node.content.written_in_place(size)
            node.mtime = node.ctime = time

    def _do(self, opcode: int, inode: int, handle: int, more: int) -> None:
        """One thing that the shim has left (FastFiles.deferred)."""
        filesystem = self._filesystem
        if opcode == FORGET:
            filesystem.forget([(inode, more)])
        elif opcode == RELEASE:
            self._page_cached.put(filesystem.release(handle))
        elif opcode == UNLINK:
            assert self._fast is not None
            entry = self._fast.names.taken(inode, handle)
            self._page_cached.put(filesystem.unlink_entry(inode, entry, more))
        else:
            filesystem.opened_freely(inode, handle, more & ~os.O_APPEND)

    def _tell(self) -> None:
        """Tell the shim of the file and the directory that the last request was about."""
        handle, directory = self._handle, self._directory
        self._handle = self._directory = 0
        if self._fast is None:
            return
        if handle:
            node = self._filesystem.opened(handle).node
            until = self._filesystem.access_times.fresh_until(node)
            try:
                self._fast.publish(node, until, openable=self._filesystem.opens_freely(node))
            except BaseException:
                if node.content is not None:
                    node.content.revoke()  # what the shim knows of it may be wrong now
                raise
        if directory:
            self._fast.publish_attributes(self._filesystem.getattr(directory))

    def _close_lost(self, handle: int) -> None:
        """The kernel does not know this handle, so it will never release it."""
        try:
            self._filesystem.release(handle)
        except FileError:
            self._filesystem.releasedir(handle)
