"""Everything a user can do wrong with a real mount gets one clear sentence, the right exit code, and loses nothing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from mounts import (
    NOBODY,
    PATIENCE,
    ROOT,
    SECRETFS,
    Mounted,
    clean_environment,
    expect_refusal,
    is_mounted,
    needs_root,
    public_directory,
    secretfs,
)

needs_ordinary_user = pytest.mark.skipif(ROOT, reason="needs an ordinary user: root may do that")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An empty directory."""
    folder = tmp_path / "mnt"
    folder.mkdir()
    return folder


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
        ["mount", "--size", "9999999999999G", "a"],
        ["mount", ""],
        ["umount", ""],
        ["status", ""],
        ["--nonsense"],
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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mount", "--size", "0", "a"], "too small"),
        (["mount", "--size", "9999999999999G", "a"], "too large"),
        (["mount", "--size", "12Q", "a"], "not a size"),
        (["mount", ""], "an unset variable?"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        ([], "which command?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_says_what_is_wrong(words: list[str], said: str, tmp_path: Path) -> None:
    """The sentence is about the word that is wrong, not about another one."""
    assert said in secretfs(*words, cwd=tmp_path).stderr


@needs_ordinary_user
@pytest.mark.parametrize("flag", ["--allow-dev", "--allow-suid"])
def test_flags_of_root(path: Path, flag: str) -> None:
    """--allow-dev and --allow-suid are root's."""
    expect_refusal(secretfs("mount", flag, path), 2, "only root")


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


@pytest.mark.parametrize("name", ["mis sing", "it's", "new\nline", "esc\x1b[31m", b"not utf-8 \xff"], ids=repr)
def test_hint_can_be_pasted(tmp_path: Path, name: str | bytes) -> None:
    """The command in a hint works as it is printed, whatever the mountpoint is called, and shows as one line."""
    path = tmp_path / os.fsdecode(name)
    done = secretfs("mount", path)
    _, hint = done.stderr.splitlines()
    assert done.stderr.replace("\n", "").isprintable()
    subprocess.run(["bash", "-c", hint.removeprefix("secretfs: hint: ")], check=True)
    assert path.is_dir()


@pytest.mark.parametrize("kind", ["file", "link to a file", "fifo", "below a file", "dangling link", "loop", "long"])
def test_mountpoint_is_no_directory(tmp_path: Path, kind: str) -> None:
    """What is not a directory exits 4, whatever else it is, with a sentence that fits and a hint."""
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
    said = {"dangling link": "does not exist", "loop": "leads in a circle", "long": "file name too long"}
    expect_refusal(secretfs("mount", path), 4, "the mountpoint", said.get(kind, "is not a directory"))


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
            expect_refusal(done, 7, "belongs to uid 0")
        done = secretfs("mount", mounted.path, user=NOBODY, group=NOBODY, extra_groups=[])
        expect_refusal(done, 4, "already")
        assert "secretfs umount" not in done.stderr
        done = secretfs("status", user=NOBODY, group=NOBODY, extra_groups=[])
        assert str(mounted.path) not in done.stdout + done.stderr
        assert is_mounted(mounted.path)


# Streams and surroundings that are odd


@pytest.mark.parametrize(
    "words", [["backends"], ["status", "--json"], ["--version"], ["--help"], ["completion", "bash"]], ids=" ".join
)
def test_full_disk(words: list[str]) -> None:
    """Where stdout cannot be written the exit code is 1 and one sentence says so."""
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            [SECRETFS, *words], stdout=full, stderr=subprocess.PIPE, text=True, env=clean_environment(), check=False
        )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("secretfs: error: ")]
    assert errors == [done.stderr.splitlines()[-1]], done.stderr  # warnings of other people's mounts may come before


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
    expect_refusal(done, 5, "fusermount3")
    assert "no_new_privs" in done.stderr
    assert not is_mounted(path)
