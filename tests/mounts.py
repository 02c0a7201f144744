"""What the tests of real mounts share: the installed command, a mount that cleans up after itself, waiting for events.

Nothing here sleeps: the end of a process is waited for on a pidfd, a change of the mount table on
/proc/self/mountinfo (proc(5): POLLPRI), and each wait has an end that fails the test.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import secretfs_kernel
from secretfs import mountinfo
from secretfs.errors import BackendUnavailable

SECRETFS = os.path.join(os.path.dirname(sys.executable), "secretfs")
PATIENCE = 60
"""Seconds that anything may take that is waited for."""
NOBODY = 65534
ROOT = os.geteuid() == 0

_libc = ctypes.CDLL(None, use_errno=True)


def _leave_mount_namespace() -> None:
    """Let this process mount in a namespace of its own, where it can.

    Whoever copies the machine's namespace meanwhile (unshare, containers, another run of these tests) would copy our
    mounts as well, and a mount that somebody has a copy of does not end when it is unmounted. Of the mounts that are
    there the namespace is left no copies either: nobody's end is to wait for these tests, and nobody's dead ones are
    to be told of in them.
    """
    new_namespace, recursive_private, detach = 0x20000, 0x44000, 2
    if not ROOT or _libc.unshare(new_namespace) != 0:
        return
    if _libc.mount(b"none", b"/", None, ctypes.c_ulong(recursive_private), None) != 0:
        return  # or what is detached here would be in the machine's namespace too
    for mount in mountinfo.mounts():
        _libc.umount2(os.fsencode(mount.mountpoint), detach)


_leave_mount_namespace()

needs_root = pytest.mark.skipif(not ROOT, reason="needs root: it acts as several users, or reads another process")


def have_secretmem() -> bool:
    """Whether the kernel's backend works here."""
    try:
        secretfs_kernel.Backend().probe()
    except BackendUnavailable:
        return False
    return True


needs_secretmem = pytest.mark.skipif(not have_secretmem(), reason="memfd_secret: the kernel has none here")


