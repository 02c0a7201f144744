"""Each step of mounting, asking and unmounting fails once: it works all the same, or it is said and nothing is left.

injected.c makes the system calls fail; the product has no hook for it. What is tried is read off a run in which nothing
fails, so that new steps are tried too. `make test` tries the kinds of calls that matter most, `make test-long` a few of
all that are alike.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from injected import Call, Failing, failures, few_of_each
from mounts import NOBODY, is_mounted, needs_root, needs_secretmem, public_directory
from steps import MEMORY, Place, ours

from secretfs import cli, commands

pytestmark = [needs_root, pytest.mark.slow]

STARTING = frozenset({"vfork", "clone", "socketpair", "pipe2", "recvmsg", "wait4", "poll", "fcntl", "execve"})
"""Calls by which another program is started and talked to."""
ALIKE = 3
"""How many calls that are alike are tried: the first ones and the last."""
COMMAND, PARENT, DAEMON, GUARDED, HELPER = "0", "0.0", "0.0.0", "0.0.0.0", "0.0.fusermount3"
"""Whose calls they are; without a terminal of its own the command is the parent itself."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ImportError("resource.so: failed to map segment"),
            "a part of secretfs cannot be loaded: resource.so: failed to",
        ),
        (MemoryError(), "the system is out of resources: cannot allocate memory"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_python_says_itself(
    error: BaseException, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A module that cannot be mapped and memory that Python cannot have are one sentence too."""

    def fails(_: object) -> int:
        raise error

    monkeypatch.setattr(commands, "status", fails)
    assert cli.main(["status"]) == 1
    assert capsys.readouterr().err.startswith(f"secretfs: error: {said}")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder into which every user can look."""
    with public_directory() as folder:
        yield folder


@pytest.fixture(scope="module")
def failing(folder: Path) -> Failing:
    """What makes calls fail."""
    return Failing(folder)


@pytest.fixture(scope="module")
def device(folder: Path) -> Iterator[None]:
    """A /dev/fuse that every user may open, seen by this process and what it starts."""
    if os.readlink("/proc/self/ns/mnt") == os.readlink(f"/proc/{os.getppid()}/ns/mnt"):
        pytest.skip("needs root: in a mount namespace of its own")
    place = folder / "dev"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", place], check=True)
    os.mknod(place / "fuse", stat.S_IFCHR | 0o666, os.makedev(10, 229))
    os.chmod(place / "fuse", 0o666)
    subprocess.run(["mount", "--bind", place / "fuse", "/dev/fuse"], check=True)
    yield
    subprocess.run(["umount", "/dev/fuse", place], check=True)


WAYS: dict[str, tuple[tuple[str, ...], int]] = {
    "auto": ((), 0),
    "kernel": (("--backend", "kernel"), 0),
    "emulator": (("--backend", "emulator"), 0),
    "foreground": (("--foreground",), 0),
    "guard": (("--guard",), 0),
    "user": ((), NOBODY),
}
"""The flags and the user."""
MATTERING = {
    "auto": {
        COMMAND: "clone prlimit64 read",
        PARENT: "setsid socketpair clone mount openat read recvfrom sendmsg write",
        DAEMON: "mlock recvmsg seccomp epoll_create1 sendto sysinfo",
    },
    "kernel": {DAEMON: "memfd_secret ftruncate mmap"},
    "emulator": {DAEMON: "mlock mmap"},
    "foreground": {COMMAND: "openat clone recvfrom"},
    "guard": {GUARDED: "ptrace"},
    "user": {PARENT: "recvmsg read", HELPER: "mount sendmsg"},
}
"""Whose call of which kinds `make test` tries: the last one of each, which has the most to undo."""
OF_EACH_WAY: dict[str, Callable[[Call], bool]] = {
    "auto": lambda call: True,
    "kernel": lambda call: call.who == DAEMON and call.name in MEMORY,
    "emulator": lambda call: call.who == DAEMON and call.name in MEMORY,
    "foreground": lambda call: call.who == COMMAND and call.name not in MEMORY | {"newfstatat"},
    "guard": lambda call: call.who == DAEMON or call.name in ("ptrace", "kill"),
    "user": lambda call: (
        (call.who == HELPER and call.name not in MEMORY | {"newfstatat"})
        or (call.who == PARENT and (call.name in STARTING or call.about.startswith(("pipe:", "socket:"))))
    ),
}
"""What `make test-long` tries: where the way differs from the others."""


def since_mounted(calls: list[Call]) -> list[Call]:
    """What root's parent process calls once it has mounted: from there on it has something to undo."""
    mounted = [index for index, call in enumerate(calls) if call.name == "mount" and call.who in (COMMAND, PARENT)]
    return [call for call in calls[mounted[0] + 1 :] if call.who == calls[mounted[0]].who] if mounted else []


@pytest.fixture(params=["auto", pytest.param("kernel", marks=needs_secretmem), *list(WAYS)[2:]])
def way(request: pytest.FixtureRequest) -> str:
    """A way to mount."""
    return str(request.param)


@pytest.fixture
def place(way: str, failing: Failing, folder: Path, device: None) -> Iterator[Place]:
    """A mountpoint for that way."""
    words, user = WAYS[way]
    place = Place(failing, folder / "mnt", *words, user=user)
    yield place
    place.clear()
    place.path.rmdir()


@pytest.mark.timeout(600)
def test_each_kind_of_step_of_mounting(way: str, place: Place) -> None:
    """One failure of each kind that matters: what was done before is undone."""
    wanted, calls = MATTERING[way], place.calls_to_mount()
    last = {(call.who, call.name): call for call in calls if call.name in wanted.get(call.who, "").split()}
    assert sum(len(names.split()) for names in wanted.values()) == len(last), "which kinds are not met any more?"
    undoing = [call for call in since_mounted(calls) if call.name == "openat"]
    place.inflict(place.mounting, failures(dict.fromkeys([*last.values(), *undoing])))


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_each_step_of_mounting(way: str, place: Place) -> None:
    """All steps."""
    calls = [call for call in place.calls_to_mount() if OF_EACH_WAY[way](call)]
    place.inflict(place.mounting, failures(dict.fromkeys([*few_of_each(calls, ALIKE), *since_mounted(calls)])))


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("way", ["auto", "user"], indirect=True)
def test_each_step_of_ending(place: Place) -> None:
    """Whatever fails in the daemon or in its parent while it is unmounted: nothing is left."""
    place.inflict(place.ending, failures(few_of_each(place.calls_to_end(), ALIKE)))


def calls_of(place: Place, *words: str) -> list[Call]:
    """The calls of a command on a mount with a file."""
    with place.mount() as running:
        assert place.works()
        with place.failing.start(*words, place.path, recorded=True) as command:
            assert command.finish()[0] == 0
            command.wait_for_all()
            found = command.calls()
        if is_mounted(place.path):
            place.end(running)
    return [call for call in ours(found) if not call.about.startswith("pipe:") or call.name != "write"]


STATUS, UMOUNT = ("status", "--json"), ("umount",)


@pytest.mark.parametrize("way", ["auto"], indirect=True)
@pytest.mark.parametrize(
    ("words", "names"), [(STATUS, "openat clone getxattr"), (UMOUNT, "clone getxattr umount2 pselect6")]
)
def test_each_kind_of_step_of_a_command(place: Place, words: tuple[str, ...], names: str) -> None:
    """One failure of each kind that matters: the mount is as it was, or it is unmounted, and which is said."""
    last = {call.name: call for call in calls_of(place, *words) if call.name in names.split()}
    assert set(last) == set(names.split())
    place.inflict(place.commanding(*words), failures(last.values()))


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("way", ["auto", "user"], indirect=True)
@pytest.mark.parametrize("words", [STATUS, UMOUNT], ids=" ".join)
def test_each_step_of_a_command(place: Place, words: tuple[str, ...]) -> None:
    """All steps of `secretfs status` and `secretfs umount`, also where root asks the mount of another user."""
    place.inflict(place.commanding(*words), failures(few_of_each(calls_of(place, *words), ALIKE)))
