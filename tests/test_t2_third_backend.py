"""A stranger's backend: examples/third-backend in an environment of its own, installed beside secretfs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "third-backend"
TOOLS = ("pytest", "_pytest", "py", "pluggy", "iniconfig", "packaging", "pygments", "tomli", "exceptiongroup")
USE = """
from secretfs import SecretArea, registry
with SecretArea(4096, backend="locked") as area:
    area.write(b"mine")
    print(area, area.guarantees.off_direct_map)
print([found.name for found in registry.candidates()])
print(registry.choose("auto").backend.name != "locked", registry.choose("locked").policy)
"""


def repacked(distribution: str, folder: Path) -> Path:
    """The installed distribution as a wheel again: what is tested is what is installed here."""
    found = importlib.metadata.distribution(distribution)
    tag = next(line.split()[1] for line in (found.read_text("WHEEL") or "").splitlines() if line.startswith("Tag:"))
    wheel = folder / f"{distribution.replace('-', '_')}-{found.version}-{tag}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in found.files or ():
            if ".." not in file.parts and "__pycache__" not in file.parts and file.name != "direct_url.json":
                archive.write(str(file.locate()), str(file))
    return wheel


def run(*command: object, **variables: str) -> str:
    """The output of a command that must succeed, in an environment without our PYTHONPATH."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SECRETFS"))}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **variables}
    result = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with secretfs and the example, and nothing else."""
    folder = tmp_path_factory.mktemp("third")
    shutil.copytree(EXAMPLE, folder / "source")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    pip = (sys.executable, "-m", "pip")
    isolation = () if importlib.util.find_spec("setuptools") is None else ("--no-build-isolation",)
    run(*pip, "wheel", "-q", "--no-deps", *isolation, "-w", folder, folder / "source")
    ours = repacked("memfd-secretfs", folder)
    theirs = next(folder.glob("secretfs_example_locked-*.whl"))
    run(*pip, "--python", python, "install", "-q", "--no-deps", "--no-index", ours, theirs)
    return python


@pytest.mark.slow
def test_stranger_passes_the_conformance_suite(python, tmp_path) -> None:
    """The suite that secretfs ships passes on a backend written from the interface alone, ."""
    for name in TOOLS:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            origin = Path(spec.origin)
            source = origin.parent if origin.name == "__init__.py" else origin
            (tmp_path / source.name).symlink_to(source)
    test = shutil.copy(EXAMPLE / "tests" / "test_locked.py", tmp_path)
    output = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", test, PYTHONPATH=str(tmp_path))
    passed = int(output.splitlines()[-1].split()[0])
    assert "passed" in output.splitlines()[-1]
    assert passed >= 50


@pytest.mark.slow
def test_stranger_is_used_when_named_and_only_then(python) -> None:
    """SecretArea(backend="locked") is on it; auto is not; the list has it last."""
    assert run(python, "-W", "ignore", "-c", USE).splitlines() == [
        "<SecretArea 4096 bytes, locked> False",
        "['kernel', 'emulator', 'locked']",
        "True require",
    ]
