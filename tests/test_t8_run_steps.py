"""Each system call of `secretfs run` fails once, in each of its three processes: while it starts, and while it serves.

Either the command runs, and what the supervisor could not do for it is an errno that the call may have; or it does not
begin, and one sentence says why. It never runs without its supervisor, nothing hangs, and no process is left behind.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import box
import pytest
from failing import Ended, Failing, failing, failures
from launches import open_folder
from mounts import needs_root
from runs import compiled, may_emulate
from shims import HERE

CALLS = {
    # processes
    "clone": (errno.EAGAIN,), "clone3": (errno.EAGAIN,), "execve": (errno.ENOMEM, errno.EACCES, errno.ETXTBSY),
    "wait4": (errno.EINTR,), "setpgid": (errno.EPERM,), "chdir": (errno.EACCES,), "prctl": (errno.EPERM,),
    "prlimit64": (errno.EPERM,), "seccomp": (errno.ENOMEM, errno.EPERM, errno.EBUSY),
    "pidfd_open": (errno.EMFILE,), "pidfd_getfd": (errno.EMFILE, errno.EPERM), "pidfd_send_signal": (errno.EPERM,),
    "rt_sigaction": (errno.EINVAL,), "rt_sigprocmask": (errno.EINVAL,),
    # what they tell each other
    "socketpair": (errno.EMFILE,), "sendmsg": (errno.ENOBUFS,), "sendto": (errno.ENOBUFS,),
    "recvmsg": (errno.ENOMEM,), "recvfrom": (errno.ENOMEM,), "signalfd4": (errno.EMFILE,),
    "poll": (errno.ENOMEM, errno.EINTR), "ioctl": (errno.EINTR,),
    # descriptors and files
    "openat": (errno.EMFILE, errno.ENOMEM), "close": (errno.EIO,), "close_range": (errno.ENOMEM,),
    "dup": (errno.EMFILE,), "dup2": (errno.EMFILE,), "fcntl": (errno.EMFILE,), "read": (errno.EIO,),
    "pwrite64": (errno.EIO,), "lseek": (errno.EINVAL,), "newfstatat": (errno.ENOMEM,), "readlink": (errno.ENOMEM,),
    "getdents64": (errno.ENOMEM,), "fchmod": (errno.EPERM,), "fchown": (errno.EPERM,),
    # the backing
    "fsopen": (errno.ENFILE,), "fsconfig": (errno.ENOMEM,), "fsmount": (errno.EMFILE,),
    "fanotify_init": (errno.EMFILE,), "fanotify_mark": (errno.ENOSPC,), "inotify_init1": (errno.EMFILE,),
    "inotify_add_watch": (errno.ENOSPC,), "memfd_create": (errno.ENFILE,), "linkat": (errno.ENOSPC,),
    "unlinkat": (errno.ENOMEM,), "truncate": (errno.ENOSPC, errno.EFBIG), "ftruncate": (errno.ENOSPC,),
    # memory, and looking at the command's
    "memfd_secret": (errno.EMFILE,), "mmap": (errno.ENOMEM,), "mprotect": (errno.ENOMEM,), "munmap": (errno.ENOMEM,),
    "brk": (errno.ENOMEM,), "madvise": (errno.ENOMEM,), "mlock": (errno.EAGAIN,),
    "process_vm_readv": (errno.ENOMEM,), "process_vm_writev": (errno.ENOMEM, errno.EPERM),
}  # fmt: skip
MODULES = ("secretfs_emulator.supervisor.plan", "secretfs_emulator.supervisor.command", "shlex")
WAYS = {
    "tmpfs": ("--emulate", "--backing", "tmpfs"),
    "memfd": ("--emulate", "--backing", "memfd"),
    "strict": ("--emulate", "--strict", "--rfc2020"),
    "nobody": ("--emulate",),
}
RAN = re.compile(r"((made|dup|closed|sized|mapped|pinned|unmapped|read|asked)=\w+ )+group=(\d+)\n")
SANE = {"ok", "EINVAL", "EFAULT", "EMFILE", "ENFILE", "ENOMEM", "EAGAIN", "ENOSPC", "EFBIG"}
ONE_SENTENCE = re.compile(r"secretfs: error: [^\n]+\n(secretfs: hint: [^\n]+\n)?")
WENT_ON = "it went on"


@pytest.fixture(scope="module")
def program() -> Iterator[Path]:
    """What is started, where everybody may execute it."""
    with open_folder() as folder:
        yield compiled(Path(folder) / "run_steps", HERE / "run_steps.c", static=True)


@pytest.fixture(scope="module")
def server() -> Iterator[Failing]:
    """What runs `secretfs run`."""
    with failing("command", *MODULES) as server:
        yield server


@pytest.fixture(scope="module")
def users() -> Iterator[Failing]:
    """The same as another user."""
    with failing("command", *MODULES, under=box.command([], user="nobody")) as server:
        yield server


def judged(ended: Ended, whole: str) -> str:
    """What is wrong, or "". `whole` is what the command prints if nothing fails."""
    if ended.hung:
        return "something hangs, or was left behind"
    if "Traceback" in ended.stderr or "needle" in ended.stderr + ended.stdout:
        return "more is said than should be"
    if ended.status == 7:
        results = dict(word.split("=") for word in ended.stdout.split() if "=" in word)
        right = RAN.fullmatch(ended.stdout) and results.pop("group") == str(os.getpgrp()) and results["pinned"] != "ok"
        return "" if right and ended.stderr == "" and set(results.values()) <= SANE else "it ran otherwise"
    if ended.status not in (125, 126) or not ONE_SENTENCE.fullmatch(ended.stderr):
        return "it ends in another way"
    if ended.stdout != (whole if WENT_ON in ended.stderr else ""):
        return "the command has begun, and nobody says so"
    return ""


def wrong(server: Failing, words: Sequence[str | Path], *, every: bool) -> list[str]:
    """What is wrong after which failure."""
    for _ in range(2):  # the first one imports what was forgotten in MODULES
        counted = server.run("run", *words)
    assert judged(counted, counted.stdout) == ""
    assert len(counted.counts) == 3
    found, ends = [], set()
    for failure in failures(counted.counts, CALLS, every=every):
        ended = server.run("run", *words, failure=failure)
        ends.add(ended.status)
        if why := judged(ended, counted.stdout):
            found.append(f"{failure}: {why}: exit code {ended.status}\n{ended.stdout}{ended.stderr}")
    assert {7, 125, 126} <= ends
    return found


@may_emulate
@needs_root
@pytest.mark.slow
def test_the_first_and_the_last_of_each_call(server: Failing, program: Path) -> None:
    """In the follower, in the supervisor, and in what becomes the command."""
    assert wrong(server, [*WAYS["tmpfs"], "--", program], every=False) == []


@may_emulate
@needs_root
@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("way", ["tmpfs", "memfd"])
def test_every_call(server: Failing, program: Path, way: str) -> None:
    """The same for each single call, with other errnos, on both kinds of backing."""
    assert wrong(server, [*WAYS[way], "--", program], every=True) == []


@may_emulate
@needs_root
@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("way", ["strict", "nobody"])
def test_other_ways(server: Failing, users: Failing, program: Path, way: str) -> None:
    """The first and the last of each call where more is looked at, and where less may be."""
    assert wrong(users if way == "nobody" else server, [*WAYS[way], "--", program], every=False) == []
