"""tests/box.py: each option takes away what it says, nothing else, and the command never notices the box."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import box
import pytest

PYTHON = "/usr/bin/python3"
IS_ROOT = os.geteuid() == 0
ASK_FOR_SECRET_MEMORY = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.syscall(447, os.O_CLOEXEC)
print("fd" if fd >= 0 else ctypes.get_errno(), os.getuid())
"""
needs_root = pytest.mark.skipif(not IS_ROOT, reason="needs root")


def run(*words: str, **options) -> subprocess.CompletedProcess[str]:
    """Run a command in a box."""
    return subprocess.run(box.command(words, **options), capture_output=True, text=True, timeout=60, check=False)


def answer(script: str, **options) -> str:
    """What a Python script prints in a box; it must succeed."""
    done = run(PYTHON, "-I", "-c", script, **options)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def status_field(name: str, **options) -> str:
    """A field of /proc/self/status in a box."""
    done = run("/bin/sed", "-n", f"s/^{name}:\\s*//p", "/proc/self/status", **options)
    return done.stdout.strip()


def require_cgroup(options) -> None:
    """Skip a test that wants a memory cgroup where none can be made."""
    if "cgroup_limit" in options and box.NO_CGROUP in run("/bin/true", **options).stderr:
        pytest.skip("needs a writable memory cgroup")


@pytest.mark.skipif(IS_ROOT, reason="needs an ordinary user")
def test_only_root_makes_a_box() -> None:
    """Without root it says so and exits with 125."""
    done = run("/bin/true")
    assert (done.returncode, done.stderr) == (125, "box.py: [Errno 1] needs root\n")


@needs_root
def test_user_is_dropped_for_good() -> None:
    """--user leaves no id, no group and no capability of root's."""
    script = "import os; print(os.getresuid(), os.getresgid(), os.getgroups())"
    assert answer(script, user="nobody") == "(65534, 65534, 65534) (65534, 65534, 65534) []"
    assert int(status_field("CapEff", user="nobody"), 16) == 0
    assert int(status_field("CapPrm", user="nobody"), 16) == 0


@needs_root
def test_unknown_user_is_refused() -> None:
    """A user that does not exist is a failure of the box: 125."""
    assert run("/bin/true", user="no-such-user").returncode == 125


@needs_root
@pytest.mark.parametrize("user", [None, "nobody"])
@pytest.mark.parametrize("name", ["ENOSYS", "EPERM"])
def test_memfd_secret_fails_as_asked(name: str, user: str | None) -> None:
    """--without makes memfd_secret(2) fail with that errno, for root and for an ordinary user."""
    uid = 65534 if user else 0
    assert answer(ASK_FOR_SECRET_MEMORY, user=user, without=name) == f"{getattr(errno, name)} {uid}"


@needs_root
def test_filter_is_what_makes_it_fail() -> None:
    """The same question gets the same answer in a box without --without as outside of any box."""
    outside = subprocess.run([PYTHON, "-c", ASK_FOR_SECRET_MEMORY], capture_output=True, text=True, check=True)
    assert answer(ASK_FOR_SECRET_MEMORY) == outside.stdout.strip()


@needs_root
def test_set_user_id_programs_still_work() -> None:
    """The filter comes without no_new_privs, so fusermount3 gets its privileges."""
    assert status_field("NoNewPrivs", user="nobody", without="ENOSYS") == "0"
    assert status_field("Seccomp", user="nobody", without="ENOSYS") == "2"


@needs_root
@pytest.mark.parametrize("user", [None, "nobody"])
def test_memlock_is_a_limit_for_everybody(user: str | None) -> None:
    """--memlock sets the soft and the hard limit, and mlock(2) beyond it fails, for root too."""
    script = """
import ctypes, mmap, resource
libc = ctypes.CDLL(None, use_errno=True)
area = mmap.mmap(-1, 1 << 20)
def lock(size): return libc.mlock(ctypes.byref(ctypes.c_char.from_buffer(area)), size)
print(resource.getrlimit(resource.RLIMIT_MEMLOCK), lock(65536), lock(1 << 20))
"""
    assert answer(script, user=user, memlock=65536) == "(65536, 65536) 0 -1"


