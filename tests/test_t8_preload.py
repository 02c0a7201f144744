"""Real programs with the preload library: what a search of their memory from outside finds of their key."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import Mounted, clean_environment, needs_root
from preloads import KINDS, WORKERS, found_in, has_secret_memory, make_key, needles, preloaded, serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate and its key."""
    made = tmp_path_factory.mktemp("tls")
    make_key(made)
    return made


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_plain_is_found(kind: str, folder: Path) -> None:
    """The control: the search finds the key's numbers in a server that is started plain, and in all its workers."""
    with serving(kind, folder, clean_environment()) as pids:
        for pid in pids:
            assert {"prime1 little", "prime2 little"} <= found_in(pid, needles(folder / "key"))


@needs_root
@pytest.mark.slow
def test_what_a_program_keeps_is_found(folder: Path) -> None:
    """The other control: a program that keeps the PEM text in memory of its own is not helped, and the search sees it.

    Only that is left: the numbers are gone into secret memory.
    """
    keeps = f'kept = open("{folder}/key").read()'
    with serving("python", folder, preloaded("kernel"), before=keeps) as pids:
        assert found_in(pids[0], needles(folder / "key")) == {"pem"}


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_preloaded_is_not_found(kind: str, folder: Path) -> None:
    """On the kernel backend nothing of the key is found in the server or in its workers."""
    with serving(kind, folder, preloaded("kernel")) as pids:
        assert [has_secret_memory(pid) for pid in pids] == [True] * len(pids)
        assert [found_in(pid, needles(folder / "key")) for pid in pids] == [set()] * len(pids)


@needs_root
@pytest.mark.mount
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_key_in_a_mount(kind: str, folder: Path, mounted: Path) -> None:
    """A server whose key lies in a mount reads it, and nothing of it is found in the server or in its workers."""
    with serving(kind, folder, preloaded("kernel"), key=mounted) as pids:
        assert [found_in(pid, needles(folder / "key")) for pid in pids] == [set()] * len(pids)


@pytest.fixture
def mounted(folder: Path, tmp_path: Path) -> Iterator[Path]:
    """The key in a mount."""
    with Mounted(tmp_path / "mnt") as mount:
        key = mount.path / "key"
        key.write_bytes((folder / "key").read_bytes())
        yield key


@pytest.mark.mount
@pytest.mark.parametrize("backend", ["kernel", "emulator"])
def test_openssl_makes_and_reads_a_key_in_a_mount(backend: str, tmp_path: Path) -> None:
    """openssl(1) with the library writes a key into a mount and reads it from there, past the page cache."""
    with Mounted(tmp_path / "mnt") as mount:
        key = mount.path / "key"
        for words in (["genpkey", "-algorithm", "RSA", "-out", key], ["pkey", "-in", key, "-check", "-noout"]):
            subprocess.run(["openssl", *words], env=preloaded(backend), check=True, capture_output=True)
        assert key.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")


@pytest.mark.slow
def test_report_outlives_the_title(folder: Path, tmp_path: Path) -> None:
    """nginx writes over its arguments and environment; its report has the path and the name from before that.

    Where its workers become another user, they may not write to the file, and say so.
    """
    report = tmp_path / "report"
    with serving("nginx", folder, preloaded(REPORT=str(report))):
        pass
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    assert {line["program"] for line in lines} == {"nginx"}
    assert 1 <= len(lines) <= 1 + WORKERS
    assert all(line["openssl"] and line["locked"] for line in lines)


@pytest.mark.parametrize("name", ["BACKEND", "PRELOAD_TOOLKIT", "PRELOAD_EXHAUSTED", "PRELOAD_CHILDREN"])
def test_bad_value(name: str) -> None:
    """A value that is not known ends the program before it starts, with one sentence that names both."""
    environment = {**preloaded(), f"SECRETFS_{name}": "nonsense"}
    done = subprocess.run(["true"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (125, 1)
    assert f"SECRETFS_{name}" in done.stderr
    assert "nonsense" in done.stderr
