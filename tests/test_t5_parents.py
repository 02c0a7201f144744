"""Where root mounts: nobody else may be able to put something else in the mountpoint's place."""

from __future__ import annotations

import os
import struct
import subprocess

import pytest
from mounts import NOBODY, Mounted, expect_refusal, is_mounted, needs_root, public_directory, secretfs


@needs_root
@pytest.mark.slow
def test_untrustworthy_parents() -> None:
    """Root does not mount under a directory that others may write or own, unless --force says so."""
    with public_directory() as folder:
        path = folder / "parent" / "mnt"
        path.mkdir(parents=True)
        path.parent.chmod(0o777)
        expect_refusal(secretfs("mount", path), 4, str(path.parent), "everybody may rename")
        path.parent.chmod(0o755)
        os.chown(path.parent, NOBODY, NOBODY)
        expect_refusal(secretfs("mount", path), 4, str(path.parent), f"uid {NOBODY}")
        assert not is_mounted(path)
        with Mounted(path, "--force"):
            pass
        os.chown(path.parent, 0, 0)
        path.parent.chmod(0o1777)
        with Mounted(path):
            pass


@needs_root
@pytest.mark.slow
def test_parents_that_a_group_may_write() -> None:
    """A directory that another group, or somebody on an access control list, may write is no place for root's mount."""
    with public_directory() as folder:
        path = folder / "parent" / "mnt"
        path.mkdir(parents=True)
        path.parent.chmod(0o775)
        with Mounted(path):
            pass
        os.chown(path.parent, 0, NOBODY)
        expect_refusal(secretfs("mount", path), 4, str(path.parent), f"the group {NOBODY} may rename")
        os.chown(path.parent, 0, 0)
        entries = [(1, 7, -1), (2, 7, NOBODY), (4, 5, -1), (16, 7, -1), (32, 5, -1)]  # acl(5): user:65534:rwx, mask
        acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
        os.setxattr(path.parent, "system.posix_acl_access", acl)
        expect_refusal(secretfs("mount", path), 4, str(path.parent), "access control list may rename")
        assert not is_mounted(path)


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize(("uid", "gid", "trusted"), [(NOBODY, NOBODY, True), (NOBODY, 100, False), (1000, 1000, False)])
def test_who_called_sudo(uid: int, gid: int, trusted: bool) -> None:
    """A directory of who called sudo may be mounted under, and their private group may write it, but no shared one."""
    with public_directory() as folder:
        path = folder / "parent" / "mnt"
        path.mkdir(parents=True)
        os.chown(path.parent, NOBODY, gid)
        path.parent.chmod(0o775)
        sudo = {"SUDO_UID": str(uid), "SUDO_GID": str(gid)}
        if trusted:
            with Mounted(path, env=sudo):
                pass
        else:
            expect_refusal(secretfs("mount", path, env=sudo), 4, str(path.parent))


REPLACE = """
unshare -Urm sh -c 'echo ready; read -r _; rmdir "$1" && mkdir "$1" && echo replaced' sh "$1"
"""


@needs_root
@pytest.mark.slow
def test_mountpoint_that_its_owner_could_remove() -> None:
    """In a directory with the sticky bit root mounts on what is root's only.

    Anybody may remove what is theirs there, and rmdir(2) in another mount namespace takes the mount away in all.
    """
    with public_directory() as folder:
        path = folder / "shared" / "folder" / "mnt"
        path.mkdir(parents=True)
        (folder / "shared").chmod(0o1777)
        os.chown(path.parent, NOBODY, NOBODY)
        os.chown(path, NOBODY, NOBODY)
        expect_refusal(secretfs("mount", path), 4, str(path.parent), f"uid {NOBODY}")
        path = folder / "shared" / "mnt"
        path.mkdir()
        os.chown(path, NOBODY, NOBODY)
        expect_refusal(secretfs("mount", path), 4, str(path.parent), f"uid {NOBODY} may remove")
        assert not is_mounted(path)
        with subprocess.Popen(
            ["sh", "-c", REPLACE, "sh", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, user=NOBODY, group=NOBODY,
            extra_groups=[], text=True, cwd="/",
        ) as attacker:  # fmt: skip
            assert attacker.stdin is not None and attacker.stdout is not None
            assert attacker.stdout.readline() == "ready\n"
            mounted = Mounted(path, "--force")
            attacker.stdin.write("\n")
            attacker.stdin.close()
            assert attacker.stdout.read() == "replaced\n"  # or it would not have to be refused
        mounted.wait_for_end()


@needs_root
def test_owner_whom_a_user_namespace_does_not_know() -> None:
    """Where root's directories have an owner that the user namespace does not know, nobody else is blamed for them."""
    with public_directory() as folder:
        done = secretfs("mount", folder, under=["setpriv", f"--reuid={NOBODY}", "--clear-groups", "unshare", "-Urm"])
    if done.returncode == 1 and "unshare" in done.stderr:
        pytest.skip("needs root and user namespaces")
    expect_refusal(done, 4, "whom this user namespace does not know")
    assert str(NOBODY) not in done.stderr
