"""A search of all physical memory of a guest for what passed through a mount: guest_memory.py has the steps."""

from __future__ import annotations

from typing import Any

import pytest
from boots import CLEARING, EMULATED, SECRET

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

LENGTH = 64
FILES = ("file-64", "file-12K", "file-1M")

emulated = pytest.mark.parametrize("boot", EMULATED)
secret = pytest.mark.parametrize("boot", SECRET)
clearing = pytest.mark.parametrize("boot", CLEARING)


def found(told: Any, *names: str) -> dict[tuple[str, str], list[int]]:
    """Where any of those was found: {(STEP, NAME): [PLACES, LONGEST]}."""
    hits = {(step, name): counts for step, all_of_it in told.items() for name, counts in all_of_it.items()}
    return {(step, name): counts for (step, name), counts in hits.items() if name in names and counts[0]}


@pytest.mark.parametrize("boot", EMULATED + SECRET)
@pytest.mark.parametrize("name", ["locked-page", "tmpfs-file", "mapped"])
def test_the_search_finds_what_is_there(told: Any, name: str) -> None:
    """It finds locked ordinary memory, a file on a tmpfs, and a file of the mount that a program has mapped."""
    places, longest = told["alive"][name]
    assert places >= 1
    assert longest == LENGTH


@pytest.mark.parametrize("boot", EMULATED + SECRET)
def test_the_search_leaves_nothing(told: Any) -> None:
    """What a program held in locked memory and has wiped is not found: neither search nor client has left a copy."""
    assert told["closed"]["locked-page"] == [0, 0]


@emulated
@pytest.mark.parametrize("name", FILES)
def test_emulated_memory_is_found(told: Any, name: str) -> None:
    """A file in the emulator's memory is found once, in its area, while it lives, and nowhere when it is gone."""
    assert told["written"][name] == [1, LENGTH]
    assert told["gone"][name] == [0, 0]


@secret
def test_secret_memory_is_not_found(told: Any) -> None:
    """A file in secret memory is found nowhere: not while it lives, not when it was removed, unmounted or killed."""
    assert set(told["written"]) == set(FILES)
    assert found(told, *FILES, "umounted-file", "killed-file") == {}


@clearing
def test_a_private_mapping_leaves_nothing(told: Any) -> None:
    """What private mappings and sendfile(2) have put into the page cache is nowhere once they are closed, or the file
    is unlinked or truncated, where the kernel clears what it frees.
    """
    for step, name in (("closed", "mapped"), ("closed", "sent"), ("cut", "unlinked"), ("cut", "truncated")):
        assert told[step][name] == [0, 0], (step, name)


@clearing
def test_links_and_attributes_leave_nothing(told: Any) -> None:
    """A link's target and an attribute's value are found nowhere, where the kernel clears what it frees."""
    assert set(told["marked"]) >= {"link-target", "attribute"}
    assert found(told, "link-target", "attribute") == {}


@clearing
def test_names_go_with_the_mount(told: Any) -> None:
    """A name is in the kernel's cache of names, and nowhere after the unmount, where freed memory is cleared."""
    assert told["named"]["name"][0] >= 1
    assert told["umounted"]["name"] == [0, 0]
    assert told["killed"]["name"] == [0, 0]
