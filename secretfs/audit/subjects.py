"""Starting what is attacked, and knowing where its needle is.

Where the audit is root, subjects are an ordinary user's processes, so that attacks of "the same user" mean something;
what cannot be started as such a user is root's, and then those attacks are not tried on it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from secretfs import libc, mountinfo
from secretfs.audit import victim
from secretfs.audit.model import NotTriedError
from secretfs.audit.needle import LENGTH, Needle
from secretfs.audit.spaces import Place, protected
from secretfs.audit.squeeze import Group
from secretfs.audit.undo import Undo, started
from secretfs.process import close_descriptors

__all__ = ["NOBODY", "Target", "become", "start", "users"]

NOBODY = 65534
PATIENCE = 60.0
_FORKED = ("ordinary", "emulator", "kernel", "secret-open", "secret-closed")
_STARTED_BY = {"preload": ("preload", "--"), "run": ("run", "--emulate", "--")}
_PYTHON = (sys.executable, "-I")


class Target:
    """A subject at work, as its attackers know it."""

    def __init__(self, subject: str, folder: str, channel: socket.socket) -> None:
        self.subject = subject
        self.folder = folder
        self.log = os.path.join(folder, "log")
        self.path = os.path.join(folder, "mount" if subject == "mount" else "", "file")
        self.needle = Needle.fresh()
        self.claims: dict[str, bool] = {}
        self.address = 0
        self.channel = channel
        channel.settimeout(PATIENCE)
        hello = self.receive()
        self.group: Group | None = None
        """The memory cgroup of the audit's that all its processes are in, if they are in one."""
        self.detail = ""
        """What an attack has to tell beside its result."""
        self.client = int(hello["pid"])
        """The process that the audit talks to: for all but a mount the one that holds the needle."""
        self.pid = self.client
        self.uid = int(hello["uid"])

    def plant(self) -> None:
        """Let it allocate and plant."""
        self.begin_to_plant()
        self.planted(self.receive())

    def begin_to_plant(self) -> None:
        """The same, without waiting for it."""
        self.send({"plant": self.needle.as_json(), "path": self.path})

    def planted(self, answer: dict[str, Any]) -> None:
        """Take note of where it has planted."""
        self.address, self.pid, self.claims = answer["address"], answer["pid"], answer["claims"]

    def ask(self, words: dict[str, Any]) -> dict[str, Any]:
        """Let it do something, and raise what it has raised."""
        self.send(words)
        return self.receive()

    def send(self, words: dict[str, Any]) -> None:
        """One message."""
        self.channel.send(json.dumps(words).encode())

    def receive(self) -> dict[str, Any]:
        """Its answer."""
        try:
            message = self.channel.recv(1 << 16)
        except TimeoutError as error:
            raise NotTriedError("its process does not answer") from error
        except ConnectionResetError:
            message = b""
        if not message:
            raise NotTriedError(self._last_words() or "its process has ended")
        answer: dict[str, Any] = json.loads(message)
        if "not tried" in answer:
            raise NotTriedError(answer["not tried"])
        if "error" in answer:
            raise OSError(answer["error"], os.strerror(answer["error"]))
        return answer

    def has_ended(self) -> bool:
        """Whether an attack has ended one of its processes."""
        return any(not started(pid) or libc.proc_status("State", pid)[:1] == "Z" for pid in {self.pid, self.client})

    def places(self) -> list[Place]:
        """Where the needle is; all memory that could have it where that is not known."""
        if self.address:
            return [Place(self.address, self.address + LENGTH)]
        return protected(self.pid)

    def _last_words(self) -> str:
        """Why it could not be started."""
        said = ""
        with contextlib.suppress(OSError), open(self.log, encoding="utf-8", errors="replace") as file:
            said = next((line.strip() for line in file if "error" in line), "")
        if "invalid choice" in said:
            return f"this secretfs has no command {self.subject!r}"
        return f"it could not be started: {said.removeprefix('secretfs: error: ')[:200]}" if said else ""


def become(uid: int) -> None:
    """Be another user for good."""
    if uid != os.geteuid():
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)


def users() -> list[int]:
    """As whom subjects may be started, best first."""
    here = os.geteuid()
    return [NOBODY, here] if here == 0 else [here]


