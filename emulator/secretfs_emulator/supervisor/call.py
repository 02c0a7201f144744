"""One call that waits for its answer, and the session it belongs to: what every handler is given.

A handler looks at the caller, decides, and returns an Answer. It runs under the session's lock. What it has seen is of
the caller only if `Call.waiting()` says so afterwards; it must ask before it changes anything.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from secretfs_emulator.supervisor import target
from secretfs_emulator.supervisor.backing import Area, Backing, Key
from secretfs_emulator.supervisor.books import Books
from secretfs_emulator.supervisor.bpf import Window
from secretfs_emulator.supervisor.notify import CONTINUE, Answer, Listener, Notice, fail

__all__ = ["Call", "Handler", "Session"]

_PROBED = 4  # so many numbers are tried one by one before all are listed
_INT = 1 << 31


@dataclass
class Session:
    """What one supervisor knows. `lock` is held by whoever handles a call."""

    listener: Listener
    backing: Backing | None
    window: Window
    succeed: int | None = None  # so many more calls that make a secret succeed, then `failure`
    failure: int = errno.EMFILE
    modeless: set[Key] = field(default_factory=set)  # memfds that may yet become secrets (rfc2020.py)
    memories: dict[Key, int] = field(default_factory=dict)  # open /proc/PID/mem: whose (strict.py)
    books: Books = field(default_factory=Books)
    counts: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def refuses_another(self) -> bool:
        """Whether the next secret is one too many (--fail-after); counts it."""
        if self.succeed is None:
            return False
        if self.succeed == 0:
            self.counts["failures injected"] += 1
            return True
        self.succeed -= 1
        return False


class Call:
    """A system call of a supervised thread."""

    __slots__ = ("_process", "_status", "arguments", "id", "pid", "session")

    def __init__(self, notice: Notice, session: Session) -> None:
        self.id, self.pid, self.arguments = notice.id, notice.pid, notice.arguments
        self.session = session
        self._status: target.Status | None = None
        self._process: target.Process | None = None

    @property
    def status(self) -> target.Status:
        """What /proc says of the thread; read once."""
        if self._status is None:
            self._status = target.Status(self.pid)
        return self._status

    @property
    def process(self) -> target.Process:
        """The process that calls."""
        if self._process is None:
            self._process = target.identity(self.pid)
        return self._process

    def number(self, index: int) -> int:
        """An argument that is a C int."""
        low = self.arguments[index] & 0xFFFFFFFF
        return low - (low & _INT) * 2

    def offset(self, index: int) -> int:
        """An argument that is a signed long."""
        whole = self.arguments[index]
        return whole - ((whole >> 63) << 64)

    def waiting(self) -> bool:
        """Whether the caller still waits."""
        return self.session.listener.valid(self.id)

    def file(self, fd: int) -> Key | None:
        """The file behind a descriptor of the caller."""
        try:
            found = target.file_of(self.pid, fd)
        except PermissionError:  # it has made itself undumpable, and we are not root
            return self.session.books.file(self.process, fd)
        return (found.st_dev, found.st_ino) if found is not None else None

    def has_secrets(self) -> bool:
        """Whether any secret exists at all."""
        return self.session.backing is not None and bool(self.session.backing.areas)

    def secret(self, index: int = 0) -> Area | None:
        """The secret behind the descriptor that is argument `index`, None if it is anything else."""
        return self.secret_at(self.number(index))

    def secret_of(self, pid: int, number: int) -> Area | None:
        """The secret behind a descriptor of another process."""
        backing = self.session.backing
        if backing is None or not backing.areas:
            return None
        found = target.file_of(pid, number)
        return backing.areas.get((found.st_dev, found.st_ino)) if found is not None else None

    def secret_at(self, number: int) -> Area | None:
        """The secret behind a descriptor, None if it is anything else."""
        backing = self.session.backing
        if backing is None or not backing.areas:
            return None
        key = self.file(number)
        return backing.areas.get(key) if key is not None else None

    def put(self, fd: int, *, cloexec: bool, least: int = 0) -> Answer:
        """Put our `fd` into the caller at the lowest reserved number from `least` on that is free, and answer that."""
        number = self._free_number(least)
        if number is None:
            return fail(errno.EMFILE)
        if not self.waiting():
            return CONTINUE
        return self.place(fd, number, cloexec=cloexec)

    def place(self, fd: int, number: int, *, cloexec: bool, answer: int | None = None) -> Answer:
        """Put our `fd` into the caller at this number, and answer with that, or with `answer`."""
        given = self.session.listener.put(self.id, fd, number, cloexec=cloexec, answer=answer)
        if os.geteuid() != 0:
            about = os.fstat(fd)
            self.session.books.note(self.process, number, (about.st_dev, about.st_ino))
        return given

    def _free_number(self, least: int) -> int | None:
        window = self.session.window
        numbers = range(max(least, window.first), window.first + window.count)
        for number in numbers[:_PROBED]:
            if not target.is_open(self.pid, number):
                return number
        try:
            taken = target.descriptor_numbers(self.pid)
        except PermissionError:
            return self.session.books.free_number(self.process, numbers)
        return next((number for number in numbers if number not in taken), None)

    def owner(self) -> tuple[int, int]:
        """The user and group that a file made by the caller belongs to."""
        with contextlib.suppress(OSError):
            about = os.stat(f"/proc/{self.pid}")
            return about.st_uid, about.st_gid
        return 0, 0


Handler = Callable[[Call], Answer]
