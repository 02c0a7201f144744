"""Who may do what on a real mount: modes, owners, times, other users, mount flags."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import NOBODY, ROOT, Mounted, as_user, mount_line, needs_root, public_directory

OTHER = 65533
"""A second ordinary user."""


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """One mount for the module, as the user that runs the tests."""
    with Mounted(tmp_path_factory.mktemp("rights") / "mnt") as mounted:
        yield mounted


@pytest.fixture(scope="module")
def shared() -> Iterator[Mounted]:
    """A mount of root's that lets others in."""
    with public_directory() as folder, Mounted(folder / "mnt", "--allow-other", "--mode", "0755") as mounted:
        yield mounted


@pytest.fixture
def here(mount: Mounted) -> Iterator[Path]:
    """An empty directory in the mount."""
    yield from _directory(mount)


@pytest.fixture
def public(shared: Mounted) -> Iterator[Path]:
    """An empty directory in the shared mount."""
    for folder in _directory(shared):
        folder.chmod(0o755)
        yield folder


def _directory(mounted: Mounted) -> Iterator[Path]:
    folder = mounted.path / "here"
    folder.mkdir()
    yield folder
    subprocess.run(["rm", "-rf", folder], check=True)


def mode(path: Path) -> int:
    """Permission bits."""
    return stat.S_IMODE(path.lstat().st_mode)


def attempt(call: str, *words: str | os.PathLike[str], uid: int = NOBODY) -> str:
    """What a call answers another user: "ok" or the name of the errno."""
    script = f"try:\n  {call}\n  print('ok')\nexcept OSError as e:\n  print(errno.errorcode[e.errno])"
    return as_user(script, *words, uid=uid)


# One user


def test_root_of_the_mount(mount: Mounted) -> None:
    """The root belongs to who mounts and is closed to all others by default."""
    status = mount.path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (os.geteuid(), os.getegid(), 0o700)
    assert status.st_nlink == 2


def test_mode_of_the_root(tmp_path: Path) -> None:
    """--mode is the mode of the root, whatever the umask."""
    with Mounted(tmp_path / "mnt", "--mode", "1755", umask=0o077) as mounted:
        assert mode(mounted.path) == 0o1755


