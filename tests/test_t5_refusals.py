"""Everything a user can do wrong with a real mount gets one clear sentence, the right exit code, and loses nothing.

Machines that lack something are played in a box (box.py): a private mount namespace in which things are taken away.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from box import command as box
from mounts import (
    NOBODY,
    PATIENCE,
    ROOT,
    SECRETFS,
    Mounted,
    clean_environment,
    is_mounted,
    needs_root,
    public_directory,
    secretfs,
)

MIB = 1 << 20

needs_ordinary_user = pytest.mark.skipif(ROOT, reason="needs an ordinary user: root may do that")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An empty directory."""
    folder = tmp_path / "mnt"
    folder.mkdir()
    return folder


@pytest.fixture
def public() -> Iterator[Path]:
    """An empty directory of nobody's, that can be reached by nobody; what is in it is checked to be gone afterwards."""
    with public_directory() as folder:
        (folder / "mnt").mkdir()
        os.chown(folder / "mnt", NOBODY, NOBODY)
        yield folder / "mnt"
        assert not is_mounted(folder / "mnt")


def expect_refusal(done: subprocess.CompletedProcess[str], code: int, *sentences: str, hint: bool = True) -> None:
    """It failed with `code`, printed nothing on stdout, and on stderr one error that contains each of the sentences."""
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    errors = [line for line in done.stderr.splitlines() if not line.startswith("secretfs: hint: ")]
    assert len(errors) == 1, done.stderr
    message = errors[0].removeprefix("secretfs: error: ")
    assert message != errors[0], done.stderr
    assert message[0] == message[0].lower() or message.startswith(("FUSE", "RLIMIT"))
    assert not message.endswith(".")
    assert [sentence for sentence in sentences if sentence not in message] == [], message
    assert hint == ("secretfs: hint: " in done.stderr), done.stderr


# What was typed


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nonsense"],
        ["mount"],
        ["umount"],
        ["mount", "a", "b"],
        ["mount", "--nonsense", "a"],
        ["mount", "--size"],
        ["mount", "--size", "0", "a"],
        ["mount", "--size", "-1", "a"],
        ["mount", "--size", "12Q", "a"],
        ["mount", "--size", "9" * 30, "a"],
        ["mount", "--max-files", "0", "a"],
        ["mount", "--max-files", "many", "a"],
        ["mount", "--mode", "9", "a"],
        ["mount", "--mode", "rwx", "a"],
        ["mount", "--mode", "77777", "a"],
        ["umount", "--force", "a"],
        ["status", "--jsn"],
        ["completion", "csh"],
    ],
    ids=" ".join,
)
def test_usage(words: list[str], tmp_path: Path) -> None:
    """A command line that cannot be read exits 2, with an error that names what is wrong and the help to ask for."""
    done = secretfs(*words, cwd=tmp_path)
    expect_refusal(done, 2)
    assert "--help" in done.stderr
    if words[1:2] in (["--size"], ["--max-files"], ["--mode"]) and len(words) == 4:
        assert words[2] in done.stderr


@needs_ordinary_user
@pytest.mark.parametrize("flag", ["--allow-dev", "--allow-suid"])
def test_flags_of_root(path: Path, flag: str) -> None:
    """--allow-dev and --allow-suid are root's."""
    expect_refusal(secretfs("mount", flag, path), 2, "only root", hint=False)


def test_cached_under_require(path: Path) -> None:
    """--cached is refused where a backend was required, and nothing is mounted."""
    done = secretfs("mount", "--cached", "--backend", "kernel", path)
    assert done.returncode in (2, 3)
    if done.returncode == 2:
        expect_refusal(done, 2, "page cache")
    assert not is_mounted(path)


def test_unknown_backend(path: Path) -> None:
    """A backend that is not installed exits 3 and names it and those there are."""
    done = secretfs("mount", "--backend", "nonsense", path)
    expect_refusal(done, 3, "'nonsense'")
    assert "auto, emulator, kernel" in done.stderr
    expect_refusal(secretfs("mount", path, env={"SECRETFS_BACKEND": "nonsense"}), 3, "'nonsense'")
    assert not is_mounted(path)


