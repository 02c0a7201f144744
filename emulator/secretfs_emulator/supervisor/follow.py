"""What the user's shell sees of the command: its exit status, its stops; and what reaches the command: signals.

Runs in the process that the user has started. The command is in the same process group, so it gets the terminal's
signals by itself: they come from the kernel and are not passed on. What somebody sends to this process is.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
import sys

from secretfs_emulator.supervisor import system, target
from secretfs_emulator.supervisor.failure import RunError

__all__ = ["FOLLOWED", "follow"]

_SYNCHRONOUS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS}
FOLLOWED = set(signal.valid_signals()) - _SYNCHRONOUS - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}
"""The signals that are taken as they come, and so are blocked."""
_INFO = struct.Struct("=IiiI112x")  # struct signalfd_siginfo: number, errno, code, pid
_FROM_KERNEL = 0x80  # SI_KERNEL
_GENERATIONS = 64
_PIDFD_INFO = struct.Struct("=Q52xi")  # struct pidfd_info: mask, exit_code
_GET_INFO, _INFO_EXIT = 0xC040FF0B, 1 << 3
_REAPED_WITHIN = 2000
_LONGEST_MESSAGE = 1 << 17


def follow(supervisor: socket.socket, supervisor_pid: int) -> int:
    """Wait for the command's end. Returns the exit code to end with.

    Raises:
        RunError: it was not started.
    """
    signals = system.signalfd({int(number) for number in FOLLOWED})
    _let_go(supervisor.fileno(), signals)
    poll = select.poll()
    poll.register(supervisor, select.POLLIN)
    poll.register(signals, select.POLLIN)
    pidfd = -1
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if signals in ready:
            _pass_on(os.read(signals, _INFO.size), pidfd)
        if supervisor.fileno() in ready:
            message, fds, _, _ = socket.recv_fds(supervisor, _LONGEST_MESSAGE, 1)
            word, _, rest = message.decode(errors="replace").partition(" ")
            if word == "started":
                pidfd = fds[0]
            elif word == "stopped":
                _stop(int(rest), pidfd)
            elif word == "failed":
                raise _failure(rest)
            elif word == "report":
                print(rest, file=sys.stderr, flush=True)
            elif word == "ended":
                code, _, last = rest.partition(" ")
                if last:
                    os.waitpid(supervisor_pid, 0)
                return int(code)
            elif not word:
                return _orphaned(pidfd)


def _let_go(*keep: int) -> None:
    """Hold nothing that the command may close: who reads its output must see the end of it."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for stream in (0, 1):
        os.dup2(null, stream)
    system.close_all_but(*keep)


def _failure(text: str) -> RunError:
    code, message, hint = text.split("\0")
    return RunError(message, hint=hint, exit_code=int(code))


def _pass_on(data: bytes, pidfd: int) -> None:
    number, _, code, sender = _INFO.unpack(data)
    if pidfd < 0 or code == _FROM_KERNEL or _descends(sender, pidfd):
        return
    with contextlib.suppress(OSError):
        if number != signal.SIGCONT or _is_stopped(pidfd):
            signal.pidfd_send_signal(pidfd, number)


def _descends(sender: int, pidfd: int) -> bool:
    """Whether a signal is the command's own: kill(0, …) of a process in it reaches us as well as it."""
    command = _process(pidfd)
    for _ in range(_GENERATIONS):
        if sender == command:
            return True
        if sender <= 1:
            return False
        try:
            sender = int(target.Status(sender).field(b"PPid") or b"0")
        except OSError:
            return False
    return False


def _process(pidfd: int) -> int:
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as lines:
        return int(next(line.split()[1] for line in lines if line.startswith("Pid:")))


def _is_stopped(pidfd: int) -> bool:
    """Whether a thread of the command is stopped; its first one may have ended."""
    command = _process(pidfd)
    try:
        threads = os.listdir(f"/proc/{command}/task")
        return any(target.Status(int(thread)).field(b"State").startswith(b"T") for thread in threads)
    except OSError:
        return False


def _stop(number: int, pidfd: int) -> None:
    """Stop as the command has, so that the shell takes the terminal back; return when continued.

    The signal is sent while it is blocked: then it is one with the terminal's own, if that is pending, and a SIGCONT
    for both of us that overtakes it discards it. Was the command continued or ended before that, nothing stops.
    """
    if number == signal.SIGSTOP:
        if _is_stopped(pidfd):
            os.kill(os.getpid(), number)
        return
    os.kill(os.getpid(), number)
    if _is_stopped(pidfd):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    else:
        signal.sigtimedwait({number}, 0)


def _orphaned(pidfd: int) -> int:
    """The supervisor was killed. The command goes on; kernels from 6.15 on tell others than its parent how it ended."""
    status = _exit_status(pidfd) if pidfd >= 0 else None
    if status is None:
        raise RunError(
            "the supervisor was killed: the command went on without it, and its exit status is not known",
            hint="look who killed it (dmesg shows the OOM killer)",
        )
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _exit_status(pidfd: int) -> int | None:
    """Wait for the end of a process that is no child of ours, and ask for its status (PIDFD_GET_INFO)."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.poll()
    poll.modify(pidfd, 0)
    poll.poll(_REAPED_WITHIN)  # POLLHUP: the new parent has taken note of it
    info = bytearray(_PIDFD_INFO.pack(_INFO_EXIT, 0))
    try:
        fcntl.ioctl(pidfd, _GET_INFO, info)
    except OSError:
        return None
    mask, status = _PIDFD_INFO.unpack(info)
    return status if mask & _INFO_EXIT else None
