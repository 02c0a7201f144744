"""Two trees that must not differ: agents (agent.py) make the same calls in both, and every answer is compared.

What cannot be equal is made comparable: inode numbers by a one-to-one mapping; times by the step in which they were
set, or as they are if somebody chose them; blocks by pages, because secretfs counts smaller files more finely.
"""

from __future__ import annotations

import contextlib
import errno
import pickle
import stat
import subprocess
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

AGENT = Path(__file__).with_name("agent.py")
USERS = ((0, 0, ()), (1001, 1001, (2001,)), (1002, 1002, (2001, 2002)), (65534, 65534, ()))
"""Who they are: root, two that share a group, and nobody."""
REALTIME_COARSE = 5  # clock_gettime(2): the clock of the kernel's timestamps
INO, MODE, NLINK, UID, GID, RDEV, SIZE, BLOCKS, BLKSIZE, ATIME, MTIME, CTIME = range(12)
FIELDS = ("ino", "mode", "nlink", "uid", "gid", "rdev", "size", "blocks", "blksize", "atime", "mtime", "ctime")


class Difference(AssertionError):
    """The two trees differ."""


class Agent:
    """One agent process."""

    def __init__(self, root: Path, uid: int, gid: int, groups: Sequence[int]) -> None:
        words = [str(word) for word in (uid, gid, *groups)]
        self.process = subprocess.Popen(
            ["/usr/bin/python3", "-I", "-B", AGENT, root, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def send(self, name: str, *arguments: Any) -> None:
        assert self.process.stdin
        pickle.dump((name, arguments), self.process.stdin)
        self.process.stdin.flush()

    def receive(self) -> tuple[int, Any]:
        assert self.process.stdout
        answer: tuple[int, Any] = pickle.load(self.process.stdout)
        return answer

    def ask(self, name: str, *arguments: Any) -> tuple[int, Any]:
        self.send(name, *arguments)
        return self.receive()

    def close(self) -> None:
        self.process.communicate()


class Steps:
    """When each step began, on a clock on which every step is at least one tick long."""

    def __init__(self) -> None:
        self.starts: list[int] = []

    def begin(self) -> None:
        """A new step: what the kernel stamps from here on is not before it."""
        now = time.time_ns()
        while time.clock_gettime_ns(REALTIME_COARSE) <= now:
            time.sleep(0.0005)
        self.starts.append(time.clock_gettime_ns(REALTIME_COARSE))

    def of(self, stamp: int) -> int | str:
        """The number of the step in which a time was set, or the time if somebody chose it."""
        if self.starts[0] <= stamp < self.starts[-1] + 3600 * 10**9:
            return bisect_right(self.starts, stamp)
        return f"{stamp} ns"


class Twins:
    """A pair of agents per user, one in each tree, and a pair that looks on."""

    def __init__(
        self,
        expected: Path,
        actual: Path,
        users: Sequence[tuple[int, int, Sequence[int]]] = USERS,
        *,
        atimes: bool = True,
    ) -> None:
        """Start them. `atimes`: compare the access times of regular files, which the page cache does not keep."""
        self._atimes = atimes
        self.steps = Steps()
        self._numbers: tuple[dict[int, int], dict[int, int]] = ({}, {})
        self.pairs = [(Agent(expected, *user), Agent(actual, *user)) for user in users]
        self.observers = Agent(expected, *USERS[0]), Agent(actual, *USERS[0])

    def close(self) -> None:
        for pair in (*self.pairs, self.observers):
            for agent in pair:
                agent.close()

    def __enter__(self) -> Twins:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def restart(self) -> None:
        """Empty trees, agents as in the beginning."""
        self.steps = Steps()
        self.steps.begin()
        for pair in self.pairs:
            self.both(pair, "close_all")
        cleared = self.both(self.observers, "clear")
        assert cleared == ((0, None), (0, None)), cleared
        for pair in self.pairs:
            again = self.both(pair, "restart")
            assert again == ((0, None), (0, None)), again
        used, files = self.used()
        assert (used, files) == (0, 0), "empty, and df says that it is not"

    @staticmethod
    def both(pair: tuple[Agent, Agent], name: str, *arguments: Any) -> tuple[Any, Any]:
        """What both answer, as it comes."""
        for agent in pair:
            agent.send(name, *arguments)
        return pair[0].receive(), pair[1].receive()

    def ask(self, user: int, name: str, *arguments: Any) -> tuple[int, Any]:
        """Let the agents of one user make a call in both trees, in a step of its own, and return what they agree on."""
        self.steps.begin()
        expected, actual = self.both(self.pairs[user], name, *arguments)
        made = [(code, self._comparable(name, value, side)) for side, (code, value) in enumerate((expected, actual))]
        if made[0] != made[1]:
            shown = [f"{errno.errorcode.get(code, code)} {shorten(value)}" for code, value in made]
            raise Difference(f"{name}{shorten(arguments)} by user {user}: {shown[0]} and not {shown[1]}")
        return expected

    def look(self) -> dict[bytes, tuple[int, ...]]:
        """Compare the trees, and return what lstat(2) says of each path in the first."""
        answers = self.both(self.observers, "tree")
        trees = []
        for side, (code, tree) in enumerate(answers):
            assert code == 0, code
            trees.append({path: (self._status(facts, side), target) for path, facts, target in tree})
        if trees[0] != trees[1]:
            raise Difference("\n".join(differing(*trees)))
        return {path: facts for path, facts, _ in answers[0][1]}

    def used(self) -> tuple[int, int]:
        """What df and df -i say is used of the second tree: blocks and inodes."""
        code, full = self.observers[1].ask("statvfs", b".")
        assert code == 0
        _, _, files, files_free, blocks, blocks_free = full
        return blocks - blocks_free, files - files_free

    def read_all(self) -> None:
        """Compare the bytes and the extended attributes of everything."""
        for path in self.look():
            expected, actual = self.both(self.observers, "contents", path)
            if expected != actual:
                raise Difference(f"contents of {path!r}: {shorten(expected)} and not {shorten(actual)}")

    def _comparable(self, name: str, value: Any, side: int) -> Any:
        return self._status(value, side) if value is not None and name in ("stat", "fstat") else value

    def _status(self, facts: tuple[int, ...], side: int) -> tuple[Any, ...]:
        ino = self._numbers[side].setdefault(facts[INO], len(self._numbers[side]))
        blocks: int | None = -(-facts[BLOCKS] // 8)
        if stat.S_ISLNK(facts[MODE]):
            blocks = None  # short targets need no page on tmpfs
        times: list[int | str | None] = [self.steps.of(facts[field]) for field in (ATIME, MTIME, CTIME)]
        if stat.S_ISREG(facts[MODE]) and not self._atimes:
            times[0] = None
        return ino, *facts[MODE:BLOCKS], blocks, facts[BLKSIZE], *times


def differing(expected: dict[bytes, Any], actual: dict[bytes, Any]) -> Iterator[str]:
    """What differs in two trees, in words."""
    for path in sorted(expected.keys() | actual.keys()):
        first, second = expected.get(path), actual.get(path)
        if first is None or second is None:
            yield f"{path!r} is {'there' if first is None else 'missing'}"
        elif first != second:
            names = (*FIELDS, "target")
            pairs = zip(names, (*first[0], first[1]), (*second[0], second[1]), strict=True)
            told = [f"{name} {one if name != 'mode' else oct(one)} and not {two if name != 'mode' else oct(two)}"
                    for name, one, two in pairs if one != two]  # fmt: skip
            yield f"{path!r}: {', '.join(told)}"


def shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 300 else f"{text[:200]}... ({len(text)} characters)"


@contextlib.contextmanager
def tmpfs(path: Path, options: str) -> Iterator[Path]:
    """A tmpfs, in the mount namespace of the tests."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)
