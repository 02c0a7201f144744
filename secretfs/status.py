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
from typing import Any, NamedTuple

from secretfs import attach, mountinfo
from secretfs.errors import MountBusy, MountError, NotMounted
from secretfs.mountinfo import Mount
from secretfs.quoting import quoted

__all__ = ["Unmounted", "status_of", "unmount", "visible_mounts"]

STATUS, PID = "user.secretfs.status", "user.secretfs.pid"
PATIENCE = 10.0
"""Seconds to wait for an answer, and for a daemon to finish wiping."""
PATIENCE_LAZY = 2.0
"""Seconds to wait for either where the caller wants it out of the tree in any case."""


def visible_mounts() -> list[Mount]:
    """The caller's mounts; root sees all."""
    uid = os.geteuid()
    return [mount for mount in mountinfo.mounts() if uid in (0, mount.user_id)]


def status_of(mount: Mount) -> dict[str, Any]:
    """What `secretfs status --json` shows of one mount.

    Raises:
        NotMounted: it is somebody else's.
        MountError: it does not answer, and why.
    """
    _require_owner(mount, "ask it")
    answer = _ask(mount, STATUS, PATIENCE)
    return {"mountpoint": mount.mountpoint, **json.loads(answer)}


class Unmounted(NamedTuple):
    """What an unmount has come to."""

    files: int | None
    """How many files there were; None where nobody could tell."""
    wiped: bool
    """Whether they are gone; else they go when what uses them is closed."""
    daemon_was_dead: bool = False


def unmount(path: str, *, lazy: bool) -> Unmounted:
    """Unmount the caller's secretfs at `path`, and wait until it is wiped.

    With `lazy` it is taken out of the tree whatever its daemon and its files are doing.

    Raises:
        NotMounted: nothing of the caller's is mounted there.
        MountBusy: files are open, and `lazy` was not asked for.
        MountError: it is unmounted here, but its files live on: a mount namespace elsewhere has a copy of the mount.
    """
    mount = mountinfo.find(path)
    if mount is None:
        raise NotMounted(f"no secretfs is mounted on {path!r}", hint="`secretfs status` lists what is mounted")
    _require_owner(mount, "unmount it")
    try:
        patience = PATIENCE_LAZY if lazy else PATIENCE
        files = int(json.loads(_ask(mount, STATUS, patience))["files"])
        pid = int(_ask(mount, PID, patience))
    except MountError as error:
        dead = error.errno in (errno.ENOTCONN, errno.ECONNREFUSED)  # its daemon is dead, or never came to serve it
        if not dead and not lazy:
            raise
        attach.detach(mount.mountpoint, lazy=True)
        return Unmounted(None, wiped=dead, daemon_was_dead=dead)
    with _Watched(pid) as daemon_process:
        if lazy:
            return Unmounted(files, wiped=_detach_lazily(mount) and daemon_process.has_ended(PATIENCE_LAZY))
        attach.detach(mount.mountpoint, lazy=False)
        if not daemon_process.has_ended(PATIENCE):
            raise MountError(
                f"{mount.mountpoint!r} is unmounted here, but its files are not wiped yet: it is still mounted in "
                f"another mount namespace (a container, a service, unshare), and process {pid} serves it",
                hint=f"end that one, or wipe them now: kill {pid} (`pgrep -af secretfs` still lists it later)",
            )
    return Unmounted(files, wiped=True)


def _detach_lazily(mount: Mount) -> bool:
    """Detach it, and return whether nothing was in use."""
    try:
        attach.detach(mount.mountpoint, lazy=False)
    except MountBusy:
        attach.detach(mount.mountpoint, lazy=True)
        return False
    return True


def _require_owner(mount: Mount, deed: str) -> None:
    if os.geteuid() not in (0, mount.user_id):
        raise NotMounted(
            f"the secretfs on {mount.mountpoint!r} belongs to uid {mount.user_id}",
            hint=f"only its owner and root can {deed}",
        )


class _Watched:
    """A process that is waited for through a pidfd, never signalled."""

    def __init__(self, pid: int) -> None:
        try:
            self._fd = os.pidfd_open(pid) if pid else -1
        except OSError:
            self._fd = -1  # another pid namespace: its number means nothing here

    def has_ended(self, patience: float) -> bool:
        """Wait for its end; a process that cannot be watched is believed to have ended."""
        return self._fd < 0 or bool(select.select([self._fd], [], [], patience)[0])

    def __enter__(self) -> _Watched:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def _ask(mount: Mount, question: str, patience: float) -> bytes:
    """Ask for the attribute `question` in a child process that has become the mount's user."""
    try:
        answer = _answered(mount, question, patience)
    except OSError as error:
        raise _no_answer(mount, error.errno or errno.EIO) from error
    if answer[:1] == b"+":
        return answer[1:]
    raise _no_answer(mount, int(answer[1:] or errno.EIO))


def _answered(mount: Mount, question: str, patience: float) -> bytes:
    """What the child wrote."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _answer(mount, question, writer)
    os.close(writer)
    answer = b""
    try:
        while select.select([reader], [], [], patience)[0]:
            chunk = os.read(reader, 65536)
            if not chunk:
                break
            answer += chunk
        else:
            os.kill(pid, signal.SIGKILL)
            raise MountError(
                f"the mount on {mount.mountpoint!r} does not answer",
                hint=f"wait, or take it out of the tree: secretfs umount --lazy {quoted(mount.mountpoint)}",
            )
    finally:
        os.close(reader)
        os.waitpid(pid, 0)
    return answer


def _answer(mount: Mount, question: str, writer: int) -> None:
    """The child: "+" and the answer, or "-" and an errno. Never returns."""
    code = 1
    try:
        try:
            if os.geteuid() == 0 != mount.user_id:
                os.setgroups([])
                os.setgid(mount.group_id)
                os.setuid(mount.user_id)
            os.write(writer, b"+" + os.getxattr(mount.mountpoint, question))
            code = 0
        except OSError as error:
            os.write(writer, b"-%d" % (error.errno or errno.EIO))
    finally:
        os._exit(code)


def _no_answer(mount: Mount, code: int) -> MountError:
    if code == errno.ENOTCONN:
        error = MountError(
            f"the daemon of the mount on {mount.mountpoint!r} is dead",
            hint=f"secretfs umount {quoted(mount.mountpoint)}",
        )
    else:
        error = MountError(
            f"the mount on {mount.mountpoint!r} cannot be asked: {os.strerror(code).lower()}",
            hint="look at what its daemon has logged (syslog, or the terminal of --foreground)",
        )
    error.errno = code
    return error
