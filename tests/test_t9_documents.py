"""The documents against the code: each sentence that the command line ends with is in docs/errors.md, and no other."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from mounts import PATIENCE, SECRETFS

import secretfs
import secretfs_emulator
import secretfs_kernel
from secretfs import errors
from secretfs.errors import SecretFSError

ROOT = Path(__file__).parents[1]
ERRORS = {name for name in errors.__all__ if issubclass(getattr(errors, name), SecretFSError)}
ERRORS -= {"BoundsError", "ClosedError", "FileError"}  # for Python authors, and inside a mount
LIBRARY = {"backend.py", "area.py", "heap.py", "pages.py", "window.py"}
"""Modules whose errors are for Python authors."""
SOURCES = sorted(
    path
    for package in (secretfs, secretfs_kernel, secretfs_emulator)
    for path in Path(package.__file__).parent.glob("*.py")
    if path.name not in LIBRARY
)


def template(node: ast.expr) -> str:
    """The text that an expression makes, with … for what is known only when it runs."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(template, node.values))
    return "…"


def sentences() -> set[str]:
    """The first argument of each error that is made."""
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args:
                name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                if name in ERRORS or (name == "__init__" and path.name == "errors.py"):
                    found.add(template(node.args[0]))
    return {sentence for sentence in found if re.search("[a-z]{3}", sentence)}


def pattern(sentence: str) -> re.Pattern[str]:
    """What a row of the table that is about that sentence looks like."""
    return re.compile(".*".join(map(re.escape, re.split("…+", sentence))))


def documented() -> list[str]:
    """The sentences in the first column of the tables of docs/errors.md."""
    lines = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8").splitlines()
    cells = [line.split(" | ")[0] for line in lines if line.startswith("| `")]
    return [span for cell in cells for span in re.findall(r"`([^`]+)`", cell)]


def test_each_error_is_documented() -> None:
    """docs/errors.md has a row for each sentence."""
    rows = documented()
    assert len(sentences()) > 50
    assert sorted(sentence for sentence in sentences() if not any(map(pattern(sentence).fullmatch, rows))) == []


def test_each_row_is_an_error() -> None:
    """docs/errors.md has no row that nothing says any more."""
    patterns = [pattern(sentence) for sentence in sentences()]
    assert [row for row in documented() if not any(each.fullmatch(row) for each in patterns)] == []


def test_each_error_of_run_is_documented() -> None:
    """docs/run.md has each sentence that `secretfs run` ends with, or its beginning."""
    made = set()
    for path in sorted((Path(secretfs_emulator.__file__).parent / "supervisor").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args and getattr(node.func, "id", "") in ("RunError", "UsageError"):
                made.add(template(node.args[0]))
    document = (ROOT / "docs" / "run.md").read_text(encoding="utf-8")
    rows = [span for line in document.splitlines() if line.startswith("| `") for span in re.findall(r"`([^`]+)`", line)]
    sentences = {sentence for sentence in made if re.search("[a-z]{3}", sentence)}
    assert len(sentences) > 10
    assert [one for one in sorted(sentences) if not any(re.match(pattern(row).pattern, one) for row in rows)] == []


def test_readme_shows_the_same_sentences() -> None:
    """What README's short table quotes is quoted from docs/errors.md."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## When it says no")[2].partition("\n## ")[0]
    quoted = [span for line in section.splitlines() for span in re.findall(r"`([^`]+)`", line.split(" | ")[0])]
    whole = documented()
    assert len(quoted) > 5
    assert [span for span in quoted if not any(span in row for row in whole) and span != "…"] == []


def test_links_lead_somewhere() -> None:
    """Every relative link in a document leads to a file that is there."""
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


# The settings of docs/hardening.md

OWN_NAMESPACE = re.compile(
    "ProtectSystem|ProtectHome|ProtectKernel|ProtectControlGroups|ProtectProc|ProcSubset|Private(Tmp|Devices|IPC|Mounts)"
    "|(ReadOnly|ReadWrite|Inaccessible|Exec|NoExec|Bind|BindReadOnly)Paths|Temporary|Root(Directory|Image)|MountAPIVFS"
)
"""What gives a unit a mount namespace of its own, whose mounts nobody else sees: systemd.exec(5)."""


def units() -> dict[str, str]:
    """The systemd units, by name."""
    text = (ROOT / "docs" / "hardening.md").read_text(encoding="utf-8")
    return dict(re.findall(r"```\n# /etc/systemd/system/(\S+)\n(.*?)```", text, re.DOTALL))


def test_units_are_units(tmp_path: Path) -> None:
    """`systemd-analyze verify` has nothing to say of them. Their programs stand for others here."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd: not installed")
    assert sorted(units()) == ["keys.service", "server.service"]
    for name, text in units().items():
        programs = text.replace("/usr/local/bin/secretfs", SECRETFS).replace("/usr/local/bin/server", "/bin/true")
        (tmp_path / name).write_text(programs, encoding="utf-8")
    done = subprocess.run(
        [analyze, "verify", "--man=no", *(tmp_path / name for name in units())], capture_output=True, text=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert [line for line in done.stderr.splitlines() if str(tmp_path) in line or ".service" in line] == []


def test_unit_that_mounts_is_seen() -> None:
    """The unit that mounts has no setting that gives it a mount namespace, and may do what it takes to mount."""
    mounts = units()["keys.service"]
    assert "secretfs mount --foreground" in mounts
    assert [line for line in mounts.splitlines() if OWN_NAMESPACE.match(line)] == []
    allowed = next(line for line in mounts.splitlines() if line.startswith("SystemCallFilter="))
    assert {"@mount", "memfd_secret", "seccomp", "landlock_restrict_self"} <= set(allowed.partition("=")[2].split())


def test_profile_allows_the_call() -> None:
    """What is added to a container's profile is JSON that allows memfd_secret by its name."""
    text = (ROOT / "docs" / "hardening.md").read_text(encoding="utf-8")
    (added,) = re.findall(r"jq '\.syscalls \+= (.*?)'", text)
    assert json.loads(added) == [{"names": ["memfd_secret"], "action": "SCMP_ACT_ALLOW"}]
