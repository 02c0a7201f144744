"""`secretfs run` on Debian's 6.1 kernel as it is shipped, which has no memfd_secret(2): the real case.

The probe's lines under `run` are compared with those that the same kernel gives with secretmem.enable=1.
"""

from __future__ import annotations

from typing import Any

import pytest
from boots import Boots
from runs import observed
from test_t8_run_probe import documented

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
REFERENCE = "6.1-secretmem-probe"
WAYS = {"run": ("root", "tmpfs"), "tmpfs-strict": ("root", "tmpfs-strict"), "memfd": ("root", "memfd"),
        "user": ("nobody", "user")}  # fmt: skip
"""How it was run: beside whose native lines, and which column of the table says what may differ."""


def lines(told: dict[str, Any]) -> dict[str, str]:
    """What the probe observed."""
    assert (told["code"], told["stderr"]) == (0, ""), told
    return observed(told["stdout"])


@pytest.mark.parametrize("boot", [REFERENCE])
def test_the_kernel_has_it_with_a_word(told: Any) -> None:
    """With secretmem.enable=1 the probe makes secrets, as root and as an ordinary user."""
    for user in ("root", "nobody"):
        assert lines(told[user])["create.cloexec"] == "0 0"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("boot", ["6.1-probe"])
def test_a_kernel_that_lacks_it(told: Any, boots: Boots, way: str) -> None:
    """Under `run` the probe observes what that kernel would show if it had the call, but for what is documented."""
    user, variant = WAYS[way]
    real, found = lines(boots.answer(REFERENCE).told[user]), lines(told[way])
    assert list(found) == list(real)
    differing = {name: (real[name], found[name]) for name in real if real[name] != found[name]}
    assert set(differing) <= set(documented(variant)), differing
