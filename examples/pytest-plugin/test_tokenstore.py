"""The application's tests, with the plug-in that comes with secretfs. Try also: pytest --secretmem=emulated"""

from __future__ import annotations

import sys

import pytest
from tokenstore import TokenStore


def test_a_token_is_kept() -> None:
    """Runs in whatever mode the whole run is in."""
    store = TokenStore()
    store.put(b"token")
    assert store.get(5) == b"token"
    store.close()


@pytest.mark.secretmem("emulated")
def test_it_is_hidden_where_it_can_be() -> None:
    """Runs with secret memory on any machine: the kernel's would do as well, but this one may have none."""
    store = TokenStore()
    assert store.hidden
    store.close()


@pytest.mark.secretmem("without")
def test_it_falls_back() -> None:
    """Runs as on a stock kernel: memfd_secret(2) answers ENOSYS."""
    store = TokenStore()
    assert not store.hidden
    store.put(b"token")
    assert store.get(5) == b"token"


@pytest.mark.secretmem("failing:0:EPERM")
def test_it_falls_back_in_a_container() -> None:
    """Runs as in a container whose profile forbids the call."""
    assert not TokenStore().hidden


@pytest.mark.secretmem("over-limit:64K")
def test_it_says_that_the_limit_is_reached() -> None:
    """Runs with a lock limit of 64 KiB: what is larger cannot be mapped, and that must not go unnoticed."""
    assert TokenStore(16 * 1024).hidden
    with pytest.raises(BlockingIOError):
        TokenStore(128 * 1024)


def test_the_command_line(secretfs_run) -> None:  # type: ignore[no-untyped-def]
    """Runs a program, and not this process, without secret memory."""
    program = "from tokenstore import TokenStore; print(TokenStore().hidden)"
    done = secretfs_run([sys.executable, "-c", program], "without")
    assert (done.returncode, done.stdout) == (0, "False\n")
