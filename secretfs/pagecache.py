"""The kernel's page cache, emptied of what private mappings and sendfile(2) have put into it.

Files are opened past it, but those two fill it all the same. When such a file is closed or unlinked, its pages are
thrown out; when it is truncated, the kernel does so by itself.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable

import trio

__all__ = ["InodeQueue", "keep_empty"]

log = logging.getLogger(__name__)


class InodeQueue:
    """Inode numbers for the task that empties the page cache."""

    def __init__(self) -> None:
        self._inodes: set[int] = set()
        self._event = trio.Event()

    def put(self, inode: int) -> None:
        """Add one; 0 is none."""
        if inode:
            self._inodes.add(inode)
            self._event.set()

    async def wait(self) -> None:
        """Until there is one."""
        await self._event.wait()

    def take(self) -> list[int]:
        """All of them; the queue is empty then."""
        inodes, self._inodes, self._event = list(self._inodes), set(), trio.Event()
        return inodes


async def keep_empty(queue: InodeQueue, invalidate: Callable[[int], object]) -> None:
    """Throw out the pages of the inodes in `queue`, as they come, with `invalidate` of the FUSE library. For ever.

    In a thread: the kernel waits for a page that is just being read, and the answer to that read comes from here.
    """
    while True:
        await queue.wait()
        for inode in queue.take():
            try:
                await trio.to_thread.run_sync(invalidate, inode)
            except OSError as error:
                if error.errno != errno.ENOENT:  # the kernel has forgotten the inode, and its pages with it
                    log.error("the page cache cannot be emptied: %s", os.strerror(error.errno or 0).lower())
