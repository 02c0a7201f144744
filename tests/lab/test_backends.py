"""The conformance suite of both backends on packaged kernels, whatever rule each has for the lock limit."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STOCK = ["6.1-backends"]
SECRET = ["6.1-secretmem-backends", "6.12-backends"]


@pytest.mark.parametrize("boot", [*STOCK, *SECRET])
def test_the_emulator_conforms(told: Any) -> None:
    """Nothing fails, on any kernel."""
    assert told["failed"] == {}
    assert told["code"] == 0
    assert told["passed"]["TestEmulator"] > 40


@pytest.mark.parametrize("boot", SECRET)
def test_the_kernel_backend_conforms(told: Any) -> None:
    """Nor does the kernel backend; at the limit it raises, also where the kernel sends SIGBUS to the careless."""
    assert told["passed"]["TestKernel"] > 40
    assert told["rule"] in ("mmap", "fault")


@pytest.mark.parametrize("boot", STOCK)
def test_without_secret_memory_it_is_skipped(told: Any) -> None:
    """Where there is no secret memory, the suite says so, and what needs none passes."""
    assert told["passed"]["TestKernel"] < 10
    assert told["rule"] == "none"
    assert any("memfd_secret" in reason for reason in told["skipped"])
