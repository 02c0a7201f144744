"""Each system call of an allocation fails once: an error of ours or the system's, and nothing is left behind.

allocations.py has the operations and compares what was before with what is afterwards: descriptors, mappings, locked
bytes, registries; and that the next try works. No exception may hold a byte of a secret.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

import pytest
from failing import Failing, Failure, failing, failures
from mounts import have_secretmem
from shims import HERE

from secretfs.rest import libsodium

OPERATIONS = re.findall(r"^def op_(\w+)", (HERE / "allocations.py").read_text(encoding="utf-8"), re.MULTILINE)
LIKE_OTHERS = {"area_uncached", "secret_uncached", "secret_large", "secret_from_hex", "pages", "secret_read"}
"""Operations whose calls are those of another one, in the same order."""
CALLS = {
    "memfd_secret": (errno.ENOMEM, errno.EMFILE, errno.EPERM),
    "memfd_create": (errno.ENFILE, errno.ENOMEM),
    "ftruncate": (errno.ENOSPC, errno.EFBIG),
    "mmap": (errno.ENOMEM, errno.EAGAIN),
    "mremap": (errno.ENOMEM,),
    "mlock": (errno.ENOMEM, errno.EAGAIN, errno.EPERM),
    "madvise": (errno.ENOMEM, errno.EINVAL),
    "mprotect": (errno.ENOMEM,),
    "munmap": (errno.ENOMEM,),
    "close": (errno.EIO,),
    "openat": (errno.EMFILE, errno.ENOMEM),
    "pipe2": (errno.EMFILE,),
    "readv": (errno.EFAULT,),
    "getrandom": (errno.EFAULT, errno.EINTR),
    "fcntl": (errno.EPERM,),
    "dup": (errno.EMFILE,),
    "fstatfs": (errno.ENOMEM,),
    "process_vm_readv": (errno.ENOMEM,),
    "clone": (errno.EAGAIN,),
}
FOR_GOOD = {errno.EPERM, errno.EINVAL, errno.EIO, errno.ENOSPC, errno.EFBIG}
"""What a probe takes for the last word."""
SAID = re.compile(r"(raised \w+\n)?")


@pytest.fixture(scope="module")
def server() -> Iterator[Failing]:
    """What runs the operations."""
    with failing("scenario", "allocations") as server:
        yield server


def wrong(server: Failing, operation: str, backend: str, *, every: bool) -> list[str]:
    """What is wrong after which failure."""
    words = ("allocations", "attempt", operation, backend)
    counted = server.run(*words)
    assert (counted.status, counted.stdout, counted.stderr) == (0, "", "")
    found, done = [], 0
    for failure in failures(counted.counts, CALLS, every=every):
        if operation == "chosen" and failure.code in FOR_GOOD:
            continue
        ended = server.run(*words, failure=failure)
        done += ended.failed
        if ended.hung or (ended.status, ended.stderr) != (0, "") or not SAID.fullmatch(ended.stdout):
            found.append(_shown(failure, ended.status, ended.stdout + ended.stderr))
    assert done > 0, "nothing failed"
    return found


def _shown(failure: Failure, status: int, said: str) -> str:
    return f"{failure}: exit code {status}\n{said}"


def _requires(operation: str, backend: str) -> None:
    if backend == "kernel" and not have_secretmem():
        pytest.skip("memfd_secret: the kernel has none here")
    assert "at_rest" not in operation or libsodium() is not None


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["kernel", "emulator"])
@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name not in LIKE_OTHERS])
def test_the_first_and_the_last_of_each_call(server: Failing, operation: str, backend: str) -> None:
    """Whatever fails, nothing is left behind, and it works the next time."""
    _requires(operation, backend)
    assert wrong(server, operation, backend, every=False) == []


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("backend", ["kernel", "emulator"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_call(server: Failing, operation: str, backend: str) -> None:
    """The same for each single call, with other errnos too."""
    _requires(operation, backend)
    assert wrong(server, operation, backend, every=True) == []
