"""What a state machine over file systems asks and checks: several of them at once, against the model of dicts."""

from __future__ import annotations

import ctypes
import stat
from collections import Counter
from typing import NamedTuple

from hypothesis.stateful import RuleBasedStateMachine, invariant
from treemodel import MAX_FILES, Entry, Fail, Inode, Model

from secretfs.errors import FileError
from secretfs.filesystem import Filesystem
from secretfs.nametable import _KNOWN, KNOWN, NAMES, NameTable
from secretfs.nodes import ROOT

SIZE = 160 * 1024


class Caller(NamedTuple):
    """Who asks: root."""

    uid: int = 0
    gid: int = 0


ME = Caller()


class Counts(NameTable):
    """The shim's tables of names, without the shim."""

    def __init__(self) -> None:
        super().__init__(memoryview(bytearray(NAMES)), memoryview(bytearray(KNOWN * _KNOWN.size)))

    def total(self) -> int:
        table = bytes(self._counts)
        return sum(count * table.count(count) for count in range(1, MAX_FILES + 2))

    def known(self) -> list[tuple[int, bytes]]:
        """Directory and name of each that is surely there and no directory."""
        found = _KNOWN.iter_unpack(self._known)
        return [(directory, ctypes.string_at(address, length)) for directory, _, length, address in found if directory]

    def says_absent(self, directory: int, name: bytes) -> bool:
        return self._counts[(hash(name) + directory) % NAMES] == 0


