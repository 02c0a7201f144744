"""The command line on real mounts, to the letter of its contract: streams, JSON, exit codes, completion, fallback."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import (
    ROOT,
    SECRETFS,
    Mounted,
    clean_environment,
    have_secretmem,
    is_mounted,
    needs_secretmem,
    secretfs,
)

from secretfs.interface import Guarantees

falls_back = pytest.mark.skipif(have_secretmem(), reason="memfd_secret: it is there, so nothing falls back")
EXPECTED = "kernel" if have_secretmem() else "emulator"
COMMANDS = ("mount", "umount", "status", "backends", "install-mount-helper", "completion")


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """One mount for the module."""
    with Mounted(tmp_path_factory.mktemp("cli") / "mnt", "--size", "1M", "--max-files", "1000") as mounted:
        yield mounted


# Help and versions


def test_version() -> None:
    """--version tells the version, the backend in force, native parts and libfuse, on one line of stdout."""
    done = secretfs("--version")
    assert (done.returncode, done.stderr) == (0, "")
    pattern = rf"secretfs \d+\.\d+\S* \(backend {EXPECTED}; native parts: .*; libfuse 3\.\d+.*\)\n"
    assert re.fullmatch(pattern, done.stdout), done.stdout


def test_python_m_is_the_same_command() -> None:
    """`python -m secretfs` is the command too."""
    python = os.path.join(os.path.dirname(SECRETFS), "python")
    words = [python, "-m", "secretfs", "--version"]
    done = subprocess.run(words, capture_output=True, text=True, env=clean_environment(), check=True)
    assert done.stdout == secretfs("--version").stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str) -> None:
    """Each command explains itself on stdout."""
    done = secretfs(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: secretfs {command}")


def test_help_has_examples_and_exit_codes() -> None:
    """`secretfs --help` names each command, shows examples, and lists every exit code."""
    text = secretfs("--help").stdout
    assert all(re.search(rf"^ +{command}\b", text, re.MULTILINE) for command in COMMANDS)
    assert "examples:" in text
    codes = text.partition("exit codes:")[2]
    assert re.findall(r"\b(\d) [a-zA-Z]", codes) == [*"012345678"]


def test_mount_help_names_each_flag() -> None:
    """`secretfs mount --help` names each flag of the contract."""
    text = secretfs("mount", "--help").stdout
    flags = ["backend", "size", "max-files", "mode", "allow-other", "allow-dev", "allow-suid", "cached", "spin"]
    flags += ["force", "foreground"]
    assert [flag for flag in flags if f"--{flag}" not in text] == []


# status


def test_status_json(mount: Mounted) -> None:
    """`status --json DIR` prints one object of exactly the contract's fields and types."""
    (mount.path / "f").write_bytes(b"x" * 100)
    done = secretfs("status", "--json", mount.path)
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert set(answer) == {"version", "mounts"}
    assert answer["version"] == 1
    (one,) = answer["mounts"]
    kinds = {
        "mountpoint": str, "backend": str, "policy": str, "guarantees": dict, "lost": list, "files": int,
        "files_limit": int, "bytes": int, "size": int, "locked_bytes": int, "lock_limit": (int, type(None)),
        "uid": int, "native": dict,
    }  # fmt: skip
    assert set(one) == set(kinds)
    assert all(isinstance(one[name], kind) for name, kind in kinds.items()), one
    assert one["mountpoint"] == os.path.realpath(mount.path)
    assert (one["backend"], one["policy"], one["uid"]) == (EXPECTED, "prefer", os.geteuid())
    assert (one["files"], one["files_limit"], one["bytes"], one["size"]) == (1, 1000, 128, 1 << 20)
    assert list(one["guarantees"]) == list(Guarantees.names())
    assert all(isinstance(holds, bool) for holds in one["guarantees"].values())
    assert set(one["lost"]) <= set(one["guarantees"])
    assert one["locked_bytes"] >= 128
    assert ROOT or one["lock_limit"] is not None
    assert set(one["native"]) == {"shim"}
    assert one["native"]["shim"] is True or isinstance(one["native"]["shim"], str)
    (mount.path / "f").unlink()


