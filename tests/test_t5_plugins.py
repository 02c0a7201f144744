"""Other people's distributions on the command line: their mistakes are told in one sentence that names them."""

from __future__ import annotations

import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from mounts import Mounted, expect_refusal, is_mounted, secretfs

GOOD = """
from secretfs_emulator import Backend as Emulator
class Backend(Emulator):
    name = "stranger"
"""
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def install(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """Write a distribution with a backend and a command, both called stranger, and return the environment it is in."""

    def write(source: str) -> dict[str, str]:
        metadata = tmp_path / "stranger-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: strange-thing\nVersion: 1.0\n")
        entries = "[secretfs.backends]\nstranger = stranger:Backend\n[secretfs.commands]\nstranger = stranger:main\n"
        (metadata / "entry_points.txt").write_text(entries)
        (tmp_path / "stranger.py").write_text(textwrap.dedent(source))
        (tmp_path / "mnt").mkdir()
        return {"PYTHONPATH": str(tmp_path)}

    return write


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("def map(self, size, *, shared=False): raise ZeroDivisionError('oops')", "failed to map"),
        ("def map(self, size, *, shared=False): return None", "failed to map"),
        ("def map(self, size, *, shared=False): raise SystemExit(0)", "failed to map"),
        ("def probe(self): raise ValueError('one\\ntwo')", "failed its probe: ValueError: one; two"),
        ("def probe(self): raise SystemExit('bye')", "failed its probe: SystemExit: bye"),
        ("guarantees = 5", "promises no Guarantees"),
        ("name = 'other'", "calls itself 'other'"),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--foreground"]], ids=["detached", "foreground"])
def test_backend_that_breaks(tmp_path: Path, install, body: str, words: str, flags: list[str]) -> None:
    """A broken backend exits 3, is named, and whose it is; nothing is mounted."""
    done = secretfs("mount", *flags, "--backend", "stranger", tmp_path / "mnt", env=install(f"{GOOD}    {body}\n"))
    expect_refusal(done, 3, "the backend 'stranger'", words)
    assert "uninstall strange-thing, " in done.stderr
    assert not is_mounted(tmp_path / "mnt")


@pytest.mark.slow
def test_mount_that_cannot_be_prepared(tmp_path: Path, install) -> None:
    """Whatever else goes wrong in the daemon before the mount is told too, not only that it has died."""
    source = f"{GOOD}    def map(self, size, *, shared=False): raise MemoryError('none')\n"
    done = secretfs("mount", "--backend", "stranger", tmp_path / "mnt", env=install(source))
    expect_refusal(done, 1, "the mount could not be prepared: MemoryError: none")


LATER = f"""
{GOOD}
    def map(self, size, *, shared=False):
        if size > 1 << 19:
            raise ZeroDivisionError("oops")
        return super().map(size, shared=shared)
"""


@pytest.mark.slow
def test_backend_that_breaks_later(tmp_path: Path, install) -> None:
    """A backend that fails while the mount is up fails that write, and what was there before stays."""
    with Mounted(tmp_path / "mnt", "--backend", "stranger", env=install(LATER)) as mounted:
        (mounted.path / "kept").write_bytes(b"precious")
        with pytest.raises(OSError, match="No such device"):
            (mounted.path / "big").write_bytes(bytes(4 << 20))
        assert (mounted.path / "kept").read_bytes() == b"precious"


def test_list_of_backends(install) -> None:
    """`secretfs backends` lists a backend whose probe calls sys.exit like any other that does not work."""
    done = secretfs("backends", env=install(f"{GOOD}    def probe(self): raise SystemExit(3)\n"))
    assert done.returncode == 0
    assert "stranger: not usable: the backend 'stranger' failed its probe: SystemExit: 3\n" in done.stdout


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("raise RuntimeError('one\\ntwo')", "cannot be loaded: RuntimeError: one; two"),
        ("import no_such_module", "cannot be loaded: ModuleNotFoundError: "),
        ("raise SystemExit(0)", "cannot be loaded: SystemExit: 0"),
        ("def main(words): raise ZeroDivisionError('oops')", "failed: ZeroDivisionError: oops"),
        ("main = 5", "failed: TypeError: "),
    ],
)
def test_command_that_breaks(install, source: str, words: str) -> None:
    """A command of somebody else's that cannot be loaded, or fails, exits 1 and is named, and whose it is."""
    done = secretfs("stranger", "--flag", env=install(source))
    expect_refusal(done, 1, "the command 'stranger' (stranger:main)", words)
    assert "uninstall strange-thing, " in done.stderr


def test_command_that_works(install) -> None:
    """A command of somebody else's gets its words; its exit code is ours, also where it calls sys.exit."""
    environment = install(
        "import sys\ndef main(words):\n    print(words)\n    sys.exit(7) if words else None\n    return 5"
    )
    done = secretfs("stranger", "--flag", env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (7, "['--flag']\n", "")
    assert secretfs("stranger", env=environment).returncode == 5