# Mountpoints


def test_mountpoint_missing(tmp_path: Path) -> None:
    """A mountpoint that does not exist exits 4, with the command that makes it."""
    done = secretfs("mount", tmp_path / "missing")
    expect_refusal(done, 4, "does not exist", str(tmp_path / "missing"))
    assert f"mkdir {tmp_path}/missing" in done.stderr
    expect_refusal(secretfs("mount", tmp_path / "no" / "where"), 4, "does not exist")


@pytest.mark.parametrize("kind", ["file", "link to a file", "fifo", "below a file", "dangling link", "loop", "long"])
def test_mountpoint_is_no_directory(tmp_path: Path, kind: str) -> None:
    """What is not a directory exits 4, whatever else it is."""
    path = tmp_path / "x"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    elif kind == "loop":
        path.symlink_to("x")
    elif kind != "long":
        path.write_bytes(b"x")
    if kind == "link to a file":
        path = tmp_path / "link"
        path.symlink_to("x")
    elif kind == "below a file":
        path = path / "y"
    elif kind == "long":
        path = tmp_path / ("n" * 256)
    done = secretfs("mount", path)
    assert done.returncode == 4, done.stderr
    assert "the mountpoint" in done.stderr


@pytest.mark.slow
def test_mountpoint_not_empty(path: Path) -> None:
    """A directory that is not empty exits 4; --force hides what is in it until umount, and loses nothing."""
    (path / "precious").write_bytes(b"bytes")
    expect_refusal(secretfs("mount", path), 4, "is not empty")
    with Mounted(path, "--force") as mounted:
        assert os.listdir(mounted.path) == []
    assert (path / "precious").read_bytes() == b"bytes"


@pytest.mark.slow
def test_already_mounted(path: Path) -> None:
    """A second mount on one mountpoint exits 4, with and without --force, and the first one goes on."""
    with Mounted(path) as mounted:
        (mounted.path / "f").write_bytes(b"kept")
        for flags in ([], ["--force"]):
            expect_refusal(secretfs("mount", *flags, path), 4, "mounted on", "already")
        assert (mounted.path / "f").read_bytes() == b"kept"


@needs_ordinary_user
@pytest.mark.parametrize("path", ["/", "/usr", "/proc", "/root", "/tmp"])
def test_mountpoint_of_somebody_else(path: str) -> None:
    """A directory of root's is refused with exit code 4 to an ordinary user, --force or not."""
    for flags in ([], ["--force"]):
        assert secretfs("mount", *flags, path).returncode == 4


@needs_root
@pytest.mark.slow
def test_untrustworthy_parents() -> None:
    """Root does not mount under a directory that others may write or own, unless --force says so."""
    with public_directory() as folder:
        path = folder / "parent" / "mnt"
        path.mkdir(parents=True)
        path.parent.chmod(0o777)
        expect_refusal(secretfs("mount", path), 4, str(path.parent), "everybody may rename")
        path.parent.chmod(0o755)
        os.chown(path.parent, NOBODY, NOBODY)
        expect_refusal(secretfs("mount", path), 4, str(path.parent), f"uid {NOBODY}")
        assert not is_mounted(path)
        with Mounted(path, "--force"):
            pass
        os.chown(path.parent, 0, 0)
        path.parent.chmod(0o1777)
        with Mounted(path):
            pass


# Mounts that are not there, or in use


def test_nothing_mounted(path: Path) -> None:
    """umount and status of a directory on which nothing is mounted, or that does not exist, exit 7."""
    for command in ("umount", "status"):
        for target in (path, path / "missing", "/proc"):
            expect_refusal(secretfs(command, target), 7, "no secretfs is mounted on", str(target))


@pytest.mark.slow
def test_second_umount(path: Path) -> None:
    """The first umount exits 0, the second one 7."""
    with Mounted(path):
        assert secretfs("umount", path).returncode == 0
        expect_refusal(secretfs("umount", path), 7, "no secretfs is mounted on")


