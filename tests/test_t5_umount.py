"""What `umount` says has happened to the files, and `umount --lazy` while they are open or nobody answers."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from mounts import Mounted, is_mounted, secretfs

from secretfs import status
from secretfs.errors import MountError

pytestmark = [pytest.mark.mount, pytest.mark.slow]


@pytest.mark.parametrize(
    ("files", "what"),
    [(1, "1 file will be destroyed when what uses it"), (2, "2 files will be destroyed when what uses them")],
    ids=["one", "two"],
)
def test_lazy_umount_of_an_open_file(tmp_path: Path, files: int, what: str) -> None:
    """While a file is open `umount --lazy` says when it will be destroyed, which is when it is closed."""
    with Mounted(tmp_path / "mnt") as mounted:
        (mounted.path / "key").write_bytes(b"secret")
        for number in range(1, files):
            (mounted.path / f"other{number}").touch()
        with open(mounted.path / "key", "rb", buffering=0) as held:
            done = secretfs("umount", "--lazy", mounted.path)
            assert (done.returncode, done.stdout, done.stderr) == (0, "", f"secretfs: {what} is closed\n")
            assert not is_mounted(mounted.path)
            assert held.read() == b"secret"
            assert not mounted.has_ended(mounted.daemon)
        mounted.wait_for_end_of(mounted.daemon)


def test_lazy_umount_of_what_nobody_uses(tmp_path: Path) -> None:
    """Where nothing is open `umount --lazy` is as good as `umount`: the daemon has ended, and one says so."""
    with Mounted(tmp_path / "mnt") as mounted:
        (mounted.path / "key").write_bytes(b"secret")
        done = secretfs("umount", "--lazy", mounted.path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "secretfs: 1 file destroyed\n")
        assert mounted.has_ended(mounted.daemon)


def test_daemon_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount whose daemon is stopped is an error to status and umount, with a hint that works: `umount --lazy`."""
    monkeypatch.setattr(status, "PATIENCE", 1.0)
    with Mounted(tmp_path / "mnt") as mounted:
        mounted.kill(signal.SIGSTOP, mounted.daemon)
        with pytest.raises(MountError, match="does not answer") as caught:
            status.unmount(str(mounted.path), lazy=False)
        assert caught.value.hint.endswith(f"secretfs umount --lazy {mounted.path}")
        assert is_mounted(mounted.path)
        done = secretfs("umount", "--lazy", mounted.path)
        assert (done.returncode, done.stdout) == (0, "")
        assert "does not answer: its files will be destroyed when that ends" in done.stderr
        assert not is_mounted(mounted.path)
        mounted.kill(signal.SIGCONT, mounted.daemon)
        mounted.wait_for_end_of(mounted.daemon)


def test_daemon_that_fails_in_its_answer(tmp_path: Path) -> None:
    """`umount --lazy` detaches whatever the status says: here the root of the mount may not be looked into."""
    with Mounted(tmp_path / "mnt") as mounted:
        os.chmod(mounted.path, 0)
        assert secretfs("umount", "--lazy", mounted.path).returncode == 0
        assert not is_mounted(mounted.path)
