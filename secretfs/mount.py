"""One mount's life, seen from the parent: start the daemon, mount, wait, unmount.

The parent holds no secret and no descriptor of /dev/fuse. It outlives the daemon, whatever ends that (kill -9 and the
OOM killer included), and then takes the mountpoint out of the tree, which a dead daemon could not do and a daemon that
has given up its privileges may not.

    secretfs mount ---fork---> parent ---fork---> daemon (daemon.py)
         ^ one line of JSON      |   socketpair     |
         +-----------------------+  prepared, ready +-- pyfuse3, trio, the areas
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import select
import signal
import socket
from collections.abc import Callable
from typing import Any

from secretfs import attach, budget, daemon, guard, libc, mountinfo
from secretfs.daemon import MountOptions
from secretfs.errors import MountError, SecretFSError, TracedError
from secretfs.mountpoint import open_mountpoint
from secretfs.process import close_descriptors, harden, leave_terminal, log_to, notify_ready
from secretfs.quoting import printable, quoted, reason_of
from secretfs.session import ENDING

__all__ = ["Failure", "mount_detached", "mount_foreground"]

_DIED = "see the system log; if the kernel was out of memory, `dmesg` has it"
_HIDDEN = (
    "the mount is seen in this service only: the service has a mount namespace of its own, and what others write to "
    "the same path is not in secret memory",
    "leave out ProtectSystem=, PrivateTmp=, ProtectKernelTunables= and what else gives the unit a mount namespace",
)
Report = Callable[[dict[str, Any]], None]
log = logging.getLogger(__name__)


class Failure(SecretFSError):
    """An error that happened in another process, with its exit code."""

    def __init__(self, message: str, hint: str = "", exit_code: int = 1) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


def mount_foreground(options: MountOptions, report: Report) -> int:
    """Mount and stay until the mount ends; `report` gets the daemon's summary once the mount answers.

    Returns:
        An exit code: 0 when the mount has ended in order and is gone.

    Raises:
        SecretFSError: it could not be mounted.
    """
    log_to(syslog=False)

    def report_and_notify(message: dict[str, Any]) -> None:
        hidden = [_HIDDEN] if _is_hidden(message["mountpoint"]) else []
        report({**message, "warnings": [*message["warnings"], *hidden]})
        notify_ready()

    return _Parent(options, report_and_notify).live()


def _is_hidden(path: str) -> bool:
    """Whether a service manager started us in a mount namespace of our own, and so does not see the mount."""
    mount = mountinfo.find(path)
    if mount is None or not os.environ.get("NOTIFY_SOCKET"):
        return False
    try:
        return all(seen.device != mount.device for seen in mountinfo.mounts(os.getppid()))
    except OSError:
        return False  # it may not be looked at


def mount_detached(options: MountOptions) -> dict[str, Any]:
    """Mount, return the daemon's summary when the mount answers, and leave the mount to processes of its own.

    The path must be absolute: they leave the working directory.

    Raises:
        SecretFSError: it could not be mounted.
    """
    harden()
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        os.close(reader)
        _detached(options, writer)
    os.close(writer)
    try:
        with open(reader, encoding="utf-8") as lines:
            answer = lines.readline()
    except BaseException:  # Ctrl-C, or nobody would hear what becomes of it
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        raise
    if not answer:
        raise MountError("the process that was to mount has died", hint=_DIED)
    message: dict[str, Any] = json.loads(answer)
    if "failed" in message:
        os.waitpid(child, 0)
        raise Failure(**message["failed"])
    return message


def _detached(options: MountOptions, writer: int) -> None:
    """The parent process of a detached mount. Never returns."""
    code, awaited = 1, True

    def report(message: dict[str, Any]) -> None:
        nonlocal awaited
        if awaited:
            os.write(writer, json.dumps(message).encode() + b"\n")
            os.close(writer)
            awaited = False

    try:
        leave_terminal(writer)
        log_to(syslog=True)
        code = _Parent(options, report).live()
    except SecretFSError as error:
        report({"failed": {"message": str(error), "hint": error.hint, "exit_code": error.exit_code}})
        code = error.exit_code
    except Exception as error:  # noqa: BLE001 - a forked child must not run its caller's handlers
        reason = reason_of(error)
        if not awaited:
            log.error("the parent process failed: %s", reason)
        report({"failed": {"message": f"mounting failed: {reason}"}})
    finally:
        os._exit(code)


class _Parent:
    """The small process that mounts, waits for the daemon's end, and unmounts."""

    def __init__(self, options: MountOptions, report: Report) -> None:
        """Harden this process, check the mountpoint and start the daemon."""
        harden()
        self._options = options
        self._report = report
        self._attached = False
        self._device = ""  # major:minor, once it is mounted
        self._unmounted = -1  # from here something can be read when it is not any more, and the number another's
        attach.require_fuse()
        self._directory, self._path = open_mountpoint(options.path, force=options.force)
        budget.require_memory()
        self._wake = _wake_on_signals()
        self._channel, self._child = _fork_daemon(options)
        self._daemon = self._child
        """What signals are for; with a guard it is a grandchild."""
        self._ended: int | None = None

    def live(self) -> int:
        """Mount, serve, unmount."""
        try:
            self._start()
            self._wait()
        except BaseException:  # also where it cannot wait: nobody would unmount when the daemon ends
            self._take_back()
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._daemon, signal.SIGTERM)
            self._reap()
            raise
        self._detach()
        code = self._reap()
        return code if not self._mounted() else 1

    def _start(self) -> None:
        self._daemon = self._expect("prepared")
        try:
            device = attach.attach(
                self._directory, self._path, source=self._options.source, allow_other=self._options.allow_other,
                flags=self._options.mount_flags(),
            )  # fmt: skip
        finally:
            os.close(self._directory)
        self._attached = True
        try:
            mount = mountinfo.find(self._path)
            self._device = mount.device if mount else ""
            socket.send_fds(self._channel, [b"+"], [device])
        finally:
            os.close(device)
        summary = self._expect("ready")
        self._watch()
        log.info("mounted on %s, backend %s", printable(self._path), summary["backend"])
        self._report({**summary, "mountpoint": self._path})

    def _expect(self, kind: str) -> Any:
        """Wait for one message of the daemon's."""
        message = self._receive()
        if message is None:
            raise MountError("the daemon died before the mount was ready", hint=_DIED)
        if "failed" in message:
            raise Failure(**message["failed"])
        if message.get("ended"):
            raise MountError("the daemon failed before the mount was ready", hint=_DIED)
        if kind not in message:
            raise MountError("the mount was stopped by a signal before it was ready", hint="mount again")
        return message[kind]

    def _wait(self) -> None:
        """Until the daemon is gone, or a signal says that it should be."""
        while True:
            message = self._receive()
            if message is None:
                return
            if "ended" in message:
                self._ended = message["ended"]
            if "detach" in message:
                self._detach()
                self._channel.send(b"+")
            if "signal" in message:
                self._detach()
                os.kill(self._daemon, signal.SIGTERM)  # not reaped yet by us or its guard: the pid is surely its

    def _receive(self) -> dict[str, Any] | None:
        """The next message of the daemon's, {"signal": true} after a signal, or None when the daemon is gone."""
        while True:
            channel = self._channel.fileno()
            readable, _, _ = select.select([channel, self._wake], [], [])
            if channel in readable:  # first: a mount that is ready is not one that was stopped before it was
                try:
                    message = self._channel.recv(65536)
                except ConnectionResetError:
                    message = b""
                decoded: dict[str, Any] | None = json.loads(message) if message else None
                return decoded
            if any(number in ENDING for number in os.read(self._wake, 64)):
                return {"signal": True}

    def _watch(self) -> None:
        """Notice when the file system is gone: from then on the kernel gives its number to others.

        An ordinary user whose mount has a mode without read permission cannot.
        """
        with contextlib.suppress(OSError):
            self._unmounted = libc.watch_for_unmount(self._path)
            mount = mountinfo.find(self._path)
            if mount is None or mount.device != self._device:  # already
                self._device, self._attached = "", False

    def _mounted(self) -> mountinfo.Mount | None:
        """Our mount, wherever it was moved to."""
        found = next((m for m in mountinfo.mounts() if self._device and m.device == self._device), None)
        if self._unmounted >= 0 and select.select([self._unmounted], [], [], 0)[0]:
            self._device, self._attached = "", False
            return None
        return found

    def _detach(self) -> None:
        """Take the mount out of the tree, lazily: whoever has a file open gets ENOTCONN when the daemon ends."""
        mount = self._mounted()
        if mount is not None:
            self._take_out(mount.mountpoint)

    def _take_back(self) -> None:
        """Detach a mount that is given up; where the table does not show it, at the path where it was made."""
        where = self._path if self._attached else None
        if self._device:
            with contextlib.suppress(OSError):
                mount = self._mounted()
                where = mount.mountpoint if mount else None
        if where is not None:
            self._take_out(where)

    def _take_out(self, mountpoint: str) -> None:
        try:
            attach.detach(mountpoint, lazy=True)
        except SecretFSError as error:
            log.error("%s; secretfs umount %s clears it", error, quoted(mountpoint))

    def _reap(self) -> int:
        """Close the channel, which ends a daemon that still waits for its descriptor, and return how it ended."""
        self._channel.close()
        _, status = os.waitpid(self._child, 0)
        if self._ended is not None:  # its guard is always killed
            return self._ended
        if os.WIFSIGNALED(status):
            log.error("the daemon was killed by %s", signal.Signals(os.WTERMSIG(status)).name)
            return 1
        return os.WEXITSTATUS(status)


def _fork_daemon(options: MountOptions) -> tuple[socket.socket, int]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid:
        theirs.close()
        return ours, pid
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in ENDING:
            signal.signal(number, signal.SIG_DFL)
        ours.close()
        close_descriptors(theirs.fileno())
        serve = functools.partial(_serve, options, theirs)
        code = guard.run(serve, theirs.fileno()) if options.guard else serve(None)
    finally:
        os._exit(code)


def _serve(options: MountOptions, channel: socket.socket, unguarded: TracedError | None) -> int:
    code = daemon.run(options, channel, unguarded)
    with contextlib.suppress(OSError):  # the parent is gone
        daemon.send(channel, ended=code)
    return code


def _wake_on_signals() -> int:
    """A descriptor from which the numbers of signals that came can be read."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in ENDING:
        signal.signal(number, lambda *_: None)
    return reader
