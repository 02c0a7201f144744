"""Fixtures of the lower layers: backends to run a test on, and a registry as in a fresh process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

import secretfs_emulator
import secretfs_kernel
from secretfs import registry
from secretfs.errors import BackendUnavailable
from secretfs.interface import Backend
from secretfs.testing import FakeBackend

settings.register_profile(
    "secretfs", deadline=None, database=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("secretfs")


def usable(backend: Backend, reason: str) -> Backend:
    """`backend`, or a skip whose reason begins with `reason`."""
    try:
        backend.probe()
    except BackendUnavailable as error:
        pytest.skip(f"{reason}: {error}")
    return backend


@pytest.fixture
def kernel() -> Backend:
    """The kernel's secret memory, or a skip."""
    return usable(secretfs_kernel.Backend(), "memfd_secret")


@pytest.fixture
def emulator() -> Backend:
    """Locked memory."""
    return usable(secretfs_emulator.Backend(), "mlock")


@pytest.fixture
def fake() -> FakeBackend:
    """Ordinary memory with a limit that can be set."""
    return FakeBackend()


@pytest.fixture(params=["fake", "emulator", "kernel"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend in turn."""
    found: Backend = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def fresh_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The registry as if nothing had been looked up or probed yet, and no SECRETFS_BACKEND."""
    monkeypatch.delenv(registry.VARIABLE, raising=False)
    _forget()
    yield monkeypatch
    monkeypatch.undo()
    _forget()


def _forget() -> None:
    registry._entry_points.cache_clear()
    registry._load.cache_clear()
    registry._verdicts.clear()
    registry._warned.clear()
