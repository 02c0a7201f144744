"""What is done with a mount while a call of it fails, and what must hold afterwards, whatever failed."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from injected import Call, Failing, Failure, Running, done_by
from mounts import PATIENCE, is_mounted, secretfs

from secretfs import status

NEEDLE = "needle-in-a-mount"
EXIT_CODES = (1, 3, 4, 5, 8)
"""What a mount that cannot be made ends with; 2 is the caller's fault, 6 and 7 are for unmounting."""
SERVING = frozenset({"epoll_ctl", "epoll_wait", "poll", "pselect6", "rt_sigprocmask"})
"""With these the daemon waits for requests, and its parent for it: where one fails a mount that was ready ends, as if
somebody had unmounted it."""
MEMORY = frozenset(
    "memfd_secret ftruncate mmap munmap mprotect mlock madvise brk fstatfs readv process_vm_readv".split()  # noqa: SIM905
)
"""With these memory is had, checked and given back."""
TRIOS = SERVING | {"recvfrom"}
"""With these the event loop also hears of its threads: where one fails, which no kernel does, it waits for ever."""


def write_and_read(path: Path) -> bool:
    """Whether a file in the mount keeps what is in it; nothing is written where no mount is."""
    root = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    os.getxattr(root, "user.secretfs.status")
    file = os.open("file", os.O_RDWR | os.O_CREAT, dir_fd=root)
    os.write(file, NEEDLE.encode())
    kept = os.pread(file, 100, 0) == NEEDLE.encode()
    os.close(file)
    os.close(root)
    return kept


def read(path: Path) -> bool:
    """Whether it is there still."""
    return (path / "file").read_text(encoding="ascii") == NEEDLE


def take_out(path: Path) -> int | None:
    """Unmount as `secretfs umount` does, but for the patience: how many files were destroyed."""
    status.PATIENCE = PATIENCE  # in a child process
    return status.unmount(str(path), lazy=False).files


