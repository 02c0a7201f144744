"""Machines that lack something: a FUSE device, fusermount3, a system call, memory. Each is said in one sentence.

They are played in a box (box.py): a private mount namespace in which things are taken away.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from box import command as box
from mounts import (
    NOBODY,
    PATIENCE,
    ROOT,
    SECRETFS,
    clean_environment,
    expect_refusal,
    have_secretmem,
    is_mounted,
    needs_root,
    public_directory,
    secretfs,
)

MIB = 1 << 20


@pytest.fixture
def public() -> Iterator[Path]:
    """An empty directory of nobody's, that can be reached by nobody; what is in it is checked to be gone afterwards."""
    with public_directory() as folder:
        (folder / "mnt").mkdir()
        os.chown(folder / "mnt", NOBODY, NOBODY)
        yield folder / "mnt"
        assert not is_mounted(folder / "mnt")


def in_box(path: Path, *flags: str, before: str = "true", **taken: object) -> subprocess.CompletedProcess[str]:
    """`secretfs mount` in a box, after a shell command run there as root."""
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"] if taken.pop("nobody", True) else []
    script = f'{before} && exec "$@"'
    words = box(["sh", "-c", script, "sh", *user, SECRETFS, "mount", *flags, str(path)], **taken)
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=PATIENCE, cwd="/", env=clean_environment(), check=False
    )
    assert "Traceback" not in done.stderr
    return done


@needs_root
@pytest.mark.parametrize("nobody", [True, False], ids=["user", "root"])
def test_no_fuse_device(public: Path, nobody: bool) -> None:
    """Without /dev/fuse mount exits 5 and says so."""
    done = in_box(public, "--force", fuse=False, nobody=nobody)
    expect_refusal(done, 5, "/dev/fuse does not exist")
    assert "modprobe fuse" in done.stderr


@needs_root
def test_fuse_device_is_something_else(public: Path) -> None:
    """A /dev/fuse that is not a device exits 5."""
    expect_refusal(in_box(public, before="mount --bind /etc/hostname /dev/fuse"), 5, "/dev/fuse is not a device")


@needs_root
def test_fuse_device_forbidden(public: Path) -> None:
    """A /dev/fuse that the user may not open exits 5 and says how it ought to be."""
    done = in_box(public, before="chmod 600 /dev/fuse")
    expect_refusal(done, 5, "/dev/fuse", "ermission denied")
    assert "chmod 666 /dev/fuse" in done.stderr


@needs_root
def test_no_fusermount(public: Path) -> None:
    """Without fusermount3 an ordinary user gets exit code 5 and the package to install."""
    done = in_box(public, before='mount --bind /dev/null "$(realpath "$(command -v fusermount3)")"')
    expect_refusal(done, 5, "fusermount3 is not installed")
    assert "apt-get install fuse3" in done.stderr


@needs_root
def test_fusermount_without_its_bit(public: Path) -> None:
    """A fusermount3 that is not set-user-ID gives exit code 5 and the command that repairs it."""
    program = "$(realpath $(command -v fusermount3))"
    before = f"cp {program} /mnt/fusermount3 && mount --bind /mnt/fusermount3 {program}"
    done = in_box(public, before=f"mount -t tmpfs none /mnt && {before}")
    expect_refusal(done, 5, "fusermount3 failed")
    assert "chmod u+s /usr/bin/fusermount3" in done.stderr


@needs_root
def test_a_security_module_refuses(public: Path) -> None:
    """Where mount(2) is refused, as AppArmor does in a container, that is said, and not that the mountpoint is bad."""
    says = 'printf "#!/bin/sh\\necho \\$0: mount failed: Permission denied >&2\\nexit 1\\n" >/mnt/fusermount3'
    place = "chmod 755 /mnt/fusermount3 && mount --bind /mnt/fusermount3 $(realpath $(command -v fusermount3))"
    done = in_box(public, before=f"mount -t tmpfs none /mnt && {says} && {place}")
    expect_refusal(done, 5, "the kernel refuses to mount: permission denied")
    assert "apparmor=unconfined" in done.stderr