@pytest.mark.slow
def test_status_of_all(mount: Mounted, tmp_path: Path) -> None:
    """`status` without DIR tells of every mount of the caller, in JSON and in words."""
    with Mounted(tmp_path / "second") as second:
        answer = json.loads(secretfs("status", "--json").stdout)
        shown = [one["mountpoint"] for one in answer["mounts"]]
        assert {os.path.realpath(mount.path), os.path.realpath(second.path)} <= set(shown)
        text = secretfs("status").stdout
        assert {os.path.realpath(mount.path), os.path.realpath(second.path)} <= set(text.splitlines())
    assert str(second.path) not in secretfs("status").stdout


def test_status_in_words(mount: Mounted) -> None:
    """`status DIR` names backend, files, bytes, locked memory and limit, and puts each guarantee on one side."""
    done = secretfs("status", mount.path)
    assert (done.returncode, done.stderr) == (0, "")
    rows = dict(re.findall(r"^  ([a-z ]+): +(.*)$", done.stdout, re.MULTILINE))
    assert done.stdout.splitlines()[0] == os.path.realpath(mount.path)
    assert rows["backend"] == f"{EXPECTED} (policy prefer)"
    both = {*rows["guaranteed"].split(", "), *rows["not guaranteed"].split(", ")}
    assert both == set(Guarantees.names())
    assert rows["files"] == "0 of 1000"
    assert rows["data"] == "0 bytes of 1 MiB"
    assert re.fullmatch(r"[\d.]+ [KM]iB, limit (none|[\d.]+ [KMG]iB)", rows["locked memory"])


@pytest.mark.parametrize("how", ["relative", "trailing slash", "symbolic link", "dots"])
def test_directories_are_found_however_they_are_named(mount: Mounted, tmp_path: Path, how: str) -> None:
    """A mountpoint may be named by a relative path, with a slash at its end, through a link, with dots in it."""
    (tmp_path / "link").symlink_to(mount.path)
    name = {
        "relative": "mnt",
        "trailing slash": f"{mount.path}/",
        "symbolic link": str(tmp_path / "link"),
        "dots": f"{mount.path}/../mnt/.",
    }[how]
    done = secretfs("status", "--json", name, cwd=mount.path.parent)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["mounts"][0]["mountpoint"] == os.path.realpath(mount.path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["with space", "new\nline", "back\\slash", "tab\there", "ünïcode", "-dash", "#hash", "esc\x1b[31m", b"\xff bytes"],
    ids=repr,
)
def test_odd_mountpoints(tmp_path: Path, name: str | bytes) -> None:
    """Any name of a mountpoint works: /proc/self/mountinfo escapes some bytes. None reaches a terminal as it is."""
    path = tmp_path / os.fsdecode(name)
    path.mkdir()
    assert secretfs("mount", "--size", "64K", path).returncode == 0
    answer = json.loads(secretfs("status", "--json", path).stdout)
    shown = [*secretfs("status", path).stdout.splitlines(), *secretfs("mount", path).stderr.splitlines()]
    assert all(line.isprintable() for line in shown)
    assert shown[1].startswith("  backend:")
    assert shown[-1].startswith("secretfs: hint: ")
    words = ["bash", "-c", 'secretfs() { printf %s "$2"; }; ' + shown[-1].removeprefix("secretfs: hint: ")]
    assert subprocess.run(words, capture_output=True, check=True).stdout == os.fsencode(os.path.realpath(path))
    done = secretfs("umount", path)
    assert (done.returncode, done.stderr) == (0, "secretfs: 0 files destroyed\n")
    assert [one["mountpoint"] for one in answer["mounts"]] == [os.path.realpath(path)]


# mount and umount


@pytest.mark.slow
def test_quiet_without_a_terminal(tmp_path: Path) -> None:
    """A mount without a loss prints nothing into a script; umount says on stderr how many files it destroys."""
    with Mounted(tmp_path / "mnt", "--backend", EXPECTED) as mounted:
        assert (mounted.said.stdout, mounted.said.stderr) == ("", "")
        for number in range(3):
            (mounted.path / str(number)).touch()
        done = secretfs("umount", mounted.path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "secretfs: 3 files destroyed\n")