@needs_root
def test_fuse_is_for_everybody() -> None:
    """/dev/fuse can be opened for reading and writing by an ordinary user."""
    assert answer("import os; os.close(os.open('/dev/fuse', os.O_RDWR)); print('open')", user="nobody") == "open"


@needs_root
def test_fuse_can_be_missing() -> None:
    """--no-fuse takes /dev/fuse away and leaves the usual devices."""
    script = "import os; print(os.path.exists('/dev/fuse'), os.write(os.open('/dev/null', os.O_WRONLY), b'x'))"
    assert answer(script, user="nobody", fuse=False) == "False 1"


@needs_root
@pytest.mark.skipif(not os.path.exists("/etc/fuse.conf"), reason="fuse3 is not installed")
@pytest.mark.parametrize("text", ["user_allow_other", "# nothing"])
def test_fuse_conf_is_replaced(text: str) -> None:
    """--fuse-conf is what an ordinary user reads in /etc/fuse.conf, and the real file is as before."""
    before = Path("/etc/fuse.conf").read_bytes()
    assert run("/bin/cat", "/etc/fuse.conf", user="nobody", fuse_conf=text).stdout == f"{text}\n"
    assert Path("/etc/fuse.conf").read_bytes() == before


@needs_root
def test_nothing_is_seen_outside() -> None:
    """The mounts of a box, and those made in it, are in no other mount table; no folder is left in /tmp."""
    inside = answer("print(open('/proc/self/mountinfo').read())", fuse_conf=None)
    assert "/dev/fuse" in inside
    assert "/dev/fuse" not in Path("/proc/self/mountinfo").read_text()
    assert list(Path("/tmp").glob("secretfs-box-*")) == []


@needs_root
def test_cgroup_limit_is_enforced_and_goes_away() -> None:
    """--cgroup-limit is the limit of a group of its own: who takes more is killed, and the group is removed."""
    script = "print(open('/proc/self/cgroup').read()); x = bytearray(100 << 20)"
    require_cgroup({"cgroup_limit": 40 << 20})
    done = run(PYTHON, "-I", "-u", "-c", script, cgroup_limit=40 << 20)
    assert done.returncode == -signal.SIGKILL
    name = next(word for word in done.stdout.split("/") if word.startswith("secretfs-box-")).split()[0]
    assert list(Path("/sys/fs/cgroup").rglob(name)) == []


@needs_root
@pytest.mark.parametrize("options", [{}, {"user": "nobody"}, {"cgroup_limit": 64 << 20}], ids=str)
def test_exit_codes_and_signals_are_the_commands(options) -> None:
    """The caller sees the command's own exit code, or the signal that ended it."""
    require_cgroup(options)
    assert run("/bin/sh", "-c", "exit 7", **options).returncode == 7
    assert run("/bin/sh", "-c", "kill -USR1 $$", **options).returncode == -signal.SIGUSR1
    assert run("/bin/sh", "-c", "kill -KILL $$", **options).returncode == -signal.SIGKILL


@needs_root
@pytest.mark.parametrize("options", [{}, {"cgroup_limit": 64 << 20}], ids=str)
def test_signals_reach_the_command(options) -> None:
    """A signal sent to the box arrives at the command."""
    require_cgroup(options)
    words = ["/bin/sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do read line; done"]
    with subprocess.Popen(
        box.command(words, **options), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        process.communicate("\n" * 4)
    assert process.returncode == 9


@needs_root
def test_what_cannot_be_run() -> None:
    """127 for a command that does not exist, 126 for one that is no program."""
    assert run("/no/such/program").returncode == 127
    assert run("/etc/passwd").returncode == 126


@needs_root
def test_environment_is_sane(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command gets HOME=/ and a usual PATH, what belongs to secretfs, and nothing else of the caller's."""
    monkeypatch.setenv("SECRETFS_BACKEND", "emulator")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("HOME", "/root")
    lines = run("/usr/bin/env").stdout.split()
    assert {"HOME=/", f"PATH={box.PATH}", "SECRETFS_BACKEND=emulator"} <= set(lines)
    assert not [line for line in lines if line.startswith("PYTHONPATH=")]


def test_no_command_is_a_usage_error() -> None:
    """Called without a command it exits with 2 and says how it is used."""
    done = subprocess.run([sys.executable, box.__file__], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: box.py")
