"""Starts the command with one system call of it, or of its children, failing: injected.c says how.

Counting begins where the command's `main` begins: what Python does before is not ours. Where `main` imports modules or
looks for translations it is Python too that opens files: such calls are told apart by the files that they are about.
"""

from __future__ import annotations

import errno
import functools
import itertools
import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mounts import PATIENCE, clean_environment, is_mounted, wait_readable
from shims import HERE, WARNINGS

MAIN = "import os, sys\nfrom secretfs.cli import main\nos.getpgrp()\nsys.exit(main())\n"
PYTHONS = re.compile(rf"{re.escape(sys.prefix)}|{re.escape(sys.base_prefix)}/lib/python|/share/locale|\.mo$")
"""Files that are Python's business."""
QUESTIONS = frozenset({"lseek", "ioctl", "getcwd", "rt_sigaction"})
"""What Python asks about each file that it opens, and what cannot fail as Python does it."""
CANNOT_FAIL = frozenset(
    {
        "geteuid",
        "getuid",
        "getegid",
        "getgid",
        "getppid",
        "getpgrp",
        "umask",
        "uname",
        "set_robust_list",
        "set_tid_address",
        "rseq",
        "arch_prctl",
    }
)
CODES = {
    "openat": (errno.EMFILE, errno.EACCES, errno.ENOENT, errno.ENOMEM),
    "newfstatat": (errno.ENOMEM, errno.EACCES),
    "read": (errno.EIO, errno.ENOMEM),
    "write": (errno.EIO,),
    "brk": (errno.ENOMEM,),
    "mmap": (errno.ENOMEM, errno.EAGAIN, errno.EPERM),
    "mprotect": (errno.ENOMEM,),
    "munmap": (errno.ENOMEM,),
    "mlock": (errno.ENOMEM, errno.EAGAIN, errno.EPERM),
    "madvise": (errno.EINVAL, errno.ENOMEM, errno.EAGAIN),
    "ftruncate": (errno.ENOMEM, errno.EINVAL),
    "memfd_secret": (errno.EMFILE, errno.ENOMEM, errno.ENOSYS, errno.EPERM),
    "clone": (errno.EAGAIN, errno.ENOMEM),
    "vfork": (errno.EAGAIN, errno.ENOMEM),
    "pipe2": (errno.EMFILE, errno.ENFILE),
    "socketpair": (errno.EMFILE, errno.ENOMEM),
    "epoll_create1": (errno.EMFILE, errno.ENOMEM),
    "epoll_ctl": (errno.ENOMEM, errno.ENOSPC),
    "epoll_wait": (errno.EINVAL,),
    "poll": (errno.ENOMEM,),
    "pselect6": (errno.ENOMEM,),
    "mount": (errno.EPERM, errno.ENOMEM, errno.ENODEV, errno.EBUSY),
    "umount2": (errno.EPERM, errno.ENOMEM, errno.EBUSY),
    "prctl": (errno.EPERM, errno.EINVAL),
    "seccomp": (errno.EPERM, errno.ENOSYS, errno.ENOMEM),
    "landlock_create_ruleset": (errno.ENOSYS, errno.EOPNOTSUPP, errno.EMFILE),
    "landlock_restrict_self": (errno.EPERM, errno.E2BIG),
    "sendmsg": (errno.ENOBUFS, errno.EPIPE),
    "sendto": (errno.ENOBUFS, errno.EPIPE),
    "recvmsg": (errno.ENOMEM, errno.EMFILE),
    "recvfrom": (errno.ENOMEM,),
    "dup2": (errno.EBUSY, errno.EMFILE),
    "execve": (errno.ENOENT, errno.EACCES, errno.ENOMEM),
    "wait4": (errno.ECHILD,),
    "getdents64": (errno.EIO, errno.ENOMEM),
    "statfs": (errno.EIO, errno.ENOSYS),
    "fstatfs": (errno.EIO, errno.ENOSYS),
    "getxattr": (errno.EIO, errno.ENOMEM),
    "pidfd_open": (errno.EMFILE, errno.ENOSYS),
    "getrandom": (errno.ENOSYS, errno.EAGAIN),
    "process_vm_readv": (errno.EPERM, errno.ENOSYS),
    "readv": (errno.EIO, errno.EFAULT),
}
"""What a kind of call fails with, in turn."""
NOTHING = "0:-1:0:0:"
"""A plan by which nothing fails."""
REFUSED = (errno.EPERM, errno.ENOSYS)
"""The others: as in a container that forbids a call of which its makers never heard."""