@pytest.mark.slow
def test_tells_a_person_at_a_terminal(tmp_path: Path) -> None:
    """At a terminal mount says where and on what, and that all is gone at umount."""
    master, slave = pty.openpty()
    (tmp_path / "mnt").mkdir()
    subprocess.run([SECRETFS, "mount", tmp_path / "mnt"], check=True, stderr=slave, env=clean_environment())
    said = os.read(master, 65536).decode().replace("\r\n", "\n")
    os.close(slave)
    os.close(master)
    assert secretfs("umount", tmp_path / "mnt").returncode == 0
    assert f"secretfs: mounted on {tmp_path}/mnt ({EXPECTED})" in said
    assert "gone at umount" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        (["--size", "100000"], "size", 100_000),
        (["--size", "512K"], "size", 512 << 10),
        (["--size", "2m"], "size", 2 << 20),
        (["--max-files", "7"], "files_limit", 7),
        (["--backend", "emulator"], "policy", "emulate"),
        pytest.param(["--backend", "kernel"], "policy", "require", marks=needs_secretmem),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_flags(tmp_path: Path, flags: list[str], field: str, value: object) -> None:
    """Flags of mount show up in the status as what they were."""
    with Mounted(tmp_path / "mnt", *flags) as mounted:
        assert mounted.status()[field] == value


@pytest.mark.slow
def test_default_size(tmp_path: Path) -> None:
    """By default there is room for 16 MiB, and for an ordinary user what the lock limit leaves after 3 MiB."""
    with Mounted(tmp_path / "mnt") as mounted:
        answer = mounted.status()
        room = 16 << 20
        if answer["lock_limit"] is not None:
            room = min(room, answer["lock_limit"] - (3 << 20))
        assert room - (64 << 10) <= answer["size"] <= room


@pytest.mark.slow
def test_cached_names_what_is_lost(tmp_path: Path) -> None:
    """--cached warns, with the guarantees that are lost; the emulator has none to lose, and there is no empty list."""
    with Mounted(tmp_path / "emulator", "--cached", "--backend", "emulator") as mounted:
        assert mounted.said.stderr == "secretfs: warning: --cached keeps plaintext in the page cache\n"
    with Mounted(tmp_path / "auto", "--cached") as mounted:
        warning = mounted.said.stderr.splitlines()[-1]
        assert warning.startswith("secretfs: warning: --cached keeps plaintext in the page cache")
        assert ("; not guaranteed: off_direct_map, " in warning) == (EXPECTED == "kernel")


# The choice of a backend


@falls_back
@pytest.mark.slow
def test_falling_back_warns_once(tmp_path: Path) -> None:
    """Without memfd_secret mount warns once, also without a terminal, with "emulator" and each lost guarantee."""
    with Mounted(tmp_path / "mnt") as mounted:
        lines = mounted.said.stderr.splitlines()
        answer = mounted.status()
    warning, hint = lines
    assert warning.startswith("secretfs: warning: ")
    assert "emulator" in warning
    assert hint.startswith("secretfs: hint: ")
    assert mounted.said.stdout == ""
    asked_for = ("device_io", "cache_flushed", "enciphered_at_rest")  # not by a mount
    lost = [name for name, holds in answer["guarantees"].items() if not holds and name not in asked_for]
    assert answer["lost"] == lost == ["off_direct_map", "refuses_pinning", "cleared_by_kernel", "not_hibernated"]
    assert all(name in warning for name in lost)
    assert (answer["backend"], answer["policy"]) == ("emulator", "prefer")


