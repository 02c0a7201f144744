"""A mount of which another mount namespace has a copy: a container, a service of systemd's, `unshare -m`."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import Mounted, is_mounted, needs_root

from secretfs import status
from secretfs.errors import MountError

pytestmark = [pytest.mark.mount, needs_root]


@pytest.fixture
def copied(tmp_path: Path) -> Iterator[tuple[Mounted, subprocess.Popen[bytes]]]:
    """A mount with one file, and a process that keeps a copy of it in a mount namespace of its own until its end."""
    with Mounted(tmp_path / "mnt") as mounted:
        (mounted.path / "key").write_bytes(b"secret")
        copy = ["unshare", "-m", "--propagation", "private", "sh", "-c", "echo ready; cat"]
        with subprocess.Popen(copy, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdin is not None and other.stdout is not None
            assert other.stdout.readline() == b"ready\n"
            yield mounted, other
        mounted.wait_for_end()


@pytest.mark.slow
def test_umount_does_not_claim_what_it_cannot_do(copied, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a copy of the mount keeps the files alive, umount says so and how to end them; with the copy they go.

    The process that serves it is named, and can be found again by what the hint says.
    """
    mounted, other = copied
    monkeypatch.setattr(status, "PATIENCE", 2.0)
    with pytest.raises(MountError, match="another mount namespace") as caught:
        status.unmount(str(mounted.path), lazy=False)
    assert f"kill {mounted.daemon} " in caught.value.hint
    assert caught.value.exit_code == 1
    listed = subprocess.run(["pgrep", "-af", "secretfs"], capture_output=True, text=True, check=True).stdout
    assert [line for line in listed.splitlines() if line.startswith(f"{mounted.daemon} ") and str(mounted.path) in line]
    assert not is_mounted(mounted.path)
    assert not mounted.has_ended(mounted.daemon)
    other.stdin.close()


@pytest.mark.slow
def test_lazy_umount_says_that_the_files_live_on(copied, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lazy umount of such a mount is no failure, and says when the files will be destroyed."""
    mounted, _ = copied
    monkeypatch.setattr(status, "PATIENCE_LAZY", 1.0)
    assert status.unmount(str(mounted.path), lazy=True) == status.Unmounted(1, wiped=False)
    assert not is_mounted(mounted.path)
    assert not mounted.has_ended(mounted.daemon)
