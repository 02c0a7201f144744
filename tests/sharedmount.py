"""One mount for all tests of a module, and an empty directory in it for each: fixtures for modules that import them."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import Mounted
from workers import wait_until

__all__ = ["here", "mount", "noise"]


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """One mount for the module."""
    with Mounted(tmp_path_factory.mktemp("shared") / "mnt") as mounted:
        yield mounted


@pytest.fixture
def here(mount: Mounted) -> Iterator[Path]:
    """An empty directory in the mount, which must give back all that it held."""
    before = mount.held()
    folder = mount.path / "here"
    folder.mkdir()
    yield folder
    subprocess.run(["rm", "-rf", folder], check=True)
    wait_until(lambda: mount.held() == before)  # the kernel closes what a process that ended had open in its own time


def noise(size: int) -> bytes:
    """Bytes that repeat nowhere, the same each time."""
    return random.Random(size).randbytes(size)
