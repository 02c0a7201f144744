"""BackendConformance: the contract of `secretfs.interface` as tests, for whoever writes a backend.

A backend's test file is this much::

    from secretfs.testing.backends import BackendConformance

    class TestMine(BackendConformance):
        def make_backend(self):
            return mine.Backend()

Each test states one sentence of the contract. A backend that cannot work here skips all but the tests of its probe.
What a backend does not promise is not tested; that a shared region promises less must be visible.
"""

from __future__ import annotations

from secretfs.testing._memory_contract import AccessRights, Bytes, Identity
from secretfs.testing._process_contract import Claims, Fork, Limits, Sharing

__all__ = ["BackendConformance"]


class BackendConformance(Identity, Bytes, AccessRights, Fork, Limits, Claims, Sharing):
    """Derive from it, fill in make_backend(), and let pytest collect it.

    Attributes:
        mapped: False for a fake whose regions are not pages of their own; leaves out what only pages can do.
        needs: what the reason begins with where all is skipped; the backend's name by default.
    """