class Place:
    """A mountpoint, a way to mount there, and what came of mounting with failures."""

    def __init__(self, failing: Failing, path: Path, *words: str, user: int = 0) -> None:
        self.failing, self.path, self.words, self.user = failing, path, words, user
        self.tried = 0
        self.outcomes: dict[str, int] = {}
        self.codes: set[int] = set()
        self.running: Running | None = None
        """What commands are tried on."""
        self.trouble = ""
        self.problems: list[str] = []
        self.missed: list[Failure] = []
        """Calls that were not made this time: how often memory is asked for is not always the same."""
        path.mkdir()
        os.chown(path, user, user)

    def mount(self, failure: Failure | None = None, *, recorded: bool = False) -> Running:
        """`secretfs mount`: it has ended, or in the foreground it has mounted or ended."""
        words = ("mount", *self.words, self.path)
        running = self.failing.start(*words, user=self.user, failure=failure, recorded=recorded)
        if "--foreground" in self.words:
            running.wait_for_mount(self.path)
        else:
            running.finish()
        return running

    def works(self) -> bool:
        """Whether the mount is of use."""
        return bool(done_by(self.user, write_and_read, self.path))

    def end(self, running: Running) -> None:
        """Unmount, and see everything end."""
        assert done_by(self.user, take_out, self.path) in (0, 1)
        running.finish()
        running.wait_for_all()

    def calls_to_mount(self) -> list[Call]:
        """Every call of ours up to where it is mounted."""
        with self.mount(recorded=True) as running:
            if "--foreground" in self.words:  # it is not ready yet
                assert self.works()
            found = running.calls()
            assert self.works()
            self.end(running)
        return ours(found)

    def calls_to_end(self) -> list[Call]:
        """Every call of ours from there on, while it is unmounted."""
        with self.mount(recorded=True) as running:
            assert self.works()
            before = set(running.calls())
            self.end(running)
            found = [call for call in running.calls() if call not in before]
        return [call for call in ours(found) if call.name not in TRIOS]

    def inflict(self, deed: Callable[[Failure], str], wanted: Iterable[Failure]) -> None:
        """Do something once with each failure; what goes wrong is told at the end."""
        for failure in wanted:
            self.tried += 1
            try:
                outcome = deed(failure)
            except (AssertionError, OSError, subprocess.TimeoutExpired) as error:
                outcome = "a problem"
                self.problems.append(f"{failure}: {error}")
                self.clear()
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        print(f"{self.tried - len(self.missed)} failures, {len(self.outcomes)} outcomes:")
        print(*(f"{count:6} {outcome}" for outcome, count in sorted(self.outcomes.items())), sep="\n")
        assert self.problems == [], "\n".join(self.problems)
        missed = [str(each) for each in self.missed if each.call.name not in MEMORY | SERVING]
        assert len(missed) <= self.tried // 20, "\n".join(missed)
        assert self.tried > len(self.missed), "nothing failed"

    def clear(self) -> None:
        """So that the next failure can be looked at, whatever this one has left."""
        for _ in range(3):  # at most: one that cannot be taken out is told by whoever mounts next
            if not is_mounted(self.path):
                break
            secretfs("umount", "--lazy", self.path)
        if self.running is not None:
            self.running.wait_for_all()
            self.running.close()
            self.running = None
        for each in self.path.iterdir():
            each.unlink()

    def mounting(self, failure: Failure) -> str:
        """Mount with a failure and use it; what came of it, in a word or in the sentence that was said."""
        with self.mount(failure) as running:
            used = is_mounted(self.path) and self.tries_to_use()
            code, out, err = running.finish()
            running.wait_for_all()
            self.note(running, failure)
        errors = errors_in(err)
        assert out == "", out
        self.expect_nothing()
        if used and code == 0:
            assert errors == [], err
            return "works"
        assert not used or "--foreground" in self.words, err  # there it may be of use a moment before it is given up
        if code == 0:
            assert failure.call.name in SERVING, self.trouble
            return "ended"
        assert code in EXIT_CODES, (code, err)
        assert len(errors) == 1 and "bug" not in err, err
        self.mount_again(code)
        return self.kind(errors[0])

    def note(self, running: Running, failure: Failure) -> None:
        """Remember a failure that did not come."""
        if [call.group for call in running.calls()] != [failure.call.group]:
            self.missed.append(failure)

    def tries_to_use(self) -> bool:
        """Whether it works and can be unmounted; it may be taken back while it is tried."""
        try:
            return self.works() and done_by(self.user, take_out, self.path) == 1
        except OSError as error:
            self.trouble = str(error)
            return False

    def expect_nothing(self) -> None:
        """Nothing of a mount is left, but perhaps processes."""
        assert not is_mounted(self.path), "it is still mounted"
        left = [*os.listdir(self.path), *os.listdir(self.failing.empty)]
        assert left == [], left

    def mount_again(self, code: int) -> None:
        """After the first refusal with that exit code: what was refused is possible at once where nothing fails."""
        if code not in self.codes:
            self.codes.add(code)
            with self.mount() as running:
                assert self.works()
                self.end(running)

    def kind(self, said: str) -> str:
        """What was said, without what differs."""
        return said.replace(str(self.path), "DIR")

    def ending(self, failure: Failure) -> str:
        """Unmount while a call of the daemon or of its parent fails."""
        with self.mount(failure) as running:
            assert running.finish()[0] == 0
            assert self.works()
            try:
                outcome = f"{done_by(self.user, take_out, self.path)} file destroyed"
            except OSError as error:
                outcome = str(error)
                if is_mounted(self.path):  # refused: nothing has happened to it
                    assert self.works()
                    self.end(running)
            running.wait_for_all()
            self.note(running, failure)
        self.expect_nothing()
        return self.kind(outcome)

    def commanding(self, *words: str) -> Callable[[Failure], str]:
        """A command on a mount that has a file: with a failure it is told, and the mount is as it was, or gone."""

        def deed(failure: Failure) -> str:
            if self.running is None:
                self.running = self.mount()
                assert self.works()
            with self.failing.start(*words, self.path, failure=failure) as command:
                code, out, err = command.finish()
                command.wait_for_all()
                self.note(command, failure)
            errors = errors_in(err)
            if code == 0:
                assert errors == [], err
            else:
                assert code == 1 and len(errors) == 1, (code, err)
            if words[0] == "status":
                assert code or json.loads(out)["mounts"][0]["files"] == 1, out
            else:
                assert out == "" and (code or not is_mounted(self.path)), "it is still mounted"
            if is_mounted(self.path):
                assert done_by(self.user, read, self.path), "the file has changed"
            else:
                self.clear()
            return self.kind(errors[0]) if errors else "done"

        return deed


def errors_in(said: str) -> list[str]:
    """The errors on stderr, where every line is one of ours and none shows what is in a file."""
    lines = said.splitlines()
    assert all(line.startswith("secretfs: ") for line in lines), said
    assert NEEDLE not in said, "what is in a file was shown"
    return [line.removeprefix("secretfs: error: ") for line in lines if line.startswith("secretfs: error: ")]


def ours(calls: Iterable[Call]) -> list[Call]:
    return [call for call in calls if call.is_ours]
