"""What docs/python.md says of copies in libraries, where the words do not depend on a library's version."""

from __future__ import annotations

from pathlib import Path

import pytest
from librarycopies import CASES, measure
from mounts import needs_root

pytestmark = [needs_root, pytest.mark.slow]


def test_a_copy_is_found(tmp_path: Path) -> None:
    """The search finds a copy that is there: bytes(view), while it is held."""
    assert measure(CASES["bytes"], tmp_path).held == {"as it is": 1}


@pytest.mark.parametrize("name", ["ours", "digits"])
def test_a_secret_leaves_no_copy(tmp_path: Path, name: str) -> None:
    """What Secret does itself leaves nothing in ordinary memory, neither on the way nor afterwards."""
    assert measure(CASES[name], tmp_path) == ({}, {})


@pytest.mark.parametrize("name", ["hmac.digest", "socket", "libsodium"])
def test_calls_that_keep_nothing(tmp_path: Path, name: str) -> None:
    """What works on the view and ends leaves nothing behind."""
    assert measure(CASES[name], tmp_path).after == {}
