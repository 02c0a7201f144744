"""How a real mount begins and ends, whatever ends it, and that nothing is left behind."""

from __future__ import annotations

import contextlib
import errno
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import (
    PATIENCE,
    ROOT,
    SECRETFS,
    Mounted,
    clean_environment,
    is_mounted,
    mount_line,
    needs_root,
    proc_status,
    secretfs,
    wait_for_mounts,
    wait_readable,
)

ENDING = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mounted]:
    """A mount that the test may end as it likes."""
    with Mounted(tmp_path / "mnt") as mounted:
        yield mounted


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An empty directory."""
    folder = tmp_path / "mnt"
    folder.mkdir()
    return folder


def usable_again(path: Path) -> bool:
    """Whether the directory is an ordinary empty one on which can be mounted again."""
    if is_mounted(path) or os.listdir(path) != []:
        return False
    with Mounted(path) as again:
        return os.listdir(again.path) == []


def expect_dead(file: int) -> None:
    """Reading and closing an open file of a mount that has ended are ENOTCONN."""
    for call in (lambda: os.pread(file, 6, 0), lambda: os.close(file)):
        with pytest.raises(OSError, match="not connected") as dead:
            call()
        assert dead.value.errno == errno.ENOTCONN


# The beginning


@pytest.mark.slow
def test_mount_returns_when_it_answers(path: Path) -> None:
    """The command after `secretfs mount` can use the mount, the one after `secretfs umount` can mount again."""
    script = 'for i in 1 2 3 4 5; do "$0" mount "$1" && echo $i >"$1/f" && cat "$1/f" && "$0" umount "$1" || exit; done'
    words = ["sh", "-c", script, SECRETFS, path]
    done = subprocess.run(words, capture_output=True, text=True, env=clean_environment(), check=False)
    assert done.stdout.split() == ["1", "2", "3", "4", "5"], done.stderr


@pytest.mark.slow
def test_nothing_of_the_caller_is_held(path: Path) -> None:
    """After mounting neither a descriptor of the caller's nor its working directory is in use, and no terminal."""
    (path.parent / "cwd").mkdir()
    reader, writer = os.pipe()
    with Mounted(path, pass_fds=(writer,), cwd=path.parent / "cwd") as mounted:
        os.close(writer)
        wait_readable(reader)
        assert os.read(reader, 1) == b""
        os.close(reader)
        for pid in (mounted.daemon, mounted.parent):
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            assert fields[3] == str(mounted.parent), "not a session of its own"
            assert fields[4] == "0", "it has a terminal"
            if ROOT:
                assert os.readlink(f"/proc/{pid}/cwd") == "/"


def test_mount_into_a_pipe_returns(path: Path) -> None:
    """`secretfs mount DIR | cat` ends: no process keeps the pipe."""
    script = '("$0" mount "$1" 2>&1) | cat; exec "$0" umount "$1"'
    subprocess.run(["sh", "-c", script, SECRETFS, path], check=True, timeout=PATIENCE, env=clean_environment())
    assert not is_mounted(path)


