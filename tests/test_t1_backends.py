"""The built-in backends and the fake under the conformance suite that strangers use, too."""

from secretfs.testing import FakeBackend
from secretfs.testing.backends import BackendConformance
from secretfs_emulator import Backend as Emulator
from secretfs_kernel import Backend as Kernel


class TestKernel(BackendConformance):
    needs = "memfd_secret"
    make_backend = Kernel


class TestEmulator(BackendConformance):
    make_backend = Emulator


class TestFake(BackendConformance):
    mapped = False
    make_backend = FakeBackend
