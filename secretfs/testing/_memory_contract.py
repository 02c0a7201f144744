"""The contract inside one process: who a backend is, and what a region does with bytes."""

from __future__ import annotations

import ctypes
import signal
from typing import Any

import pytest

from secretfs import libc
from secretfs.errors import BackendUnavailable, BoundsError, ClosedError
from secretfs.interface import BACKEND_API, Access, Backend, Guarantees, MappedRegion, Region
from secretfs.testing._suite import PAGE, PATTERN, SIZE, Suite, fill, is_zero
from secretfs.testing.children import in_child, outcome_in_child
from secretfs.testing.memory import address_of, can_read, descriptors, mapping

__all__ = ["AccessRights", "Bytes", "Identity"]


class Identity(Suite):
    """Who the backend is."""

    def test_api_is_this_version(self) -> None:
        """The backend was written for this version of the contract."""
        assert self.make_backend().api == BACKEND_API

    def test_name_is_one_word(self) -> None:
        """The name is one lower-case word for the command line, and not the reserved word auto."""
        name = self.make_backend().name
        assert name
        assert name == name.lower()
        assert name.isprintable()
        assert not set(name) & set(" /,=")
        assert name != "auto"

    def test_guarantees_are_stated_before_any_region(self) -> None:
        """What a default region promises is known without making one."""
        assert isinstance(self.make_backend().guarantees, Guarantees)

    def test_making_a_backend_is_cheap(self) -> None:
        """An instance takes no descriptor and locks nothing."""
        before = descriptors(), libc.locked_bytes()
        backend = self.make_backend()
        assert (descriptors(), libc.locked_bytes()) == before
        del backend

    def test_probe_returns_or_says_why(self) -> None:
        """The probe returns or raises BackendUnavailable with a reason, and leaves nothing behind."""
        before = descriptors(), libc.locked_bytes()
        try:
            self.make_backend().probe()
        except BackendUnavailable as error:
            reason = str(error)
        else:
            reason = "none needed"
        assert reason
        assert (descriptors(), libc.locked_bytes()) == before

    def test_claims_are_consistent(self) -> None:
        """Memory outside the direct map cannot be pinned, and memory that cannot be pinned takes no device I/O."""
        claims = self.make_backend().guarantees
        assert claims.refuses_pinning or not claims.off_direct_map
        assert not (claims.refuses_pinning and claims.device_io)


class Bytes(Suite):
    """Mapping, views, wiping and closing."""

    def test_memory_is_zeroed(self, backend: Backend) -> None:
        """A new region is all zeros, also where one full of data was just given back."""
        first = backend.map(SIZE)
        fill(first)
        first.close()
        second = backend.map(SIZE)
        with second.view() as view:
            assert is_zero(view)
        second.close()

    @pytest.mark.parametrize("pages", [1, 2, 16, 257])
    def test_size_is_what_was_asked_for(self, backend: Backend, pages: int) -> None:
        """A region has the size that was asked for, and so has its view, which is of writable bytes."""
        region = backend.map(pages * PAGE)
        view = region.view()
        assert (region.size, len(view), view.format, view.readonly, view.ndim) == (
            pages * PAGE,
            region.size,
            "B",
            False,
            1,
        )
        view.release()
        region.close()

    def test_all_of_it_is_memory(self, region: Region) -> None:
        """Every byte keeps what is written to it."""
        fill(region)
        with region.view() as view:
            assert bytes(view[:254]) == PATTERN
            assert bytes(view[-1:]) == PATTERN[(SIZE - 1) % 254 : (SIZE - 1) % 254 + 1]

    def test_pages_are_faulted_in(self, region: Region) -> None:
        """Every page is there when map() returns: first use cannot fail."""
        self.require_pages()
        with region.view() as view:
            assert mapping(address_of(view)).resident >= SIZE

    def test_regions_do_not_overlap(self, backend: Backend) -> None:
        """What is written to one region does not appear in another."""
        one, other = backend.map(PAGE), backend.map(PAGE)
        fill(one)
        with other.view() as view:
            assert is_zero(view)
        one.close()
        other.close()

    def test_region_promises_what_the_backend_does(self, backend: Backend, region: Region) -> None:
        """A region made by map(size) has the backend's guarantees."""
        assert region.guarantees == backend.guarantees

    def test_views_see_the_same_bytes(self, region: Region) -> None:
        """Two views are of the same memory."""
        with region.view() as one, region.view() as other:
            one[7] = 77
            assert other[7] == 77

    def test_wipe_zeroes_everything(self, region: Region) -> None:
        """wipe() leaves only zeros."""
        fill(region)
        with region.view() as view:
            region.wipe()
            assert is_zero(view)

    def test_wipe_zeroes_a_range(self, region: Region) -> None:
        """wipe(offset, length) leaves the neighbours alone."""
        fill(region)
        with region.view() as view:
            before = bytes(view[:300])
            region.wipe(100, 50)
            assert bytes(view[:300]) == before[:100] + bytes(50) + before[150:]

    @pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, SIZE + 1), (SIZE, 1), (0, -1), (SIZE + 1, None)])
    def test_wipe_stays_inside(self, region: Region, offset: int, length: int | None) -> None:
        """A range that is not inside the region is refused and nothing is wiped."""
        fill(region)
        with pytest.raises(BoundsError):
            region.wipe(offset, length)
        with region.view() as view:
            assert view[0] == PATTERN[0]
            assert all(view[-254:])

    def test_close_gives_the_memory_back(self, backend: Backend) -> None:
        """After close() the address is not mapped any more."""
        self.require_pages()
        region = backend.map(SIZE)
        with region.view() as view:
            address = address_of(view)
            assert can_read(address)
        region.close()
        assert not can_read(address)

    def test_close_twice_is_fine(self, backend: Backend) -> None:
        """The second close() does nothing."""
        region = backend.map(PAGE)
        region.close()
        region.close()

    @pytest.mark.parametrize("use", ["view", "wipe", "protect"])
    def test_use_after_close_is_refused(self, backend: Backend, use: str) -> None:
        """A closed region raises ClosedError whatever it is asked for."""
        region = backend.map(PAGE)
        region.close()
        with pytest.raises(ClosedError):
            getattr(region, use)(*([Access.READ] if use == "protect" else []))

    def test_dropping_the_region_closes_it(self, backend: Backend) -> None:
        """A region that nobody refers to any more does not keep its memory."""
        self.require_pages()
        region = backend.map(SIZE)
        with region.view() as view:
            address = address_of(view)
        del region, view
        assert not can_read(address)

    def test_repr_has_no_bytes(self, region: Region) -> None:
        """repr() does not show what is in the memory."""
        with region.view() as view:
            view[:12] = b"tell-no-one!"
        assert "tell-no-one" not in repr(region) + str(region)

    @staticmethod
    def survivor(region: Region, kind: str) -> Any:
        """Something that reaches the memory of `region` and is not the view it came from."""
        view = region.view()
        if kind == "view":
            return view
        if kind == "foreign":
            return (ctypes.c_char * PAGE).from_buffer(view)
        derived = view[5:PAGE] if kind == "slice" else memoryview(view)
        view.release()
        return derived

    @pytest.mark.parametrize("kind", ["view", "slice", "memoryview", "foreign"])
    def test_close_reports_a_survivor_and_wipes(self, backend: Backend, kind: str) -> None:
        """close() raises BufferError while anything reaches the memory; what is reached is zeros, and goes with it."""
        region = backend.map(SIZE)
        fill(region)
        survivor = self.survivor(region, kind)
        with pytest.raises(BufferError):
            region.close()
        seen = memoryview(survivor).cast("B")
        assert is_zero(seen)
        address = address_of(seen)
        seen.release()
        assert can_read(address)
        with pytest.raises(ClosedError):
            region.view()
        del survivor, seen
        if self.mapped:
            assert not can_read(address)

    def test_released_views_do_not_hinder(self, backend: Backend) -> None:
        """Views that are released or gone do not count."""
        region = backend.map(PAGE)
        region.view().release()
        region.view()[3:4]
        region.close()


