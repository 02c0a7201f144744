"""The process that holds the secrets of one mount: build the file system, serve it, wipe it.

It is forked by `mount.py` from a hardened parent and talks to it over one socket, a message a JSON object:

    daemon -> parent   {"prepared": PID}    memory is there; the parent now mounts and sends /dev/fuse's descriptor
                       {"ready": {...}}     the kernel has been answered; what the person who mounts is told
                       {"failed": {...}}    it gives up, and why
                       {"detach": true}     a signal came: please unmount; answered by one byte
                       {"ended": N}         it has wiped everything, and will exit with N
    end of file: the daemon is gone, however that came about.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import socket
from dataclasses import dataclass, replace
from typing import Any

from secretfs import attach, budget, cgroup, libc, registry
from secretfs.area import wipe_all
from secretfs.confine import confine
from secretfs.errors import BackendUnavailable, LimitError, MountError, SecretFSError, TracedError, UsageError
from secretfs.filesystem import Filesystem
from secretfs.interface import Guarantees
from secretfs.quoting import one_line, reason_of
from secretfs.session import ENDING, Session
from secretfs.window import Window

__all__ = ["MountOptions", "run", "send"]

SPIN = 50
"""Microseconds to poll for the next request before sleeping; 20 to 50 are best, more gains nothing."""

_REFUSED = "free memory and descriptors, and allow in a container what its seccomp profile may refuse"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MountOptions:
    """What `secretfs mount` was asked for. Sizes are bytes; None means the default."""

    path: str
    backend: str | None = None
    size: int | None = None
    max_files: int | None = None
    mode: int = 0o700
    allow_other: bool = False
    allow_dev: bool = False
    allow_suid: bool = False
    cached: bool = False
    spin: int | None = None
    force: bool = False
    guard: bool = False
    flags: tuple[str, ...] = ()
    """Words of attach.FLAGS, beyond nodev and nosuid."""
    source: str = "secretfs"
    """What the mount table shows as the source."""

    def mount_flags(self) -> tuple[str, ...]:
        """The flags that the kernel is to be given."""
        return (*self.flags, *["nodev"] * (not self.allow_dev), *["nosuid"] * (not self.allow_suid))


def send(channel: socket.socket, **message: Any) -> None:
    """Send one message."""
    channel.send(json.dumps(message).encode())


def run(options: MountOptions, channel: socket.socket, unguarded: TracedError | None = None) -> int:
    """Be the daemon of one mount until its end, and return an exit code; give up if it was to be guarded and is not."""
    if unguarded is not None:
        _give_up(channel, unguarded)
        return unguarded.exit_code
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # let in while serving only: wiping must not be interrupted
    try:
        mount = _Mount(options, channel)
    except SecretFSError as error:
        _give_up(channel, error)
        return error.exit_code
    except OSError as error:
        _give_up(channel, MountError(f"the mount could not be prepared: {reason_of(error)}", hint=_REFUSED))
        return MountError.exit_code
    except Exception as error:  # noqa: BLE001 - whoever mounts is to hear of it
        what = one_line(f"{type(error).__name__}: {error}")
        _give_up(channel, SecretFSError(f"the mount could not be prepared: {what}", hint="this is a bug: report it"))
        return SecretFSError.exit_code
    try:
        send(channel, prepared=os.getpid())
        _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
        if not descriptors:
            return 0  # the parent could not mount and has said so
        mount.serve(descriptors[0])
        return 0
    except Exception as error:  # noqa: BLE001 - nothing may leave here with bytes of a secret in a traceback
        log.error("the daemon failed: %s", reason_of(error))
        if not mount.answers:
            _give_up(
                channel, MountError(f"the daemon failed before the mount was ready: {reason_of(error)}", hint=_REFUSED)
            )
        return 1
    finally:
        mount.close()


def _give_up(channel: socket.socket, error: SecretFSError) -> None:
    send(channel, failed={"message": str(error), "hint": error.hint, "exit_code": error.exit_code})


class _Mount:
    """The memory and the facts of one mount."""

    def __init__(self, options: MountOptions, channel: socket.socket) -> None:
        self.answers = False
        """Whether whoever mounts was told that the mount is ready."""
        self._options = options
        self._channel = channel
        self._choice = registry.choose(options.backend)
        if options.cached and self._choice.policy == "require":
            raise UsageError(
                "--cached keeps plaintext in the page cache, which the backend asked for cannot protect",
                hint="leave out --cached, or --backend",
            )
        size, self._short = budget.affordable_size(options.size)
        try:
            self._window = Window(attach.MAX_READ)
            self._session = Session(self._window, SPIN if options.spin is None else options.spin)
            self._require_no_residue()
            self._filesystem = Filesystem(
                self._choice.backend, size=size, max_files=options.max_files or max(1024, size // 64),
                uid=os.geteuid(), gid=os.getegid(), mode=options.mode, flags=options.flags,
            )  # fmt: skip
        except OSError as error:
            raise LimitError(
                f"memory cannot be had: {os.strerror(error.errno or 0).lower()}",
                hint="free memory, or a smaller --size",
            ) from error
        cgroup.leave(budget.RESERVE)

    @property
    def guarantees(self) -> Guarantees:
        """What holds for files in this mount."""
        held = self._choice.backend.guarantees
        if self._options.cached:  # plaintext is in the page cache, ordinary memory of the kernel's
            held = replace(
                held, off_direct_map=False, refuses_pinning=False, cleared_by_kernel=False, not_hibernated=False
            )
        return replace(held, no_residue=held.no_residue and self._session.no_residue)

    def status(self) -> bytes:
        """The object that `secretfs status --json` shows, all but the mountpoint."""
        full = self._filesystem.statistics()
        return json.dumps(
            {
                "backend": self._choice.backend.name,
                "policy": self._choice.policy,
                "guarantees": self.guarantees.as_dict(),
                "lost": self._lost(),
                "files": full.files,
                "files_limit": full.max_files,
                "bytes": full.used,
                "size": full.size,
                "locked_bytes": libc.locked_bytes(),
                "lock_limit": libc.lock_limit(),
                "uid": os.geteuid(),
                "native": {"shim": self._session.shim},
            }
        ).encode()

    def serve(self, fd: int) -> None:
        """Answer the kernel on /dev/fuse (`fd`) until the mount ends or a signal comes."""
        from secretfs.fuse import STATUS, Operations

        fast = self._session.fast_files(direct_io=not self._options.cached)
        if fast is not None:
            self._filesystem.watch_names(fast.names)
        operations = Operations(
            self._filesystem, self._window, owner=os.geteuid(), cached=self._options.cached,
            status={STATUS: self.status, PID: lambda: str(os.getpid()).encode()},
            ready=self._ready, shim=self._session.loaded(), fast=fast,
        )  # fmt: skip
        for failure in confine():
            log.warning("%s", failure)
        self._session.serve(fd, operations, lambda: _ask_to_detach(self._channel))

    def close(self) -> None:
        """Wipe everything."""
        self._filesystem.close()
        self._window.close()
        wipe_all()

    def _ready(self) -> None:
        """The first request is being answered."""
        self._session.verify_shim()
        try:
            self._require_no_residue()
        except SecretFSError as error:
            _give_up(self._channel, error)
            return
        send(self._channel, ready={"backend": self._choice.backend.name, "warnings": self._warnings()})
        self.answers = True

    def _require_no_residue(self) -> None:
        if not self._session.no_residue and self._choice.policy == "require":
            raise BackendUnavailable(
                f"the daemon would keep copies of what passes through it: the native shim is {self._session.shim}",
                hint="see `secretfs backends`, or use --backend auto",
            )

    def _warnings(self) -> list[tuple[str, str]]:
        """Each with its remedy."""
        found = []
        if self._choice.warning:
            found.append((self._choice.warning, self._choice.hint))
        if self._short is not None:
            said = f"a size of {self._options.size} bytes {self._short.says}; beyond that a write is ENOSPC"
            found.append((said, self._short.remedy))
        if not self._session.no_residue:
            found.append((f"not guaranteed: no_residue, because the native shim is {self._session.shim}", ""))
        elif self._session.shim is not True:
            found.append((f"the native shim is {self._session.shim}", ""))
        if self._options.cached:
            lost = ", ".join(self.guarantees.lost_against(self._choice.backend.guarantees))
            found.append(("--cached keeps plaintext in the page cache" + f"; not guaranteed: {lost}" * bool(lost), ""))
        return found

    def _lost(self) -> list[str]:
        here = self.guarantees.lost_against(self._choice.backend.guarantees)
        return [name for name in Guarantees.names() if name in self._choice.lost or name in here]


PID = b"user.secretfs.pid"


def _ask_to_detach(channel: socket.socket) -> None:
    """Let the parent unmount; it may be gone (kill -9), and then this process tries."""
    try:
        send(channel, detach=True)
        if channel.recv(1):
            return
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ECONNRESET):
            raise
    log.warning("the parent process is gone; `secretfs umount` clears what may be left of the mount")
