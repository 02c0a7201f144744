"""Three processes: ours, which follows the command; the supervisor; the command, which is the supervisor's child.

    secretfs run (follow.py)  ->  supervisor (serve.py)  ->  CMD

The supervisor is an ancestor of all it looks at, as the security module yama may demand, and may outlive us: daemons
that the command leaves behind are still answered. The first process has nothing to do but to wait, so it can be stopped
with the command, and killed without harm.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from secretfs import libc
from secretfs_emulator.supervisor import become, follow, system
from secretfs_emulator.supervisor.failure import FAILED, RunError, failure, not_started
from secretfs_emulator.supervisor.serve import Service

__all__ = ["Job", "launch"]

Disposition = Any  # what signal.signal() takes and returns
_UNKNOWN_FLAG = 0x40000000
_DRAINED_WITHIN = 0.1
_TRIED = 3
_LONGEST_MESSAGE = 1 << 16
_GO = b"go"
_IGNORED = {
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGTSTP,
    signal.SIGTTOU,
    signal.SIGTTIN,
}


@dataclass(frozen=True)
class Job:
    """What the processes do.

    Attributes:
        command: to be executed.
        program: the filter.
        prepare: called in the command's process first.
        serve: called with the listener in the supervisor; begins to answer.
        report: the text for the user at the end, or "".
        keep: descriptors that the supervisor needs.
    """

    command: tuple[str, ...]
    program: bytes
    prepare: Callable[[], None]
    serve: Callable[[int], Service]
    report: Callable[[], str]
    keep: tuple[int, ...] = ()


def launch(job: Job) -> int:
    """Run the command; returns the exit code to end with.

    Raises:
        RunError: it was not started.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, follow.FOLLOWED)
    children = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would take the command's status from us
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        _never_return(lambda: _supervise(job, its, ours, mask, children))
    its.close()
    return follow.follow(ours, pid)


def _never_return(run: Callable[[], object]) -> NoReturn:
    """Run the part of a forked process; nothing of the caller's is carried out in it."""
    try:
        run()
    except BaseException:  # noqa: BLE001 - its parent tells that it ended too early
        os._exit(1)
    os._exit(0)


def _supervise(job: Job, boss: socket.socket, its_own: socket.socket, mask: set[int], children: Disposition) -> None:
    try:
        its_own.close()  # or we would not see that nobody follows
        pid, service = _begin(job, boss, mask, children)
    except BaseException as error:  # noqa: BLE001 - whoever follows is to tell of it
        _tell(boss, b"failed " + _told(error))
        return
    code = _wait(pid, boss)
    ended = False
    with contextlib.suppress(OSError):
        ended = service.over(_DRAINED_WITHIN)
    if text := job.report():
        _tell(boss, b"report " + text.encode())
    _tell(boss, b"ended %d%s" % (code, b" last" if ended else b""))
    boss.close()
    service.over(None)


def _begin(job: Job, boss: socket.socket, mask: set[int], children: Disposition) -> tuple[int, Service]:
    """Start the command's process, serve it, and see it become the command; if anything fails, it ends."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        _never_return(lambda: _become(job, its, (ours, boss), mask, children))
    try:
        its.close()
        pidfd = os.pidfd_open(pid)
        _withdraw(boss.fileno(), ours.fileno(), pidfd, *job.keep)
        service = _start(job, ours, boss, pidfd)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    with contextlib.suppress(OSError):
        os.close(pidfd)
        ours.close()
    return pid, service


def _withdraw(*keep: int) -> None:
    """Leave the command's process group, its terminal and its files; keep others of the same user out."""
    os.setpgid(0, 0)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    system.close_all_but(*keep)
    os.chdir("/")
    os.umask(0o077)
    libc.set_dumpable(dumpable=False)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _start(job: Job, child: socket.socket, boss: socket.socket, pidfd: int) -> Service:
    """Take the listener, begin to serve, let the child go on once somebody follows it.

    Raises:
        RunError: the command was not executed.
    """
    message, fds, _, _ = socket.recv_fds(child, _LONGEST_MESSAGE, 1)
    if message == b"listener":
        service = job.serve(fds[0])
        socket.send_fds(boss, [b"prepared"], [pidfd])
        if boss.recv(16) != follow.READY:
            raise ConnectionAbortedError  # and nobody is left to be told
        with contextlib.suppress(BrokenPipeError):  # then it says why it has ended
            child.send(_GO)
        message = _last_message(child)
        if not message:  # closed by exec
            _tell(boss, b"started")
            return service
    if message:
        raise failure(message.decode(errors="replace"))
    raise RunError("the command's process was killed before it could begin")


def _last_message(child: socket.socket) -> bytes:
    """Why the command is not executed; nothing if it is. It may be running, so that this must not fail."""
    while True:
        try:
            return child.recv(_LONGEST_MESSAGE)
        except OSError as error:
            if error.errno not in (errno.ENOMEM, errno.ENOBUFS):
                raise


def _wait(pid: int, boss: socket.socket) -> int:
    """Wait for the command's end and pass on its stops. Returns the exit code as a shell has it."""
    while True:
        _, status = os.waitpid(pid, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            _tell(boss, b"stopped %d" % os.WSTOPSIG(status))
        elif os.WIFSIGNALED(status):
            return 128 + os.WTERMSIG(status)
        else:
            return os.WEXITSTATUS(status)


def _tell(boss: socket.socket, message: bytes) -> None:
    """Tell whoever follows the command, if somebody still does."""
    for _ in range(_TRIED):
        try:
            boss.send(message)
        except OSError as error:
            if error.errno in (errno.ENOBUFS, errno.ENOMEM):
                continue
        return


def _become(
    job: Job, supervisor: socket.socket, others: tuple[socket.socket, ...], mask: set[int], children: Disposition
) -> None:
    try:
        for other in others:
            other.close()  # or we would not see the supervisor end
        job.prepare()
        listener = become.install(job.program, listener=True)
        socket.send_fds(supervisor, [b"listener"], [listener])
        os.close(listener)
        if supervisor.recv(16) != _GO:
            os._exit(FAILED)  # it has ended: whoever follows us tells
        _check_that_we_are_asked()
        signal.signal(signal.SIGCHLD, children)
        become.execute(job.command, mask)
    except BaseException as error:  # noqa: BLE001 - it must not be taken for the command's end
        _give_up(supervisor, error)


def _give_up(supervisor: socket.socket, error: BaseException) -> None:
    """Have the supervisor say why the command is not executed, or else say it here."""
    message = _told(error)
    try:
        supervisor.send(message)
    except OSError:
        told = failure(message.decode())
        hint = f"secretfs: hint: {told.hint}\n" if told.hint else ""
        os.write(2, f"secretfs: error: {told}\n{hint}".encode())
        os._exit(told.exit_code)


def _told(error: BaseException) -> bytes:
    """An error as `failure()` reads it."""
    if not isinstance(error, RunError):
        error = not_started(error)
    return f"{error.exit_code}\0{error}\0{error.hint}".encode(errors="replace")


def _check_that_we_are_asked() -> None:
    """A filter that was there before us may answer memfd_secret by itself; it then outranks ours.

    With --rfc2020 alone the kernel answers this one, as it should; it is not seen by the supervisor.
    """
    try:
        system.raw("memfd_secret", _UNKNOWN_FLAG)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return
        raise RunError(
            f"memfd_secret cannot be emulated: a seccomp filter that is in force already answers it with "
            f"{errno.errorcode.get(error.errno or 0, str(error.errno))}, most likely a container's",
            hint="allow memfd_secret in that profile, for example docker run --security-opt seccomp=PROFILE.json",
        ) from error