@needs_root
def test_no_user_allow_other(public: Path) -> None:
    """--allow-other of an ordinary user exits 5 and names the line that root adds to /etc/fuse.conf."""
    done = in_box(public, "--allow-other", fuse_conf="")
    expect_refusal(done, 5, "--allow-other")
    assert "user_allow_other to /etc/fuse.conf" in done.stderr


@needs_root
@pytest.mark.slow
def test_blocked_by_a_container(public: Path) -> None:
    """Where a seccomp profile answers EPERM, --backend kernel exits 3, says so and names the remedy."""
    done = in_box(public, "--backend", "kernel", without="EPERM")
    expect_refusal(done, 3, "seccomp")
    assert "SystemCallFilter=memfd_secret" in done.stderr


@needs_root
@pytest.mark.parametrize("word", ["secretmem.enable=1", "secretmem.enable=1 secretmem.enable=0"])
def test_missing_in_a_container(public: Path, word: str) -> None:
    """ENOSYS under a seccomp filter is the filter's where the command line of the kernel has it switched on."""
    before = f"mount -t tmpfs none /mnt && echo {word} >/mnt/cmdline && mount --bind /mnt/cmdline /proc/cmdline"
    done = in_box(public, "--backend", "kernel", before=before, without="ENOSYS")
    expect_refusal(done, 3, "switched off in kernel" if word.endswith("0") else "blocked (ENOSYS)")


@needs_root
@pytest.mark.parametrize("nobody", [True, False], ids=["user", "root"])
@pytest.mark.parametrize("without", [None, "ENOSYS"], ids=["as-is", "emulator"])
def test_lock_limit_too_small(public: Path, nobody: bool, without: str | None) -> None:
    """A lock limit below the daemon's budget exits 8 and names the command that raises it."""
    done = in_box(public, "--force", memlock=MIB, nobody=nobody, without=without)
    expect_refusal(done, 8, str(MIB), "RLIMIT_MEMLOCK")
    assert "ulimit -l" in done.stderr


@needs_root
@pytest.mark.parametrize("nobody", [True, False], ids=["user", "root"])
def test_size_beyond_the_lock_limit(public: Path, nobody: bool) -> None:
    """A --size that the lock limit does not allow exits 8 and names the largest one, which works."""
    done = in_box(public, "--force", "--size", "8M", memlock=8 * MIB, nobody=nobody)
    expect_refusal(done, 8, "a size of 8388608 bytes cannot be locked")
    found = re.search(r"--size (\d+) or less", done.stderr)
    assert found is not None
    assert 4 * MIB < int(found[1]) <= 5 * MIB


@needs_root
@pytest.mark.parametrize("nobody", [True, False], ids=["user", "root"])
@pytest.mark.parametrize("backend", ["auto", "kernel", "emulator"])
def test_nothing_may_be_locked(public: Path, nobody: bool, backend: str) -> None:
    """A lock limit of zero is a limit too, and no missing backend: it exits 8 under every policy."""
    if backend == "kernel" and not have_secretmem():
        pytest.skip("memfd_secret: the kernel has none here")
    done = in_box(public, "--force", "--backend", backend, memlock=0, nobody=nobody)
    expect_refusal(done, 8, "cannot lock", "RLIMIT_MEMLOCK")
    assert "ulimit -l" in done.stderr


@pytest.mark.skipif(not ROOT, reason="needs root: an ordinary user's lock limit comes first")
def test_size_beyond_the_machine(tmp_path: Path) -> None:
    """A --size that this machine has no memory for exits 8 and names the largest one."""
    done = secretfs("mount", "--size", "4000000G", tmp_path)
    expect_refusal(done, 8, "a size of 4294967296000000 bytes is more than this machine's", "bytes of memory")
    assert "--size" in done.stderr.splitlines()[1]


