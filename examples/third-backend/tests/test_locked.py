"""The conformance suite of secretfs on this backend: all the tests it needs."""

from secretfs_example_locked import Backend

from secretfs.testing.backends import BackendConformance


class TestLocked(BackendConformance):
    make_backend = Backend
