"""The lab itself: what a script says and how it ends comes back, and what cannot be downloaded is not run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from debian import MIRROR, RELEASE, Apt
from image import CACHE, NotRun
from lab import ENDED_BY_ITSELF, NOT_RUN, TIME_OVER, Result, boot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PATIENCE = 600.0


def run(folder: Path, text: str, *arguments: str, timeout: float = PATIENCE, files: tuple[Path, ...] = ()) -> Result:
    """What a script of the shell's does in a guest."""
    script = folder / "script"
    script.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    try:
        return boot("6.1", script, *arguments, timeout=timeout, files=files)
    except NotRun as error:
        pytest.skip(str(error))


def test_output_and_exit_code_come_back(tmp_path: Path) -> None:
    """Output, arguments, files and the exit code pass unchanged; standard error is on the console."""
    file = tmp_path / "file"
    file.write_text("a file\n", encoding="utf-8")
    text = 'printf "%s|" "$@"; cat /lab/file; uname -r; grep -c secretfs /usr/local/bin/secretfs; echo oh >&2; exit 7'
    result = run(tmp_path, text, "a b", "$c", "", files=(file,))
    assert result.code == 7, result.console
    arguments, kernel, count = result.output.splitlines()
    assert arguments == "a b|$c||a file"
    assert kernel.startswith("6.1.")
    assert count == "1"
    assert "oh" in result.console.splitlines()
    assert kernel in result.package
    assert 0 < result.booted < result.took


def test_a_crash_is_no_exit_code(tmp_path: Path) -> None:
    """A guest that ends before its script gives 125, with what it had said, though the script printed an exit code."""
    result = run(tmp_path, "echo exit 0; echo c > /proc/sysrq-trigger; cat")
    assert result.code == ENDED_BY_ITSELF
    assert result.output == "exit 0\n"
    assert "sysrq triggered crash" in result.console


def test_time_is_limited(tmp_path: Path) -> None:
    """A guest is ended when its time is over: 124."""
    assert run(tmp_path, "true", timeout=0.5).code == TIME_OVER


def test_what_cannot_be_downloaded_is_not_run(tmp_path: Path) -> None:
    """Without a mirror the command says that nothing was run, and why, with an exit code of its own."""
    environment = {**os.environ, CACHE: str(tmp_path / "cache"), MIRROR: f"file:{tmp_path}/nowhere/"}
    script = Path(__file__).with_name("guest_stock.py")
    done = subprocess.run(
        [sys.executable, "-EsB", script.with_name("lab.py"), "--", script], env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == NOT_RUN
    assert done.stderr.startswith("lab.py: not run: lab: cannot download ")
    assert done.stdout == ""
    assert list((tmp_path / "cache").glob("kernel-*")) == []


def test_apt_is_the_labs_own(tmp_path: Path) -> None:
    """The lab's apt knows only the lab's suites, and keeps all that it writes in its folder."""
    try:
        Apt(tmp_path)
    except NotRun as error:
        pytest.skip(str(error))
    environment = {**os.environ, "APT_CONFIG": str(tmp_path / "apt.conf")}

    def said(*words: str) -> str:
        return subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout

    suites = set(said("apt-get", "indextargets", "--format", "$(RELEASE)").split())
    assert {RELEASE} <= suites <= {RELEASE, f"{RELEASE}-backports", f"{RELEASE}-security"}
    for option in ("Dir::State::lists/d", "Dir::State::status/f", "Dir::Cache/d", "Dir::Cache::archives/d"):
        assert said("apt-config", "shell", "value", option).startswith(f"value='{tmp_path}/"), option
    assert "Post-Invoke" not in said("apt-config", "dump", "APT::Update")