class AccessRights(Suite):
    """protect()."""

    def violation(self, access: Access, *, write: bool) -> int:
        """The signal that a use against `access` ends in."""

        def use() -> None:
            region = self.make_backend().map(PAGE)
            view = region.view()
            region.protect(access)
            if write:
                view[9] = 1
            else:
                bytes(view[9:10])

        return outcome_in_child(use).signal

    def test_none_ends_a_reader(self, backend: Backend) -> None:
        """Reading a region protected by NONE is SIGSEGV."""
        self.require_pages()
        assert self.violation(Access.NONE, write=False) == signal.SIGSEGV

    def test_read_ends_a_writer(self, backend: Backend) -> None:
        """Writing a region protected by READ is SIGSEGV."""
        self.require_pages()
        assert self.violation(Access.READ, write=True) == signal.SIGSEGV

    @pytest.mark.parametrize("beyond", [-1, PAGE])
    def test_guard_pages_end_who_goes_beyond(self, backend: Backend, beyond: int) -> None:
        """Between guard pages the bytes are what they were, and an access to those before or behind is SIGSEGV."""
        self.require_pages()
        region = backend.map(PAGE)
        region.close()
        if getattr(type(region), "enclose", None) is not MappedRegion.enclose:
            pytest.skip("this backend has no guard pages, or makes its own")

        def read(offset: int) -> bytes:
            region = self.make_backend().map(PAGE)
            assert isinstance(region, MappedRegion)
            fill(region)
            region.enclose()
            return ctypes.string_at(address_of(region.view()) + offset, 1)

        assert in_child(lambda: read(0)) == PATTERN[:1]
        assert outcome_in_child(lambda: read(beyond)).signal == signal.SIGSEGV

    def test_what_is_allowed_works(self, backend: Backend) -> None:
        """Reading under READ and writing under WRITE work."""
        self.require_pages()
        assert self.violation(Access.READ, write=False) == 0
        assert self.violation(Access.WRITE, write=True) == 0

    @pytest.mark.parametrize("access", [Access.NONE, Access.READ])
    def test_bytes_survive_protection(self, region: Region, access: Access) -> None:
        """Protecting and unprotecting changes no byte."""
        fill(region)
        region.protect(access)
        region.protect(Access.WRITE)
        with region.view() as view:
            assert bytes(view[:254]) == PATTERN

    @pytest.mark.parametrize("access", [Access.NONE, Access.READ])
    def test_wipe_works_on_protected_memory(self, region: Region, access: Access) -> None:
        """wipe() needs no unprotecting first, and leaves the protection as it was."""
        fill(region)
        view = region.view()
        region.protect(access)
        region.wipe()
        if self.mapped and access is Access.NONE:
            assert not can_read(address_of(view))
        region.protect(Access.WRITE)
        assert is_zero(view)
        view.release()

    def test_close_works_on_protected_memory(self, backend: Backend) -> None:
        """close() wipes protected memory too, and a stale view then reads zeros instead of faulting."""
        region = backend.map(PAGE)
        fill(region)
        view = region.view()
        region.protect(Access.NONE)
        with pytest.raises(BufferError):
            region.close()
        assert is_zero(view)
