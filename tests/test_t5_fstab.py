"""mount(8) and /etc/fstab: `mount -t fuse.secretfs` through the helper that `install-mount-helper` writes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from box import command as box
from mounts import (
    NOBODY,
    PATIENCE,
    ROOT,
    SECRETFS,
    clean_environment,
    is_mounted,
    mount_line,
    needs_root,
    public_directory,
    secretfs,
)

HELPER = Path("/sbin/mount.fuse.secretfs")
Mount = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def helper() -> Iterator[Path]:
    """The helper, installed by the command, and what was there before put back afterwards."""
    before = HELPER.read_bytes() if HELPER.exists() else None
    done = secretfs("install-mount-helper")
    assert (done.returncode, done.stdout) == (0, f"{HELPER}\n"), done.stderr
    yield HELPER
    HELPER.unlink()
    if before is not None:
        HELPER.write_bytes(before)
        HELPER.chmod(0o755)


@pytest.fixture
def mount(helper: Path) -> Mount:
    """Run mount(8)."""

    def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["mount", *words], capture_output=True, text=True, timeout=PATIENCE, env=clean_environment(), check=False
        )
        assert "Traceback" not in done.stderr
        return done

    return run


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """An empty directory, unmounted afterwards."""
    folder = tmp_path / "mnt"
    folder.mkdir()
    yield folder
    if is_mounted(folder):
        assert secretfs("umount", folder).returncode == 0


@needs_root
def test_helper_is_self_contained(helper: Path) -> None:
    """The helper is an executable of root's that names Python by its absolute path, isolated from the environment."""
    first = helper.read_text(encoding="utf-8").splitlines()[0]
    program, flag = first.removeprefix("#!").split()
    assert os.path.isabs(program)
    assert flag == "-I"
    status = helper.stat()
    assert (status.st_uid, status.st_mode & 0o777) == (0, 0o755)
    assert not HELPER.with_name(HELPER.name + ".new").exists()


@needs_root
@pytest.mark.slow
def test_mount_with_options(mount: Mount, path: Path) -> None:
    """`mount -t fuse.secretfs none DIR -o ...` mounts with our options, nosuid and nodev all the same."""
    done = mount("-t", "fuse.secretfs", "none", path, "-o", "size=1M,max_files=9,mode=0750")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    status = os.statvfs(path)
    assert status.f_blocks * status.f_frsize == 1 << 20
    assert status.f_files == 9
    assert path.stat().st_mode & 0o7777 == 0o750
    line = mount_line(path)
    assert line is not None
    assert {"nosuid", "nodev"} <= set(line.split()[5].split(","))
    assert subprocess.run(["umount", path], check=False).returncode == 0
    assert not is_mounted(path)


@needs_root
@pytest.mark.slow
def test_fstab(mount: Mount, path: Path, tmp_path: Path) -> None:
    """A line of fstab mounts by its mountpoint; words for systemd and mount(8) are ignored; -a skips noauto."""
    fstab = tmp_path / "fstab"
    fstab.write_text(f"none {path} fuse.secretfs size=512K,x-foo,x-systemd.before=nginx,noauto,_netdev,nofail 0 0\n")
    assert mount("-T", fstab, "-a").returncode == 0
    assert not is_mounted(path)
    done = mount("-T", fstab, path)
    assert done.returncode == 0, done.stderr
    (path / "f").write_bytes(b"works")
    assert os.statvfs(path).f_blocks * os.statvfs(path).f_frsize == 512 << 10
    again = mount("-T", fstab, path)
    assert again.returncode == 32
    assert "already" in again.stderr


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize("source", ["secretfs", "none", "two,words\\040here"])
def test_mount_all_twice(mount: Mount, path: Path, tmp_path: Path, source: str) -> None:
    """`mount -a` knows a line that is mounted already by its source, whatever that is called."""
    fstab = tmp_path / "fstab"
    fstab.write_text(f"{source} {path} fuse.secretfs size=64K,backend=emulator 0 0\n")
    for _ in range(2):
        done = mount("-T", fstab, "-a")
        assert (done.returncode, done.stderr) == (0, "")
    assert Path("/proc/self/mountinfo").read_text(encoding="utf-8").count(f" {path} ") == 1
    assert subprocess.run(["umount", path], check=False).returncode == 0


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ("noexec,noatime", {"rw", "noexec", "noatime", "nosuid", "nodev"}),
        ("ro", {"ro", "nosuid", "nodev", "relatime"}),
        ("user", {"rw", "noexec", "nosuid", "nodev", "relatime"}),
        (
            "user,exec,rw,sync,nodiratime,nosymfollow",
            {"rw", "nosuid", "nodev", "nodiratime", "relatime", "nosymfollow"},
        ),
        ("allow_dev,allow_suid,strictatime,spin=0", {"rw"}),
    ],
)
def test_flags_of_the_mount(mount: Mount, path: Path, options: str, shown: set[str]) -> None:
    """fstab's own words that make a mount stricter are honoured by the kernel; the last of two counts."""
    done = mount("-t", "fuse.secretfs", "secretfs", path, "-o", f"size=64K,{options}")
    assert done.returncode == 0, done.stderr
    line = mount_line(path)
    assert line is not None
    assert set(line.split()[5].split(",")) == shown
    assert ("sync" in line.split()[-1].split(",")) == ("sync" in options)