def in_cgroup(limit: int, script: str, *words: str | Path, **taken: object) -> subprocess.CompletedProcess[str]:
    """A shell script in a memory cgroup of its own; the skip where none can be made."""
    done = subprocess.run(
        box(["sh", "-c", script, SECRETFS, *map(str, words)], cgroup_limit=limit, **taken), capture_output=True,
        text=True, timeout=60, cwd="/", env=clean_environment(), check=False,
    )  # fmt: skip
    if done.returncode == 125:
        pytest.skip(f"needs a writable memory cgroup: {done.stderr.strip()}")
    assert "Traceback" not in done.stderr
    return done


FULL = """
"$0" mount --force "$1" || exit
echo precious >"$1/kept"
if [ "$2" = data ]; then
    dd if=/dev/zero of="$1/big" bs=1M count=250 2>&1 | grep -o 'No space left on device'
else
    /usr/bin/python3 -I -c 'import os, sys
try:
    for number in range(300000):
        os.close(os.open(f"{sys.argv[1]}/a-name-of-thirty-two-letters-{number}", os.O_CREAT))
except OSError as error:
    print(error.strerror)' "$1"
fi
"$0" status "$1" | grep -o 'backend: *[a-z]*'
cat "$1/kept" && rm "$1"/kept && echo again >"$1/after" && cat "$1/after"
exec "$0" umount "$1"
"""


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize("user", [None, "nobody"])
@pytest.mark.parametrize("what", ["data", "files"])
def test_full_mount_in_a_small_cgroup(public: Path, what: str, user: str | None) -> None:
    """The default size fits what a memory cgroup leaves, and what uses a full mount there wakes no OOM killer."""
    done = in_cgroup(64 * MIB, FULL, public, what, user=user, memlock=8 * MIB)
    backend = "kernel" if have_secretmem() else "emulator"
    full = "No space left on device"
    assert done.stdout.splitlines() == [full, f"backend:        {backend}", "precious", "again"], done.stderr
    assert done.returncode == 0, done.stderr
    assert "files destroyed" in done.stderr or "file destroyed" in done.stderr


NEIGHBOUR = """
import subprocess, sys
taken = b"x" * int(sys.argv[3])
sys.exit(subprocess.run([sys.argv[1], "mount", "--force", sys.argv[2]]).returncode)
"""


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize("user", [None, "nobody"])
@pytest.mark.parametrize(("limit", "taken"), [(40, 0), (54, 0), (120, 75)])
def test_mounting_kills_nobody(public: Path, limit: int, taken: int, user: str | None) -> None:
    """Where a memory cgroup has no room for a daemon, mount exits 8 with the group, its room and the remedy.

    Neither it nor a neighbour is killed.
    """
    script = f'exec /usr/bin/python3 -I -c \'{NEIGHBOUR}\' "$0" "$@"'
    done = in_cgroup(limit * MIB, script, public, str(taken * MIB), user=user, memlock=8 * MIB)
    expect_refusal(done, 8, "cannot take", "the memory cgroup", "/secretfs-box-", "bytes left")
    assert "memory.max" in done.stderr


FILL = """
"$0" mount --force --size 256M "$1" || exit
echo precious >"$1/kept"
dd if=/dev/zero of="$1/big" bs=1M count=250 2>&1 | grep -o 'No space left on device'
cat "$1/kept" && rm "$1/big" && echo again >"$1/after" && cat "$1/after"
exec "$0" umount "$1"
"""


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize("without", [None, "ENOSYS"], ids=["as-is", "emulator"])
def test_memory_cgroup_without_headroom(public: Path, without: str | None) -> None:
    """Where the memory cgroup ends a write is ENOSPC; the OOM killer does not come, and the mount goes on.

    A size that was asked for is not refused for that, as the room in a cgroup comes and goes, but warned of.
    """
    done = in_cgroup(128 * MIB, FILL, public, without=without)
    assert done.stdout.splitlines() == ["No space left on device", "precious", "again"], done.stderr
    assert done.returncode == 0
    assert "warning: a size of 268435456 bytes is more than the memory cgroup" in done.stderr