def secretfs(*words: str | os.PathLike[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the installed command, in English and without SECRETFS_BACKEND; it must never show a traceback."""
    environment = {**clean_environment(), **options.pop("env", {})}
    command = [*options.pop("under", []), SECRETFS, *map(os.fspath, words)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False, **options
    )
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    return done


def clean_environment() -> dict[str, str]:
    """This process's environment without what would change the choice of a backend or the language."""
    return {**{k: v for k, v in os.environ.items() if k != "SECRETFS_BACKEND"}, "LC_ALL": "C.UTF-8"}


class Mounted:
    """A secretfs on a directory, mounted by the installed command; unmounted at the latest by `close`."""

    def __init__(self, path: Path, *flags: str, **options: Any) -> None:
        path.mkdir(exist_ok=True)
        self.path = path
        self.said = secretfs("mount", *flags, path, **options)
        assert self.said.returncode == 0, self.said.stderr
        self.daemon = int(os.getxattr(path, "user.secretfs.pid"))
        self.parent = int(proc_status(self.daemon)["PPid"])
        self._pidfds = {pid: os.pidfd_open(pid) for pid in (self.daemon, self.parent)}

    def status(self) -> dict[str, Any]:
        """What `secretfs status --json` tells of it."""
        done = secretfs("status", "--json", self.path)
        assert done.returncode == 0, done.stderr
        (answer,) = json.loads(done.stdout)["mounts"]
        return dict(answer)

    def held(self) -> tuple[int, int]:
        """Files in it, unlinked ones that are still open included, and the bytes they are charged for."""
        status = json.loads(os.getxattr(self.path, "user.secretfs.status"))
        return status["files"], status["bytes"]

    def wait_for_end(self) -> None:
        """Return when both processes have ended and the mount is gone."""
        for fd in self._pidfds.values():
            wait_readable(fd)
        wait_for_mounts(lambda: not is_mounted(self.path))

    def has_ended(self, pid: int) -> bool:
        """Whether that one of the two processes has ended."""
        return bool(select.select([self._pidfds[pid]], [], [], 0)[0])

    def wait_for_end_of(self, pid: int) -> None:
        """Return when that one of the two processes has ended."""
        wait_readable(self._pidfds[pid])

    def kill(self, number: int, *pids: int) -> None:
        """Send a signal to the daemon, the parent or both, through their pidfds."""
        for pid in pids:
            signal.pidfd_send_signal(self._pidfds[pid], number)

    def close(self) -> None:
        """Unmount if it still is mounted, and see both processes end."""
        if is_mounted(self.path):
            done = secretfs("umount", "--lazy", self.path)
            assert done.returncode == 0, done.stderr
        self.wait_for_end()
        for fd in self._pidfds.values():
            os.close(fd)

    def __enter__(self) -> Mounted:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def public_directory() -> Iterator[Path]:
    """A temporary directory that other users can look into (pytest's are closed to them)."""
    with tempfile.TemporaryDirectory(prefix="secretfs-test-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def as_user(script: str, *words: str | os.PathLike[str], uid: int = NOBODY, **options: Any) -> str:
    """Run a Python script as another user, and return what it printed."""
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", f"import os, errno, sys\n{script}", *map(os.fspath, words)],
        user=uid, group=uid, extra_groups=[], capture_output=True, text=True, timeout=PATIENCE, check=False,
        **options,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def expect_refusal(done: subprocess.CompletedProcess[str], code: int, *sentences: str) -> None:
    """It failed with `code`, printed nothing on stdout, on stderr one error with each of the sentences, and a hint."""
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    errors = [line for line in done.stderr.splitlines() if not line.startswith("secretfs: hint: ")]
    assert len(errors) == 1, done.stderr
    message = errors[0].removeprefix("secretfs: error: ")
    assert message != errors[0], done.stderr
    assert message[0] == message[0].lower() or message.startswith(("FUSE", "RLIMIT"))
    assert not message.endswith(".")
    assert [sentence for sentence in sentences if sentence not in message] == [], message
    assert "secretfs: hint: " in done.stderr, done.stderr


# What is mounted


def is_mounted(path: Path) -> bool:
    """Whether a secretfs is mounted exactly there (stat(2) is not asked: a dead mount does not answer)."""
    return mount_line(path) is not None


def mount_line(path: Path) -> str | None:
    """The line of /proc/self/mountinfo for the secretfs at `path`."""
    wanted = os.path.realpath(path.parent) + "/" + path.name
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    return next((line for line in lines if line.split()[4] == wanted and " fuse.secretfs " in line), None)


def wait_for_mounts(condition: Callable[[], bool]) -> None:
    """Return when `condition` holds; it is looked at again after each change of the mount table."""
    end = time.monotonic() + PATIENCE
    with open("/proc/self/mountinfo", "rb") as table:
        poll = select.poll()
        poll.register(table, select.POLLPRI | select.POLLERR)
        while not condition():
            left = end - time.monotonic()
            assert left > 0 and poll.poll(left * 1000), "the mount table did not come to what was expected"


def wait_readable(fd: int, patience: float = PATIENCE) -> None:
    """Return when `fd` is readable: a pidfd when its process has ended."""
    assert select.select([fd], [], [], patience)[0], "what was waited for did not happen"


def proc_status(pid: int) -> dict[str, str]:
    """/proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


# What Python has no call for

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
XATTR_CREATE, XATTR_REPLACE = os.XATTR_CREATE, os.XATTR_REPLACE


def renameat2(old: Path, new: Path, flags: int) -> None:
    """renameat2(2)."""
    here = -100  # AT_FDCWD
    if _libc.renameat2(here, os.fsencode(old), here, os.fsencode(new), flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def process_vm_read(pid: int, address: int, size: int) -> bytes:
    """process_vm_readv(2) of one piece."""
    buffer = ctypes.create_string_buffer(size)
    ours = _Vector(ctypes.cast(buffer, ctypes.c_void_p), size)
    theirs = _Vector(address, size)
    got = _libc.process_vm_readv(pid, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0)
    if got < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return buffer.raw[:got]
