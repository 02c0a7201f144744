"""--guard: the daemon and a companion trace each other, so that nobody else can trace either, root included.

    parent ---fork---> guard ---fork---> daemon
                         ^ PTRACE_TRACEME  |
                         +-- PTRACE_SEIZE -+

A process has one tracer at most, so gdb, strace, gcore, py-spy and injected code are refused (EPERM). Whoever kills one
of the two has killed both (PTRACE_O_EXITKILL), and the parent unmounts. The daemon asks to be traced, which its being
undumpable does not forbid; the guard, which holds no secret, is dumpable for the moment in which the daemon seizes it.
So the guard never outlives the daemon, and cannot tell how that ended: the daemon tells the parent itself.

The guard has every signal blocked: one that came would stop it, and the daemon, which waits for it, with it. It hands
on the daemon's signals, but for SIGSTOP: a guarded daemon cannot be stopped.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable

from secretfs import libc
from secretfs.errors import TracedError

__all__ = ["run"]

_TRACEME, _CONT, _SETOPTIONS, _SEIZE = 0, 7, 0x4200, 0x4206
_TRACECLONE, _EXITKILL = 0x8, 0x100000
_WALL = 0x40000000
_QUIET = (signal.SIGSTOP, signal.SIGTRAP)
"""What stops the daemon without being a signal to it, and SIGSTOP."""


def run(serve: Callable[[TracedError | None], int], channel: int) -> int:
    """Be the guard of a forked daemon until its end, and return an exit code where that could not be guarded.

    Args:
        serve: what the daemon does; it gets the reason if the two could not be made to trace each other.
        channel: the daemon's descriptor, which the guard must not keep.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        code = 1
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            code = _guarded(serve, writer)
        finally:
            os._exit(code)
    for descriptor in (channel, writer):
        os.close(descriptor)
    try:
        _take(pid, reader)
    except BaseException:
        os.kill(pid, signal.SIGKILL)  # it has stopped itself, and nobody else would let it go on
        raise
    return _hand_on(pid)


def _guarded(serve: Callable[[TracedError | None], int], ready: int) -> int:
    """The daemon: be traced, trace, serve."""
    guard = os.getppid()
    try:
        libc.ptrace(_TRACEME, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)  # the guard now sets its options, and makes itself dumpable
        libc.ptrace(_SEIZE, guard, 0, _EXITKILL)
    except OSError as error:
        os.close(ready)
        return serve(_refused(error))
    os.close(ready)
    return serve(None)


def _refused(error: OSError) -> TracedError:
    return TracedError(
        f"the daemon cannot be guarded: {os.strerror(error.errno or errno.EPERM).lower()}",
        hint="leave out --guard: kernel.yama.ptrace_scope=3 forbids all tracing, and a container may",
    )


def _take(pid: int, ready: int) -> None:
    """The guard: set the options while the daemon waits, and be seized."""
    _, status = os.waitpid(pid, _WALL)
    if os.WIFSTOPPED(status):
        libc.set_dumpable(dumpable=True)
        libc.ptrace(_SETOPTIONS, pid, 0, _EXITKILL | _TRACECLONE)
        libc.ptrace(_CONT, pid, 0, 0)
        os.read(ready, 1)  # end of file: the daemon has seized us, or could not
        libc.set_dumpable(dumpable=False)
    os.close(ready)


def _hand_on(pid: int) -> int:
    """Let the daemon and its threads go on after each stop, until it ends."""
    while True:
        stopped, status = os.waitpid(-1, _WALL)
        if stopped == pid and not os.WIFSTOPPED(status):
            return os.waitstatus_to_exitcode(status) & 0xFF
        if os.WIFSTOPPED(status):
            number = os.WSTOPSIG(status)
            with contextlib.suppress(ProcessLookupError):  # killed in the meantime
                libc.ptrace(_CONT, stopped, 0, 0 if number in _QUIET or status >> 16 else number)
