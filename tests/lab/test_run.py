"""`secretfs run` on Debian's 6.1 kernel as it is shipped, which has no memfd_secret(2): the real case.

The probe's lines under `run` are compared with those of a 6.12 kernel, which has the call. Not with those of the same
kernel and secretmem.enable=1: Debian's newer 6.1 ones count the lock limit when a page is touched, as only kernels from
2026 on do.
"""

from __future__ import annotations

from typing import Any

import pytest
from boots import Boots
from runs import differences, observed
from test_t8_run_probe import documented

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
REFERENCE = "6.12-probe"
WAYS = {"run": ("root", "tmpfs"), "tmpfs-strict": ("root", "tmpfs-strict"), "memfd": ("root", "memfd"),
        "user": ("nobody", "user")}  # fmt: skip
"""How it was run: beside whose native lines, and which column of the table says what may differ."""
NO_DISK = {"direct.open", "direct.read_ordinary", "direct.read", "direct.write"}
"""The guests have a tmpfs only, which opens no file with O_DIRECT before 6.6."""
OF_6_18 = {"fstatfs.flags", "readahead", "ioctl.readable"}
"""What `run` answers as 6.18 does, where 6.12 answered otherwise (docs/run-differences.md)."""


def lines(told: dict[str, Any]) -> dict[str, str]:
    """What the probe observed."""
    assert (told["code"], told["stderr"]) == (0, ""), told
    return observed(told["stdout"])


@pytest.mark.parametrize("boot", [REFERENCE])
def test_the_kernel_to_compare_with(told: Any) -> None:
    """6.12 makes secrets, for root and for an ordinary user."""
    for user in ("root", "nobody"):
        assert lines(told[user])["create.cloexec"] == "0 0"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("boot", ["6.1-probe"])
def test_a_kernel_that_lacks_it(told: Any, boots: Boots, way: str) -> None:
    """Under `run` the probe observes what that kernel would show if it had the call, but for what is documented."""
    user, variant = WAYS[way]
    real, found = lines(boots.answer(REFERENCE).told[user]), lines(told[way])
    known = set(documented(variant))
    unknown = {
        name: results for name, results in differences(real, found).items() if name not in known | OF_6_18 | NO_DISK
    }
    assert unknown == {}
