"""Programs under `secretfs run --emulate`: threads in a storm of signals, many areas, the interface of July 2020."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import box
import pytest
from launches import open_folder
from mounts import ROOT, SECRETFS, clean_environment
from runs import PROGRAMS, compiled, core_dumps, finished, may_emulate, observed, under_run

pytestmark = [pytest.mark.slow, may_emulate, pytest.mark.timeout(300)]
BACKINGS = ["tmpfs", "memfd", "user"]
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
def folder() -> Iterator[Path]:
    """Where the programs lie and run; every user may write there."""
    with open_folder() as path:
        yield Path(path)


def under(kind: str, words: list[str | Path], *options: str) -> list[str]:
    """A command under `secretfs run`: as root with a backing, or as an ordinary user, who has memfds only."""
    needs_root_for(kind)
    if kind == "user":
        return box.command(under_run(words, "--emulate", *options), user="nobody")
    return under_run(words, "--emulate", "--backing", kind, *options)


def needs_root_for(kind: str) -> None:
    """Only root has the tmpfs, and becomes another user."""
    if kind != "memfd" and not ROOT:
        pytest.skip("needs root: for the tmpfs backing, and to become another user")


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("kind", BACKINGS)
def test_threads_in_a_storm(folder: Path, kind: str, static: bool) -> None:
    """Eight threads that make 50 areas each get all of them, each its own, while signals interrupt every call; no call
    is answered twice.
    """
    program = compiled(folder / f"storm-{kind}-{static}", PROGRAMS / "storm.c", static=static)
    done = subprocess.run(
        under(kind, [program, "8", "50"], "--stats"), cwd=folder, env=clean_environment(),
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
    told = finished(under(kind, [program, "1000", "100"]), folder)
    assert told == "mapped 1000\nopen 100\nmapped again 1000\n"


@pytest.mark.parametrize("kind", BACKINGS)
def test_a_program_of_2020(folder: Path, kind: str) -> None:
    """Under --rfc2020 the interface of July 2020 is there, and the same flag is still MFD_NOEXEC_SEAL."""
    program = compiled(folder / f"rfc2020-{kind}", PROGRAMS / "rfc2020.c")
    limited = ["setpriv", "--bounding-set=-ipc_lock"] if ROOT else []  # or there is no limit
    told = finished([*limited, *under(kind, [program], "--rfc2020")], folder)
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


@pytest.mark.parametrize("kind", BACKINGS)
def test_ordinary_files_at_reserved_numbers(folder: Path, kind: str) -> None:
    """1,100 ordinary files, some of which get reserved numbers, work as ever, and so do secrets among them."""
    program = compiled(folder / f"crossing-{kind}", PROGRAMS / "crossing.c")
    raised = ["prlimit", "--nofile=2048:4096"]
    assert finished(under(kind, [*raised, program, "1100"]), folder) == "1100 files, 8 secrets\n"
    assert finished([*raised, *under(kind, [program, "1100"])], folder) == "1100 files, 8 secrets\n"


@pytest.mark.parametrize("kind", BACKINGS)
def test_core_dumps(folder: Path, kind: str) -> None:
    """A core dump has no secret; with memfds it has no other shared anonymous memory either, and the heap always."""
    if reason := core_dumps():
        pytest.skip(reason)
    program = compiled(folder / f"crash-{kind}", PROGRAMS / "crash.c")
    done = subprocess.run(
        ["prlimit", "--core=unlimited", *under(kind, [program])], cwd=folder, env=clean_environment(), check=False,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 128 + signal.SIGABRT, done.stderr
    (core,) = folder.glob("core*")
    dump = core.read_bytes()
    core.unlink()
    found = [letter for letter in "AJS" if bytes(ord(letter) + i % 3 for i in range(64)) in dump]
    assert found == (["J", "S"] if kind == "tmpfs" else ["S"])


def test_preload_knows_emulated_memory(folder: Path) -> None:
    """A preloaded program does not take emulated memory for the kernel's: it falls back, or does not start."""
    preload = [SECRETFS, "preload", "--report"]
    told = subprocess.run(
        under_run([*preload, "--", "openssl", "version"], "--emulate"), cwd=folder, env=clean_environment(),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert '"backend": "emulator"' in told.stderr
    refused = under_run([*preload, "--backend", "kernel", "--", "openssl", "version"], "--emulate")
    done = subprocess.run(refused, cwd=folder, env=clean_environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (125, "")
    assert "the kernel has no secret memory here" in done.stderr
