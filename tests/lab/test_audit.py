"""`secretfs audit --machine` on packaged kernels, with a search of all physical memory."""

from __future__ import annotations

from typing import Any

import pytest
from boots import AUDITED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STOCK = [name for name in AUDITED if name == "6.1-audit"]
SECRET = [name for name in AUDITED if name not in STOCK]
PINNING = ("proc-mem", "process-vm-readv", "ptrace-peek", "vmsplice")
MACHINE = ("core-dump", "kcore", "kill", "page-cache")

every = pytest.mark.parametrize("boot", AUDITED)
secret = pytest.mark.parametrize("boot", SECRET)
stock = pytest.mark.parametrize("boot", STOCK)


def results(told: Any) -> dict[str, dict[str, str]]:
    """What came of each attack, by subject."""
    return {one["name"]: one["results"] for one in told["audit"]["attacks"]}


@every
def test_every_claim_holds(told: Any) -> None:
    """No guarantee that is claimed is broken on any kernel."""
    assert told["audit"]["claims_broken"] == []
    assert told["code"] == 0


@every
def test_attacks_work_on_ordinary_memory(told: Any) -> None:
    """Each attack that reads or searches gets ordinary memory, so that what held means something."""
    found = results(told)
    for name in (*PINNING, *MACHINE, "uprobe", "ptrace-inject", "pidfd-getfd", "fork", "after-unlink"):
        assert found[name]["ordinary"] == "leaked", (name, told["audit"]["attacks"])


@secret
def test_secret_memory_is_out_of_reach(told: Any) -> None:
    """Secret memory is neither read by pinning nor found in the direct map, alive or after kill -9."""
    found = results(told)
    for subject in ("kernel", "secret-open", "secret-closed", "mount", "preload"):
        for name in ("proc-mem", "process-vm-readv", "ptrace-peek", "kcore", "kill", "core-dump"):
            assert found[name][subject] == "held", (name, subject)


@secret
def test_the_emulator_is_in_the_direct_map(told: Any) -> None:
    """The emulator's memory is found through /proc/kcore: the difference that secret memory makes."""
    assert results(told)["kcore"]["emulator"] == "leaked"


@stock
def test_without_secret_memory(told: Any) -> None:
    """On the kernel as it is shipped there is no secret memory; what is built on the emulator keeps its claims."""
    found = results(told)
    assert {each["kernel"] for each in found.values()} == {"not tried"}
    for subject in ("emulator", "secret-open", "mount"):
        assert found["proc-mem"][subject] == "leaked", subject
        assert found["core-dump"][subject] == "held", subject
    assert found["after-unlink"]["mount"] == "held"
