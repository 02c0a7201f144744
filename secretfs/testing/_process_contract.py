"""The contract towards the kernel and other processes: forks, limits, guarantees, sharing."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from typing import Any

import pytest

from secretfs import libc
from secretfs.errors import BackendUnavailable, ClosedError, LimitError, SecretFSError
from secretfs.interface import Access, Backend, Region, Shareable
from secretfs.testing._suite import PAGE, PATTERN, SIZE, Suite, fill, is_zero
from secretfs.testing.children import become_ordinary_user, in_child
from secretfs.testing.memory import address_of, can_read, descriptors, mapped_bytes, mapping

__all__ = ["Claims", "Fork", "Limits", "Sharing"]


class Fork(Suite):
    """A region belongs to the process that mapped it."""

    @pytest.mark.parametrize("use", ["view", "wipe", "protect"])
    def test_use_in_a_child_is_refused(self, region: Region, use: str) -> None:
        """In a forked child a region raises ClosedError whatever it is asked for."""

        def attempt() -> str:
            try:
                getattr(region, use)(*([Access.READ] if use == "protect" else []))
            except ClosedError as error:
                return str(error)
            return ""

        assert in_child(attempt)

    def test_close_in_a_child_leaves_the_parent_alone(self, region: Region) -> None:
        """close() in a child returns, and wipes and unmaps nothing of its parent's."""
        fill(region)
        in_child(region.close)
        with region.view() as view:
            assert bytes(view[:254]) == PATTERN

    def test_child_does_not_have_the_memory(self, backend: Backend, region: Region) -> None:
        """The pages of an unforkable region do not exist in a child."""
        self.require_guarantee(backend, "unforkable")
        fill(region)
        view = region.view()
        address = address_of(view)
        assert not in_child(lambda: can_read(address, expected=PATTERN[:64]))
        assert can_read(address, expected=PATTERN[:64])
        view.release()

    def test_child_can_have_memory_of_its_own(self, backend: Backend, region: Region) -> None:
        """A backend works in a child as it does in its parent."""

        def fresh() -> bool:
            own = backend.map(PAGE)
            fill(own)
            own.close()
            return True

        assert in_child(fresh)


class Limits(Suite):
    """Running out."""

    def test_lock_limit_is_an_error_that_leaves_nothing(self, backend: Backend) -> None:
        """Past RLIMIT_MEMLOCK map() raises LimitError, keeps no descriptor and no memory, and less still works."""
        self.require_guarantee(backend, "unswappable")

        def provoke() -> tuple[bool, bool, bool, bool]:
            own = self.make_backend()
            become_ordinary_user()
            libc.set_dumpable(dumpable=True)  # or /proc/self/fd is closed to us
            limit = 8 * PAGE
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
            kept = own.map(4 * PAGE)
            before = descriptors(), libc.locked_bytes()
            mapped = mapped_bytes()
            refused = [self.refused(own, pages * PAGE) for pages in (5, 16, 4096)]
            unchanged = (descriptors(), libc.locked_bytes()) == before and mapped_bytes() < mapped + 4096 * PAGE
            rest = own.map(4 * PAGE)
            fits = rest.size == 4 * PAGE
            rest.close()
            kept.close()
            again = own.map(limit)
            again.close()
            return all(refused), unchanged, fits, again.size == limit

        assert in_child(provoke) == (True, True, True, True)

    def test_address_space_limit_is_an_error_that_leaves_nothing(self, backend: Backend) -> None:
        """Where no address space is left map() raises LimitError and keeps nothing."""
        self.require_pages()

        def provoke() -> tuple[bool, bool]:
            own = self.make_backend()
            own.map(PAGE).close()
            before = descriptors(), libc.locked_bytes()
            room = mapped_bytes() + (16 << 20)
            resource.setrlimit(resource.RLIMIT_AS, (room, room))
            return self.refused(own, 64 << 20), (descriptors(), libc.locked_bytes()) == before

        assert in_child(provoke) == (True, True)

    def test_descriptor_limit_is_an_error_or_does_not_matter(self, backend: Backend) -> None:
        """With all descriptors in use map() works or raises LimitError."""

        def provoke() -> bool:
            own = self.make_backend()
            own.map(PAGE).close()
            taken = max(descriptors()) + 1
            resource.setrlimit(resource.RLIMIT_NOFILE, (taken, taken))
            while True:  # fill the gaps below
                try:
                    os.dup(0)
                except OSError:
                    break
            try:
                own.map(PAGE).close()
            except LimitError:
                return True
            return True

        assert in_child(provoke)

    @staticmethod
    def refused(backend: Backend, size: int) -> bool:
        """Whether map() says LimitError."""
        try:
            backend.map(size)
        except LimitError as error:
            return bool(str(error))
        return False