@pytest.mark.slow
@pytest.mark.parametrize("use", ["open file", "working directory"])
def test_busy(path: Path, use: str) -> None:
    """While a file is open, or somebody is in it, umount exits 6, names --lazy, and all goes on; --lazy unmounts."""
    with Mounted(path) as mounted:
        (path / "f").write_bytes(b"kept")
        held = os.open(path / "f" if use == "open file" else path, os.O_RDONLY)
        done = secretfs("umount", path)
        expect_refusal(done, 6, "is in use")
        assert f"secretfs umount --lazy {path}" in done.stderr
        assert (path / "f").read_bytes() == b"kept"
        assert secretfs("umount", "--lazy", path).returncode == 0
        assert not is_mounted(path)
        os.close(held)
        mounted.wait_for_end()


@needs_root
@pytest.mark.slow
def test_umount_by_another_user() -> None:
    """Another user can neither unmount a mount nor learn its status."""
    with public_directory() as folder, Mounted(folder / "mnt", "--allow-other", "--mode", "0777") as mounted:
        for command in ("umount", "status"):
            done = secretfs(command, mounted.path, user=NOBODY, group=NOBODY, extra_groups=[])
            assert done.returncode != 0
            assert "secretfs: error: " in done.stderr
        assert secretfs("status", user=NOBODY, group=NOBODY, extra_groups=[]).stdout == "no secretfs is mounted\n"
        assert is_mounted(mounted.path)


# Streams and surroundings that are odd


@pytest.mark.parametrize("words", [["backends"], ["status"], ["--version"], ["--help"], ["completion", "bash"]])
def test_full_disk(words: list[str]) -> None:
    """Where stdout cannot be written the exit code is 1 and one sentence says so."""
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            [SECRETFS, *words], stdout=full, stderr=subprocess.PIPE, text=True, env=clean_environment(), check=False
        )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    assert done.stderr.startswith("secretfs: error: ")


def test_reader_that_leaves() -> None:
    """A pipe that nobody reads ends the command without a word."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [SECRETFS, "backends"], stdout=writer, stderr=subprocess.PIPE, text=True, env=clean_environment(), check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.slow
def test_closed_streams(path: Path) -> None:
    """mount works with stdin, stdout and stderr closed, as a badly written supervisor starts it."""
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" mount "$1" <&- >&- 2>&-', SECRETFS, path], timeout=PATIENCE, env=clean_environment(),
        check=False,
    )  # fmt: skip
    assert done.returncode == 0
    (path / "f").write_bytes(b"works")
    assert (path / "f").read_bytes() == b"works"
    assert secretfs("umount", path).returncode == 0


def test_working_directory_that_is_gone(tmp_path: Path) -> None:
    """In a directory that was removed a relative mountpoint gets an error, not a traceback."""
    script = 'mkdir "$1" && cd "$1" && rmdir "$1" && exec "$0" mount mnt'
    done = subprocess.run(
        ["sh", "-c", script, SECRETFS, tmp_path / "gone"], capture_output=True, text=True, env=clean_environment(),
        check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert done.returncode == 4
    assert done.stderr.startswith("secretfs: error: ")


@needs_ordinary_user
def test_no_new_privileges(path: Path) -> None:
    """Where fusermount3 can gain no privileges, mount exits 5 and mounts nothing."""
    done = secretfs("mount", path, under=["setpriv", "--no-new-privs"])
    assert done.returncode == 5
    assert "fusermount3" in done.stderr
    assert not is_mounted(path)


# Machines that lack something


def in_box(path: Path, *flags: str, before: str = "true", **taken: object) -> subprocess.CompletedProcess[str]:
    """`secretfs mount` in a box, after a shell command run there as root."""
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"] if taken.pop("nobody", True) else []
    script = f'{before} && exec "$@"'
    words = box(["sh", "-c", script, "sh", *user, SECRETFS, "mount", *flags, str(path)], **taken)
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=PATIENCE, cwd="/", env=clean_environment(), check=False
    )
    assert "Traceback" not in done.stderr
    return done


@needs_root
@pytest.mark.parametrize("nobody", [True, False], ids=["user", "root"])
def test_no_fuse_device(public: Path, nobody: bool) -> None:
    """Without /dev/fuse mount exits 5 and says so."""
    done = in_box(public, "--force", fuse=False, nobody=nobody)
    expect_refusal(done, 5, "/dev/fuse does not exist")
    assert "modprobe fuse" in done.stderr


@needs_root
def test_fuse_device_is_something_else(public: Path) -> None:
    """A /dev/fuse that is not a device exits 5."""
    expect_refusal(in_box(public, before="mount --bind /etc/hostname /dev/fuse"), 5, "/dev/fuse is not a device")


@needs_root
def test_fuse_device_forbidden(public: Path) -> None:
    """A /dev/fuse that the user may not open exits 5 and says how it ought to be."""
    done = in_box(public, before="chmod 600 /dev/fuse")
    expect_refusal(done, 5, "/dev/fuse", "ermission denied")
    assert "chmod 666 /dev/fuse" in done.stderr


@needs_root
def test_no_fusermount(public: Path) -> None:
    """Without fusermount3 an ordinary user gets exit code 5 and the package to install."""
    done = in_box(public, before='mount --bind /dev/null "$(realpath "$(command -v fusermount3)")"')
    expect_refusal(done, 5, "fusermount3 is not installed")
    assert "apt-get install fuse3" in done.stderr


@needs_root
def test_no_user_allow_other(public: Path) -> None:
    """--allow-other of an ordinary user exits 5 and names the line that root adds to /etc/fuse.conf."""
    done = in_box(public, "--allow-other", fuse_conf="")
    expect_refusal(done, 5, "--allow-other")
    assert "user_allow_other to /etc/fuse.conf" in done.stderr


@needs_root
@pytest.mark.parametrize("nobody", [True, False], ids=["user", "root"])
@pytest.mark.parametrize("without", [None, "ENOSYS"], ids=["as-is", "emulator"])
def test_lock_limit_too_small(public: Path, nobody: bool, without: str | None) -> None:
    """A lock limit below the daemon's budget exits 8 and names the command that raises it."""
    done = in_box(public, "--force", memlock=MIB, nobody=nobody, without=without)
    expect_refusal(done, 8, str(MIB), "RLIMIT_MEMLOCK")
    assert "ulimit -l" in done.stderr


