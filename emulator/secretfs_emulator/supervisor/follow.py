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
from secretfs_emulator.supervisor.failure import FAILED, RunError, failure, reason

__all__ = ["FOLLOWED", "READY", "follow"]

_KILLED = "look who killed it (dmesg shows the OOM killer)"
READY = b"ready"
"""What the supervisor is told once its messages are received and signals are passed on."""
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
        RunError: it was not started, or how it ended is not known.
        OSError: it is not started: the supervisor sees that nobody follows.
    """
    signals = system.signalfd({int(number) for number in FOLLOWED})
    _let_go(supervisor.fileno(), signals)
    return _Following(supervisor, supervisor_pid, signals).end()


class _Following:
    """What is heard of the command, and what is passed on to it."""

    def __init__(self, supervisor: socket.socket, supervisor_pid: int, signals: int) -> None:
        self._supervisor, self._supervisor_pid, self._signals = supervisor, supervisor_pid, signals
        self._pidfd = -1
        self._started = False

    def end(self) -> int:
        """The exit code, once it has ended."""
        poll = select.poll()
        poll.register(self._supervisor, select.POLLIN)
        poll.register(self._signals, select.POLLIN)
        while True:
            try:
                code = self._next({fd for fd, _ in poll.poll()})
            except (OSError, MemoryError) as error:
                if self._pidfd < 0:
                    raise
                raise RunError(
                    f"the command cannot be followed any longer: {reason(error)}; it went on, and its exit status is "
                    "not known"
                ) from error
            if code is not None:
                return code

    def _next(self, ready: set[int]) -> int | None:
        """Deal with what has come; the exit code, if that was the end."""
        if self._signals in ready:
            _pass_on(os.read(self._signals, _INFO.size), self._pidfd)
        if self._supervisor.fileno() not in ready:
            return None
        message, fds = _received(self._supervisor)
        word, _, rest = message.decode(errors="replace").partition(" ")
        if word == "prepared":
            self._supervisor.send(READY)
            self._pidfd = fds[0]
        elif word == "started":
            self._started = True
        elif word == "stopped":
            _stop(int(rest), self._pidfd)
        elif word == "failed":
            raise failure(rest)
        elif word == "report":
            with contextlib.suppress(OSError):
                print(rest, file=sys.stderr, flush=True)
        elif word == "ended":
            code, _, last = rest.partition(" ")
            if last:
                os.waitpid(self._supervisor_pid, 0)
            return int(code)
        elif not word:
            return self._orphaned()
        return None

    def _orphaned(self) -> int:
        """The supervisor was killed. The command goes on; kernels from 6.15 on tell others than its parent how it
        ended.
        """
        status = _exit_status(self._pidfd) if self._pidfd >= 0 else None
        if self._pidfd < 0 or (not self._started and status == FAILED << 8):
            raise RunError("the supervisor was killed before the command could begin", hint=_KILLED)
        if status is None:
            raise RunError(
                "the supervisor was killed: the command went on without it, and its exit status is not known",
                hint=_KILLED,
            )
        return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _received(supervisor: socket.socket) -> tuple[bytes, list[int]]:
    """A message, and the descriptors that came with it; nothing if the supervisor has ended."""
    try:
        message, fds, _, _ = socket.recv_fds(supervisor, _LONGEST_MESSAGE, 1)
    except ConnectionResetError:
        return b"", []
    return message, fds


def _let_go(*keep: int) -> None:
    """Hold nothing that the command may close: who reads its output must see the end of it."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for stream in (0, 1):
        os.dup2(null, stream)
    system.close_all_but(*keep)


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
