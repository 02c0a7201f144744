"""Nothing left behind by any sequence of requests: a state machine on a real mount, and a search of its daemon.

Everything in it is a secret: data, names, link targets, names and values of attributes. At any time they are nowhere
but in areas; when all files are gone, nothing of them is anywhere.
"""

from __future__ import annotations

import mmap
import os
import subprocess
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from mounts import needs_root, needs_secretmem
from needles import Needles, Searcher
from watched import Watched, opened

pytestmark = [needs_root, pytest.mark.slow]

EXAMPLES = int(os.environ.get("SECRETFS_TEST_SEQUENCES", "8"))
names = st.integers(0, 4)
sizes = st.sampled_from([16, 17, 64, 65, 500, 4000, 4096, 4097, 20_000, 70_000, 300_000, (1 << 20) + 16])
offsets = st.sampled_from([0, 0, 0, 16, 4080, 4096, 12_288, 200_000])


@pytest.fixture(scope="module")
def searcher() -> Iterator[Searcher]:
    """The process that searches."""
    with Searcher(Needles()) as searcher:
        yield searcher


@pytest.fixture(scope="module", params=[pytest.param("kernel", marks=needs_secretmem), "emulator"])
def mount(
    request: pytest.FixtureRequest, searcher: Searcher, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    """A mount of each kind."""
    path = tmp_path_factory.mktemp("sequences") / "mnt"
    with Watched(path, searcher, "--backend", request.param, "--size", "64M") as mounted:
        yield mounted


class Inode:
    """What the model knows of a file or a symbolic link."""

    def __init__(self, data: bytes = b"", *, link: bool = False) -> None:
        self.data = bytearray(data)
        self.link = link
        self.xattrs: dict[bytes, bytes] = {}

    def write(self, offset: int, data: bytes) -> None:
        self.data.extend(bytes(max(0, offset - len(self.data))))
        self.data[offset : offset + len(data)] = data


class Sequences(RuleBasedStateMachine):
    """Five names, files that are held open, and what must be where."""

    def __init__(self, mount: Watched) -> None:
        super().__init__()
        self.mount = mount
        self.secret = mount.needles.secret
        self.pool = [self.secret(size, f"name of {size}") for size in (16, 40, 100, 200, 255)]
        self.inodes: dict[bytes, Inode] = {}
        self.held: list[tuple[int, Inode]] = []

    def path(self, name: bytes) -> bytes:
        return os.path.join(os.fsencode(self.mount.path), name)

    def live(self) -> list[bytes]:
        """Every secret that there is: each name as often as it is one, each inode's once."""
        reached = {id(inode): inode for inode in [*self.inodes.values(), *(inode for _, inode in self.held)]}
        found = list(self.inodes)
        for inode in reached.values():
            found += [bytes(inode.data), *inode.xattrs, *inode.xattrs.values()]
        return found

    def file(self, pick: int) -> tuple[bytes, Inode] | None:
        """The file of that name, if it is one."""
        inode = self.inodes.get(self.pool[pick])
        return None if inode is None or inode.link else (self.path(self.pool[pick]), inode)

    def refused(self, code: str, request: Callable[[], object]) -> None:
        with pytest.raises(OSError, match=code):
            request()

    # Data

    @rule(pick=names, size=sizes, offset=offsets, flag=st.sampled_from([0, 0, os.O_APPEND, os.O_TRUNC]))
    def write(self, pick: int, size: int, offset: int, flag: int) -> None:
        """Create or open, write in one call, close."""
        inode = self.inodes.setdefault(self.pool[pick], Inode())
        if inode.link:
            return
        data = self.secret(size)
        if flag == os.O_TRUNC:
            inode.data.clear()
        with opened(self.path(self.pool[pick]), os.O_RDWR | os.O_CREAT | flag) as fd:
            assert os.pwrite(fd, data, offset) == size
        inode.write(len(inode.data) if flag == os.O_APPEND else offset, data)

    @rule(pick=names, offset=offsets, times=st.integers(1, 3))
    def read(self, pick: int, offset: int, times: int) -> None:
        """Read to the end, the first time answered by Python, then by the shim."""
        if found := self.file(pick):
            path, inode = found
            with opened(path, os.O_RDONLY) as fd:
                for _ in range(times):
                    assert os.pread(fd, 4 << 20, offset) == inode.data[offset:]

    @rule(pick=names)
    def map_privately(self, pick: int) -> None:
        """Read through the page cache."""
        if (found := self.file(pick)) and found[1].data:
            with opened(found[0], os.O_RDWR) as fd, mmap.mmap(fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as mapped:
                assert mapped[:] == found[1].data

    @rule(pick=names, size=st.one_of(offsets, sizes))
    def truncate(self, pick: int, size: int) -> None:
        """Cut, or let grow with zeros."""
        if found := self.file(pick):
            os.truncate(found[0], size)
            del found[1].data[size:]
            found[1].write(size, b"")

    @precondition(lambda self: len(self.held) < 3)
    @rule(pick=names)
    def hold(self, pick: int) -> None:
        """Keep it open."""
        if found := self.file(pick):
            self.held.append((os.open(found[0], os.O_RDWR), found[1]))

    @precondition(lambda self: self.held)
    @rule(size=sizes, offset=offsets)
    def use_held(self, size: int, offset: int) -> None:
        """Write to and read from a file that may have no name any more."""
        fd, inode = self.held[0]
        data = self.secret(size)
        assert os.pwrite(fd, data, offset) == size
        inode.write(offset, data)
        assert os.pread(fd, 4 << 20, 0) == inode.data

    @precondition(lambda self: self.held)
    @rule()
    def let_go(self) -> None:
        """Close it."""
        os.close(self.held.pop(0)[0])

    # Names

    @rule(pick=names, other=names)
    def rename(self, pick: int, other: int) -> None:
        """Rename, replacing what is there."""
        old, new = self.pool[pick], self.pool[other]
        if old not in self.inodes:
            self.refused("No such", lambda: os.rename(self.path(old), self.path(new)))
            return
        os.rename(self.path(old), self.path(new))
        if self.inodes[old] is not self.inodes.get(new):  # else rename(2) does nothing
            self.inodes[new] = self.inodes.pop(old)

    @rule(pick=names, other=names)
    def link(self, pick: int, other: int) -> None:
        """One more name."""
        if (found := self.file(pick)) and self.pool[other] in self.inodes:
            self.refused("exists", lambda: os.link(found[0], self.path(self.pool[other])))
        elif found:
            os.link(found[0], self.path(self.pool[other]))
            self.inodes[self.pool[other]] = found[1]

    @rule(pick=names)
    def unlink(self, pick: int) -> None:
        """Remove a name."""
        if self.inodes.pop(self.pool[pick], None):
            os.unlink(self.path(self.pool[pick]))
        else:
            self.refused("No such", lambda: os.unlink(self.path(self.pool[pick])))

    @rule(pick=names, size=st.sampled_from([16, 64, 65, 1000, 4094]))
    def symlink(self, pick: int, size: int) -> None:
        """A symbolic link, read as well."""
        name, target = self.pool[pick], self.secret(size)
        if name in self.inodes:
            self.refused("exists", lambda: os.symlink(target, self.path(name)))
        else:
            os.symlink(target, self.path(name))
            self.inodes[name] = Inode(target, link=True)
            assert os.readlink(self.path(name)) == target

    @rule()
    def list_names(self) -> None:
        """Read the directory."""
        assert set(os.listdir(os.fsencode(self.mount.path))) == set(self.inodes)

    # Attributes

    @rule(pick=names, attribute=names, size=sizes.filter(lambda size: size < 65536))
    def set_attribute(self, pick: int, attribute: int, size: int) -> None:
        """Set one, after what is there has made some flag fail."""
        if found := self.file(pick):
            path, inode = found
            name, value = b"user." + self.pool[attribute][:200], self.secret(size)
            flag, code = (os.XATTR_CREATE, "exists") if name in inode.xattrs else (os.XATTR_REPLACE, "No data")
            self.refused(code, lambda: os.setxattr(path, name, self.secret(size, "refused value"), flag))
            os.setxattr(path, name, value, os.XATTR_CREATE ^ os.XATTR_REPLACE ^ flag)
            inode.xattrs[name] = value

    @rule(pick=names)
    def get_attributes(self, pick: int) -> None:
        """All their names, and each value."""
        if found := self.file(pick):
            path, inode = found
            assert {os.fsencode(name) for name in os.listxattr(path)} == set(inode.xattrs)
            assert {name: os.getxattr(path, name) for name in inode.xattrs} == inode.xattrs

    @rule(pick=names, attribute=names)
    def remove_attribute(self, pick: int, attribute: int) -> None:
        """Remove one."""
        if found := self.file(pick):
            path, inode = found
            name = b"user." + self.pool[attribute][:200]
            if inode.xattrs.pop(name, None) is None:
                self.refused("No data", lambda: os.removexattr(path, name))
            else:
                os.removexattr(path, name)

    # What must hold

    @rule()
    def search(self) -> None:
        """Secrets are nowhere but in areas."""
        self.mount.expect_only(*self.live())

    def teardown(self) -> None:
        """So they are at the end; when everything is removed, nothing is left."""
        try:
            self.search()
        finally:
            for fd, _ in self.held:
                os.close(fd)
            subprocess.run(["find", self.mount.path, "-mindepth", "1", "-delete"], check=True)
        self.mount.expect_nothing()


def test_sequences(mount: Watched) -> None:
    """After any sequence of requests secrets are nowhere but in areas, and when the files are gone nowhere at all."""
    run_state_machine_as_test(
        lambda: Sequences(mount),
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=30, suppress_health_check=list(HealthCheck), deadline=None
        ),
    )
