"""`secretfs audit --machine` on packaged kernels, with a search of all physical memory."""

from __future__ import annotations

import re
from typing import Any

import pytest
from boots import AUDITED, LOCKED_DOWN, SWAPPED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STOCK = [name for name in AUDITED if name == "6.1-audit"]
SECRET = [name for name in AUDITED if name not in STOCK]
PINNING = ("proc-mem", "process-vm-readv", "ptrace-peek", "vmsplice")
MACHINE = ("core-dump", "swap", "kcore", "kill", "page-cache")
SWAPPED_OUT = r"[1-9]\d* KiB of its process were swapped"

every = pytest.mark.parametrize("boot", AUDITED)
secret = pytest.mark.parametrize("boot", SECRET)
stock = pytest.mark.parametrize("boot", STOCK)
swapped = pytest.mark.parametrize("boot", SWAPPED)


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
        for name in ("proc-mem", "process-vm-readv", "ptrace-peek", "kcore", "kill", "core-dump", "swap"):
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
        assert found["core-dump"][subject] == found["swap"][subject] == "held", subject
    assert found["after-unlink"]["mount"] == "held"


@every
def test_swap_by_a_squeezed_cgroup(told: Any) -> None:
    """What can be swapped of each process is swapped by squeezing its cgroup; secret and locked memory is not in it."""
    (row,) = [one for one in told["audit"]["attacks"] if one["name"] == "swap"]
    assert row["results"]["ordinary"] == "leaked"
    assert row["results"]["emulator"] == "held"
    for subject, result in row["results"].items():
        if result != "not tried":
            assert re.fullmatch(f"cgroup v2, memory.high: {SWAPPED_OUT}", row["why"][subject]), (subject, row)


@pytest.mark.parametrize("boot", LOCKED_DOWN)
def test_lockdown(told: Any) -> None:
    """lockdown=confidentiality takes tracefs and /proc/kcore from root, and leaves BPF and perf; the kernel lives."""
    found = results(told)
    assert set(found["uprobe"].values()) == set(found["kcore"].values()) == {"not tried"}
    assert found["bpf-probe-read-user"]["kernel"] == found["perf-stack"]["ordinary"] == "leaked"
    for subject in ("emulator", "kernel", "secret-open", "secret-closed"):
        assert found["perf-stack"][subject] == "held", subject


@swapped
def test_swap_by_other_means(told: Any, boot: str) -> None:
    """With cgroup v1, where the kernel has it, and with none the attack works on ordinary memory, and nothing else."""
    means = {"none": r"process_madvise\(2\)", "v1": "cgroup v1, memory.limit_in_bytes"}
    assert (told["v1"] is None) == boot.startswith("6.12")
    for name in means if told["v1"] else ["none"]:
        tried = {subject: cell for subject, cell in told[name].items() if cell[0] != "not tried"}
        assert {"ordinary", "emulator", "secret-open", "secret-closed", "mount"} <= set(tried), told[name]
        for subject, (result, why) in tried.items():
            assert result == ("leaked" if subject == "ordinary" else "held"), (name, subject)
            assert re.fullmatch(f"{means[name]}: {SWAPPED_OUT}", why), (name, subject, why)


@swapped
def test_swap_is_undone_after_kill(told: Any) -> None:
    """An audit that is killed while a victim is swapped out leaves no swap file, cgroup, setting or process."""
    assert {one.partition(":")[0] for one in told["killed"]} >= {"swap", "file", "controlled", "cgroup", "swapped"}
    assert told["left"] == []
