"""Becoming the command: signals, limits, filter, exec. Runs in the process that the command takes over.

Whatever Python has changed for itself is put back: signals that it ignores, a variable that it sets.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shlex
import signal
from collections.abc import Iterable
from typing import NoReturn

from secretfs import libc
from secretfs_emulator.supervisor import notify, system
from secretfs_emulator.supervisor.failure import NOT_EXECUTABLE, NOT_FOUND, RunError, reason

__all__ = ["execute", "install", "limit_locked_memory"]

_CAP_AMBIENT_LOWER = 3


def execute(command: tuple[str, ...], mask: Iterable[int] | None = None) -> NoReturn:
    """Replace this process by the command.

    Raises:
        RunError: with 127 if there is no such program, 126 if it cannot be executed.
    """
    environment = libc.original_environment()
    for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored_by_python, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # one that comes before exec would only be noted
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        os.execvpe(command[0], command, environment)  # noqa: S606 - becoming the command is what this is for
    except (OSError, ValueError) as error:
        raise _not_executed(command[0], error) from error


def _not_executed(name: str, error: OSError | ValueError) -> RunError:
    code = getattr(error, "errno", None)
    if not name or code in (errno.ENOENT, errno.ENOTDIR):
        if "/" in name and os.path.exists(name):
            return RunError(
                f"{name!r} cannot be executed: its interpreter does not exist",
                hint=f"see its first line, or `file {shlex.quote(name)}`", exit_code=NOT_EXECUTABLE,
            )  # fmt: skip
        return RunError(f"there is no program {name!r}", exit_code=NOT_FOUND)
    what = "it is a directory" if os.path.isdir(name) else reason(error)
    hint = f"chmod +x {shlex.quote(name)}" if code == errno.EACCES and os.path.isfile(name) else ""
    return RunError(f"{name!r} cannot be executed: {what}", hint=hint, exit_code=NOT_EXECUTABLE)


def limit_locked_memory(size: int) -> None:
    """RLIMIT_MEMLOCK, and no CAP_IPC_LOCK, which would be above it: exec gives root what is in the bounding set."""
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (size, size))
        if libc.effective_capability(libc.CAP_IPC_LOCK):
            system.prctl(system.PR_CAPBSET_DROP, libc.CAP_IPC_LOCK)
            with contextlib.suppress(OSError):  # kernels without ambient capabilities
                system.prctl(system.PR_CAP_AMBIENT, _CAP_AMBIENT_LOWER, libc.CAP_IPC_LOCK)
    except (OSError, ValueError) as error:
        raise RunError(
            f"the lock limit cannot be set to {size} bytes: {reason(error)}",
            hint="give a size of at most the hard limit (ulimit -H -l), or run as root",
        ) from error


def install(program: bytes, *, listener: bool) -> int:
    """Put a filter over this process. Only who has CAP_SYS_ADMIN may do that without no_new_privs.

    Raises:
        RunError: a filter may not be installed here.
    """
    try:
        if not libc.effective_capability(libc.CAP_SYS_ADMIN):
            system.prctl(system.PR_SET_NO_NEW_PRIVS, 1)
        return notify.install(program, listener=listener)
    except OSError as error:
        raise _not_installed(error) from error


def _not_installed(error: OSError) -> RunError:
    if error.errno == errno.EBUSY:
        return RunError(
            "another supervisor (secretfs run, or a container manager) already serves this process tree, and the "
            "kernel allows one only",
            hint="inside `secretfs run --emulate`, leave out the inner `secretfs run` or its options",
        )
    if error.errno == errno.EINVAL:
        return RunError(
            "this kernel has no seccomp user notification, so memfd_secret cannot be emulated",
            hint="use Linux 5.9 or newer, with CONFIG_SECCOMP_FILTER",
        )
    return RunError(
        f"a seccomp filter cannot be installed: {reason(error)}",
        hint="allow seccomp(2) in the container's profile, for example docker run --security-opt seccomp=PROFILE.json",
    )
