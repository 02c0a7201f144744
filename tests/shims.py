"""The installed secretfs with another shim, or with none, and what is compiled for tests.

A copy of the package is put before the installed one on the module path: nothing in the product knows of it. The
daemon is forked and not executed, so what is in its command's environment counts for it too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import secretfs

HERE = Path(__file__).parent
NATIVE = HERE.parent / "secretfs" / "native"
SOURCES = [NATIVE / name for name in ("shim.c", "fast.c", "names.c", "registers.c", "rewrite.c")]
LIBRARY = "libsecretfs-shim.so"
WARNINGS = ("-std=gnu11", "-Wall", "-Wextra", "-Werror")
SANITIZE = ("-g", "-O1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def pkg_config(option: str) -> list[str]:
    """What libfuse wants of a compiler, or of the linker."""
    return subprocess.run(
        ["pkg-config", option, "fuse3"], check=True, capture_output=True, text=True
    ).stdout.split()  # fmt: skip


def compile_library(target: Path, *words: str | Path) -> Path:
    """A shared library from sources and options for gcc; a warning is an error."""
    command = ["gcc", *WARNINGS, "-shared", "-fPIC", *pkg_config("--cflags"), "-o", target, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def sanitized_shim(folder: Path) -> Path:
    """The shim, built with AddressSanitizer and UndefinedBehaviorSanitizer."""
    return compile_library(
        folder / LIBRARY, *SANITIZE, "-fvisibility=hidden", *SOURCES, "-Wl,--no-as-needed", *pkg_config("--libs")
    )


def sanitizing(reports: Path) -> dict[str, str]:
    """The environment in which a Python loads what was built with sanitizers; what they find is written to `reports`.

    Python's own memory is not theirs to judge: leaks are not looked for.
    """
    runtime = subprocess.run(["gcc", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True)
    common = f"log_path={reports}:log_exe_name=0:halt_on_error=1"
    return {
        "LD_PRELOAD": runtime.stdout.strip(),
        "ASAN_OPTIONS": f"{common}:detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": f"{common}:print_stacktrace=1",
    }


def package_with(folder: Path, shim: Path | None = None, **changes: tuple[str, str]) -> dict[str, str]:
    """The environment in which `secretfs` has that shim, or none, as if there had been no compiler.

    `changes` are lines of its modules to be replaced: native__got=("old", "new").
    """
    copy = folder / "secretfs"
    shutil.copytree(os.path.dirname(secretfs.__file__), copy)
    installed = copy / "native" / LIBRARY
    installed.unlink(missing_ok=True)
    if shim is not None:
        shutil.copy(shim, installed)
    for name, (old, new) in changes.items():
        module = copy / (name.replace("__", "/") + ".py" if name != "native" else "native/__init__.py")
        text = module.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{old!r} is not in {module.name} just once"
        module.write_text(text.replace(old, new), encoding="utf-8")
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode | (0o755 if path.is_dir() else 0o644))
    return {"PYTHONPATH": str(folder)}