class Claims(Suite):
    """Each guarantee that can be seen from userspace."""

    @pytest.mark.parametrize(("name", "flag"), [("undumpable", "dd"), ("unforkable", "dc"), ("unswappable", "lo")])
    def test_kernel_was_told(self, backend: Backend, region: Region, name: str, flag: str) -> None:
        """The mapping has the kernel's flag for what is promised: not dumped, not copied on fork, locked."""
        self.require_guarantee(backend, name)
        with region.view() as view:
            found = mapping(address_of(view))
        assert flag in found.flags or (name == "unswappable" and "secretmem" in found.name)

    def test_pinning_is_refused(self, backend: Backend, region: Region) -> None:
        """process_vm_readv gets EFAULT on memory that refuses pinning, while it reads ordinary memory."""
        self.require_guarantee(backend, "refuses_pinning")
        ordinary = memoryview(bytearray(PAGE))
        libc.read_own_page(address_of(ordinary))
        with region.view() as view, pytest.raises(OSError, match=os.strerror(errno.EFAULT)):
            libc.read_own_page(address_of(view))

    def test_devices_can_use_it(self, backend: Backend, region: Region) -> None:
        """Memory for device I/O can be pinned."""
        self.require_guarantee(backend, "device_io")
        with region.view() as view:
            libc.splice_own_page(address_of(view))

    def test_no_descriptor_is_left(self, backend: Backend) -> None:
        """While a region lives there is no descriptor through which root could map it again."""
        self.require_guarantee(backend, "no_descriptor")
        before = descriptors()
        region = backend.map(SIZE)
        assert descriptors() == before
        region.close()


class Sharing(Suite):
    """The optional protocol Shareable."""

    @pytest.fixture
    def shareable(self, backend: Backend) -> Shareable:
        """The backend as one whose regions can be shared."""
        if not isinstance(backend, Shareable):
            pytest.skip(f"{backend.name} is not shareable")
        return backend

    @pytest.fixture
    def shared(self, backend: Backend, shareable: Shareable) -> Iterator[Region]:
        """A shared region."""
        region = backend.map(SIZE, shared=True)
        yield region
        region.close()

    def test_less_is_promised(self, shared: Region, backend: Backend) -> None:
        """A shared region says that a descriptor and children lead to it, and promises nothing new."""
        assert not shared.guarantees.no_descriptor
        assert not shared.guarantees.unforkable
        assert not backend.guarantees.lost_against(shared.guarantees)

    def test_attached_region_is_the_same_memory(self, shared: Region, shareable: Shareable) -> None:
        """What is written through one is read through the other, and attaching does not clear it."""
        fill(shared)
        other = shareable.attach(shareable.fileno(shared))
        assert other.size == shared.size
        with other.view() as there, shared.view() as here:
            assert bytes(there[:254]) == PATTERN
            there[0] = 99
            assert here[0] == 99
        other.close()

    def test_only_the_creator_wipes(self, backend: Backend, shareable: Shareable) -> None:
        """Closing an attached region leaves the bytes; closing the creator's wipes them for all."""
        shared = backend.map(PAGE, shared=True)
        fill(shared)
        shareable.attach(shareable.fileno(shared)).close()
        other = shareable.attach(shareable.fileno(shared))
        with other.view() as view:
            assert bytes(view[:254]) == PATTERN
            shared.close()
            assert is_zero(view)
        other.close()

    def test_a_process_that_was_given_it_can_use_it(self, shared: Region, shareable: Shareable) -> None:
        """A child attaches the descriptor and both see each other's bytes; the child's close() wipes nothing."""
        fill(shared)
        fd = shareable.fileno(shared)

        def attach() -> bytes:
            mine = shareable.attach(fd)
            with mine.view() as view:
                seen = bytes(view[:254])
                view[1] = 111
            mine.close()
            return seen

        assert in_child(attach) == PATTERN
        with shared.view() as view:
            assert (view[0], view[1]) == (PATTERN[0], 111)

    def test_closing_leaves_no_descriptor(self, backend: Backend, shareable: Shareable) -> None:
        """close() of a shared and of an attached region closes its descriptor, and only that."""
        before = descriptors()
        shared = backend.map(PAGE, shared=True)
        other = shareable.attach(shareable.fileno(shared))
        other.close()
        shareable.fileno(shared)
        shared.close()
        assert descriptors() == before

    def test_no_descriptor_of_a_closed_or_private_region(
        self, region: Region, backend: Backend, shareable: Shareable
    ) -> None:
        """There is no descriptor to be had of a closed region, nor of one that was not made to be shared."""
        closed = backend.map(PAGE, shared=True)
        closed.close()
        for other in (closed, region):
            with pytest.raises(SecretFSError):
                shareable.fileno(other)

    @pytest.mark.parametrize("kind", ["device", "pipe", "file", "memfd", "empty memfd", "closed"])
    def test_foreign_descriptors_are_refused(self, shareable: Shareable, kind: str, tmp_path: Any) -> None:
        """What is not memory of this kind with a fixed size is refused with BackendUnavailable, and not kept."""
        fd = self.foreign(kind, str(tmp_path / "file"))
        before = descriptors()
        with pytest.raises(BackendUnavailable):
            shareable.attach(fd)
        assert descriptors() == before
        if kind != "closed":
            os.close(fd)

    @staticmethod
    def foreign(kind: str, path: str) -> int:
        """A descriptor that is no region's."""
        if kind == "device":
            return os.open(os.devnull, os.O_RDWR)
        if kind == "file":
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            os.ftruncate(fd, PAGE)
            return fd
        if kind in ("pipe", "closed"):
            reader, writer = os.pipe()
            os.close(writer)
            if kind == "closed":
                os.close(reader)
            return reader
        fd = os.memfd_create("foreign", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        if kind == "memfd":
            os.ftruncate(fd, PAGE)
        return fd