class Comparison(RuleBasedStateMachine):
    """One model and a file system per backend."""

    def __init__(self, backends) -> None:
        super().__init__()
        self.systems = [
            Filesystem(backend, size=SIZE, max_files=MAX_FILES, uid=0, gid=0, reserve=False) for backend in backends
        ]
        self.counts = Counts()
        self.systems[0].watch_names(self.counts)
        self.model = Model()
        self.open: dict[int, tuple[Inode, int]] = {}  # handle -> file, flags
        self.directories: dict[int, tuple[Inode, list[tuple[bytes, Entry]] | None]] = {}
        self.known = [ROOT]  # inode numbers that were ever seen
        self.tag = 0
        self.shared: set[int] = set()  # places that two names have had

    def ask(self, operation):
        """The one answer of all file systems: a value, or Fail with the errno."""
        answers = []
        for system in self.systems:
            try:
                answers.append((0, operation(system)))
            except FileError as error:
                answers.append((error.errno, None))
        assert answers == answers[:1] * len(answers)
        return answers[0]

    def expect(self, predicted, operation):
        """The file systems' answer, after the model has said whether it is an error: None if so."""
        expected = 0
        try:
            predicted()
        except Fail as fail:
            expected = fail.args[0]
        code, value = self.ask(operation)
        assert code == expected
        return value

    def ino(self, pick: int) -> int:
        return self.known[pick % len(self.known)]

    def parent(self, pick: int) -> int:
        """Mostly a directory that is there, sometimes anything that was ever seen."""
        alive = [ino for ino, node in self.model.nodes.items() if node.kind == "d" and node.nlink]
        return alive[pick % len(alive)] if pick % 5 else self.ino(pick // 5)

    def learn(self, node: Inode) -> None:
        node.lookups += 1
        if node.ino not in self.known:
            self.known.append(node.ino)

    @property
    def left(self) -> int:
        return SIZE - self.systems[0].statistics().used

    def bytes_of(self, handle: int, offset: int, length: int) -> bytes:
        def read(fs: Filesystem) -> bytes:
            buffer = bytearray(length)
            return bytes(buffer[: fs.read_into(handle, offset, memoryview(buffer))])

        return self.ask(read)[1]

    def listing(self, handle: int, start: int) -> list[tuple[int, bytes, int]]:
        return self.ask(lambda fs: [(at, name, node.ino) for at, name, node in fs.readdir(handle, start)])[1]

    # What always holds

    @invariant()
    def trees_are_equal(self) -> None:
        """Every directory, link count, size, target, attribute name and byte is the model's."""
        for ino in self.known:
            self.expect(lambda ino=ino: self.model.get(ino), lambda fs, ino=ino: fs.getattr(ino).ino)
        for node in list(self.model.nodes.values()):
            self.compare(node)

    def compare(self, node: Inode) -> None:
        ino = node.ino
        kind = {"d": stat.S_IFDIR, "f": stat.S_IFREG, "l": stat.S_IFLNK}[node.kind]
        found = self.ask(lambda fs: (stat.S_IFMT(fs.getattr(ino).mode), fs.getattr(ino).nlink, fs.getattr(ino).size))
        assert found == (0, (kind, node.nlink, len(node.data) or 20 * (len(node.children) + 2) * (node.kind == "d")))
        assert sorted(self.ask(lambda fs: fs.listxattr(ino, ME))[1]) == sorted(node.xattrs)
        if node.kind == "l" and not node.gone:
            assert self.ask(lambda fs: fs.readlink(ino)) == (0, node.data)
        if node.kind == "f" and not node.gone:
            _, handle = self.ask(lambda fs: fs.open(ino, 0, ME))
            assert self.bytes_of(handle, 0, len(node.data) + 1) == node.data
            self.ask(lambda fs: fs.release(handle))
        if node.kind == "d" and not node.gone:
            _, handle = self.ask(lambda fs: fs.opendir(ino))
            expected = [(name, entry.node.ino) for name, entry in node.children.items()]
            assert [(name, number) for _, name, number in self.listing(handle, 0)[2:]] == expected
            self.ask(lambda fs: fs.releasedir(handle))

    @invariant()
    def no_name_is_called_absent(self) -> None:
        """Each name that is there is counted, and no other."""
        alive = [node for node in self.model.nodes.values() if node.kind == "d" and not node.gone]
        names = [(node.ino, name) for node in alive for name in node.children]
        assert not any(self.counts.says_absent(directory, name) for directory, name in names)
        assert self.counts.total() == len(names)

    @invariant()
    def known_names_are_there(self) -> None:
        """Each leads to what is no directory; and whatever does is known, but where two share a place."""
        alive = [node for node in self.model.nodes.values() if node.kind == "d" and not node.gone]
        names = {(node.ino, name) for node in alive for name, entry in node.children.items() if entry.node.kind != "d"}
        known = set(self.counts.known())
        assert known <= names
        places = Counter((hash(name) + directory) % KNOWN for directory, name in names)
        self.shared |= {place for place, count in places.items() if count > 1}
        assert all((hash(name) + directory) % KNOWN in self.shared for directory, name in names - known)

    @invariant()
    def accounts_are_equal(self) -> None:
        """All count the same bytes and files, within the limits; the files are the model's."""
        _, (size, used, files, max_files, _) = self.ask(lambda fs: fs.statistics())
        assert (size, max_files, files) == (SIZE, MAX_FILES, self.model.files)
        assert 0 <= used <= size

    def teardown(self) -> None:
        """After everything is unlinked, released and forgotten nothing is charged and nothing is used."""
        for handle in list(self.open):
            self.ask(lambda fs, handle=handle: fs.release(handle))
        for handle in list(self.directories):
            self.ask(lambda fs, handle=handle: fs.releasedir(handle))
        for name in self.model.root.xattrs:
            self.ask(lambda fs, name=name: fs.removexattr(ROOT, name))
        self.empty(self.model.root)
        self.ask(lambda fs: fs.forget([(node.ino, node.lookups) for node in self.model.nodes.values()]))
        for system in self.systems:
            space, tree = system._space, system._tree
            assert (space.charged, space.heap.used, space.pages.used, tree.files) == (0, 0, 0, 0)
            assert list(tree._nodes) == [ROOT]
            system.close()
            assert (space.heap.locked, space.pages.locked) == (0, 0)
        assert self.counts.total() == 0

    def empty(self, directory: Inode) -> None:
        """Unlink everything below."""
        for name, entry in directory.children.items():
            if entry.node.kind == "d":
                self.empty(entry.node)
                self.ask(lambda fs, name=name: fs.rmdir(directory.ino, name))
            else:
                self.ask(lambda fs, name=name: fs.unlink(directory.ino, name))
