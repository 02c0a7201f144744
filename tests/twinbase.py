"""For a state machine that makes the same calls in two trees: what it draws, and what always holds."""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant
from twins import BLOCKS, INO, MODE, Twins

NAMES = (b"a", b"b", b"c", b"d", b"\xff\xfe", b"long" * 63)
ODD = (b"", b".", b"..", b"a/", b"a//b", b"a/.", b"a/..", b"a/../b", b"n" * 255, b"n" * 256, b"/", b"a" * 4096)
MODES = (0o644, 0o755, 0o777, 0o666, 0o600, 0o700, 0o000, 0o444, 0o222, 0o111, 0o1777, 0o2777, 0o4755, 0o6777, 0o2644,
         0o2755, 0o4777, 0o7777, 0o3777, 0o50, 0o5)  # fmt: skip
FLAGS = (os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_NOFOLLOW, os.O_DIRECTORY, os.O_PATH, os.O_NOATIME,
         os.O_SYNC, os.O_DIRECT)  # fmt: skip
SECOND = 10**9
TIMES = (
    (0, 0),
    (1, 1),
    (SECOND, 999_999_999),
    (-1, 5),
    (1 << 33, 7),
    (0, (1 << 30) - 1),
    (0, (1 << 30) - 2),
    (0, SECOND),
)
"""Seconds and nanoseconds; the last but two mean UTIME_NOW and UTIME_OMIT, the last is not allowed."""
XATTRS = (b"user.a", b"user.b", b"trusted.c", b"security.d", b"user." + b"n" * 250, b"user." + b"n" * 251, b"user.",
          b"nonsense.e", b"plain", b"")  # fmt: skip
KINDS = (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFREG, 0, stat.S_IFDIR)
DEVICES = {stat.S_IFCHR: (os.makedev(1, 3), os.makedev(1, 5), 0), stat.S_IFBLK: (os.makedev(7, 200),)}
NO_FILE = (errno.EBADF, errno.EINVAL, errno.EISDIR, errno.ENODEV, errno.ESPIPE)
"""What a descriptor gets that does not allow it, or is of no regular file."""
PAGE = 4096
ATTRIBUTES = 64
"""Blocks that extended attributes and long links may take."""

USER = st.integers(0, 3)
PICK = st.integers(0, 999)
PATH = st.tuples(st.integers(0, 19), PICK, PICK)
OFFSET = st.one_of(st.sampled_from([0, 1, 63, 64, 100, 4095, 4096, 4097, 8192, 12288]), st.integers(0, 70_000))
FARTHER = st.sampled_from([-1, 1 << 20, (1 << 31) - 1, 1 << 32, 1 << 40, (1 << 63) - 1, (1 << 63) - 4096])
FAR = st.one_of(OFFSET, OFFSET, FARTHER)
LENGTH = st.one_of(st.sampled_from([0, 1, 10, 64, 100, 4095, 4096, 4097, 8192]), st.integers(0, 30_000))
FLAG_SET = st.lists(st.sampled_from(FLAGS), max_size=3).map(lambda flags: sum(set(flags)))


class TwinBase(RuleBasedStateMachine):
    """Two trees; for each user the descriptors that are open."""

    def __init__(self, twins: Twins, *, roots: bool = True) -> None:
        """With `twins` that are started; `roots`: user 0 is root and the trees are all that there is."""
        super().__init__()
        self.twins = twins
        self.roots = roots
        self.handles: list[list[int]] = [[] for _ in twins.pairs]
        self.next = 0
        self.tag = 0
        self.paths: dict[bytes, tuple[int, ...]] = {}
        twins.restart()
        self.paths = twins.look()

    def ask(self, user: int, name: str, *arguments: Any) -> tuple[int, Any]:
        return self.twins.ask(user % len(self.twins.pairs), name, *arguments)

    # What rules work on

    def path(self, drawn: tuple[int, int, int], user: int) -> bytes | tuple[int, bytes]:
        """Mostly a name that is there, often a new one in a directory that is there, sometimes something odd."""
        way, pick, extra = drawn
        paths = list(self.paths)
        existing = paths[pick % len(paths)]
        if way == 0:
            return ODD[extra % len(ODD)]
        if way == 1:
            return self.absolute(existing) + (b"/", b"/.", b"/..", b"//" + NAMES[0])[extra % 4]
        if way == 2:
            return NAMES[extra % len(NAMES)]
        if way == 3 and (handle := self.handle(user, pick)) is not None:
            return handle, NAMES[extra % len(NAMES)]
        if way < 12:
            return self.absolute(existing)
        folders = [path for path, facts in self.paths.items() if not stat.S_ISREG(facts[MODE])]
        return self.absolute(os.path.join(folders[pick % len(folders)], NAMES[extra % len(NAMES)]))

    def absolute(self, path: bytes) -> bytes:
        return path[1:] or b"/"  # "./a" is "/a"

    def name(self, drawn: tuple[int, int, int], user: int) -> bytes:
        """A path for calls that take no descriptor of a directory."""
        path = self.path(drawn, user)
        return path if isinstance(path, bytes) else path[1]

    def handle(self, user: int, pick: int) -> int | None:
        open_ones = self.handles[user % len(self.handles)]
        return open_ones[pick % len(open_ones)] if open_ones else None

    def where(self, user: int, drawn: tuple[int, int, int]) -> int | bytes:
        """A descriptor or a path."""
        handle = self.handle(user, drawn[1]) if drawn[2] % 3 == 0 else None
        return self.name(drawn, user) if handle is None else handle

    def data(self, length: int) -> bytes:
        self.tag = self.tag % 255 + 1
        return bytes([self.tag]) * length

    def opened_file(self, user: int, name: bytes) -> None:
        self.next += 1
        self.ask(user, "open", self.next, name, os.O_CREAT | os.O_RDWR, 0o666)
        self.handles[user % len(self.handles)].append(self.next)

    def refused(self, user: int, pick: int, codes: tuple[int, ...], name: str, *arguments: Any) -> None:
        handle = self.handle(user, pick)
        if handle is not None:
            _, actual = self.twins.pairs[user % len(self.twins.pairs)]
            code, _ = actual.ask(name, handle, *arguments)
            assert code in codes, errno.errorcode.get(code, code)

    def on(self, user: int, pick: int, name: str, *arguments: Any) -> None:
        handle = self.handle(user, pick)
        if handle is not None:
            self.ask(user, name, handle, *arguments)

    # What always holds

    @invariant()
    def the_trees_are_equal(self) -> None:
        """All names, and what lstat(2) says of them.

        df -i counts each inode once, and those that are open without a name; df no more than what there is.
        """
        self.paths = self.twins.look()
        named = {facts[INO]: facts[BLOCKS] for facts in self.paths.values()}
        nameless = sum(map(len, self.handles))
        used, files = self.twins.used()
        assert len(named) - 1 <= files <= len(named) - 1 + nameless
        assert nameless or used <= sum(named.values()) // 8 + ATTRIBUTES

    def teardown(self) -> None:
        """The bytes and attributes, too."""
        self.twins.read_all()
