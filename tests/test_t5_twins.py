"""secretfs beside a tmpfs: any sequence of system calls has the same results, errnos and attributes in both.

What may differ is in docs/differences.md. `make test-long` takes more examples; SECRETFS_TEST_TWINS=N still more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from mounts import Mounted, needs_root, public_directory
from twinmachine import TwinMachine
from twins import USERS, Twins, tmpfs

pytestmark = [needs_root, pytest.mark.slow]


@pytest.fixture(scope="module", params=[[], ["--cached"]], ids=["direct", "cached"])
def twins(request: pytest.FixtureRequest) -> Iterator[Twins]:
    """A tmpfs and a secretfs with the same users in both.

    Without root in the cached one: what a privileged write does to set-user-ID bits cannot be told there.
    """
    cached = "--cached" in request.param
    users = USERS[1:] if cached else USERS
    flags = "--allow-other", "--allow-dev", "--allow-suid", "--mode", "0777", "--size", "64M"
    with (
        public_directory() as folder,
        tmpfs(folder / "tmpfs", "size=64M,mode=0777") as expected,
        Mounted(folder / "mnt", *flags, *request.param) as mounted,
        Twins(expected, mounted.path, users, atimes=not cached) as found,
    ):
        let_the_kernel_learn(mounted.path)
        yield found


def let_the_kernel_learn(top: Path) -> None:
    """Make the call before the first of which it takes privileges away: then it knows that there is no such call."""
    with open(top / "f", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 1)
    (top / "f").unlink()


def compare(twins: Twins, examples: int, steps: int) -> None:
    """Run the machine."""
    phases = [phase for phase in Phase if examples < 1000 or phase is not Phase.explain]
    run_state_machine_as_test(
        lambda: TwinMachine(twins),
        settings=settings(
            max_examples=examples, stateful_step_count=steps, suppress_health_check=list(HealthCheck), phases=phases,
        ),
    )  # fmt: skip


def test_as_a_tmpfs(twins: Twins) -> None:
    """A short run."""
    compare(twins, 8, 40)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_as_a_tmpfs_for_long(twins: Twins) -> None:
    """A long one."""
    compare(twins, int(os.environ.get("SECRETFS_TEST_TWINS", "300")), 60)