@contextlib.contextmanager
def start(subject: str, uid: int, undo: Undo, *, guard: bool = False, group: Group | None = None) -> Iterator[Target]:
    """A subject, not planted yet; it is gone at the end of the block. All its processes start in `group`.

    Raises:
        NotTriedError: it cannot be started here as that user.
    """
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(_folder(uid, undo))
        if subject == "mount":
            flags = ["--guard"] * guard
            stack.enter_context(_mounted(os.path.join(folder, "mount"), uid, undo, flags, group))
        launch = _exec if subject in _STARTED_BY else _fork
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            pid, stop = launch(subject, uid, folder, theirs, group)
        stack.enter_context(undo.unless_done("kill", pid, started(pid)))
        stack.callback(stop)
        stack.callback(ours.close)
        target = Target(subject, folder, ours)
        target.group = group
        yield target


@contextlib.contextmanager
def _folder(uid: int, undo: Undo) -> Iterator[str]:
    with (
        tempfile.TemporaryDirectory(prefix="secretfs-audit-", ignore_cleanup_errors=True) as folder,
        undo.unless_done("remove", folder),
    ):
        if uid != os.geteuid():
            os.chown(folder, uid, uid)
        yield folder


def _fork(
    subject: str, uid: int, folder: str, channel: socket.socket, group: Group | None
) -> tuple[int, Callable[[], None]]:
    pid = os.fork()
    if pid == 0:
        try:
            if group is not None:
                group.join()
            _be_victim(subject, uid, folder, channel)
        finally:
            os._exit(0)
    return pid, lambda: _end(pid)


def _be_victim(subject: str, uid: int, folder: str, channel: socket.socket) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    log = os.open(os.path.join(folder, "log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDWR)
    for stream, descriptor in enumerate((null, log, log)):
        os.dup2(descriptor, stream)
    close_descriptors(channel.fileno())
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    become(uid)
    victim.live(subject, channel)


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _exec(
    subject: str, uid: int, folder: str, channel: socket.socket, group: Group | None
) -> tuple[int, Callable[[], None]]:
    command = [*_PYTHON, "-m", "secretfs", *_STARTED_BY[subject], *_PYTHON, "-m", "secretfs.audit.victim", subject]
    with open(os.path.join(folder, "log"), "ab") as log:
        try:
            process = subprocess.Popen(
                command, stdin=channel.fileno(), stdout=log, stderr=log, cwd="/", **_as_user(uid, group)
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise NotTriedError(f"it cannot be started: {error}") from error

    def stop() -> None:
        try:
            process.wait(5)  # its channel is closed: it ends by itself, and whoever supervises it tidies up
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    return process.pid, stop


@contextlib.contextmanager
def _mounted(path: str, uid: int, undo: Undo, flags: list[str], group: Group | None) -> Iterator[None]:
    """A small mount of that user's."""
    os.mkdir(path, 0o700)
    if uid != os.geteuid():
        os.chown(path, uid, uid)
    with undo.unless_done("umount", path):
        forced = ["--force"] * (os.geteuid() == 0)
        secretfs(uid, "mount", "--size", "1M", "--max-files", "64", *forced, *flags, path, group=group)
        try:
            yield
        finally:
            if mountinfo.find(path) is not None:  # an attack may have ended its daemon
                secretfs(uid, "umount", "--lazy", path)


def secretfs(uid: int, *words: str, group: Group | None = None) -> None:
    """Run the command, as that user and in that group; NotTriedError has what it complains of."""
    try:
        done = subprocess.run(
            [*_PYTHON, "-m", "secretfs", *words], check=False, capture_output=True, text=True, timeout=PATIENCE,
            stdin=subprocess.DEVNULL, cwd="/", **_as_user(uid, group),
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise NotTriedError(f"`secretfs {words[0]}` cannot be run: {type(error).__name__}") from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "error: " in line] or done.stderr.splitlines()[-1:]
        what = said[0].partition("error: ")[2] or said[0] if said else f"exit code {done.returncode}"
        raise NotTriedError(f"`secretfs {words[0]}`: {what}")


def _as_user(uid: int, group: Group | None) -> dict[str, Any]:
    if group is not None:
        return {"preexec_fn": functools.partial(_join, group, uid)}
    return {} if uid == os.geteuid() else {"user": uid, "group": uid, "extra_groups": []}


def _join(group: Group, uid: int) -> None:
    """In this order: that user may not join it."""
    group.join()
    become(uid)
