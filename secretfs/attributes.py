"""What chmod, chown, truncate and utimensat do to an inode, with what goes with them: times, privileges.

Called by the file system only. The kernel has checked who may do it.
"""

from __future__ import annotations

import errno
import stat
import time

from secretfs.errors import FileError
from secretfs.nodes import Node
from secretfs.rules import Caller, Changes, drop_privileges
from secretfs.xattrs import drop_capabilities

__all__ = ["LARGEST_FILE", "change", "truncate"]

LARGEST_FILE = (1 << 63) - 1
TICK = 10**7
"""Nanoseconds: as coarse as the kernel's clock for timestamps may be."""


def change(node: Node, changes: Changes, caller: Caller, *, opened: bool) -> Node:
    """Make the changes and return the node; no changes at all are a chown(2) that sets nothing.

    Args:
        node: what is changed.
        changes: what they are.
        caller: who asked.
        opened: a change of the size is ftruncate(2), which always sets the times. truncate(2) as on tmpfs leaves them
            where the size stays and no memory is there to be given back.

    Raises:
        FileError: EISDIR or EINVAL for what cannot be truncated, EINVAL, EFBIG, ENOSPC.
    """
    now: int | None = _time_of_change(changes.mtime)
    if node.content is not None:
        node.content.revoke()
    if changes.size is not None:
        if not opened and not node.allocated and changes._replace(mode=None) == Changes(size=node.size):
            now = None
        truncate(node, changes.size, caller, now)
    if changes.uid is not None or changes.gid is not None or changes == Changes():
        node.uid = node.uid if changes.uid is None else changes.uid
        node.gid = node.gid if changes.gid is None else changes.gid
        drop_privileges(node)
        drop_capabilities(node)
    if changes.mode is not None:
        node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(changes.mode)
    if changes.atime is not None:
        node.atime = changes.atime
    if changes.mtime is not None:
        node.mtime = changes.mtime
    if now is not None:
        node.ctime = now
    return node


def truncate(node: Node, size: int, caller: Caller, now: int | None) -> None:
    """Cut or grow a file; `now` is what its times become, None leaves them.

    Raises:
        FileError: EISDIR or EINVAL for what cannot be truncated, EINVAL, EFBIG, ENOSPC.
    """
    if node.content is None:
        raise FileError(errno.EISDIR if node.is_dir() else errno.EINVAL)
    if not 0 <= size <= LARGEST_FILE:
        raise FileError(errno.EINVAL if size < 0 else errno.EFBIG)
    node.content.truncate(size)
    if caller.uid != 0:
        drop_privileges(node)
    drop_capabilities(node)
    if now is not None:
        node.mtime = node.ctime = now


def _time_of_change(mtime: int | None) -> int:
    """The time of a change that sets `mtime`: the same if that is now, for then somebody asked for the present time."""
    now = time.time_ns()
    return mtime if mtime is not None and now - TICK < mtime <= now else now
