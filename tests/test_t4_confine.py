"""What a confined process cannot do any more, and what it still can."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from mounts import have_secretmem

from secretfs import SecretArea, confine, libc
from secretfs.testing.children import in_child

pytestmark = pytest.mark.skipif(
    platform.machine() not in confine._MACHINES, reason="this machine's system calls are not known to the filter"
)
LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_DUMPABLE, SIGKILL, CLONE_NEWUSER = 4, 9, 0x10000000


def code_of(action: Callable[[], object]) -> int:
    """The errno with which it fails, 0 where it does not."""
    try:
        action()
    except OSError as error:
        return error.errno or -1
    return 0


def confined(action: Callable[[], object]) -> object:
    """What it returns in a child that is confined."""

    def child() -> object:
        assert confine.confine() == []
        return action()

    return in_child(child)


def raw(name: str, *arguments: int) -> Callable[[], None]:
    """A system call by its number."""
    number = confine.REFUSED[name][confine._MACHINES[platform.machine()][1]]

    def call() -> None:
        if LIBC.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments)) < 0:
            raise OSError(ctypes.get_errno(), name)

    return call


@pytest.mark.parametrize("name", [name for name, numbers in confine.REFUSED.items() if numbers[1] is not None])
def test_refused_calls(name: str) -> None:
    """Each of them is EPERM, whatever its arguments; for root they would be EINVAL, EFAULT or EBADF."""
    assert os.geteuid() != 0 or in_child(lambda: code_of(raw(name, -1, -1, -1, -1, -1))) != errno.EPERM
    assert confined(lambda: code_of(raw(name, -1, -1, -1, -1, -1))) == errno.EPERM


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (lambda: os.execv("/bin/true", ["true"]), errno.EPERM),
        (os.fork, errno.EPERM),
        (lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM), errno.EPERM),
        (lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW), errno.EPERM),
        (lambda: libc.set_dumpable(dumpable=True), errno.EPERM),
        (lambda: open("/dev/null", "wb"), errno.EACCES),  # noqa: SIM115 - it is not opened
        (lambda: os.mkdir("/tmp/secretfs-confined"), errno.EACCES),
        (lambda: os.truncate("/etc/hostname", 0), errno.EACCES),
    ],
    ids=["exec", "fork", "network", "netlink", "dumpable", "write", "mkdir", "truncate"],
)
def test_no_way_out(action: Callable[[], object], expected: int) -> None:
    """It starts no program and no process, opens no socket of the network, and changes no file; also root does not."""
    assert confined(lambda: code_of(action)) == expected


def test_files_are_not_removed(tmp_path: Path) -> None:
    """Files stay, with their names and bytes."""
    file = tmp_path / "file"
    file.write_bytes(b"bytes")
    opened = confined(
        lambda: [
            code_of(file.unlink), code_of(lambda: file.rename(tmp_path / "other")),
            code_of(lambda: file.write_bytes(b"")), file.read_bytes(),
        ]
    )  # fmt: skip
    assert opened == [errno.EACCES, errno.EACCES, errno.EACCES, b"bytes"]


def test_what_it_still_can() -> None:
    """It reads files and imports modules, starts threads, locks memory, and talks to a local socket."""

    def work() -> list[object]:
        import colorsys  # not imported before

        found: list[object] = []
        thread = threading.Thread(target=lambda: found.append(code_of(os.fork)))
        thread.start()
        thread.join()
        with SecretArea(4096, backend="kernel" if have_secretmem() else "emulator") as area:
            area.write(b"locked")
            found.append(area.size)
        one, other = socket.socketpair()
        one.send(b"local")
        found.append(other.recv(5))
        found.append(Path("/proc/self/status").read_text(encoding="ascii").count("Seccomp:\t2"))
        return [*found, colorsys.__name__, tempfile.gettempdir() != ""]

    with tempfile.TemporaryFile():  # gettempdir() tries to write, once
        assert confined(work) == [errno.EPERM, 4096, b"local", 1, "colorsys", True]


def test_an_unknown_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the numbers are not known it says so, and the other two hold."""
    monkeypatch.setattr(platform, "machine", lambda: "sparc")

    def child() -> tuple[list[str], int]:
        return confine.confine(), code_of(lambda: open("/dev/null", "wb"))

    assert in_child(child) == (["not confined by seccomp: function not implemented"], errno.EACCES)


@pytest.mark.parametrize("machine", list(confine._MACHINES))
def test_every_filter_fits(machine: str) -> None:
    """A program for each machine, of whole instructions and no more than the kernel takes."""
    program = list(confine._filter(machine))
    assert all(len(instruction) == 8 for instruction in program)
    assert len(program) < 256