@needs_root
@pytest.mark.parametrize("nobody", [True, False], ids=["user", "root"])
def test_size_beyond_the_lock_limit(public: Path, nobody: bool) -> None:
    """A --size that the lock limit does not allow exits 8 and names the largest one, which works."""
    done = in_box(public, "--force", "--size", "8M", memlock=8 * MIB, nobody=nobody)
    expect_refusal(done, 8, "a size of 8388608 bytes cannot be locked")
    found = re.search(r"--size (\d+) or less", done.stderr)
    assert found is not None
    assert 4 * MIB < int(found[1]) <= 5 * MIB


@needs_root
@pytest.mark.slow
def test_blocked_by_a_container(public: Path) -> None:
    """Where a seccomp profile answers EPERM, --backend kernel exits 3, says so and names the remedy."""
    done = in_box(public, "--backend", "kernel", without="EPERM")
    expect_refusal(done, 3, "seccomp")


FILL = """
"$0" mount --force --size 256M "$1" || exit
echo precious >"$1/kept"
dd if=/dev/zero of="$1/big" bs=1M count=250 2>&1 | grep -o 'No space left on device'
cat "$1/kept" && rm "$1/big" && echo again >"$1/after" && cat "$1/after"
exec "$0" umount "$1"
"""


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize("without", [None, "ENOSYS"], ids=["as-is", "emulator"])
def test_memory_cgroup_without_headroom(public: Path, without: str | None) -> None:
    """Where the memory cgroup ends a write is ENOSPC; the OOM killer does not come, and the mount goes on."""
    words = box(["sh", "-c", FILL, SECRETFS, str(public)], cgroup_limit=128 * MIB, without=without)
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=60, cwd="/", env=clean_environment(), check=False
    )
    if done.returncode == 125:
        pytest.skip(f"needs a writable memory cgroup: {done.stderr.strip()}")
    assert done.stdout.splitlines() == ["No space left on device", "precious", "again"], done.stderr
    assert done.returncode == 0
