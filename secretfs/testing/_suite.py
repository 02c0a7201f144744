"""What the test classes of the conformance suite share: the backend under test, a region of it, reasons to skip."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from secretfs import libc
from secretfs.errors import BackendUnavailable
from secretfs.interface import Backend, Region

__all__ = ["PAGE", "PATTERN", "SIZE", "Suite", "fill", "is_zero"]

PAGE = libc.PAGE_SIZE
SIZE = 37 * PAGE  # no other mapping in a test process has this size
PATTERN = bytes(range(1, 255))


def fill(region: Region) -> None:
    """Write a pattern without zeros to all of `region`."""
    with region.view() as view:
        view[:] = (PATTERN * (region.size // len(PATTERN) + 1))[: region.size]


def is_zero(view: memoryview) -> bool:
    """Whether all bytes are zero."""
    return not any(view)


class Suite:
    """What the test classes share."""

    mapped = True
    """Whether regions are pages of their own. False for a fake, which leaves out what only pages can do."""
    needs = ""
    """What the reason begins with where all is skipped, because the backend cannot work here."""

    def make_backend(self) -> Backend:
        """The one thing to fill in: a new instance of the backend."""
        raise NotImplementedError

    @pytest.fixture
    def backend(self) -> Backend:
        """The backend, if it works here."""
        backend = self.make_backend()
        try:
            backend.probe()
        except BackendUnavailable as error:
            pytest.skip(f"{self.needs or backend.name}: {error}")
        return backend

    @pytest.fixture
    def region(self, backend: Backend) -> Iterator[Region]:
        """A region of SIZE bytes."""
        region = backend.map(SIZE)
        yield region
        region.close()

    def require_pages(self) -> None:
        """Skip for a fake."""
        if not self.mapped:
            pytest.skip("this backend has no pages of its own")

    @staticmethod
    def require_guarantee(backend: Backend, name: str) -> None:
        """Skip where it is not promised."""
        if not getattr(backend.guarantees, name):
            pytest.skip(f"{backend.name} does not promise {name}")
