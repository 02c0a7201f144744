"""Other processes, for tests of what several do at once: forked, told what to do next, killed if they must be.

A `Worker` runs a function with one end of a socket; the test has the other end. Nothing here sleeps.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
import traceback
import warnings
from collections.abc import Callable, Iterator

from mounts import PATIENCE, wait_readable

__all__ = ["Worker", "wait_until", "working"]


class Worker:
    """A process that runs `function(peer)`; `say` and `hear` are on both sides of the socket."""

    def __init__(self, function: Callable[[Peer], None]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: a fork with other threads around
            self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            _live(function, Peer(theirs))
        theirs.close()
        self._peer = Peer(ours)
        self._code: int | None = None

    def say(self, word: str = "go") -> None:
        """Send a word to it."""
        self._peer.say(word)

    def hear(self, word: str = "ready") -> None:
        """Wait for that word of it."""
        self._peer.hear(word)

    def is_silent(self) -> bool:
        """Whether it has not said anything that was not heard yet."""
        return self._peer.is_silent()

    def signal(self, number: int) -> None:
        """Send it a signal; it is our child and not reaped yet, so the pid is its own."""
        os.kill(self.pid, number)

    def end(self, patience: float = PATIENCE) -> int:
        """Wait for its end: an exit code, 0 if the function returned, negative for a signal."""
        if self._code is None:
            fd = os.pidfd_open(self.pid)
            try:
                wait_readable(fd, patience)
            finally:
                os.close(fd)
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            self._peer.close()
        return self._code

    def kill(self) -> None:
        """kill -9, and wait for its end."""
        if self._code is None:
            self.signal(signal.SIGKILL)
            self.end()


class Peer:
    """One end of the socket between a test and a worker."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.settimeout(PATIENCE)

    def say(self, word: str = "ready") -> None:
        """Send a word."""
        self._socket.send(word.encode())

    def hear(self, word: str = "go") -> None:
        """Wait for that word."""
        heard = self._socket.recv(100).decode()
        assert heard == word, f"heard {heard!r}, not {word!r}"

    def is_silent(self) -> bool:
        """Whether nothing has come that was not heard yet."""
        self._socket.setblocking(False)
        try:
            self._socket.recv(100, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        finally:
            self._socket.settimeout(PATIENCE)
        return False

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


@contextlib.contextmanager
def working(*functions: Callable[[Peer], None]) -> Iterator[list[Worker]]:
    """One worker for each function; whoever is left in the end is killed."""
    workers: list[Worker] = []
    try:
        workers += map(Worker, functions)
        yield workers
    finally:
        for worker in workers:
            worker.kill()


def wait_until(condition: Callable[[], object]) -> None:
    """Return when `condition` holds: for what the kernel tells of nobody, such as that a process waits for a lock."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "what was waited for did not happen"
        os.sched_yield()


def _live(function: Callable[[Peer], None], peer: Peer) -> None:
    code = 1
    try:
        function(peer)
        code = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)
