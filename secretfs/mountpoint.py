"""Whether a directory can be mounted on: checked once, on a descriptor, so that nothing can be swapped afterwards."""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from secretfs import attach, mountinfo
from secretfs.errors import MountpointError

__all__ = ["open_mountpoint"]


def open_mountpoint(path: str, *, force: bool) -> tuple[int, str]:
    """Open the directory `path` (O_PATH) and return the descriptor with its absolute path.

    A mount of the caller that lost its daemon is cleared away first. With `force` a directory that is not empty, or
    that somebody else could rename, is accepted.

    Raises:
        MountpointError: naming what is wrong with it.
    """
    _clear_dead(path)
    path = mountinfo.settled_path(path)
    if mountinfo.find(path) is not None:
        raise MountpointError(f"a secretfs is mounted on {path!r} already", hint=f"secretfs umount {path}")
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        if not force:
            _require_empty(fd, path)
            _require_trusted_parents(path)
    except BaseException:
        os.close(fd)
        raise
    return fd, path


def _clear_dead(path: str) -> None:
    """Unmount what a daemon that was killed together with its parent has left there."""
    mount = mountinfo.find(path)
    if mount is None or mount.user_id not in (os.geteuid(), 0) or (mount.user_id == 0 and os.geteuid() != 0):
        return
    try:
        os.statvfs(mount.mountpoint)  # the daemon is asked; stat(2) may be answered from the cache of the kernel
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            attach.detach(mount.mountpoint, lazy=True)


def _unusable(path: str, error: OSError) -> MountpointError:
    if error.errno == errno.ENOENT:
        return MountpointError(f"the mountpoint {path!r} does not exist", hint=f"mkdir {path}")
    if error.errno == errno.ENOTDIR:
        return MountpointError(f"the mountpoint {path!r} is not a directory")
    return MountpointError(f"the mountpoint {path!r} cannot be opened: {os.strerror(error.errno or 0).lower()}")


def _require_empty(fd: int, path: str) -> None:
    with contextlib.suppress(PermissionError):  # unreadable: nobody could see what the mount hides
        listing = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
        try:
            empty = not os.listdir(listing)
        finally:
            os.close(listing)
        if not empty:
            raise MountpointError(
                f"the mountpoint {path!r} is not empty", hint="use an empty directory, or --force to hide what is in it"
            )


def _require_trusted_parents(path: str) -> None:
    """For root: nobody else may be able to rename the mountpoint away and put something else in its place."""
    if os.geteuid() != 0:
        return
    trusted = {0, os.getuid(), int(os.environ.get("SUDO_UID", "0"))}
    parent = os.path.dirname(path)
    while True:
        status = os.stat(parent)
        if status.st_uid not in trusted:
            raise MountpointError(
                f"the mountpoint {path!r} is under {parent!r}, whose owner (uid {status.st_uid}) could replace it",
                hint="mount under a directory of root's, or use --force",
            )
        if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
            raise MountpointError(
                f"the mountpoint {path!r} is under {parent!r}, in which everybody may rename it",
                hint=f"chmod o-w {parent}, mount elsewhere, or use --force",
            )
        if parent == "/":
            return
        parent = os.path.dirname(parent)
