"""A pytest plug-in: runs an application's tests with secret memory, without it, emulated, or over the lock limit.

`pytest --secretmem=MODE` runs all tests in that mode, `@pytest.mark.secretmem("MODE")` one test, in its own process.
It only translates between pytest and `_modes` and `_child`. pytest loads it in every run where secretfs is installed:
it imports nothing heavy and does nothing until it is asked.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from secretfs.testing import _modes

if TYPE_CHECKING:
    from secretfs import SecretArea

__all__ = ["secret_area", "secretfs_mount", "secretfs_run", "secretmem_mode"]

MARKER = "secretmem"


def pytest_addoption(parser: pytest.Parser) -> None:
    """--secretmem=MODE."""
    told = "; ".join(f"{name}: {about}" for name, about in _modes.MODES.items())
    parser.getgroup("secretfs", "secret memory").addoption(
        "--secretmem", metavar="MODE", help=f"run all tests under `secretfs run`. {told}"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers", f"{MARKER}(mode): run this test in a process of its own; mode: {', '.join(_modes.MODES)}"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Start again under `secretfs run` if a mode is asked for; in that run, see to it that the mode is in force."""
    asked = config.getoption("--secretmem")
    reports = os.environ.pop("SECRETFS_TESTING_REPORTS", None)
    current = _modes.current()
    try:
        if asked is not None and reports is None and _modes.parse(asked).text != current:
            _start_again(config, _modes.parse(asked))
        elif current != _modes.UNCHANGED:
            _modes.check(_modes.parse(current))
    except _modes.ModeError as error:
        raise pytest.UsageError(f"--{MARKER}: {error}") from None
    if reports is not None:
        from secretfs.testing._child import Recorder

        config.pluginmanager.register(Recorder(config, reports), "secretfs-recorder")


def _start_again(config: pytest.Config, mode: _modes.Mode) -> None:
    """Become `secretfs run` with this run's own command line; it keeps process id, terminal and exit status."""
    if config.getoption("collectonly") or config.getoption("help") or config.getoption("version"):
        return
    if list(config.invocation_params.args) != sys.argv[1:]:
        raise _modes.ModeError("only a pytest that was started from a command line can be started again in a mode")
    capture: Any = config.pluginmanager.getplugin("capturemanager")
    if capture is not None:
        capture.stop_global_capturing()
    sys.stdout.flush()
    sys.stderr.flush()
    command = mode.command([sys.executable, *sys.orig_argv[1:]])
    os.execve(command[0], command, mode.environment())


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run a marked test in its mode, and report what happened there."""
    marker = item.get_closest_marker(MARKER)
    if marker is None:
        return None
    try:
        mode = _mode_of(marker)
    except _modes.ModeError as error:
        return _report(item, nextitem, [_refused(item, str(error))])
    if mode.text == _modes.current():
        return None
    from secretfs.testing._child import run_in_child

    return _report(item, nextitem, run_in_child(item, mode))


def _mode_of(marker: pytest.Mark) -> _modes.Mode:
    if len(marker.args) != 1 or marker.kwargs or not isinstance(marker.args[0], str):
        raise _modes.ModeError(f'the marker takes one mode: @pytest.mark.{MARKER}("without")')
    return _modes.parse(marker.args[0])


def _refused(item: pytest.Item, why: str) -> pytest.TestReport:
    return pytest.TestReport(item.nodeid, item.location, dict.fromkeys(item.keywords, 1), "failed", why, "setup")


def _report(item: pytest.Item, nextitem: pytest.Item | None, reports: list[pytest.TestReport]) -> bool:
    """Hand on the reports as if the test had run here."""
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    session: Any = item.session
    ended = pytest.CallInfo.from_call(lambda: session._setupstate.teardown_exact(nextitem), when="teardown")
    if ended.excinfo is not None:  # a fixture of an earlier test, kept for this one's module
        item.ihook.pytest_runtest_logreport(report=item.ihook.pytest_runtest_makereport(item=item, call=ended))
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


# Fixtures


@pytest.fixture(scope="session")
def secretmem_mode() -> str:
    """The mode in which this test runs, or "unchanged"."""
    return _modes.current().partition(":")[0]


@pytest.fixture(scope="session")
def secretfs_run() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`secretfs_run(words, mode="with", **options)`: run a command in a mode, and return what became of it.

    Options are those of subprocess.run(); output is captured as text unless they say otherwise. Exit code 125 means
    that the mode cannot be had, and stderr why.
    """

    def run(words: Sequence[str | os.PathLike[str]], mode: str = "with", **options: Any) -> Any:
        wanted = _modes.parse(mode)
        environment = {**wanted.environment(), **options.pop("env", {})}
        if not {"stdout", "stderr", "capture_output"} & set(options):
            options["capture_output"] = True
        if not {"encoding", "errors", "universal_newlines"} & set(options):
            options.setdefault("text", True)
        command = wanted.command([os.fspath(word) for word in words])
        return subprocess.run(command, env=environment, check=False, **options)

    return run


@pytest.fixture
def secret_area() -> Iterator[Callable[..., SecretArea]]:
    """`secret_area(size=4096, **options)`: a SecretArea that is wiped and closed after the test."""
    from secretfs import SecretArea

    with ExitStack() as stack:

        def make(size: int = 4096, **options: Any) -> SecretArea:
            return stack.enter_context(SecretArea(size, **options))

        yield make


@pytest.fixture
def secretfs_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """`secretfs_mount("--size", "1M")`: a directory in which secretfs is mounted; unmounted after the test.

    A test that runs in a mode mounts in that mode.
    """
    with ExitStack() as stack:

        def make(*options: str) -> Path:
            path = tmp_path_factory.mktemp("secretfs")
            _secretfs("mount", *options, str(path))
            stack.callback(_secretfs, "umount", "--lazy", str(path))
            return path

        yield make


def _secretfs(*words: str) -> None:
    """Run the command; what it says on stderr is the failure's text."""
    done = subprocess.run(
        [sys.executable, "-I", "-m", "secretfs", *words], capture_output=True, text=True, check=False
    )  # fmt: skip
    if done.returncode != 0:
        pytest.fail(f"secretfs {words[0]} ended with {done.returncode}: {done.stderr.strip()}", pytrace=False)
