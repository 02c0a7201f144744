"""The shim under AddressSanitizer and UndefinedBehaviorSanitizer: any report fails the test.

The quick ones serve a real mount and send it what test_t4_requests*.py send. `make test-long` runs every test of real
mounts once more, with sanitizers and without a shim.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import Mounted, have_secretmem
from shims import package_with, sanitized_shim, sanitizing

HERE = Path(__file__).parent
MIB = 1 << 20
MOUNTS = sorted(path for path in HERE.glob("test_t5_*.py") if "_secret" not in path.name)
READS_THE_WHOLE_DAEMON = "areas_are_left_out or root_finds or residue or sequences or interrupted or fallback or sigbus"
"""Tests that read all of a daemon's memory, of which a sanitizer reserves terabytes; and of a signal that it takes."""
ASKS_THE_SHIM = "quiet_without or cached_names or killed_reader or killed_writer or answered_in_c or opened_in_c"
"""Tests that say when the shim answers by itself, or that it is there."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where things are built."""
    return tmp_path_factory.mktemp("sanitizers")


@pytest.fixture(scope="module")
def shim(folder: Path) -> Path:
    """The shim with sanitizers."""
    return sanitized_shim(folder)


@pytest.fixture(scope="module")
def installed(folder: Path, shim: Path) -> dict[str, str]:
    """The environment in which secretfs uses it."""
    return package_with(folder / "package", shim)


@pytest.fixture
def sanitizers(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment for sanitizers; whatever they report fails the test."""
    reports = tmp_path / "reports"
    reports.mkdir()
    yield sanitizing(reports / "report")
    assert "\n".join(one.read_text(encoding="utf-8", errors="replace") for one in reports.iterdir()) == ""


def run_pytest(folder: Path, environment: dict[str, str], *words: str | Path) -> str:
    """A pytest of its own; what it printed."""
    command = [
        sys.executable, "-I", "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=no", "--tb=short",
        "-c", HERE.parent / "pyproject.toml", f"--rootdir={HERE.parent}", f"--basetemp={folder / 'tmp'}", *words,
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
    return done.stdout


def test_the_sanitizers_see_the_shim(shim: Path, tmp_path: Path) -> None:
    """A control: an entry of the table that claims more memory than there is is reported."""
    script = (
        "import aloneshim as t\n"
        "with t.opened_shim() as shim:\n"
        "    t.SPARE = 0\n"
        "    file = t.File(shim, 64)\n"
        "    file.entry.pieces[0].end = 4096\n"
        "    shim.receive(t.request(t.READ, t.INO, size=100, flags=t.LOCKOWNER))\n"
    )
    environment = {**sanitizing(tmp_path / "report"), "SECRETFS_TEST_SHIM": str(shim), "PYTHONPATH": str(HERE)}
    done = subprocess.run(
        [sys.executable, "-B", "-c", script], env={**os.environ, **environment}, capture_output=True, check=False
    )
    (report,) = tmp_path.glob("report*")
    assert "heap-buffer-overflow" in report.read_text(encoding="utf-8"), done.stderr
    assert done.returncode != 0


@pytest.mark.slow
def test_any_request(shim: Path, sanitizers: dict[str, str], tmp_path: Path) -> None:
    """No request makes the shim read or write what is not its own, or compute what C does not define."""
    environment = {**sanitizers, "SECRETFS_TEST_SHIM": str(shim)}
    tests = sorted(HERE.glob("test_t4_requests*.py"))
    assert " passed" in run_pytest(tmp_path, environment, *tests)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["kernel", "emulator"])
def test_a_mount(installed: dict[str, str], sanitizers: dict[str, str], tmp_path: Path, backend: str) -> None:
    """A mount does a good deal of work: small and large files, by Python and by the table, mappings, links, names."""
    if backend == "kernel" and not have_secretmem():
        pytest.skip("memfd_secret: the kernel has none here")
    with Mounted(tmp_path / "mnt", "--backend", backend, env={**installed, **sanitizers}) as mounted:
        assert mounted.status()["native"] == {"shim": True}
        for step in range(3):
            for size in (0, 1, 63, 64, 65, 4095, 4096, 4097, 131072, MIB, MIB + 1, 3 * MIB):
                rewrite(mounted.path / f"f{step}-{size}", size)
            names(mounted.path)


def rewrite(path: Path, size: int) -> None:
    """Write a file in one piece and in small ones, read it in both ways, map it, cut it, grow it and remove it."""
    data = os.urandom(size)
    with open(path, "w+b", buffering=0) as file:
        assert file.write(data) == size
        for at in range(0, min(size, 20_000), 1000):
            os.pwrite(file.fileno(), data[at : at + 1000], at)
        assert os.pread(file.fileno(), size + 100, 0) == data
        assert b"".join(os.pread(file.fileno(), 777, at) for at in range(0, min(size, 20_000), 777)) == data[:20_202]
        if size:
            with mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as mapping:
                assert mapping[:] == data
        os.ftruncate(file.fileno(), size // 2)
        os.pwrite(file.fileno(), b"end", size)
        assert os.pread(file.fileno(), 1 << 22, 0) == data[: size // 2] + bytes(size - size // 2) + b"end"
        path.unlink()
        assert os.pread(file.fileno(), 3, size) == b"end"


def names(folder: Path) -> None:
    """Links, directories, attributes, and what fails."""
    for number in range(100):
        (folder / f"d{number}").mkdir()
        (folder / f"l{number}").symlink_to("x" * (number + 1))
        os.setxattr(folder / f"d{number}", "user.a", bytes(number * 500))
    assert len(list(folder.iterdir())) == 200
    for number in range(100):
        assert os.readlink(folder / f"l{number}") == "x" * (number + 1)
        assert os.getxattr(folder / f"d{number}", "user.a") == bytes(number * 500)
        os.rename(folder / f"l{number}", folder / f"d{number}" / ("n" * 255))
        with pytest.raises(OSError, match="Directory not empty"):
            (folder / f"d{number}").rmdir()
        (folder / f"d{number}" / ("n" * 255)).unlink()
        (folder / f"d{number}").rmdir()


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_mount(installed: dict[str, str], sanitizers: dict[str, str], tmp_path: Path) -> None:
    """Every test of real mounts passes with the sanitized shim, and nothing is reported."""
    run_pytest(tmp_path, {**installed, **sanitizers}, "-k", f"not ({READS_THE_WHOLE_DAEMON})", *MOUNTS)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_mount_without_a_shim(tmp_path: Path) -> None:
    """Every test of real mounts passes where Python does the shim's work, but for those about the shim itself."""
    environment = package_with(tmp_path / "package", None)
    run_pytest(tmp_path, environment, "-k", f"not ({ASKS_THE_SHIM})", *MOUNTS)
