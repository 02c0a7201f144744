"""The preload library's heap under sanitizers, against models: a long run with threads and forks, and a fuzzer."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mounts import PATIENCE, needs_root
from preloads import preloaded
from shims import HERE, SANITIZE, WARNINGS

SOURCES = ("api", "cgroup", "config", "forks", "heap", "memory", "pages", "replaced", "spans")
LIBRARY = HERE.parent / "secretfs" / "preload"
SIZES = st.one_of(st.integers(1, 300), st.integers(1, 40_000), st.integers(1, 300_000))
COMMANDS = st.lists(
    st.tuples(st.sampled_from("aaaaammrrrrfffke"), st.integers(0, 2), st.integers(0, 15), SIZES), max_size=80
)
LIMITS = st.sampled_from(["300000", "2000000", "8000000"])


def build(name: str, folder: Path) -> Path:
    """A driver of the heap, with AddressSanitizer and UndefinedBehaviorSanitizer, where every user may run it."""
    made = folder / name
    sources = [HERE / f"{name}.c", *(LIBRARY / f"{source}.c" for source in SOURCES)]
    command = ["gcc", *WARNINGS, *SANITIZE, f"-I{LIBRARY}", "-o", made, *sources, "-ldl", "-lpthread"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return made


def unloaded(backend: str) -> dict[str, str]:
    """The environment for a program that the library is linked into."""
    return {name: value for name, value in preloaded(backend).items() if name != "LD_PRELOAD"}


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("backend", ["kernel", "emulator"])
def test_heap(tmp_path: Path, backend: str) -> None:
    """Pieces keep their bytes, fresh ones are zero, children have what their parent had, and nothing is reported."""
    words = [build("preload_stress", tmp_path), "30000"]
    done = subprocess.run(words, env=unloaded(backend), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver that reads what it is to do."""
    return build("preload_machine", tmp_path_factory.mktemp("machine"))


def drive(machine: Path, backend: str, commands: list[tuple[str, int, int, int]], *limit: str) -> None:
    """Let it do these; whatever it does not expect ends it with a message."""
    lines = "".join(" ".join(map(str, command)) + "\n" for command in commands)
    words = [str(machine), *limit]
    done = subprocess.run(
        words, env=unloaded(backend), input=lines, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
    assert "Sanitizer" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["kernel", "emulator"])
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(commands=COMMANDS)
def test_sequences(machine: Path, backend: str, commands: list[tuple[str, int, int, int]]) -> None:
    """Whatever is allocated, resized and freed by whichever thread, before and after forks, is as the model says."""
    drive(machine, backend, commands)


@needs_root
@pytest.mark.slow
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(commands=COMMANDS, limit=LIMITS)
def test_sequences_within_a_limit(machine: Path, commands: list[tuple[str, int, int, int]], limit: str) -> None:
    """The same where the lock limit is reached in the middle, and the program goes on in ordinary memory."""
    drive(machine, "auto", commands, limit)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("backend", ["kernel", "emulator"])
@settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
@given(commands=COMMANDS)
def test_many_sequences(machine: Path, backend: str, commands: list[tuple[str, int, int, int]]) -> None:
    """The same for much longer."""
    drive(machine, backend, commands)
