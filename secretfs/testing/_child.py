"""One test in a pytest of its own, which `secretfs run` starts in another mode; its reports become the parent's.

The child gets the options that the parent was given, and writes each report of its test into a file, as JSON. It alone
knows that file, and what is said of a child that ended without a report.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from secretfs.testing._modes import Mode

__all__ = ["REPORTS", "Recorder", "run_in_child"]

REPORTS = "SECRETFS_TESTING_REPORTS"
"""Environment variable: the file that a child writes its reports into."""
_FOR_PARENT: dict[str, object] = {
    "usepdb": False, "trace": False, "xmlpath": None, "lf": False, "failedfirst": False, "newfirst": False,
    "stepwise": False, "maxfail": 0, "durations": None, "pastebin": None, "numprocesses": None, "dist": "no", "tx": [],
}  # fmt: skip
"""Options that are the parent's alone: what they do is done once for all tests."""


class Recorder:
    """The plug-in of a child that writes down what its parent shall report."""

    def __init__(self, config: pytest.Config, path: str) -> None:
        self._config, self._path = config, path
        for name, value in _FOR_PARENT.items():
            if hasattr(config.option, name):
                setattr(config.option, name, value)

    def _write(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(data, default=str) + "\n")

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Of the test."""
        self._write(report)

    @pytest.hookimpl(trylast=True)
    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Of a module that cannot be imported, or skips itself."""
        if report.outcome != "passed":
            self._write(report)


def run_in_child(item: pytest.Item, mode: Mode) -> list[pytest.TestReport]:
    """Run one test in that mode, and return the reports of its phases; the last one fails if the child broke off."""
    with tempfile.TemporaryDirectory(prefix="secretfs-test-") as folder:
        path = os.path.join(folder, "reports")
        environment = {**mode.environment(), REPORTS: path}
        done = subprocess.run(
            mode.command([sys.executable, *_flags(), "-m", "pytest", *_arguments(item)]),
            cwd=item.config.invocation_params.dir, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace", check=False,
        )  # fmt: skip
        found = list(_read(item.config, Path(path)))
    tests = [report for report in found if isinstance(report, pytest.TestReport) and report.nodeid == item.nodeid]
    if tests and tests[-1].when == "teardown":
        return tests
    collected = [report for report in found if isinstance(report, pytest.CollectReport)]
    return [*tests, _broken_off(item, mode, tests, collected, done)]


def _flags() -> list[str]:
    """What this Python was started with before -m, -c or its script: -I, -B, -W error."""
    flags = []
    words = iter(sys.orig_argv[1:])
    for word in words:
        if not word.startswith("-") or word[:2] in ("-m", "-c") or word == "-":
            break
        flags += [word, next(words)] if word in ("-W", "-X") else [word]
    return flags


def _arguments(item: pytest.Item) -> list[str]:
    """The parent's options, and this one test in place of what the parent was asked to run."""
    config = item.config
    given = [word for word in config.invocation_params.args if word not in config.args]
    inifile = ["-c", str(config.inipath)] if config.inipath else []
    inside = item.nodeid.partition("::")[2]
    return [*map(str, given), *inifile, f"--rootdir={config.rootpath}", f"{item.path}::{inside}"]


def _read(config: pytest.Config, path: Path) -> Iterator[Any]:
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            data = json.loads(line)
            for name in ("location", "longrepr"):  # JSON has no tuples; pytest tells a skip's reason by one
                if isinstance(data.get(name), list):
                    data[name] = tuple(data[name])
            yield config.hook.pytest_report_from_serializable(config=config, data=data)


def _end(code: int) -> str:
    """How a process ended whose exit code, or whose supervisor's, is `code`."""
    number = -code if code < 0 else code - 128
    known = number in set(signal.Signals)
    return f"was ended by {signal.Signals(number).name}" if known else f"ended with {code}"


def _broken_off(
    item: pytest.Item, mode: Mode, tests: list[pytest.TestReport], collected: list[pytest.CollectReport],
    done: subprocess.CompletedProcess[str],
) -> pytest.TestReport:  # fmt: skip
    """What is reported of a test that has no last report of its own."""
    longrepr: Any = f"the test's process {_end(done.returncode)} in mode {mode.text!r}; it said:\n{done.stdout}"
    outcome: Any = "failed"
    if not tests and collected:
        longrepr, outcome = collected[-1].longrepr, collected[-1].outcome
    when: Any = "call" if tests and tests[-1].when == "setup" and tests[-1].passed else "teardown" if tests else "setup"
    return pytest.TestReport(
        nodeid=item.nodeid, location=item.location, keywords=dict.fromkeys(item.keywords, 1), outcome=outcome,
        longrepr=longrepr, when=when,
    )  # fmt: skip