def test_needs_no_home_and_leaves_no_files(tmp_path: Path) -> None:
    """No file is written anywhere that programs like to write: HOME, XDG folders, TMPDIR; HOME may not even exist."""
    folder = tmp_path / "empty"
    folder.mkdir()
    names = ("XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "TMPDIR")
    with Mounted(tmp_path / "mnt", env={**dict.fromkeys(names, str(folder)), "HOME": "/nonexistent"}):
        assert os.listdir(folder) == []


TRACER = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
pid = os.fork()
if pid == 0:
    libc.ptrace(0, 0, None, None)  # PTRACE_TRACEME
    os.execv(sys.argv[1], sys.argv[1:])
while True:
    _, status = os.waitpid(pid, 0)
    if not os.WIFSTOPPED(status):
        sys.exit(os.waitstatus_to_exitcode(status))
    number = os.WSTOPSIG(status)
    libc.ptrace(7, pid, None, ctypes.c_void_p(0 if number == 5 else number))  # PTRACE_CONT
"""


@pytest.mark.parametrize("flags", [[], ["--foreground"]], ids=["detached", "foreground"])
def test_refuses_to_start_traced(path: Path, flags: list[str]) -> None:
    """Under a tracer it says so and mounts nothing."""
    done = secretfs("mount", *flags, path, under=["/usr/bin/python3", "-I", "-c", TRACER])
    assert done.returncode == 1
    assert "secretfs: error: refusing to start: process" in done.stderr
    assert not is_mounted(path)


# The end


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
@pytest.mark.parametrize("who", ["daemon", "parent"])
@pytest.mark.slow
def test_signals_end_it(mount: Mounted, who: str, number: int) -> None:
    """SIGTERM, SIGINT and SIGHUP to either process unmount, also with files open: handles then get ENOTCONN."""
    file = os.open(mount.path / "f", os.O_RDWR | os.O_CREAT)
    os.write(file, b"secret")
    mount.kill(number, getattr(mount, who))
    mount.wait_for_end()
    expect_dead(file)
    assert os.listdir(mount.path) == []


@pytest.mark.slow
def test_kill_9_of_the_daemon(mount: Mounted) -> None:
    """After kill -9 of the daemon, with files open, the mountpoint is an empty directory that can be mounted on."""
    file = os.open(mount.path / "f", os.O_RDWR | os.O_CREAT)
    mount.kill(signal.SIGKILL, mount.daemon)
    mount.wait_for_end()
    expect_dead(file)
    assert usable_again(mount.path)


@pytest.mark.slow
def test_kill_9_of_the_parent(mount: Mounted) -> None:
    """Without its parent the mount goes on, and `secretfs umount` still ends it."""
    (mount.path / "f").write_bytes(b"kept")
    mount.kill(signal.SIGKILL, mount.parent)
    mount.wait_for_end_of(mount.parent)
    assert (mount.path / "f").read_bytes() == b"kept"
    assert secretfs("umount", mount.path).returncode == 0
    mount.wait_for_end()
    assert usable_again(mount.path)


@pytest.mark.slow
def test_signal_to_a_daemon_without_parent(mount: Mounted) -> None:
    """SIGTERM to a daemon whose parent is gone ends it; what may be left `secretfs umount` clears."""
    mount.kill(signal.SIGKILL, mount.parent)
    mount.wait_for_end_of(mount.parent)
    mount.kill(signal.SIGTERM, mount.daemon)
    mount.wait_for_end_of(mount.daemon)
    if is_mounted(mount.path):
        assert secretfs("umount", mount.path).returncode == 0
    assert usable_again(mount.path)


@pytest.fixture
def dead(mount: Mounted) -> Mounted:
    """A mount whose two processes were killed by kill -9."""
    mount.kill(signal.SIGSTOP, mount.parent)  # or it would clean up
    mount.kill(signal.SIGKILL, mount.daemon, mount.parent)
    mount.wait_for_end_of(mount.daemon)
    mount.wait_for_end_of(mount.parent)
    with pytest.raises(OSError, match="not connected"):
        os.listdir(mount.path)
    return mount


@pytest.mark.slow
def test_umount_clears_a_dead_mount(dead: Mounted) -> None:
    """`secretfs umount` clears what kill -9 of both processes left."""
    done = secretfs("umount", dead.path)
    assert (done.returncode, done.stdout) == (0, "")
    assert "daemon was dead" in done.stderr
    assert usable_again(dead.path)


@pytest.mark.slow
def test_mount_reuses_a_dead_mount(dead: Mounted) -> None:
    """`secretfs mount` on what kill -9 of both processes left clears it and mounts."""
    with Mounted(dead.path) as again:
        assert os.listdir(again.path) == []
    assert not is_mounted(dead.path)


@pytest.mark.slow
def test_status_of_a_dead_mount(dead: Mounted) -> None:
    """`secretfs status` says that the daemon is dead, and what clears the mount."""
    done = secretfs("status", dead.path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "daemon" in done.stderr
    assert f"secretfs: hint: secretfs umount {dead.path}" in done.stderr


@pytest.mark.parametrize("command", [["fusermount3", "-u"], ["umount"]], ids=["fusermount3", "umount"])
@pytest.mark.slow
def test_other_commands_unmount(mount: Mounted, command: list[str]) -> None:
    """fusermount3 -u and umount(8) end both processes in order."""
    (mount.path / "f").write_bytes(b"x")
    subprocess.run([*command, mount.path], check=True)
    mount.wait_for_end()
    assert os.listdir(mount.path) == []


@pytest.mark.slow
def test_umount_waits_for_the_daemon(mount: Mounted) -> None:
    """When `secretfs umount` returns, the process that held the secrets has ended."""
    (mount.path / "f").write_bytes(bytes(4 << 20))
    assert secretfs("umount", mount.path).returncode == 0
    assert mount.has_ended(mount.daemon)


@needs_root
@pytest.mark.slow
def test_umount_waits_for_other_namespaces(mount: Mounted) -> None:
    """While another mount namespace has a copy of the mount, `secretfs umount` does not say that all is destroyed."""
    holder = subprocess.Popen(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", "echo; exec cat"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"\n"
    umount = subprocess.Popen([SECRETFS, "umount", mount.path], stderr=subprocess.PIPE, text=True)
    wait_for_mounts(lambda: not is_mounted(mount.path))
    with pytest.raises(subprocess.TimeoutExpired):
        umount.wait(0.5)
    holder.communicate()
    _, said = umount.communicate(timeout=PATIENCE)
    assert (umount.returncode, said) == (0, "secretfs: 0 files destroyed\n")
    assert mount.has_ended(mount.daemon)


@pytest.mark.slow
def test_lazy_umount_lets_open_files_live(mount: Mounted) -> None:
    """After `umount --lazy` an open file still works, and the daemon ends when it is closed."""
    with open(mount.path / "f", "w+b", buffering=0) as file:
        file.write(b"secret")
        assert secretfs("umount", "--lazy", mount.path).returncode == 0
        assert not is_mounted(mount.path)
        assert os.pread(file.fileno(), 6, 0) == b"secret"
        os.pwrite(file.fileno(), b"S", 0)
        assert os.pread(file.fileno(), 6, 0) == b"Secret"
        assert not mount.has_ended(mount.daemon)
    mount.wait_for_end()


@pytest.mark.slow
def test_a_number_that_another_mount_has_got(tmp_path: Path) -> None:
    """The kernel gives the number of a file system that is gone to the next one, which is not taken for ours then."""
    first = Mounted(tmp_path / "first")
    number = device_number(first.path)
    with contextlib.ExitStack() as mounts:
        first.kill(signal.SIGSTOP, first.parent)
        subprocess.run(["fusermount3", "-u", first.path], check=True)
        first.wait_for_end_of(first.daemon)
        for name in range(20):
            other = mounts.enter_context(Mounted(tmp_path / str(name), "--size", "64K"))
            if device_number(other.path) == number:
                break
        else:
            pytest.fail("no other mount has got the number")
        first.kill(signal.SIGCONT, first.parent)
        first.wait_for_end_of(first.parent)
        assert is_mounted(other.path)
        (other.path / "f").write_bytes(b"works")
    first.close()


def device_number(path: Path) -> str:
    """major:minor of what is mounted there."""
    line = mount_line(path)
    assert line is not None
    return line.split()[2]


@pytest.mark.slow
def test_a_mount_that_was_moved_still_ends(tmp_path: Path) -> None:
    """Where a directory above the mountpoint was renamed, the parent still finds and unmounts it."""
    (tmp_path / "before").mkdir()
    with Mounted(tmp_path / "before" / "mnt") as mounted:
        (tmp_path / "before").rename(tmp_path / "after")
        mounted.path = tmp_path / "after" / "mnt"
        assert is_mounted(mounted.path)
        mounted.kill(signal.SIGKILL, mounted.daemon)
        mounted.wait_for_end()
        assert os.listdir(mounted.path) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("cycles", [20, pytest.param(200, marks=pytest.mark.long)])
def test_cycles_leave_nothing(path: Path, cycles: int) -> None:
    """Mounting, using and unmounting again and again leaves no process, no mount, no file and no locked memory."""
    before = sorted(os.listdir(path.parent))
    for number in range(cycles):
        with Mounted(path, "--size", "1M") as mounted:
            (mounted.path / "f").write_bytes(bytes(number * 5000))
            done = secretfs("umount", path)
            assert done.stderr == "secretfs: 1 file destroyed\n"
            mounted.wait_for_end()
    assert sorted(os.listdir(path.parent)) == before
    assert usable_again(path)
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                command = Path(f"/proc/{entry}/cmdline").read_bytes()
            except OSError:
                continue
            assert os.fsencode(path) not in command


# --foreground


class Foreground:
    """`secretfs mount --foreground` as a child process, up when the mount is."""

    def __init__(self, path: Path, *flags: str, terminal: bool = False) -> None:
        self.path = path
        self.master = self.slave = -1
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [SECRETFS, "mount", "--foreground", *flags, str(path)]
        if terminal:
            self.master, self.slave = pty.openpty()
            streams = dict.fromkeys(streams, self.slave)
            command = ["setsid", "--ctty", *command]  # a session of its own, with the terminal as its own
        self.process = subprocess.Popen(command, text=True, env=clean_environment(), **streams)
        wait_for_mounts(lambda: is_mounted(path) and self.answers())

    def answers(self) -> bool:
        """Whether the mount serves requests."""
        return os.listdir(self.path) == []

    def __enter__(self) -> Foreground:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        if is_mounted(self.path):
            subprocess.run(["fusermount3", "-uz", self.path], check=False)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
@pytest.mark.slow
def test_foreground_exits_0_when_it_is_gone(path: Path, number: int) -> None:
    """--foreground exits 0 on a signal, with files open too, and by then the mount is out of the mount table."""
    with Foreground(path) as mounted:
        file = os.open(path / "f", os.O_RDWR | os.O_CREAT)
        mounted.process.send_signal(number)
        code = mounted.process.wait(PATIENCE)
        still = is_mounted(path)
        expect_dead(file)
        _, stderr = mounted.process.communicate()
        assert (code, still) == (0, False), stderr
        assert "Traceback" not in stderr
        assert "error" not in stderr


@pytest.mark.slow
def test_foreground_ends_with_umount(path: Path) -> None:
    """--foreground exits 0 after `secretfs umount`, and prints nothing on stdout."""
    with Foreground(path) as mounted:
        assert secretfs("umount", path).returncode == 0
        stdout, _ = mounted.process.communicate(timeout=PATIENCE)
        assert (mounted.process.returncode, stdout) == (0, "")


@pytest.mark.slow
def test_foreground_fails_when_the_daemon_is_killed(path: Path) -> None:
    """--foreground exits 1 after kill -9 of the daemon, says so, and leaves a clean mountpoint."""
    with Foreground(path) as mounted:
        os.kill(int(os.getxattr(path, "user.secretfs.pid")), signal.SIGKILL)
        _, stderr = mounted.process.communicate(timeout=PATIENCE)
        assert mounted.process.returncode == 1
        assert "SIGKILL" in stderr
        assert not is_mounted(path)


@pytest.mark.slow
def test_a_killed_terminal_ends_it(path: Path) -> None:
    """When the terminal of --foreground goes away, the mount does, and no process stays."""
    with Foreground(path, terminal=True) as mounted:
        daemon = os.pidfd_open(int(os.getxattr(path, "user.secretfs.pid")))
        os.close(mounted.slave)
        os.close(mounted.master)
        mounted.process.wait(PATIENCE)
        wait_readable(daemon)
        os.close(daemon)
        assert not is_mounted(path)


@pytest.mark.slow
def test_ctrl_c_ends_it(path: Path) -> None:
    """Ctrl-C at the terminal of --foreground, which both processes get, unmounts and exits 0."""
    with Foreground(path, terminal=True) as mounted:
        os.write(mounted.master, b"\x03")
        assert mounted.process.wait(PATIENCE) == 0
        assert not is_mounted(path)
        os.close(mounted.slave)
        os.close(mounted.master)


def test_processes_are_named_by_status(mount: Mounted) -> None:
    """The pid that the mount tells is its daemon's, a child of the parent that waits for it."""
    assert proc_status(mount.daemon)["PPid"] == str(mount.parent)
    assert mount.daemon != mount.parent
