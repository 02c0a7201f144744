"""The process that holds the secrets of one mount: build the file system, serve it, wipe it.

It is forked by `mount.py` from a hardened parent and talks to it over one socket, a message a JSON object:

    daemon -> parent   {"prepared": {...}}  memory is there; the parent now mounts and sends /dev/fuse's descriptor
                       {"ready": true}      the kernel has been answered
                       {"failed": {...}}    it gives up, and why
                       {"detach": true}     a signal came: please unmount; answered by one byte
    end of file: the daemon is gone, however that came about.

pyfuse3 and trio are imported here, after the fork, so that the parent stays small.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from secretfs import attach, libc, registry
from secretfs.area import wipe_all
from secretfs.errors import FuseUnavailable, LimitError, LockLimitExceeded, SecretFSError, UsageError
from secretfs.filesystem import Filesystem
from secretfs.interface import Guarantees
from secretfs.window import Window

__all__ = ["BUDGET", "MountOptions", "run", "send"]

BUDGET = 3 << 20
"""Bytes of locked memory for what is not file data: the window, the receive buffer, names and half-used slabs."""
DEFAULT_SIZE = 16 << 20
SMALLEST_DEFAULT = 64 * 1024
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_EXTRA = "pip install 'memfd-secretfs[mount]' (needs gcc, python3-dev, pkg-config and libfuse3-dev)"

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
    force: bool = False


def send(channel: socket.socket, **message: Any) -> None:
    """Send one message."""
    channel.send(json.dumps(message).encode())


def run(options: MountOptions, channel: socket.socket) -> int:
    """Be the daemon of one mount until its end, and return an exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # let in while serving only: wiping must not be interrupted
    try:
        mount = _Mount(options)
    except SecretFSError as error:
        send(channel, failed={"message": str(error), "hint": error.hint, "exit_code": error.exit_code})
        return error.exit_code
    try:
        send(channel, prepared=mount.summary())
        _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
        if not descriptors:
            return 0  # the parent could not mount and has said so
        mount.serve(descriptors[0], channel)
        return 0
    except Exception as error:  # noqa: BLE001 - nothing may leave here with bytes of a secret in a traceback
        log.error("the daemon failed: %s", type(error).__name__)
        return 1
    finally:
        mount.close()


class _Mount:
    """The memory and the facts of one mount."""

    def __init__(self, options: MountOptions) -> None:
        self._options = options
        self._choice = registry.choose(options.backend)
        self.guarantees = self._choice.backend.guarantees
        if options.cached:
            self._allow_cached()
        size = _affordable_size(options.size)
        try:
            self._window = Window(attach.MAX_READ)
            self._filesystem = Filesystem(
                self._choice.backend, size=size, max_files=options.max_files or max(1024, size // 64),
                uid=os.geteuid(), gid=os.getegid(), mode=options.mode,
            )  # fmt: skip
        except OSError as error:
            raise LimitError(f"memory cannot be had: {os.strerror(error.errno or 0).lower()}") from error

    def summary(self) -> dict[str, Any]:
        """What the person who mounts is told."""
        choice = self._choice
        return {"backend": choice.backend.name, "warning": choice.warning, "hint": choice.hint if choice.lost else ""}

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
                "native": {"shim": NO_SHIM},
            }
        ).encode()

    def serve(self, fd: int, channel: socket.socket) -> None:
        """Answer the kernel on /dev/fuse (`fd`) until the mount ends or a signal comes."""
        trio, pyfuse3 = _import_fuse()
        from secretfs.fuse import STATUS, Operations

        operations = Operations(
            self._filesystem, self._window, owner=os.geteuid(), cached=self._options.cached,
            status={STATUS: self.status, PID: lambda: str(os.getpid()).encode()},
            ready=lambda: send(channel, ready=True),
        )  # fmt: skip
        pyfuse3.init(operations, f"/dev/fd/{fd}", set())
        try:
            trio.run(_serve_until_end, lambda: _ask_to_detach(channel))
        finally:
            pyfuse3.close(unmount=False)  # open handles now get ENOTCONN

    def close(self) -> None:
        """Wipe everything."""
        self._filesystem.close()
        self._window.close()
        wipe_all()

    def _allow_cached(self) -> None:
        """--cached puts plaintext into the page cache: ordinary memory of the kernel's."""
        if self._choice.policy == "require":
            raise UsageError(
                "--cached keeps plaintext in the page cache, which the backend asked for cannot protect",
                hint="leave out --cached, or --backend",
            )
        held = self._choice.backend.guarantees
        self.guarantees = Guarantees(**{n: getattr(held, n) and n not in CACHE_BREAKS for n in Guarantees.names()})

    def _lost(self) -> list[str]:
        cached = self.guarantees.lost_against(self._choice.backend.guarantees)
        return [name for name in Guarantees.names() if name in self._choice.lost or name in cached]


PID = b"user.secretfs.pid"
NO_SHIM = "this version has none"
CACHE_BREAKS = ("off_direct_map", "refuses_pinning", "cleared_by_kernel", "not_hibernated")


async def _serve_until_end(detach: Callable[[], None]) -> None:
    trio, pyfuse3 = _import_fuse()

    async def end_on_signal() -> None:
        with trio.open_signal_receiver(*ENDING) as signals:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
            try:
                nursery.start_soon(serve)
                number = await anext(aiter(signals))
            finally:
                signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        log.info("ending on %s", signal.Signals(number).name)
        await trio.to_thread.run_sync(detach)  # requests are still answered meanwhile
        pyfuse3.terminate()

    async def serve() -> None:
        # One worker: no handler ever waits, and each worker has a receive buffer of a megabyte.
        await pyfuse3.main(min_tasks=1, max_tasks=1)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(end_on_signal)


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


def _import_fuse() -> tuple[Any, Any]:
    try:
        import pyfuse3
        import trio
    except ImportError as error:
        raise FuseUnavailable(f"a mount needs pyfuse3 and trio: {error}", hint=_EXTRA) from error
    return trio, pyfuse3


def _affordable_size(asked: int | None) -> int:
    """The size of the mount, after the lock limit has been compared with it.

    Raises:
        LockLimitExceeded: not even the daemon's own budget can be locked.
        LimitError: the size that was asked for cannot be locked.
    """
    limit = libc.lock_limit()
    if limit is None:
        return asked or DEFAULT_SIZE
    used = libc.locked_bytes()
    left = limit - used - BUDGET
    if left < SMALLEST_DEFAULT:
        raise LockLimitExceeded(BUDGET + SMALLEST_DEFAULT, used=used, limit=limit)
    if asked is not None and asked > left:
        raise LimitError(
            f"a size of {asked} bytes cannot be locked: RLIMIT_MEMLOCK leaves {left} of its {limit} bytes for data",
            hint=f"use --size {left} or less, or raise the limit: `ulimit -l` as root, LimitMEMLOCK= in a systemd unit",
        )
    return asked or min(DEFAULT_SIZE, left)
