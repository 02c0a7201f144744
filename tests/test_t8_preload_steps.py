"""Each system call of the preload library fails once: as it is loaded, and later, in programs of each kind.

A program goes on, with memory that was refused or ordinary, as the policy says; or it ends with one message where it
would have no protection. It never crashes, loses bytes, or is told the same twice; no message has a byte of a secret.
"""

from __future__ import annotations

import errno
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from failing import Ended, Failing, failing, failures
from launches import open_folder
from mounts import have_secretmem
from preloads import PRELOAD
from runs import compiled
from shims import HERE

from secretfs.preload import LIBRARY

CALLS = {
    "memfd_secret": (errno.ENOMEM, errno.EMFILE),
    "ftruncate": (errno.ENOSPC,),
    "mmap": (errno.ENOMEM,),
    "mremap": (errno.ENOMEM,),
    "munmap": (errno.ENOMEM,),
    "mlock": (errno.ENOMEM, errno.EAGAIN),
    "madvise": (errno.ENOMEM,),
    "mprotect": (errno.ENOMEM,),
    "getrandom": (errno.EFAULT, errno.EINTR),
    "openat": (errno.EMFILE,),
    "read": (errno.EIO,),
    "close": (errno.EIO,),
    "fstatfs": (errno.ENOMEM,),
    "prlimit64": (errno.EPERM,),
    "process_vm_readv": (errno.ENOMEM,),
    "pipe2": (errno.EMFILE,),
    "poll": (errno.ENOMEM,),
    "clone": (errno.EAGAIN,),
}
LIBSODIUMS_OWN = {"mprotect", "munmap", "getrandom"}
"""Calls that it makes itself, and does not look at, or ends the process for."""
FIRST = ("mmap", 1, 1 << 34)
"""The first call of the library: it reserves addresses."""
PROGRAMS = ("api", "openssl", "fork", "sodium")
BACKENDS = ("auto", "kernel", "emulator")
LINE = re.compile(r"((\w+)=(ok|refused) )*")
ONE_SENTENCE = re.compile(r"secretfs: error: [^\n]+\n(secretfs: hint: [^\n]+\n)?")
MESSAGE = re.compile(r"secretfs: (warning|error): [^\n]+")


@pytest.fixture(scope="module")
def program() -> Iterator[Path]:
    """preload_steps.c, linked with the library."""
    with open_folder() as folder:
        yield compiled(
            Path(folder) / "preload_steps", HERE / "preload_steps.c",
            options=("-I", str(Path(PRELOAD).parent), PRELOAD, f"-Wl,-rpath,{Path(PRELOAD).parent}"),
        )  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Failing]:
    """What runs it."""
    with failing("program") as server:
        yield server


def judged(ended: Ended, backend: str) -> str:
    """What is wrong, or ""."""
    if ended.hung:
        return "it hangs"
    lines = ended.stderr.splitlines()
    if "needle" in ended.stderr or len(set(lines)) < len(lines) or not all(map(MESSAGE.fullmatch, lines)):
        return "it says what it should not"
    if not LINE.fullmatch(ended.stdout):
        return "bytes are lost"
    if ended.status == 7:
        return "" if ended.stdout.endswith("end=ok ") else "it broke off"
    errors = [line for line in lines if line.startswith("secretfs: error: ")]
    if len(errors) == 1 and (ended.status == 125 or (ended.status == -signal.SIGABRT and backend == "kernel")):
        return ""
    return "it ends in another way"


def wrong(server: Failing, program: Path, what: str, backend: str, *, every: bool) -> list[str]:
    """What is wrong after which failure."""
    if backend == "kernel" and not have_secretmem():
        pytest.skip("memfd_secret: the kernel has none here")
    environment = {"SECRETFS_BACKEND": backend}
    counted = server.run(program, what, mark=FIRST, environment=environment)
    assert (counted.status, counted.stderr, judged(counted, backend)) == (7, "", ""), counted
    assert "refused" not in counted.stdout
    found, done = [], 0
    for failure in failures(counted.counts, CALLS, every=every):
        if what == "sodium" and failure.name in LIBSODIUMS_OWN:
            continue
        ended = server.run(program, what, failure=failure, mark=FIRST, environment=environment)
        done += ended.failed
        if why := judged(ended, backend):
            found.append(f"{failure}: {why}: exit code {ended.status}\n{ended.stdout}\n{ended.stderr}")
    assert done > 0
    return found


def test_the_command() -> None:
    """`secretfs preload` becomes the program with the library, or says in one sentence why not: 125, 126 or 127."""
    words = ("preload", "--", "/usr/bin/printenv", "LD_PRELOAD")
    kinds = {**CALLS, "execve": (errno.ENOMEM,), "access": (errno.ENOMEM,), "newfstatat": (errno.ENOMEM,)}
    kinds |= {"rt_sigaction": (errno.EINVAL,), "readlink": (errno.ENOMEM,)}
    found = []
    with failing("command", "secretfs.preload", "shlex") as server:
        for _ in range(2):  # the first one imports what else it needs
            counted = server.run(*words)
        assert (counted.status, counted.stdout, counted.stderr) == (0, f"{LIBRARY}\n", "")
        for failure in failures(counted.counts, kinds, every=True):
            ended = server.run(*words, failure=failure)
            ran = (ended.status, ended.stdout, ended.stderr) == (0, f"{LIBRARY}\n", "")
            refused = ended.status in (125, 126, 127) and not ended.stdout and ONE_SENTENCE.fullmatch(ended.stderr)
            if ended.hung or not (ran or refused):
                found.append(f"{failure}: exit code {ended.status}\n{ended.stdout}{ended.stderr}")
    assert found == []


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["auto", "emulator"])
@pytest.mark.parametrize("what", PROGRAMS)
def test_the_first_and_the_last_of_each_call(server: Failing, program: Path, what: str, backend: str) -> None:
    """Whatever fails, the program goes on, or one message says why not."""
    assert wrong(server, program, what, backend, every=False) == []


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("what", PROGRAMS)
def test_every_call(server: Failing, program: Path, what: str, backend: str) -> None:
    """The same for each single call, with other errnos too."""
    assert wrong(server, program, what, backend, every=True) == []
