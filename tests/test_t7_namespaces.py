"""A mount of which another mount namespace has a copy: a container, a service of systemd's, `unshare -m`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from mounts import Mounted, is_mounted, needs_root

from secretfs import status
from secretfs.errors import MountError

pytestmark = [pytest.mark.mount, needs_root]


@pytest.mark.slow
def test_umount_does_not_claim_what_it_cannot_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a copy of the mount keeps the files alive, umount says so and how to end them; with the copy they go."""
    monkeypatch.setattr(status, "PATIENCE", 2.0)
    with Mounted(tmp_path / "mnt") as mounted:
        (mounted.path / "key").write_bytes(b"secret")
        copy = ["unshare", "-m", "--propagation", "private", "sh", "-c", "echo ready; cat"]
        with subprocess.Popen(copy, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdin is not None and other.stdout is not None
            assert other.stdout.readline() == b"ready\n"
            with pytest.raises(MountError, match="another mount namespace") as caught:
                status.unmount(str(mounted.path), lazy=False)
            assert caught.value.hint.endswith(f"kill {mounted.daemon}")
            assert not is_mounted(mounted.path)
            assert not mounted.has_ended(mounted.daemon)
            other.stdin.close()
        mounted.wait_for_end()
