"""The examples for Python authors, as root and as an ordinary user, on each backend; and the code in the documents."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import NOBODY, ROOT, clean_environment, have_secretmem, public_directory

TOP = Path(__file__).parents[1]
EXAMPLES = TOP / "examples" / "python-secrets"
NAMES = sorted(path.name for path in EXAMPLES.glob("*.py"))
LOCK_LIMIT = 8 << 20
WHO = ["self", pytest.param("nobody", marks=pytest.mark.skipif(not ROOT, reason="needs root: it becomes another user"))]
BACKENDS = [
    "emulator",
    pytest.param("kernel", marks=pytest.mark.skipif(not have_secretmem(), reason="memfd_secret: there is none here")),
]


@pytest.fixture(scope="module")
def examples() -> Iterator[Path]:
    """A copy that any user can read: a clone may lie where another user cannot."""
    with public_directory() as folder:
        yield shutil.copytree(EXAMPLES, folder / "examples")


def run(*words: str | Path, backend: str, who: str = "self") -> subprocess.CompletedProcess[str]:
    """Run this Python with an ordinary user's lock limit."""
    become = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if who == "nobody" else {}
    hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    limit = LOCK_LIMIT if hard == resource.RLIM_INFINITY else min(hard, LOCK_LIMIT)
    return subprocess.run(
        ["prlimit", f"--memlock={limit}:{limit}", sys.executable, "-I", "-B", "-W", "error", *words],
        env={**clean_environment(), "SECRETFS_BACKEND": backend}, cwd="/", stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=60, check=False, **become,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_example(examples: Path, name: str, backend: str, who: str) -> None:
    """An example does what it says, and says so in one line."""
    done = run(examples / name, backend=backend, who=who)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"ok: [^\n]+\n", done.stdout)


def test_every_example_is_listed() -> None:
    """The table in examples/README.md links to each of them, and to nothing else in their folder."""
    table = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"\(python-secrets/(\w+\.py)\)", table)) == NAMES


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_quick_start(backend: str) -> None:
    """The Python in README.md runs as it stands there, and prints what its comments say."""
    text = (TOP / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    done = run("-c", code, backend=backend)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(
        f"<Secret 32 bytes, {backend}> True\n<Secret 32 bytes, {backend}>: backend {backend}\n"
    )


@pytest.mark.slow
def test_code_in_the_guide() -> None:
    """The blocks of docs/python.md that stand for themselves run."""
    text = (TOP / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "import" in block]
    assert len(blocks) == 2
    for code in blocks:
        done = run("-c", code, backend="emulator")
        assert (done.returncode, done.stderr) == (0, "")


def test_links_in_the_guide() -> None:
    """What docs/python.md links to is there."""
    text = (TOP / "docs" / "python.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert os.path.exists(TOP / "docs" / target), target
