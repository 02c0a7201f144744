"""The pytest plug-in on whole runs of suites: in each mode, how they end, and what is refused."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mounts import SECRETFS, clean_environment
from runs import may_emulate
from suites import EXPECTED, run, suite

__all__ = ["suite"]

pytest_plugins = ["pytester"]
pytestmark = [pytest.mark.slow, may_emulate]
RARE = ("with", "without", "failing", "failing:0:EMFILE", "failing:1")


@pytest.mark.parametrize(
    "mode", [pytest.param(mode, marks=pytest.mark.long) if mode in RARE else mode for mode in EXPECTED]
)
def test_the_whole_run(suite: pytest.Pytester, mode: str) -> None:
    """Under --secretmem=MODE each test meets what the mode promises, and knows the mode."""
    test = f"""
def test(secretmem_mode):
    assert secretmem_mode == "{mode.partition(":")[0]}"
    assert made() == {EXPECTED[mode]}
"""
    run(suite, f"--secretmem={mode}", test=test).assert_outcomes(passed=1)


def test_a_mode_inside_a_mode(suite: pytest.Pytester) -> None:
    """A run in a mode may start a pytest in another: the inner one is in force there."""
    test = f"""
import subprocess, sys

def test(secretmem_mode):
    if secretmem_mode == "without":
        assert made() == {EXPECTED["without"]}
    else:
        inner = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--secretmem=without", __file__]
        done = subprocess.run(inner, stdout=subprocess.PIPE, text=True)
        assert done.returncode == 0, done.stdout
"""
    run(suite, "--secretmem=emulated", test=test).assert_outcomes(passed=1)


def test_exit_status(suite: pytest.Pytester) -> None:
    """The run in a mode ends as pytest ends: 0, 1 for failures, 2 for an interruption, 5 for no tests."""
    suite.makepyfile(
        test_a="def test(): pass", test_b="def test(): assert 0", test_c="def test(): raise KeyboardInterrupt"
    )
    for words, code in ((["test_a.py"], 0), (["test_b.py"], 1), (["test_c.py"], 2), (["test_a.py", "-k", "none"], 5)):
        assert run(suite, "--secretmem=without", *words).ret == code


def test_streams_pass_through(suite: pytest.Pytester) -> None:
    """Under a mode the process keeps its number and its stdin, and what it prints comes once."""
    suite.makepyfile("import os, sys\ndef test():\n    print('pid', os.getpid())\n    print(sys.stdin.read())\n")
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-s", "--secretmem=without"],
        cwd=suite.path, env=clean_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        output, _ = process.communicate("typed by someone", timeout=60)
    assert process.returncode == 0
    assert output.count("typed by someone") == 1
    assert output.count("1 passed") == 1


@pytest.mark.long
def test_ctrl_c(suite: pytest.Pytester) -> None:
    """Ctrl-C at the terminal interrupts the run in a mode, as it would without: exit status 2."""
    # Short waits: a signal between the print and one long wait would be seen at its end only, by any Python.
    suite.makepyfile(
        "import threading\ndef test():\n    print('ready', flush=True)\n"
        "    for _ in range(600):\n        threading.Event().wait(0.1)\n"
    )
    master, slave = os.openpty()
    with subprocess.Popen(
        ["setsid", "--ctty", sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", "--secretmem=emulated"],
        cwd=suite.path, env=clean_environment(), stdin=slave, stdout=slave, stderr=slave,
    ) as process:  # fmt: skip
        os.close(slave)
        with open(master, "r+b", buffering=0) as terminal:
            _read_until(terminal, b"ready")
            terminal.write(b"\x03")
            _read_until(terminal, b"no tests ran")
            assert process.wait(60) == pytest.ExitCode.INTERRUPTED


def _read_until(terminal: io.FileIO, wanted: bytes) -> None:
    text = b""
    while wanted not in text:
        text += terminal.read(4096)  # the end is an OSError (EIO)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--secretmem=never"], "there is no mode 'never' of secret memory; there are with, emulated, without, over"),
        (["--secretmem=over-limit:much"], "there is no mode 'over-limit:much'"),
        (["--secretmem=failing:1:EWHAT"], "there is no mode 'failing:1:EWHAT'"),
    ],
)
def test_what_is_no_mode(suite: pytest.Pytester, words: list[str], said: str) -> None:
    """A mode that does not exist is a usage error, which names those that do."""
    suite.makepyfile("def test(): pass")
    done = run(suite, *words)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines([f"*{said}*"])


def test_a_mode_that_is_not_in_force(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was told that it is in a mode, and is not, does not begin."""
    monkeypatch.setenv("SECRETFS_TESTING_MODE", "failing:0:ENOSPC")
    suite.makepyfile("def test(): pass")
    done = run(suite)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines(["*the mode 'failing:0:ENOSPC' is not in force*not fails with ENOSPC*"])


def test_a_mode_that_cannot_be_had(suite: pytest.Pytester) -> None:
    """Where `secretfs run` refuses, a marked test is an error with its reason, and a whole run ends with 125."""
    test = """
@pytest.mark.secretmem("failing:1")
def test():
    pass
"""
    done = run(suite, "--secretmem=emulated", test=test)
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(["*ended with 125 in mode 'failing:1:EPERM'*", "secretfs: error: another supervisor*"])
    command = [SECRETFS, "run", "--emulate", "--", sys.executable, "-m", "pytest", "--secretmem=failing:1"]
    whole = suite.run(*command, timeout=60)
    assert whole.ret == 125
    whole.stderr.fnmatch_lines(["secretfs: error: another supervisor*"])


def test_it_is_cheap() -> None:
    """The plug-in, which every pytest run loads, imports neither trio nor pyfuse3, and does nothing until asked."""
    program = "import pytest, sys, secretfs.testing.plugin; print(sorted({'trio', 'pyfuse3'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("words", [[], pytest.param(["--secretmem=emulated"], marks=pytest.mark.long)])
def test_the_example(words: list[str]) -> None:
    """The suite in examples/pytest-plugin passes as it stands, and in a mode."""
    folder = Path(__file__).parents[1] / "examples" / "pytest-plugin"
    done = subprocess.run(
        [sys.executable, "-B", "-m", "pytest", "-p", "no:cacheprovider", "-q", "-c", "/dev/null", *words, "."],
        cwd=folder, env=clean_environment(), capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout
