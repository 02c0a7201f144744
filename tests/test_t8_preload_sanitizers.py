"""The whole preload library under sanitizers: the other tests of it once more, with real programs. Any report fails.

AddressSanitizer must come first among preloaded libraries, and then its mlock(2) does nothing and its free(3) is the
one that programs call; with UndefinedBehaviorSanitizer ours are.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from shims import HERE, SANITIZE, WARNINGS

SOURCES = sorted((HERE.parent / "secretfs" / "preload").glob("*.c"))
LEFT_OUT = ("sanitizers", "stress", "steps")
"""This, what has builds of its own, and where a system call fails: a sanitizer's own may not."""
FILES = sorted({*HERE.glob("test_t8_preload*.py")} - {HERE / f"test_t8_preload_{name}.py" for name in LEFT_OUT})
UNDEFINED = ("-g", "-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all")
NOT_WITH_ADDRESSES = (
    "sodium or gcrypt or cgroup or fallback or deepbind or foreign or descriptor or set_user_id or freed_twice "
    "or loaded_late or curl or gpg_agent"
)
"""What needs mlock(2) or free(3) as said above, or little memory; what AddressSanitizer refuses; programs in which it
gets ready within a call of libp11-kit that holds a lock of libc's, for which it then waits for ever (GCC 12)."""


def build(folder: Path, options: tuple[str, ...]) -> Path:
    """The library, from all its sources."""
    made = folder / "library.so"
    words = ["gcc", *WARNINGS, *options, "-fvisibility=hidden", "-shared", "-fPIC", "-o", made, *SOURCES]
    done = subprocess.run([*words, "-ldl", "-lpthread"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return made


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("kind", ["address", "undefined"])
def test_everything(kind: str, tmp_path: Path) -> None:
    """All tests of the library pass with it, and it reports nothing."""
    library = build(tmp_path, SANITIZE if kind == "address" else UNDEFINED)
    runtime = subprocess.run(["gcc", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True).stdout
    reports = tmp_path / "reports"
    reports.mkdir()
    tmp_path.chmod(0o755)
    reports.chmod(0o777)  # nginx's workers are another user
    common = f"log_path={reports}/report:log_exe_name=0"
    environment = {
        **os.environ,
        "SECRETFS_TEST_PRELOAD": f"{runtime.strip()} {library}" if kind == "address" else str(library),
        "ASAN_OPTIONS": f"{common}:detect_leaks=0:allocator_may_return_null=1:handle_segv=0",
        "UBSAN_OPTIONS": f"{common}:print_stacktrace=1",
    }
    words = [
        sys.executable, "-I", "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=no", "--tb=short",
        "-c", HERE.parent / "pyproject.toml", f"--rootdir={HERE.parent}", f"--basetemp={tmp_path / 'tmp'}",
        "-k", f"not ({NOT_WITH_ADDRESSES})" if kind == "address" else "", *FILES,
    ]  # fmt: skip
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
    assert "\n".join(report.read_text(errors="replace") for report in reports.iterdir()) == ""