@functools.cache
def numbers() -> dict[int, str]:
    """The names of system calls by their numbers."""
    command = ["gcc", "-E", "-dM", "-include", "sys/syscall.h", "-xc", "/dev/null"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {int(number): name for name, number in re.findall(r"#define __NR_(\w+) (\d+)\n", said)}


@dataclass(frozen=True)
class Call:
    """One system call in the course of a command."""

    who: str
    """Whose: "0" the command's, "0.0" its first child's."""
    number: int
    n: int
    """Which of this process's calls of that number about that file, from 1 on."""
    about: str
    """The file that it is about, or ""."""

    @property
    def name(self) -> str:
        """Its name."""
        return numbers().get(self.number, str(self.number))

    @property
    def group(self) -> tuple[str, str, str]:
        """What is the same for calls that are alike."""
        return self.who, self.name, re.sub("[0-9]+", "0", self.about)

    @property
    def is_ours(self) -> bool:
        """Whether it is made for a purpose of ours and can fail."""
        if PYTHONS.search(self.about) or self.name in QUESTIONS or self.name in CANNOT_FAIL:
            return False
        if self.who.endswith("ldconfig"):
            return False  # ctypes.util.find_library, as trio and ssl call it
        if "/dev/fuse" in self.about and self.name in ("read", "writev"):
            return False  # that is what test_t7_faults.py is about
        return self.name != "newfstatat" or self.about != ""  # what kind of file is it that was opened?

    def __str__(self) -> str:
        return f"{self.who} {self.name} {self.n} {self.about}".rstrip()


@dataclass(frozen=True)
class Failure:
    """A call that is to fail."""

    call: Call
    code: int

    @property
    def plan(self) -> str:
        """As injected.c reads it."""
        return f"{self.call.who}:{self.call.number}:{self.call.n}:{self.code}:{self.call.group[2]}"

    def __str__(self) -> str:
        return f"{self.call}: {errno.errorcode[self.code]}"


def few_of_each(calls: Iterable[Call], most: int) -> list[Call]:
    """Of those that are alike the first ones and the last one."""
    groups: dict[tuple[str, str, str], list[Call]] = {}
    for call in calls:
        groups.setdefault(call.group, []).append(call)
    return [call for each in groups.values() for call in (each if len(each) <= most else each[: most - 1] + each[-1:])]


def failures(calls: Iterable[Call]) -> Iterator[Failure]:
    """One for each call; the errnos of its kind take turns."""
    turns: dict[str, Iterator[int]] = {}
    for call in calls:
        turn = turns.setdefault(call.name, itertools.cycle(CODES.get(call.name, REFUSED)))
        yield Failure(call, next(turn))


@dataclass
class Running:
    """A command in which something fails, or whose calls are written down."""

    process: subprocess.Popen[str]
    report: Path
    end: int
    _said: tuple[str, str] | None = None

    def finish(self) -> tuple[int, str, str]:
        """Wait for the command, not for what it leaves running: its exit code, stdout and stderr."""
        if self._said is None:
            self._said = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, *self._said

    def wait_for_mount(self, path: Path) -> None:
        """Return when `path` is mounted, or when the command has ended."""
        pid = os.pidfd_open(self.process.pid)
        try:
            with open("/proc/self/mountinfo", "rb") as table:
                poll = select.poll()
                poll.register(table, select.POLLPRI | select.POLLERR)
                poll.register(pid, select.POLLIN)
                while not is_mounted(path) and not select.select([pid], [], [], 0)[0]:
                    assert poll.poll(PATIENCE * 1000), "nothing was mounted, and nothing ended"
        finally:
            os.close(pid)

    def wait_for_all(self) -> None:
        """Return when no process is left that the command has started."""
        wait_readable(self.end)
        assert os.read(self.end, 1) == b""

    def calls(self) -> list[Call]:
        """What was counted so far; of a run with a failure the one call that failed."""
        found = []
        for line in self.report.read_text(encoding="utf-8", errors="replace").splitlines():
            _, who, number, n, about = line.split(" ", 4)
            found.append(Call(who, int(number), int(n), about))
        return found

    def close(self) -> None:
        """Let go of it; a command that hangs is killed."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.end)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        self.report.unlink(missing_ok=True)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Failing:
    """What starts commands. All that it needs lies in a folder that every user can look into."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._program = folder / "injected"
        subprocess.run(["gcc", *WARNINGS, "-O1", "-o", self._program, HERE / "injected.c"], check=True)
        self._main = folder / "main.py"
        self._main.write_text(MAIN, encoding="utf-8")
        self._main.chmod(0o644)
        self.empty = folder / "empty"
        """Where programs like to leave files."""
        self.empty.mkdir()
        self.empty.chmod(0o777)
        self._runs = itertools.count()

    def start(
        self, *words: str | os.PathLike[str], user: int = 0, failure: Failure | None = None, recorded: bool = False
    ) -> Running:
        """Start `secretfs WORDS` as a user, with one failure or none, or with all its calls written down."""
        places = ("XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "TMPDIR", "HOME")
        environment = {
            **clean_environment(), **dict.fromkeys(places, str(self.empty)), "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip
        report = self._folder / f"report-{next(self._runs)}"
        plan = "-" if recorded else failure.plan if failure else NOTHING
        reader, writer = os.pipe()
        process = subprocess.Popen(
            [self._program, report, str(writer), str(user), plan, sys.executable, self._main, *words],
            env=environment, pass_fds=(writer,), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, cwd="/",
        )  # fmt: skip
        os.close(writer)
        return Running(process, report, reader)


def done_by(user: int, deed: Callable[..., Any], *arguments: Sequence[Any] | Path) -> Any:
    """What a function returns in a child that has become that user.

    Raises:
        OSError: it raised something; that is its text.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        answer: tuple[str, Any] = ("failed", "")
        try:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            answer = ("done", deed(*arguments))
        except BaseException as error:
            answer = ("failed", f"{type(error).__name__}: {error}")
        finally:
            os.write(writer, json.dumps(answer).encode())
            os._exit(0)
    os.close(writer)
    try:
        if not select.select([reader], [], [], PATIENCE)[0]:
            os.kill(pid, signal.SIGKILL)
            raise TimeoutError("it hangs")
        how, result = json.loads(os.read(reader, 65536))
    finally:
        os.close(reader)
        os.waitpid(pid, 0)
    if how == "failed":
        raise OSError(result)
    return result
