"""Asking mounts how they are, and unmounting them.

A mount answers through an extended attribute of its root. The question is put by a child process that can be given up
on when a mount does not answer, and that first becomes the mount's user where root asks about somebody else's: FUSE
refuses everybody but the owner, root included.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
from collections.abc import Callable
from typing import Any

from secretfs import attach, mountinfo
from secretfs.errors import MountError, NotMounted
from secretfs.mountinfo import Mount

__all__ = ["status_of", "unmount", "visible_mounts"]

PATIENCE = 10.0
"""Seconds to wait for an answer, and for a daemon to finish wiping."""


def visible_mounts() -> list[Mount]:
    """The caller's mounts; root sees all."""
    uid = os.geteuid()
    return [mount for mount in mountinfo.mounts() if uid in (0, mount.user_id)]


def status_of(mount: Mount) -> dict[str, Any]:
    """What `secretfs status --json` shows of one mount.

    Raises:
        MountError: it does not answer, and why.
    """
    answer = _ask(mount, lambda: os.getxattr(mount.mountpoint, "user.secretfs.status"))
    return {"mountpoint": mount.mountpoint, **json.loads(answer)}


def unmount(path: str, *, lazy: bool) -> int | None:
    """Unmount the caller's secretfs at `path` and wait until it is wiped.

    Returns:
        How many files that destroyed, or None where its daemon was dead already.

    Raises:
        NotMounted: nothing of the caller's is mounted there.
        MountBusy: files are open, and `lazy` was not asked for.
        MountError: it is unmounted here, but its files live on: a mount namespace elsewhere has a copy of the mount.
    """
    mount = mountinfo.find(path)
    if mount is None:
        raise NotMounted(f"no secretfs is mounted on {path!r}", hint="`secretfs status` lists what is mounted")
    if os.geteuid() not in (0, mount.user_id):
        raise NotMounted(
            f"the secretfs on {path!r} belongs to uid {mount.user_id}", hint="only its owner and root unmount it"
        )
    try:
        files: int | None = int(status_of(mount)["files"])
        pid = int(_ask(mount, lambda: os.getxattr(mount.mountpoint, "user.secretfs.pid")))
    except MountError as error:
        if error.errno not in (errno.ENOTCONN, errno.ECONNREFUSED):  # its daemon is dead, or never came to serve it
            raise
        files, pid, lazy = None, 0, True
    with _Watched(pid) as daemon_process:
        attach.detach(mount.mountpoint, lazy=lazy)
        if not lazy and not daemon_process.has_ended():
            raise MountError(
                f"{mount.mountpoint!r} is unmounted here, but its files are not wiped yet: it is still mounted in "
                "another mount namespace (a container, a service, unshare)",
                hint=f"end that one, or wipe them now: kill {pid}",
            )
    return files


class _Watched:
    """A process that is waited for through a pidfd, never signalled."""

    def __init__(self, pid: int) -> None:
        try:
            self._fd = os.pidfd_open(pid) if pid else -1
        except OSError:
            self._fd = -1  # another pid namespace: its number means nothing here

    def has_ended(self) -> bool:
        """Wait for its end; a process that cannot be watched is believed to have ended."""
        return self._fd < 0 or bool(select.select([self._fd], [], [], PATIENCE)[0])

    def __enter__(self) -> _Watched:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def _ask(mount: Mount, question: Callable[[], bytes]) -> bytes:
    """Put `question` in a child process that has become the mount's user."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _answer(mount, question, writer)
    os.close(writer)
    answer = b""
    try:
        while select.select([reader], [], [], PATIENCE)[0]:
            chunk = os.read(reader, 65536)
            if not chunk:
                break
            answer += chunk
        else:
            os.kill(pid, signal.SIGKILL)
            raise MountError(
                f"the mount on {mount.mountpoint!r} does not answer", hint=f"secretfs umount --lazy {mount.mountpoint}"
            )
    finally:
        os.close(reader)
        os.waitpid(pid, 0)
    if answer[:1] == b"+":
        return answer[1:]
    raise _no_answer(mount, int(answer[1:] or errno.EIO))


def _answer(mount: Mount, question: Callable[[], bytes], writer: int) -> None:
    """The child: "+" and the answer, or "-" and an errno. Never returns."""
    code = 1
    try:
        try:
            if os.geteuid() == 0 != mount.user_id:
                os.setgroups([])
                os.setgid(mount.group_id)
                os.setuid(mount.user_id)
            os.write(writer, b"+" + question())
            code = 0
        except OSError as error:
            os.write(writer, b"-%d" % (error.errno or errno.EIO))
    finally:
        os._exit(code)


def _no_answer(mount: Mount, code: int) -> MountError:
    if code == errno.ENOTCONN:
        error = MountError(
            f"the daemon of the mount on {mount.mountpoint!r} is dead", hint=f"secretfs umount {mount.mountpoint}"
        )
    else:
        error = MountError(f"the mount on {mount.mountpoint!r} cannot be asked: {os.strerror(code).lower()}")
    error.errno = code
    return error
