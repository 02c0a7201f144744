"""`secretfs run` in a terminal: an interactive shell in a pty starts it, stops it, continues it and interrupts it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import PATIENCE, SECRETFS

RUN = f"{SECRETFS} run --emulate --"
ANSWERS = f"/usr/bin/python3 -I {Path(__file__).parent / 'runprograms' / 'answers.py'}"
PROMPT = b"READY>"


class Terminal:
    """A bash with job control in a terminal of its own."""

    def __init__(self) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            environment = {"PS1": PROMPT.decode(), "PATH": os.defpath, "TERM": "dumb", "HISTFILE": "/dev/null"}
            os.execve("/bin/bash", ["bash", "--norc", "--noprofile", "-i"], environment)
        self._seen = b""
        self.until(PROMPT)

    def type(self, text: str) -> None:
        """What a person types."""
        os.write(self._fd, text.encode())

    def until(self, wanted: bytes) -> str:
        """What is shown up to and with `wanted`."""
        end = time.monotonic() + PATIENCE
        while wanted not in self._seen:
            left = end - time.monotonic()
            assert left > 0, f"no {wanted!r} in {self._seen!r}"
            assert select.select([self._fd], [], [], left)[0], f"no {wanted!r} in {self._seen!r}"
            self._seen += os.read(self._fd, 4096)
        shown, wanted, self._seen = self._seen.partition(wanted)
        return (shown + wanted).decode(errors="replace")

    def say(self, command: str) -> str:
        """Type a line, and return what is shown until the next prompt."""
        self.type(command + "\n")
        self.until(b"\n")
        return self.until(PROMPT)

    def resize(self, rows: int, columns: int) -> None:
        """Another window size."""
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def close(self) -> None:
        """Hang up."""
        os.close(self._fd)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """A fresh terminal."""
    opened = Terminal()
    try:
        yield opened
    finally:
        opened.close()


def start(terminal: Terminal, *answers: str) -> None:
    """Start a program under `secretfs run` that answers signals and lines, and wait until it is ready."""
    terminal.type(f"{RUN} {ANSWERS} {' '.join(answers)}\n")
    terminal.until(b"up-and-42\r\n")


@pytest.mark.slow
def test_stop_continue_interrupt(terminal: Terminal) -> None:
    """Ctrl-Z stops the job for the shell, fg continues it, Ctrl-C ends it with 130."""
    start(terminal, "CONT=continued")
    terminal.type("\x1a")
    assert "Stopped" in terminal.until(PROMPT)
    assert "Stopped" in terminal.say("jobs")
    terminal.type("fg\n")
    terminal.until(b"continued\r\n")
    terminal.type("hello\n")
    terminal.until(b"got-hello\r\n")
    terminal.type("\x03")
    terminal.until(PROMPT)
    assert "code=130" in terminal.say("echo code=$?")


@pytest.mark.slow
def test_background(terminal: Terminal) -> None:
    """A job in the background stops when it wants to read from the terminal, and is ended by kill."""
    terminal.type(f"{RUN} sh -c 'echo up-and-$((40 + 2)); exec cat'\n")
    terminal.until(b"up-and-42\r\n")
    terminal.type("\x1a")
    terminal.until(PROMPT)
    terminal.say("bg; wait %1")
    assert "Stopped" in terminal.say("jobs")
    terminal.type("kill %1; fg\n")
    terminal.until(b"\n")
    terminal.until(PROMPT)
    assert "code=143" in terminal.say("echo code=$?")


@pytest.mark.slow
def test_interrupts_come_once(terminal: Terminal) -> None:
    """Ctrl-C is the terminal's signal to the command: it gets it once, and may handle it."""
    start(terminal, "INT=interrupted", "USR2=bye:3")
    terminal.type("\x03")
    terminal.until(b"interrupted\r\n")
    with open(f"/proc/{terminal.pid}/task/{terminal.pid}/children", encoding="ascii") as file:
        os.kill(int(file.read()), signal.SIGUSR2)  # passed on after what came before
    assert "interrupted" not in terminal.until(PROMPT)
    assert "code=3" in terminal.say("echo code=$?")


@pytest.mark.slow
def test_window_size(terminal: Terminal) -> None:
    """A change of the window's size reaches the command."""
    start(terminal, "WINCH=size:6")
    terminal.resize(33, 101)
    assert "33 101" in terminal.until(PROMPT)
    assert "code=6" in terminal.say("echo code=$?")


@pytest.mark.slow
def test_a_shell_inside(terminal: Terminal) -> None:
    """A shell started as the command has job control of its own."""
    terminal.type(f"{RUN} bash --norc --noprofile -i\n")
    terminal.until(PROMPT)
    terminal.say("true")
    terminal.type("sh -c 'echo up-and-$((40 + 2)); exec cat'\n")
    terminal.until(b"up-and-42\r\n")
    terminal.type("\x1a")
    assert "Stopped" in terminal.until(PROMPT)
    terminal.type("kill -9 %1; fg; exit 9\n")
    terminal.until(PROMPT)
    assert "code=9" in terminal.say("echo code=$?")


FOLLOWER = """
import ctypes, os, signal, sys
from secretfs_emulator.supervisor import follow
number, stopped = int(sys.argv[1]), sys.argv[2] == "stopped"
signal.pthread_sigmask(signal.SIG_BLOCK, follow.FOLLOWED)
command = os.fork()
if command == 0:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    signal.pthread_sigmask(signal.SIG_UNBLOCK, follow.FOLLOWED)
    while True:
        signal.pause()
pidfd = os.pidfd_open(command)
os.kill(command, number)
os.waitpid(command, os.WUNTRACED)
if not stopped:
    os.kill(command, signal.SIGCONT)
    os.waitpid(command, os.WCONTINUED)
if number != signal.SIGSTOP:
    os.kill(os.getpid(), number)  # as the terminal stops all that are in the foreground
follow._stop(number, pidfd)
os.kill(command, signal.SIGKILL)
os._exit(7 if signal.sigpending() <= {signal.SIGCONT, signal.SIGCHLD} else 8)
"""


@pytest.mark.parametrize("number", [signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGSTOP])
@pytest.mark.parametrize("state", ["stopped", "continued"])
def test_stops_once(number: signal.Signals, state: str) -> None:
    """For the command's stop and the terminal's signal there is one stop, and none if the command goes on already."""
    words = [sys.executable, "-I", "-c", FOLLOWER, str(int(number)), state]
    with subprocess.Popen(words, process_group=0) as follower:
        try:
            _, status = os.waitpid(follower.pid, os.WUNTRACED)
            if state == "stopped":
                assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == number
                follower.send_signal(signal.SIGCONT)
                _, status = os.waitpid(follower.pid, os.WUNTRACED)
            assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 7
        finally:
            follower.kill()