@falls_back
@pytest.mark.parametrize(
    ("flags", "environment"),
    [
        (["--backend", "kernel"], {}),
        ([], {"SECRETFS_BACKEND": "kernel"}),
        (["--backend", "auto"], {"SECRETFS_BACKEND": "kernel"}),
    ],
    ids=["flag", "variable", "tightened"],
)
def test_requiring_the_kernel_fails(tmp_path: Path, flags: list[str], environment: dict[str, str]) -> None:
    """Where the kernel's backend is required and missing, mount exits 3, says why, and mounts nothing."""
    done = secretfs("mount", *flags, tmp_path, env=environment)
    assert (done.returncode, done.stdout) == (3, "")
    error, hint = done.stderr.splitlines()
    assert error.startswith("secretfs: error: ")
    assert hint.startswith("secretfs: hint: ")
    assert not is_mounted(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "flag", "policy"),
    [
        ("emulator", None, "emulate"),
        ("emulator", "auto", "prefer"),
        ("auto", None, "prefer"),
        ("", None, "prefer"),
        ("kernel", "emulator", "emulate"),
        ("nonsense", "emulator", "emulate"),
        pytest.param("kernel", None, "require", marks=needs_secretmem),
        pytest.param("kernel", "auto", "require", marks=needs_secretmem),
        pytest.param("emulator", "kernel", "require", marks=needs_secretmem),
    ],
)
def test_secretfs_backend(tmp_path: Path, variable: str, flag: str | None, policy: str) -> None:
    """SECRETFS_BACKEND applies where no argument is given, and may only tighten an explicit auto to kernel."""
    flags = [] if flag is None else ["--backend", flag]
    with Mounted(tmp_path / "mnt", *flags, env={"SECRETFS_BACKEND": variable}) as mounted:
        assert mounted.status()["policy"] == policy


def test_backends_json() -> None:
    """`backends --json` prints one object of exactly the contract's fields; one backend is the chosen one."""
    done = secretfs("backends", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert set(answer) == {"version", "backends", "native"}
    assert answer["version"] == 1
    assert set(answer["native"]) == {"shim", "preload"}
    for one in answer["backends"]:
        assert set(one) == {"name", "usable", "chosen", "reason", "hint", "guarantees"}
        assert list(one["guarantees"]) == list(Guarantees.names())
        assert one["usable"] or (one["reason"] and one["hint"])
    assert [one["name"] for one in answer["backends"]][:2] == ["kernel", "emulator"]
    assert [one["name"] for one in answer["backends"] if one["chosen"]] == [EXPECTED]
    assert answer["backends"][0]["usable"] == have_secretmem()


def test_backends_in_words() -> None:
    """`backends` says of each whether it is usable, or why not and the remedy, and of the native parts too."""
    text = secretfs("backends").stdout
    assert re.search(rf"^{EXPECTED}: usable, chosen$", text, re.MULTILINE)
    assert re.search(r"^native shim: ", text, re.MULTILINE)
    if not have_secretmem():
        assert re.search(r"^kernel: not usable: .+$", text, re.MULTILINE)
        assert re.search(r"^  remedy: .+$", text, re.MULTILINE)


# Completion

COMPLETE = """
source /usr/share/bash-completion/bash_completion 2>/dev/null
eval "$("$0" completion bash)"
COMP_WORDS=(secretfs "$@"); COMP_CWORD=$#; COMP_LINE="secretfs $*"; COMP_POINT=${#COMP_LINE}
$(complete -p secretfs | sed 's/.*-F \\([^ ]*\\).*/\\1/') secretfs "${@: -1}" secretfs
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["mo"], ["mount"]),
        (["um"], ["umount"]),
        (["status", "--js"], ["--json"]),
        (["mount", "--for"], ["--force", "--foreground"]),
        (["completion", "z"], ["zsh"]),
    ],
    ids=" ".join,
)
def test_bash_completes(words: list[str], expected: list[str]) -> None:
    """The script that `completion bash` prints completes commands and flags."""
    done = subprocess.run(
        ["bash", "-c", COMPLETE, SECRETFS, *words], capture_output=True, text=True, env=clean_environment(), check=False
    )
    assert sorted(done.stdout.split()) == sorted(expected), done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    """A script is printed for each shell that is named; bash's has no syntax error."""
    done = secretfs("completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert "secretfs" in done.stdout
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True)
