"""Programs under `secretfs run --emulate`: threads in a storm of signals, many areas, the interface of July 2020."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from mounts import ROOT, clean_environment
from runs import PROGRAMS, compiled, finished, observed, places, under_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
BACKINGS = ["tmpfs", "memfd"]
EXCLUSIVE = """\
second_mode=-1 EINVAL
same_mode=-1 EINVAL
unknown_mode=-1 EINVAL
size=0 0
read=-1 EINVAL
map=0 0
process_vm_readv=-1 EFAULT
bytes=1 0
"""
OF_2020 = f"""\
call_440=-1 ENOSYS
call_440_uncached=-1 ENOSYS
exclusive=0 0
exclusive.mode=0 0
exclusive.getfd=1 0
{EXCLUSIVE}uncached=0 0
uncached.mode=0 0
uncached.getfd=0 0
{EXCLUSIVE}limited=0 0
limited.mode=0 0
limited.size=0 0
limited.map=-1 EAGAIN
modern=0 0
modern.write=3 0
modern.read=3 0
modern.size=0 0
modern.size_again=0 0
modern.shared=0 0
modern.private=0 0
modern.seals=32 0
modern.seal=0 0
modern.shrink=-1 EPERM
"""
"""What a program of 2020 was promised, and then what one of today gets from the same flag."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the programs lie and run; every user may write there."""
    return places(tmp_path_factory)


def backing(name: str) -> list[str]:
    """Options for a backing; only root has the tmpfs."""
    if name == "tmpfs" and not ROOT:
        pytest.skip("needs root: only root has the tmpfs backing")
    return ["--emulate", "--backing", name]


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("kind", BACKINGS)
def test_threads_in_a_storm(folder: Path, kind: str, static: bool) -> None:
    """Eight threads that make 50 areas each get all of them, each its own, while signals interrupt every call; no call
    is answered twice.
    """
    program = compiled(folder / f"storm-{kind}-{static}", PROGRAMS / "storm.c", static=static)
    done = subprocess.run(
        under_run([program, "8", "50"], *backing(kind), "--stats"), cwd=folder, env=clean_environment(),
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "ok 400\n"), done.stdout[-1000:] + done.stderr
    assert number(r"(\d+) signals", done.stderr) >= 100
    assert number(r"ftruncate (\d+)", done.stderr) == 400
    assert number(r"memfd_secret (\d+)", done.stderr) in (400, 401)  # the launcher may have asked once itself


def number(pattern: str, text: str) -> int:
    """The number that a pattern finds."""
    found = re.search(pattern, text)
    assert found, text
    return int(found[1])


@pytest.mark.parametrize("kind", BACKINGS)
def test_a_thousand_areas(folder: Path, kind: str) -> None:
    """1,000 areas live at once once their descriptors are closed, and 100 with theirs open; given back, they can be
    made again.
    """
    program = compiled(folder / f"areas-{kind}", PROGRAMS / "areas.c")
    told = finished(under_run([program, "1000", "100"], *backing(kind)), folder)
    assert told == "mapped 1000\nopen 100\nmapped again 1000\n"


@pytest.mark.parametrize("kind", BACKINGS)
def test_a_program_of_2020(folder: Path, kind: str) -> None:
    """Under --rfc2020 the interface of July 2020 is there, and the same flag is still MFD_NOEXEC_SEAL."""
    program = compiled(folder / f"rfc2020-{kind}", PROGRAMS / "rfc2020.c")
    box = ["setpriv", "--bounding-set=-ipc_lock"] if ROOT else []  # or there is no limit
    told = finished([*box, *under_run([program], *backing(kind), "--rfc2020")], folder)
    assert told == OF_2020


def test_a_program_of_2020_without_the_option(folder: Path) -> None:
    """Without --rfc2020 that program meets the machine's own kernel."""
    program = compiled(folder / "rfc2020", PROGRAMS / "rfc2020.c")
    told = finished(under_run([program], "--emulate"), folder)
    assert told == finished([program], folder)
    assert observed_first(told, "exclusive.mode") == "-1 ENOTTY"


def observed_first(told: str, name: str) -> str:
    """The first result of that name: the program says some twice."""
    return observed("\n".join(line for line in told.splitlines() if line.startswith(name)))[name]
