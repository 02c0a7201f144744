"""The tests of real mounts once more, for those for whom secretfs is made: an ordinary user, a kernel without
memfd_secret, and both at once. Each is a pytest of its own in a box (box.py); this process has run them as itself.

The three run side by side, because they mostly wait.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from box import command as box
from mounts import have_secretmem, needs_root

HERE = Path(__file__).parent
WHO = {
    "user": {"user": "nobody", "memlock": 8 << 20},
    "root without memfd_secret": {"without": "ENOSYS"},
    "user without memfd_secret": {"user": "nobody", "memlock": 8 << 20, "without": "ENOSYS"},
}
THE_SAME_FOR_ALL = (
    "test_usage or test_help or complet or cycles_leave or odd_mountpoints or full_disk or both_ways "
    "or test_refused or test_bad_digits or test_writing_around or test_exit_with or test_no_growth or test_fragment "
    "or test_garbage_collection or test_multiprocessing or test_closed_by_many"
)
"""What this process has run for them."""
LONGEST = 900
"""Seconds: they take two minutes on an idle machine."""


@dataclass
class Run:
    """One pytest at work."""

    process: subprocess.Popen[str]
    output: Path


@pytest.fixture(scope="module")
def runs() -> Iterator[dict[str, Run]]:
    """All of them, started."""
    tests = sorted(map(str, HERE.glob("test_t5_*.py")))
    words = [
        sys.executable, "-I", "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=no", "--tb=short",
        "-k", f"not ({THE_SAME_FOR_ALL})", "-c", str(HERE.parent / "pyproject.toml"), f"--rootdir={HERE.parent}",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="secretfs-everyone-") as name:
        os.chmod(name, 0o755)
        started = {}
        for who, taken in WHO.items():
            folder = Path(name) / who.replace(" ", "-")
            folder.mkdir()
            if "user" in taken:
                os.chown(folder, 65534, 65534)
            output = Path(name) / f"{folder.name}.txt"
            with output.open("w", encoding="utf-8") as file:
                process = subprocess.Popen(
                    box([*words, f"--basetemp={folder}/tmp", *tests], **taken), cwd=folder, text=True,
                    stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                )  # fmt: skip
            started[who] = Run(process, output)
        yield started
        for run in started.values():
            run.process.kill()
            run.process.wait()


@needs_root
@pytest.mark.slow
@pytest.mark.timeout(2 * LONGEST)
@pytest.mark.parametrize("who", WHO)
def test_everyone(runs: dict[str, Run], who: str) -> None:
    """Every test of a real mount passes for them, and skips only what needs root or the kernel's secret memory."""
    if who == "user" and not have_secretmem():
        pytest.skip("memfd_secret: the kernel has none here")
    code = runs[who].process.wait(LONGEST)
    output = runs[who].output.read_text(encoding="utf-8", errors="replace")
    assert code == 0, output[-20_000:]
    assert " passed" in output
