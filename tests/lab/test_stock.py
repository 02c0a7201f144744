"""secretfs on Debian's 6.1 kernel as it is shipped: memfd_secret(2) is switched off (ENOSYS)."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.parametrize("boot", ["6.1-fallback"])]


def test_the_kernel_backend_says_what_would_make_it_work(told: Any) -> None:
    """`backends` names the reason and the remedy, and chooses the emulator."""
    answer = json.loads(told["backends"]["stdout"])
    kernel, emulator = sorted(answer["backends"], key=lambda one: one["name"] == "emulator")
    assert (kernel["usable"], kernel["chosen"]) == (False, False)
    assert "switched off in kernel 6.1" in kernel["reason"]
    assert "secretmem.enable=1" in kernel["hint"]
    assert (emulator["usable"], emulator["chosen"]) == (True, True)


def test_it_is_refused_where_it_is_required(told: Any) -> None:
    """`mount --backend kernel` fails with exit code 3 and the remedy."""
    assert told["refused"]["code"] == 3
    assert "secretfs: error: " in told["refused"]["stderr"]
    assert "secretmem.enable=1" in told["refused"]["stderr"]


def test_a_mount_falls_back_with_a_warning(told: Any) -> None:
    """`mount` succeeds with one warning that names the emulator and each lost guarantee."""
    assert told["mounted"]["code"] == 0
    (warning,) = [line for line in told["mounted"]["stderr"].splitlines() if line.startswith("secretfs: warning: ")]
    assert "emulator" in warning
    (status,) = json.loads(told["status"]["stdout"])["mounts"]
    assert (status["backend"], status["policy"]) == ("emulator", "prefer")
    assert {"off_direct_map", "refuses_pinning", "cleared_by_kernel", "not_hibernated"} <= set(status["lost"])
    for lost in status["lost"]:
        assert lost in warning


def test_the_mount_works(told: Any) -> None:
    """Files can be written and read, and unmounting destroys them."""
    assert told["file"] is True
    assert told["umounted"]["code"] == 0
    assert "1 file destroyed" in told["umounted"]["stderr"]
