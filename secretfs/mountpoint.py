"""Whether a directory can be mounted on: checked once, on a descriptor, so that nothing can be swapped afterwards."""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from secretfs import attach, mountinfo
from secretfs.errors import MountpointError
from secretfs.quoting import quoted

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
    mount = mountinfo.find(path)
    if mount is not None:
        raise MountpointError(f"a secretfs is mounted on {path!r} already", hint=_how_to_clear(mount))
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
    if attach.is_dead(mount.mountpoint):
        attach.detach(mount.mountpoint, lazy=True)


def _how_to_clear(mount: mountinfo.Mount) -> str:
    if os.geteuid() in (0, mount.user_id):
        return f"secretfs umount {quoted(mount.mountpoint)}"
    return f"mount elsewhere: that one is of uid {mount.user_id}, and only its owner and root unmount it"


def _unusable(path: str, error: OSError) -> MountpointError:
    if error.errno == errno.ENOENT:
        flag = "" if os.path.isdir(os.path.dirname(path)) else "-p "
        return MountpointError(f"the mountpoint {path!r} does not exist", hint=f"mkdir {flag}{quoted(path)}")
    reason = os.strerror(error.errno or 0).lower()
    if error.errno == errno.ENOTDIR and os.path.islink(path):
        error.errno, reason = errno.ELOOP, "the symbolic link leads in a circle"
    if error.errno == errno.ENOTDIR:
        return MountpointError(f"the mountpoint {path!r} is not a directory", hint="name an empty directory")
    return MountpointError(f"the mountpoint {path!r} cannot be opened: {reason}", hint="name a directory of your own")


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
    """For root: nobody else may be able to put something else in the mountpoint's place.

    Renaming it away is one way. Removing it is another: rmdir(2) in a mount namespace that has no copy of the mount
    takes the mount away in all of them (kernel commit 8ed936b5671b).
    """
    if os.geteuid() != 0:
        return
    below = path
    while below != "/":
        parent = os.path.dirname(below)
        _require_trusted_owner(path, parent, os.stat(parent))
        _require_closed(path, parent, os.lstat(below))
        below = parent


def _require_trusted_owner(path: str, place: str, status: os.stat_result) -> None:
    if status.st_uid in _trusted_users():
        return
    owner = f"uid {status.st_uid}" if _is_known(status.st_uid) else "whom this user namespace does not know"
    raise MountpointError(
        f"the mountpoint {path!r} is under {place!r}, whose owner ({owner}) could replace it",
        hint="mount under a directory of root's, or use --force",
    )


def _require_closed(path: str, parent: str, child: os.stat_result) -> None:
    """Nobody else may change what is in `parent`; where the sticky bit keeps them to what they own, that is enough."""
    who = _others_who_write(parent)
    if not who:
        return
    if not os.stat(parent).st_mode & stat.S_ISVTX:
        raise MountpointError(
            f"the mountpoint {path!r} is under {parent!r}, in which {who} may rename it",
            hint=f"chmod go-w {quoted(parent)}, mount elsewhere, or use --force",
        )
    if child.st_uid not in _trusted_users():
        raise MountpointError(
            f"the mountpoint {path!r} is under {parent!r}, in which uid {child.st_uid} may remove what leads to it",
            hint="mount under a directory that only root can write, or use --force",
        )


def _others_who_write(directory: str) -> str:
    """Who but the owner and the caller's own group may write in `directory`, or ""."""
    status = os.stat(directory)
    if status.st_mode & stat.S_IWOTH:
        return "everybody"
    if not status.st_mode & stat.S_IWGRP:  # with an access control list this bit is its mask (acl(5))
        return ""
    with contextlib.suppress(OSError):
        if "system.posix_acl_access" in os.listxattr(directory):
            return "somebody on its access control list"
    return "" if status.st_gid in _trusted_groups() else f"the group {status.st_gid}"


def _trusted_users() -> set[int]:
    """Root, the caller, and who called sudo."""
    sudo = os.environ.get("SUDO_UID", "")
    return {0, os.getuid()} | ({int(sudo)} if sudo.isdecimal() else set())


def _trusted_groups() -> set[int]:
    """The groups of root and of the caller, and that of who called sudo if it is theirs alone: adduser(8) gives those
    the number of the user, while a group such as users has others in it."""
    sudo = os.environ.get("SUDO_GID", "")
    private = sudo.isdecimal() and sudo == os.environ.get("SUDO_UID")
    return {0, os.getgid()} | ({int(sudo)} if private else set())


def _is_known(uid: int) -> bool:
    """Whether this user namespace has that user; the kernel shows all others as one (user_namespaces(7))."""
    with open("/proc/self/uid_map", encoding="ascii") as lines:
        ranges = [tuple(map(int, line.split())) for line in lines]
    return any(first <= uid < first + count for first, _, count in ranges)