@needs_root
@pytest.mark.slow
def test_flags_do_what_they_say(mount: Mount, path: Path) -> None:
    """Under noexec nothing is executed, and under noatime reading leaves no trace, however often."""
    assert mount("-t", "fuse.secretfs", "secretfs", path, "-o", "noexec,noatime").returncode == 0
    program = path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    os.utime(program, ns=(1_000, 2_000))
    with pytest.raises(PermissionError):
        subprocess.run([program], check=False)
    for _ in range(2):
        assert program.read_text() == "#!/bin/sh\n"
    assert program.stat().st_atime_ns == 1_000


BY_A_USER = """
printf '%s %s fuse.secretfs user,noauto,backend=emulator,size=1M,noatime 0 0\\n' secretfs "$1" >/mnt/fstab
mount --bind /mnt/fstab /etc/fstab
exec setpriv --reuid=65534 --regid=65534 --clear-groups \\
    sh -c 'mount "$1" && echo works >"$1/f" && cat "$1/f" && grep -F " $1 " /proc/self/mountinfo
    "$0" umount "$1"' "$0" "$1"
"""


@needs_root
@pytest.mark.slow
def test_fstab_line_for_users(helper: Path) -> None:
    """With the word `user` in fstab an ordinary user mounts on their directory, with the flags that it implies."""
    with public_directory() as folder:
        path = folder / "mnt"
        path.mkdir()
        os.chown(path, NOBODY, NOBODY)
        script = f"mount -t tmpfs none /mnt\n{BY_A_USER}"
        done = subprocess.run(
            box(["sh", "-c", script, SECRETFS, str(path)]), capture_output=True, text=True, timeout=PATIENCE, cwd="/",
            env=clean_environment(), check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        works, line = done.stdout.splitlines()
        assert works == "works"
        assert {"noexec", "nosuid", "nodev", "noatime"} <= set(line.split()[5].split(","))
        assert done.stderr.endswith("1 file destroyed\n")


@needs_root
@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ("bakcend=kernel", 1, "unknown mount option 'bakcend=kernel'"),
        ("size=1M,nonsense", 1, "unknown mount option 'nonsense'"),
        ("size", 1, "unknown mount option 'size'"),
        ("size=much", 1, "'size=much'"),
        ("max_files=x", 1, "'max_files=x' cannot be read: 'x' is not a number of files"),
        ("max_files=-3", 1, "'-3' is not a number of files"),
        ("spin=20000", 1, "'20000' is not a number of microseconds"),
        ("remount", 1, "cannot be changed while it is mounted"),
        ("backend=nonsense", 32, "there is no backend named 'nonsense'"),
    ],
)
def test_options_that_are_refused(mount: Mount, path: Path, options: str, code: int, said: str) -> None:
    """An unknown option or value is refused with mount(8)'s exit codes, 1 for the words and 32 for the mount."""
    done = mount("-t", "fuse.secretfs", "none", path, "-o", options)
    assert done.returncode == code
    assert done.stderr.startswith("mount.fuse.secretfs: error: ")
    assert said in done.stderr
    assert not is_mounted(path)


@needs_root
def test_mountpoint_that_is_refused(mount: Mount, path: Path) -> None:
    """A mountpoint that cannot be used is exit code 32, with the same sentence as from `secretfs mount`."""
    (path / "f").touch()
    done = mount("-t", "fuse.secretfs", "none", path)
    assert done.returncode == 32
    assert "is not empty" in done.stderr
    (path / "f").unlink()


@needs_root
@pytest.mark.slow
def test_fake_mount(mount: Mount, path: Path) -> None:
    """`mount -f` mounts nothing and succeeds."""
    assert mount("-f", "-t", "fuse.secretfs", "none", path).returncode == 0
    assert not is_mounted(path)


@pytest.mark.skipif(ROOT, reason="needs an ordinary user: root may write it")
def test_installing_takes_root() -> None:
    """An ordinary user cannot install the helper, is told so in one sentence, and leaves nothing."""
    done = secretfs("install-mount-helper")
    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot be written: permission denied" in done.stderr
    assert not HELPER.with_name(HELPER.name + ".new").exists()


USERS_MOUNT = """
as_user="setpriv --reuid=65534 --regid=65534 --clear-groups"
$as_user "$0" mount --backend emulator --size 1M "$1" || exit
$as_user touch "$1/f"
"$0" status --json "$1"
"$0" status
cat "$1/f" && echo "root got in"
"$0" umount "$1"
"""


@needs_root
@pytest.mark.slow
def test_root_asks_a_users_mount() -> None:
    """Root sees the status of an ordinary user's mount, into which it cannot look, and unmounts it."""
    with public_directory() as folder:
        path = folder / "mnt"
        path.mkdir()
        os.chown(path, NOBODY, NOBODY)
        done = subprocess.run(
            box(["sh", "-c", USERS_MOUNT, SECRETFS, str(path)]), capture_output=True, text=True, timeout=PATIENCE,
            cwd="/", env=clean_environment(), check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f'"uid": {NOBODY}' in done.stdout
        assert '"files": 1' in done.stdout
        assert f"\n  owner:          uid {NOBODY}" in done.stdout
        assert "root got in" not in done.stdout
        assert "Permission denied" in done.stderr
        assert "1 file destroyed" in done.stderr