def test_umask(here: Path) -> None:
    """The caller's umask applies to what is created, the daemon's does not."""
    old = os.umask(0o027)
    try:
        os.close(os.open(here / "f", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(here / "d", 0o777)
        os.mkfifo(here / "p", 0o666)
        os.umask(0)
        os.close(os.open(here / "open", os.O_CREAT | os.O_WRONLY, 0o666))
    finally:
        os.umask(old)
    assert [mode(here / name) for name in ("f", "d", "p", "open")] == [0o640, 0o750, 0o640, 0o666]


@pytest.mark.parametrize("bits", [0o000, 0o400, 0o640, 0o755, 0o777])
def test_chmod(here: Path, bits: int) -> None:
    """chmod sets the bits and the change time, and nothing else."""
    (here / "f").write_bytes(b"x")
    before = (here / "f").stat()
    (here / "f").chmod(bits)
    after = (here / "f").stat()
    assert stat.S_IMODE(after.st_mode) == bits
    assert (after.st_mtime_ns, after.st_size) == (before.st_mtime_ns, 1)
    assert after.st_ctime_ns > before.st_ctime_ns


def test_own_modes_are_honoured(here: Path) -> None:
    """An owner without the permission bit is refused; root is not."""
    (here / "f").write_bytes(b"x")
    (here / "f").chmod(0o200)
    (here / "d").mkdir(mode=0o500)
    if ROOT:
        assert (here / "f").read_bytes() == b"x"
        (here / "d" / "f").touch()
    else:
        with pytest.raises(PermissionError):
            (here / "f").read_bytes()
        with pytest.raises(PermissionError):
            (here / "d" / "f").touch()
        with pytest.raises(PermissionError):
            os.chown(here / "f", 0, 0)


def test_programs_run_from_the_mount(here: Path) -> None:
    """A script or program in the mount can be executed if its mode says so."""
    shutil.copy("/bin/true", here / "true")
    assert subprocess.run([here / "true"], check=False).returncode == 0
    (here / "true").chmod(0o600)
    with pytest.raises(PermissionError):
        subprocess.run([here / "true"], check=False)


def test_times(here: Path) -> None:
    """utimens sets nanoseconds of both times; writing moves mtime and ctime; reading moves atime as relatime does."""
    path = here / "f"
    path.write_bytes(b"x")
    os.utime(path, ns=(1_000_000_000_123_456_789, 2_000_000_000_987_654_321))
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (1_000_000_000_123_456_789, 2_000_000_000_987_654_321)
    os.utime(path, ns=(-5_000_000_001, 4_000_000_000 * 10**9))
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (-5_000_000_001, 4_000_000_000 * 10**9)
    before = path.stat()
    path.read_bytes()
    assert path.stat().st_atime_ns > before.st_atime_ns
    with open(path, "ab", buffering=0) as file:
        file.write(b"more")
    after = path.stat()
    assert after.st_mtime_ns != before.st_mtime_ns
    assert after.st_mtime_ns == after.st_ctime_ns > before.st_ctime_ns


def test_directory_times(here: Path) -> None:
    """Each change of a directory moves its mtime and ctime, also of one from before 1970, or from the 24th century."""
    os.utime(here, (1 << 34, 1 << 34))
    (here / "early").touch()
    assert here.stat().st_atime == 1 << 34
    (here / "early").unlink()
    os.utime(here, ns=(-5_000_000_001, -4_000_000_001))
    assert here.stat().st_mtime_ns == -4_000_000_001
    seen = [here.stat().st_mtime_ns]
    for call in (
        (here / "f").touch,
        lambda: os.link(here / "f", here / "g"),
        lambda: os.rename(here / "g", here / "h"),
        (here / "d").mkdir,
        (here / "d").rmdir,
        (here / "f").unlink,
        lambda: (here / "s").symlink_to("h"),
    ):
        call()
        seen.append(here.stat().st_mtime_ns)
        assert here.stat().st_ctime_ns == seen[-1]
    assert seen == sorted(set(seen))


def test_mount_flags(mount: Mounted) -> None:
    """A mount is nosuid and nodev, whoever mounts, and the kernel checks the modes."""
    line = mount_line(mount.path)
    assert line is not None
    options, _, rest = line.partition(" - ")
    assert {"nosuid", "nodev"} <= set(options.split()[5].split(","))
    assert "default_permissions" in rest
    assert "allow_other" not in rest
    assert f"user_id={os.geteuid()}" in rest


# Several users


@needs_root
def test_nobody_gets_in_without_allow_other() -> None:
    """Without --allow-other no other user gets in, whatever the modes say."""
    with public_directory() as folder, Mounted(folder / "mnt", "--mode", "0777") as mounted:
        (mounted.path / "f").write_bytes(b"x")
        (mounted.path / "f").chmod(0o666)
        assert attempt("open(sys.argv[1]).read()", mounted.path / "f") == "EACCES"
        assert attempt("os.listdir(sys.argv[1])", mounted.path) == "EACCES"


@needs_root
def test_modes_hold_for_other_users(public: Path) -> None:
    """With --allow-other each permission bit of owner, group and others is honoured."""
    (public / "f").write_bytes(b"x")
    read, write = "open(sys.argv[1]).read()", "open(sys.argv[1], 'a').write('x')"
    (public / "f").chmod(0o600)
    assert attempt(read, public / "f") == attempt(write, public / "f") == "EACCES"
    (public / "f").chmod(0o604)
    assert (attempt(read, public / "f"), attempt(write, public / "f")) == ("ok", "EACCES")
    os.chown(public / "f", OTHER, NOBODY)
    (public / "f").chmod(0o620)
    assert (attempt(read, public / "f"), attempt(write, public / "f")) == ("EACCES", "ok")
    assert (attempt(read, public / "f", uid=OTHER), attempt(write, public / "f", uid=OTHER)) == ("ok", "ok")
    (public / "f").chmod(0o077)
    assert attempt(read, public / "f", uid=OTHER) == "EACCES"


@needs_root
def test_directory_modes_hold_for_other_users(public: Path) -> None:
    """A directory that others may not write or search lets them make, remove and reach nothing."""
    (public / "d").mkdir()
    (public / "d" / "f").write_bytes(b"x")
    (public / "d" / "f").chmod(0o644)
    (public / "d").chmod(0o755)
    assert attempt("open(sys.argv[1]).read()", public / "d" / "f") == "ok"
    for call in ("open(sys.argv[1] + '/g', 'x')", "os.unlink(sys.argv[1] + '/f')", "os.mkdir(sys.argv[1] + '/d')"):
        assert attempt(call, public / "d") == "EACCES"
    (public / "d").chmod(0o744)
    assert attempt("os.listdir(sys.argv[1])", public / "d") == "ok"
    assert attempt("open(sys.argv[1]).read()", public / "d" / "f") == "EACCES"
    (public / "d").chmod(0o711)
    assert attempt("os.listdir(sys.argv[1])", public / "d") == "EACCES"
    assert attempt("open(sys.argv[1]).read()", public / "d" / "f") == "ok"


@needs_root
def test_creator_owns(public: Path) -> None:
    """What another user makes belongs to that user, who alone (but for root) may change its mode."""
    public.chmod(0o777)
    assert attempt("open(sys.argv[1], 'x').write('x'); os.chmod(sys.argv[1], 0o644)", public / "f") == "ok"
    assert ((public / "f").stat().st_uid, (public / "f").stat().st_gid) == (NOBODY, NOBODY)
    assert attempt("os.chmod(sys.argv[1], 0o666)", public / "f", uid=OTHER) == "EPERM"
    assert attempt("os.utime(sys.argv[1], (1, 1))", public / "f", uid=OTHER) == "EPERM"
    assert attempt("os.truncate(sys.argv[1], 0)", public / "f", uid=OTHER) == "EACCES"
    assert attempt("os.setxattr(sys.argv[1], 'user.a', b'')", public / "f", uid=OTHER) == "EACCES"
    assert attempt("os.chown(sys.argv[1], os.getuid(), -1)", public / "f", uid=OTHER) == "EPERM"


@needs_root
def test_sticky_directory(public: Path) -> None:
    """In a sticky directory only the owner of a file removes or renames it; without the bit everybody does."""
    public.chmod(0o1777)
    for name in ("f", "g"):
        assert attempt("open(sys.argv[1], 'x')", public / name) == "ok"
    assert attempt("os.unlink(sys.argv[1])", public / "f", uid=OTHER) == "EPERM"
    assert attempt("os.rename(sys.argv[1], sys.argv[1] + '2')", public / "f", uid=OTHER) == "EPERM"
    assert attempt("os.unlink(sys.argv[1])", public / "f") == "ok"
    public.chmod(0o777)
    assert attempt("os.unlink(sys.argv[1])", public / "g", uid=OTHER) == "ok"


@needs_root
def test_setgid_directory(public: Path) -> None:
    """In a set-group-ID directory files take the directory's group, and directories the bit as well."""
    os.chown(public, 0, 4242)
    public.chmod(0o2777)
    assert attempt("open(sys.argv[1] + '/f', 'x'); os.mkdir(sys.argv[1] + '/d')", public) == "ok"
    assert (public / "f").stat().st_gid == (public / "d").stat().st_gid == 4242
    assert mode(public / "d") & 0o2000
    assert not mode(public / "f") & 0o2000


@needs_root
def test_chown(public: Path) -> None:
    """chown sets either id or both, and takes the set-ID bits of a program away."""
    (public / "f").touch()
    os.chown(public / "f", 1234, -1)
    assert ((public / "f").stat().st_uid, (public / "f").stat().st_gid) == (1234, 0)
    os.chown(public / "f", -1, 4321)
    assert ((public / "f").stat().st_uid, (public / "f").stat().st_gid) == (1234, 4321)
    (public / "f").chmod(0o6755)
    os.chown(public / "f", 5, 6)
    assert mode(public / "f") == 0o755
    (public / "l").symlink_to("f")
    os.lchown(public / "l", 77, 78)
    assert ((public / "l").lstat().st_uid, (public / "f").stat().st_uid) == (77, 5)


@needs_root
def test_writing_takes_set_id_bits_away(public: Path) -> None:
    """A write or truncate by an ordinary user takes the set-ID bits of a file away."""
    for call in ("open(sys.argv[1], 'ab').write(b'x')", "os.truncate(sys.argv[1], 1)"):
        (public / "f").write_bytes(b"content")
        (public / "f").chmod(0o6777)
        assert attempt(call, public / "f") == "ok"
        assert mode(public / "f") == 0o777


@needs_root
def test_no_set_user_id_and_no_devices_by_default(public: Path) -> None:
    """A set-user-ID program runs as its caller and a device node opens nothing, as the mount flags say."""
    shutil.copy("/usr/bin/id", public / "id")
    (public / "id").chmod(0o4755)
    ran = subprocess.run([public / "id", "-u"], user=NOBODY, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == str(NOBODY)
    os.mknod(public / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    with pytest.raises(PermissionError):
        (public / "null").read_bytes()


@needs_root
def test_allow_dev_and_allow_suid() -> None:
    """--allow-dev and --allow-suid give back device nodes and set-user-ID programs."""
    flags = ("--allow-other", "--mode", "0755", "--allow-dev", "--allow-suid")
    with public_directory() as folder, Mounted(folder / "mnt", *flags) as mounted:
        shutil.copy("/usr/bin/id", mounted.path / "id")
        (mounted.path / "id").chmod(0o4755)
        ran = subprocess.run([mounted.path / "id", "-u"], user=NOBODY, capture_output=True, text=True, check=True)
        assert ran.stdout.strip() == "0"
        os.mknod(mounted.path / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        assert (mounted.path / "null").read_bytes() == b""


@needs_root
def test_status_is_for_owner_and_root(shared: Mounted) -> None:
    """Of a mount that others may use, they learn neither status nor pid."""
    for name in ("user.secretfs.status", "user.secretfs.pid"):
        assert os.getxattr(shared.path, name)
        assert attempt(f"os.getxattr(sys.argv[1], {name!r})", shared.path) in ("ENODATA", "EACCES")


@needs_root
def test_trusted_attributes_are_roots(public: Path) -> None:
    """Attributes in "trusted." are root's to set, read and list."""
    os.setxattr(public, "trusted.a", b"1")
    assert os.listxattr(public) == ["trusted.a"]
    assert as_user("print(os.listxattr(sys.argv[1]))", public) == "[]"
    assert attempt("os.getxattr(sys.argv[1], 'trusted.a')", public) == "ENODATA"
    assert attempt("os.setxattr(sys.argv[1], 'trusted.b', b'')", public) == "EPERM"
