"""secretfs.filesystem against a model of dicts, on every backend at once and with equal answers."""

from __future__ import annotations

import errno
import os

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from treemachine import ME, Comparison
from treemodel import XATTR_SPACES, Entry, Fail, Inode

from secretfs.filesystem import Filesystem
from secretfs.nodes import ROOT
from secretfs.rules import Changes
from secretfs.testing import FakeBackend

NAMES = st.sampled_from([b"a", b"b", b"c", b"d" * 64, b"e" * 255])
OFFSETS = st.one_of(st.sampled_from([0, 1, 64, 4095, 4096, 4097, 12288]), st.integers(0, 50_000))
LENGTHS = st.one_of(st.sampled_from([0, 1, 64, 4095, 4096, 4097]), st.integers(0, 30_000))
XATTRS = st.sampled_from([b"user.a", b"user.b", b"trusted.c", b"nonsense.d"])
PICK = st.integers(0, 1000)


class FilesystemMachine(Comparison):
    """One rule for each thing that can be done to a file system."""

    # Names

    @initialize()
    def start(self) -> None:
        """A directory and a file to begin with."""
        self.mkdir(0, b"a")
        self.create(0, b"b", 0)

    @rule(parent=PICK, name=NAMES, flags=st.sampled_from([0, os.O_EXCL, os.O_TRUNC, os.O_APPEND]))
    def create(self, parent: int, name: bytes, flags: int) -> None:
        """create() makes and opens, or opens what is there."""
        parent = self.parent(parent)
        directory = self.model.nodes.get(parent)
        existing = directory.children.get(name) if directory else None
        if existing and existing.node.kind == "l":
            return  # the kernel follows links itself

        def predict() -> None:
            if not existing:
                self.model.check_create(parent, name)
            elif flags & os.O_EXCL:
                raise Fail(errno.EEXIST)
            elif existing.node.kind == "d":
                raise Fail(errno.EISDIR)

        def make(fs: Filesystem) -> tuple[int, int]:
            handle, node = fs.create(parent, name, 0o600, flags, ME)
            return handle, node.ino

        if answer := self.expect(predict, make):
            handle, ino = answer
            node = existing.node if existing else self.model.create(parent, name, "f", ino)
            assert node.ino == ino
            self.opened(handle, node, flags)
            self.learn(node)

    @rule(parent=PICK, name=NAMES)
    def mkdir(self, parent: int, name: bytes) -> None:
        """mkdir() makes an empty directory."""
        parent = self.parent(parent)
        ino = self.expect(
            lambda: self.model.check_create(parent, name), lambda fs: fs.mkdir(parent, name, 0o700, ME).ino
        )
        if ino:
            self.learn(self.model.create(parent, name, "d", ino))

    @rule(parent=PICK, name=NAMES, length=st.sampled_from([1, 64, 65, 4095, 4096]))
    def symlink(self, parent: int, name: bytes, length: int) -> None:
        """symlink() keeps its target, which counts as data, or leaves no name behind."""
        parent, target = self.parent(parent), b"t" * length

        def predict() -> None:
            if length > 4095:
                raise Fail(errno.ENAMETOOLONG)
            self.model.check_create(parent, name)
            if self.left < -(-length // 64) * 64:
                raise Fail(errno.ENOSPC)

        ino = self.expect(predict, lambda fs: fs.symlink(parent, name, target, ME).ino)
        if ino:
            node = self.model.create(parent, name, "l", ino)
            node.data[:] = target
            self.learn(node)

    @rule(ino=PICK, parent=PICK, name=NAMES)
    def link(self, ino: int, parent: int, name: bytes) -> None:
        """link() gives one more name."""
        ino, parent = self.ino(ino), self.parent(parent)
        if self.expect(lambda: self.model.check_link(ino, parent, name), lambda fs: fs.link(ino, parent, name).ino):
            node, directory = self.model.nodes[ino], self.model.nodes[parent]
            directory.children[name] = Entry(node)
            self.model.count(node, directory, 1)
            self.learn(node)

    @rule(parent=PICK, name=NAMES, directory=st.booleans())
    def remove(self, parent: int, name: bytes, directory: bool) -> None:
        """unlink() and rmdir()."""
        self.removal(self.parent(parent), name, directory=directory)

    def removal(self, parent: int, name: bytes, *, directory: bool) -> None:
        self.expect(
            lambda: self.model.remove(parent, name, directory=directory),
            lambda fs: (fs.rmdir if directory else fs.unlink)(parent, name),
        )

    @rule(old=PICK, name=NAMES, new=PICK, new_name=NAMES, flags=st.sampled_from([0, 0, 1, 2]))
    def rename(self, old: int, name: bytes, new: int, new_name: bytes, flags: int) -> None:
        """rename(), replacing, not replacing or exchanging."""
        arguments = self.parent(old), name, self.parent(new), new_name, flags
        self.expect(lambda: self.model.rename(*arguments), lambda fs: fs.rename(*arguments))

    @rule(parent=PICK, name=NAMES, length=LENGTHS)
    def put(self, parent: int, name: bytes, length: int) -> None:
        """A whole file: created, written and closed."""
        before = set(self.open)
        self.create(parent, name, os.O_EXCL)
        for handle in set(self.open) - before:
            index = list(self.open).index(handle)
            self.write(index, 0, length)
            self.release(index)

    def existing(self, pick: int) -> tuple[int, bytes]:
        """A directory and a name that is there."""
        found = [(node.ino, name) for node in self.model.nodes.values() for name in node.children]
        return found[pick % len(found)] if found else (ROOT, b"nothing is there")

    @rule(first=PICK, second=PICK, flags=st.sampled_from([0, 0, 1, 2]))
    def rename_onto(self, first: int, second: int, flags: int) -> None:
        """rename() of a name that is there onto another one."""
        arguments = *self.existing(first), *self.existing(second), flags
        self.expect(lambda: self.model.rename(*arguments), lambda fs: fs.rename(*arguments))

    @rule(pick=PICK, new=PICK, name=NAMES)
    def rename_into(self, pick: int, new: int, name: bytes) -> None:
        """rename() of a name that is there into any directory."""
        arguments = *self.existing(pick), self.parent(new), name, 0
        self.expect(lambda: self.model.rename(*arguments), lambda fs: fs.rename(*arguments))

    @rule(pick=PICK)
    def remove_existing(self, pick: int) -> None:
        """unlink() or rmdir() of a name that is there."""
        parent, name = self.existing(pick)
        entry = self.model.nodes[parent].children.get(name)
        self.removal(parent, name, directory=entry is not None and entry.node.kind == "d")

    @rule(parent=PICK, name=NAMES)
    def lookup(self, parent: int, name: bytes) -> None:
        """lookup() finds the node and counts."""
        parent = self.parent(parent)
        found = lambda fs: getattr(fs.lookup(parent, name), "ino", None)  # noqa: E731
        ino = self.expect(lambda: self.model.find(parent, name), found)
        if ino:
            node = self.model.nodes[parent].children[name].node
            assert node.ino == ino
            self.learn(node)

    @rule(pick=PICK)
    def forget(self, pick: int) -> None:
        """The kernel forgets a node: with a name it stays, without it is gone for good."""
        node = self.model.nodes.get(self.ino(pick))
        if node is None or node is self.model.root or node.opens:
            return
        count, node.lookups = node.lookups, 0
        self.ask(lambda fs: fs.forget([(node.ino, count)]))
        self.model.settle(node)

    # Bytes

    def opened(self, handle: int, node: Inode, flags: int) -> None:
        self.open[handle] = node, flags
        node.opens += 1
        if flags & os.O_TRUNC:
            node.data.clear()

    @rule(pick=PICK, flags=st.sampled_from([0, os.O_TRUNC, os.O_APPEND]))
    def reopen(self, pick: int, flags: int) -> None:
        """open() by number; a file without a name and a handle is gone."""
        ino = self.ino(pick)
        node = self.model.nodes.get(ino)
        if node and node.kind == "l":
            return

        def predict() -> None:
            if self.model.get(ino).kind == "d":
                raise Fail(errno.EISDIR)
            if self.model.get(ino).gone:
                raise Fail(errno.ESTALE)

        if handle := self.expect(predict, lambda fs: fs.open(ino, flags, ME)):
            self.opened(handle, node, flags)

    def file(self, pick: int) -> tuple[int, Inode, int]:
        handle = list(self.open)[pick % len(self.open)]
        return handle, *self.open[handle]

    @precondition(lambda self: self.open)
    @rule(pick=PICK, offset=OFFSETS, length=LENGTHS)
    def write(self, pick: int, offset: int, length: int) -> None:
        """write() takes all, or where space ends a part or nothing."""
        handle, node, flags = self.file(pick)
        self.tag = self.tag % 255 + 1
        data = bytes([self.tag]) * length
        left = self.left
        code, taken = self.ask(lambda fs: fs.write(handle, offset, memoryview(data)))
        taken = taken or 0
        assert code == (0 if taken or not length else errno.ENOSPC)
        assert taken == length or left < length + 2 * 4096
        offset = len(node.data) if flags & os.O_APPEND else offset
        if taken:
            self.model.resize(node, max(len(node.data), offset + taken))
            node.data[offset : offset + taken] = data[:taken]

    @precondition(lambda self: self.open)
    @rule(pick=PICK, offset=OFFSETS, length=LENGTHS)
    def read(self, pick: int, offset: int, length: int) -> None:
        """Any part of an open file is the model's, also when its name is gone."""
        handle, node, _ = self.file(pick)
        assert self.bytes_of(handle, offset, length) == node.data[offset : offset + length]

    @rule(pick=PICK, size=OFFSETS)
    def truncate(self, pick: int, size: int) -> None:
        """truncate() cuts or grows with a hole."""
        ino = self.ino(pick)
        node = self.model.nodes.get(ino)
        if node and (node.kind == "l" or node.gone):
            return

        def predict() -> None:
            if self.model.get(ino).kind == "d":
                raise Fail(errno.EISDIR)
            self.model.resize(node, size)

        self.expect(predict, lambda fs: fs.setattr(ino, Changes(size=size), ME).ino)

    @precondition(lambda self: self.open)
    @rule(pick=PICK)
    def release(self, pick: int) -> None:
        """release() of the last handle of a nameless file wipes it."""
        handle, node, _ = self.file(pick)
        del self.open[handle]
        node.opens -= 1
        self.expect(lambda: self.model.settle(node), lambda fs: fs.release(handle))

    # Directories

    @rule(pick=PICK)
    def opendir(self, pick: int) -> None:
        """opendir() works on directories."""
        ino = self.parent(pick)

        def predict() -> None:
            if self.model.get(ino).kind != "d":
                raise Fail(errno.ENOTDIR)

        if handle := self.expect(predict, lambda fs: fs.opendir(ino)):
            self.directories[handle] = self.model.nodes[ino], None
            self.model.nodes[ino].opens += 1

    @precondition(lambda self: self.directories)
    @rule(pick=PICK, start=st.integers(0, 8), number=st.integers(1, 8))
    def readdir(self, pick: int, start: int, number: int) -> None:
        """readdir() from a position: what was there at the beginning and still is, once each, whatever came or went."""
        handle = list(self.directories)[pick % len(self.directories)]
        node, snapshot = self.directories[handle]
        if start == 0 or snapshot is None:
            start, snapshot = 0, list(node.children.items())
            self.directories[handle] = node, snapshot
        dots = [(1, b".", node.ino), (2, b"..", node.parent.ino)]
        living = [(at, name, entry.node.ino) for at, (name, entry) in enumerate(snapshot, 3) if entry.live]
        expected = [each for each in dots + living if each[0] > start]
        assert self.listing(handle, start)[:number] == expected[:number]

    @precondition(lambda self: self.directories)
    @rule(pick=PICK)
    def releasedir(self, pick: int) -> None:
        """releasedir() lets go of a directory."""
        handle = list(self.directories)[pick % len(self.directories)]
        node, _ = self.directories.pop(handle)
        node.opens -= 1
        self.expect(lambda: self.model.settle(node), lambda fs: fs.releasedir(handle))

    # Extended attributes

    @rule(pick=PICK, name=XATTRS, length=st.sampled_from([0, 1, 64, 300, 4096]))
    def setxattr(self, pick: int, name: bytes, length: int) -> None:
        """setxattr() keeps a value, which counts as data; without room the old one stays."""
        ino = self.ino(pick)
        node = self.model.nodes.get(ino)
        if node and node.gone:
            return  # the kernel has no way to ask for it
        self.tag = self.tag % 255 + 1
        value = bytes([self.tag]) * length

        def predict() -> None:
            self.model.get(ino)
            if not name.startswith(XATTR_SPACES):
                raise Fail(errno.EOPNOTSUPP)
            if self.left < -(-length // 64) * 64:
                raise Fail(errno.ENOSPC)
            node.xattrs[name] = value

        self.expect(predict, lambda fs: fs.setxattr(ino, name, value))

    @rule(pick=PICK, name=XATTRS)
    def getxattr(self, pick: int, name: bytes) -> None:
        """getxattr() returns the value."""
        ino = self.ino(pick)
        value = self.expect(lambda: self.model.check_xattr(ino, name), lambda fs: fs.getxattr(ino, name))
        assert value is None or value == self.model.nodes[ino].xattrs[name]

    @rule(pick=PICK, name=XATTRS)
    def removexattr(self, pick: int, name: bytes) -> None:
        """removexattr() takes it away."""
        ino = self.ino(pick)

        def predict() -> None:
            self.model.check_xattr(ino, name)
            del self.model.nodes[ino].xattrs[name]

        self.expect(predict, lambda fs: fs.removexattr(ino, name))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("real", [["emulator"], ["emulator", "kernel"]], ids="-".join)
def test_every_backend_is_as_the_model(request, real) -> None:
    """Whatever is done to a file system, it answers as dicts would, the same on a fake, the emulator and the kernel."""
    fake = FakeBackend()
    backends = [fake, *(request.getfixturevalue(name) for name in real)]
    effort = settings(max_examples=60, stateful_step_count=40)
    run_state_machine_as_test(lambda: FilesystemMachine(backends), settings=effort)
    assert fake.used == 0
