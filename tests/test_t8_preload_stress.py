"""The preload library's heap under sanitizers, driven by threads and forks against a model (preload_stress.c)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from preloads import preloaded
from shims import HERE, SANITIZE, WARNINGS

SOURCES = ("api", "cgroup", "config", "heap", "memory", "pages", "replaced", "spans")
LIBRARY = HERE.parent / "secretfs" / "preload"


@pytest.fixture(scope="module")
def stress(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver, with AddressSanitizer and UndefinedBehaviorSanitizer."""
    made = tmp_path_factory.mktemp("stress") / "stress"
    sources = [HERE / "preload_stress.c", *(LIBRARY / f"{name}.c" for name in SOURCES)]
    command = ["gcc", *WARNINGS, *SANITIZE, f"-I{LIBRARY}", "-o", made, *sources, "-ldl", "-lpthread"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return made


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("backend", ["kernel", "emulator"])
def test_heap(stress: Path, backend: str) -> None:
    """Pieces keep their bytes, fresh ones are zero, children have what their parent had, and nothing is reported."""
    environment = {name: value for name, value in preloaded(backend).items() if name != "LD_PRELOAD"}
    done = subprocess.run([stress, "30000"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")
