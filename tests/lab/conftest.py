"""Fixtures of the lab: the guests are booted once, side by side, as soon as the first test asks for one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from boots import Answer, Boots
from image import NotRun

_running: list[Boots] = []


@pytest.fixture(scope="session")
def boots(request: pytest.FixtureRequest) -> Iterator[Boots]:
    """Those guests that the chosen tests name."""
    calls = (getattr(item, "callspec", None) for item in request.session.items)
    started = Boots(dict.fromkeys(call.params["boot"] for call in calls if call and "boot" in call.params))
    _running.append(started)
    yield started
    started.close()


@pytest.fixture
def answer(boots: Boots, boot: str) -> Answer:
    """What the guest called `boot` has told; a skip where its kernel cannot be downloaded."""
    try:
        return boots.answer(boot)
    except NotRun as error:
        pytest.skip(str(error))


@pytest.fixture
def told(answer: Answer) -> Any:
    """The JSON."""
    return answer.told


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how long the guests took."""
    for name, answer in (pair for started in _running for pair in started.finished().items()):
        result = answer.result
        terminalreporter.write_line(
            f"{name}: {result.package}, booted in {result.booted:.1f} s, {result.took:.1f} s in all"
        )
