"""A mount of which another mount namespace has a copy: a container, a service of systemd's, `unshare -m`."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import PATIENCE, SECRETFS, Mounted, clean_environment, is_mounted, needs_root

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


@pytest.mark.slow
@pytest.mark.parametrize("apart", [True, False], ids=["own-namespace", "same-namespace"])
def test_a_service_that_hides_its_mount_says_so(tmp_path: Path, apart: bool) -> None:
    """Under a service manager that does not see the mount there is a warning, and the remedy; else there is none."""
    mountpoint, manager = tmp_path / "mnt", str(tmp_path / "notify")
    mountpoint.mkdir()
    ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    ready.bind(manager)
    ready.settimeout(PATIENCE)
    words = ["unshare", "-m", "--propagation", "private"] if apart else []
    words += [SECRETFS, "mount", "--foreground", str(mountpoint)]
    environment = {**clean_environment(), "NOTIFY_SOCKET": manager}
    with ready, subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment) as service:
        assert ready.recv(64) == b"READY=1"
        assert is_mounted(mountpoint) is not apart
        service.terminate()
        _, said = service.communicate(timeout=PATIENCE)
    assert ("seen in this service only" in said, "ProtectSystem=" in said) == (apart, apart)
    assert service.returncode == 0
