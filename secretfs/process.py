"""What a process does to itself: harden, leave the terminal, log.

Hardening comes before any secret. The process that holds secrets is forked from one that is hardened already, so there
is no moment at which another process of the same user could have opened its memory: a fork keeps the dumpable flag.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import logging.handlers
import os
import resource
import socket
import sys

from secretfs import libc
from secretfs.errors import SecretFSError, TracedError

__all__ = ["close_descriptors", "harden", "leave_terminal", "log_to", "notify_ready"]

SYSLOG = "/dev/log"


def harden() -> None:
    """No core dump, no tracer and no /proc/PID/mem for the same user (PR_SET_DUMPABLE, RLIMIT_CORE), umask 077.

    Raises:
        TracedError: a debugger is attached already.
        SecretFSError: it may not be done here.
    """
    try:
        libc.set_dumpable(dumpable=False)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (OSError, ValueError) as error:  # ValueError: how Python says EPERM of a limit
        reason = os.strerror(getattr(error, "errno", errno.EPERM)).lower()
        raise SecretFSError(
            f"core dumps cannot be switched off: {reason}", hint="allow prctl and prlimit64 in the seccomp profile"
        ) from error
    os.umask(0o077)
    tracer = libc.proc_status("TracerPid")
    if tracer not in ("", "0"):
        raise TracedError(
            f"refusing to start: process {tracer} is tracing this one and could read every secret",
            hint="start without strace, gdb or another debugger",
        )


def leave_terminal(*keep: int) -> None:
    """Become a session of one's own, in /, with no descriptor but `keep` and standard streams that lead nowhere."""
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    close_descriptors(*keep)


def close_descriptors(*keep: int) -> None:
    """Close every descriptor above the standard streams but `keep`."""
    first = 3
    for descriptor in sorted(keep):
        os.closerange(first, descriptor)
        first = descriptor + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def notify_ready() -> None:
    """Tell a service manager that the mount answers (sd_notify(3), Type=notify); without one do nothing."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.sendto(b"READY=1", address.replace("@", "\0", 1) if address[0] == "@" else address)


def log_to(*, syslog: bool) -> None:
    """Send this process's log to syslog, or to stderr."""
    handler: logging.Handler = logging.NullHandler()
    if not syslog:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("secretfs: %(message)s"))
    elif os.path.exists(SYSLOG):
        with contextlib.suppress(OSError):
            handler = logging.handlers.SysLogHandler(SYSLOG, logging.handlers.SysLogHandler.LOG_DAEMON)
            handler.setFormatter(logging.Formatter(f"secretfs[{os.getpid()}]: %(message)s"))
    logging.raiseExceptions = False  # or a full disk under stderr would be told there, with a traceback
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
