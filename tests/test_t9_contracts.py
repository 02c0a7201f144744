"""What holds for the code as a whole: who imports whom, what is public, how long things are."""

from __future__ import annotations

import ast
import contextlib
import functools
import io
import statistics
import subprocess
import sys
import types
from pathlib import Path

import pytest

import secretfs
import secretfs_emulator
import secretfs_kernel
from secretfs import errors, interface, libc, testing

ROOT = Path(__file__).parents[1]
PACKAGES = ("secretfs", "secretfs_kernel", "secretfs_emulator")
FOLDERS = [Path(package.__file__).parent for package in (secretfs, secretfs_kernel, secretfs_emulator)]
SOURCES = sorted(path for folder in FOLDERS for path in folder.rglob("*.py"))


def trees() -> list[ast.Module]:
    """All modules, parsed."""
    return [ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES]


def functions() -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions and methods."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for tree in trees() for node in ast.walk(tree) if isinstance(node, kinds)]


@functools.cache
def graph():
    """Who imports whom, in the installed packages."""
    grimp = pytest.importorskip("grimp", reason="import-linter is not installed")
    return grimp.build_graph(*PACKAGES, include_external_packages=True, cache_dir=None)


def importers(module: str) -> set[str]:
    """The modules that import `module` or what is in it."""
    inside = {module, *(graph().find_descendants(module) if not graph().is_module_squashed(module) else ())}
    return {importer for each in inside for importer in graph().find_modules_that_directly_import(each)} - inside


@pytest.mark.slow
def test_import_contracts_are_kept(monkeypatch, tmp_path) -> None:
    """The contracts in pyproject.toml hold: layers, plug-ins, core, adapter; each module has its layer."""
    cli = pytest.importorskip("importlinter.cli", reason="import-linter is not installed")
    monkeypatch.chdir(tmp_path)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        failed = cli.lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert not failed, output.getvalue()


def test_contracts_are_about_what_is_installed() -> None:
    """The graph that the contracts look at has the modules that the tests import."""
    found = {path.relative_to(folder.parent) for folder in FOLDERS for path in folder.rglob("*.py")}
    names = {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in found}
    assert names <= graph().modules


def test_plugins_import_three_modules_of_ours() -> None:
    """The built-in backends are written from what a stranger has: interface, errors and libc."""
    allowed = {"secretfs.interface", "secretfs.errors", "secretfs.libc"}
    for plugin in PACKAGES[1:]:
        own = {plugin, *graph().find_descendants(plugin)}
        imported = {each for module in own for each in graph().find_modules_directly_imported_by(module)} - own
        assert {each for each in imported if each.startswith("secretfs")} <= allowed


def test_testing_is_as_a_stranger_needs_it() -> None:
    """The fake and the suite are made of interface, errors, libc and the standard library."""
    allowed = {"secretfs.interface", "secretfs.errors", "secretfs.libc"}
    for part in ("fake", "children", "memory", "backends", "_suite", "_memory_contract", "_process_contract"):
        imported = graph().find_modules_directly_imported_by(f"secretfs.testing.{part}")
        ours = {each for each in imported if each.partition(".")[0] == "secretfs"}
        assert {each for each in ours if not each.startswith("secretfs.testing")} <= allowed
        assert {each for each in imported - ours if each not in sys.stdlib_module_names} <= {"pytest"}


def test_pytest_is_needed_by_the_conformance_suite_and_the_plug_in_only() -> None:
    """secretfs.testing.backends and its parts, and the plug-in, import pytest; the rest the standard library only."""
    suite = {"secretfs.testing._suite", "secretfs.testing._memory_contract", "secretfs.testing._process_contract"}
    plug_in = {"secretfs.testing.plugin", "secretfs.testing._child"}
    assert importers("pytest") == suite | plug_in
    assert set().union(*(importers(each) for each in plug_in)) <= plug_in
    assert set().union(*(importers(each) for each in suite)) - suite == {"secretfs.testing.backends"}


@pytest.mark.parametrize(
    "module",
    ["secretfs", "secretfs.testing", "secretfs.cli", "secretfs_kernel", "secretfs_emulator"],
)
def test_import_is_light(module) -> None:
    """Importing the library, its testing tools, the command line or a backend loads neither FUSE, trio nor pytest."""
    code = f"import sys, {module}; print(sorted({{'pyfuse3', 'trio', 'pytest', 'hypothesis'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_all_is_what_is_visible() -> None:
    """`__all__` of secretfs is its visible public names, sorted."""
    hidden = (types.ModuleType, type(secretfs.annotations))
    visible = [name for name, value in vars(secretfs).items() if name[0] != "_" and not isinstance(value, hidden)]
    assert secretfs.__all__ == sorted([*visible, "__version__"])


@pytest.mark.parametrize("module", [errors, interface, libc, testing], ids=lambda module: module.__name__)
def test_promised_modules_say_what_is_public(module) -> None:
    """`__all__` of a promised module names each thing once, and each is there."""
    assert len(set(module.__all__)) == len(module.__all__)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_errors_are_reached_from_the_top() -> None:
    """Each error that the library's objects raise is a name of secretfs itself."""
    for name in ("BackendUnavailable", "BoundsError", "ClosedError", "LimitError", "PluginError", "SecretFSError"):
        assert getattr(secretfs, name) is getattr(errors, name)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: "/".join(path.parts[-2:]))
def test_file_is_readable_in_one_sitting(path) -> None:
    """No file has more than 400 lines."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_functions_are_short() -> None:
    """The median function has at most 12 lines, nine in ten have at most 40."""
    lengths = sorted(node.end_lineno - node.lineno + 1 for node in functions())
    assert statistics.median(lengths) <= 12
    assert lengths[len(lengths) * 9 // 10] <= 40


def test_modules_say_what_they_decide() -> None:
    """Every module has a docstring."""
    assert [path for path, tree in zip(SOURCES, trees(), strict=True) if not ast.get_docstring(tree)] == []


def test_functions_are_annotated() -> None:
    """Every function says what it returns."""
    assert [node.name for node in functions() if node.returns is None] == []


def test_tests_state_their_fact() -> None:
    """Every test in this folder has a docstring of a sentence."""
    silent = []
    for path in sorted(Path(__file__).parent.glob("test_t[0-49]*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                first = (ast.get_docstring(node) or "").strip()
                if not first.endswith((".", "?", "!")):
                    silent.append(f"{path.name}: {node.name}")
    assert silent == []


def test_no_test_sleeps() -> None:
    """No test waits by sleeping: it waits for what it needs."""
    for path in sorted(Path(__file__).parent.glob("test_t[0-49]*.py")):
        if path != Path(__file__):
            assert "sleep(" not in path.read_text(encoding="utf-8"), path
