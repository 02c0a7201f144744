"""What other processes see of a mount's daemon and of its parent, root's included."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mounts import NOBODY, ROOT, Mounted, needs_root, needs_secretmem, proc_status, process_vm_read

MIB = 1 << 20

needs_ordinary_user = pytest.mark.skipif(ROOT, reason="needs an ordinary user: root is let in anywhere")


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """One mount for the module."""
    with Mounted(tmp_path_factory.mktemp("secrecy") / "mnt") as mounted:
        yield mounted


@dataclass
class Mapping:
    """One line of /proc/PID/maps with its VmFlags."""

    start: int
    end: int
    rights: str
    name: str
    flags: frozenset[str]


def mappings(pid: int) -> list[Mapping]:
    """The memory of a process."""
    found = []
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8").splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \S+ *(.*)", line):
            found.append(Mapping(int(match[1], 16), int(match[2], 16), match[3], match[4], frozenset()))
        elif line.startswith("VmFlags:"):
            found[-1].flags = frozenset(line.split()[1:])
    return found


def secret_mappings(pid: int) -> list[Mapping]:
    """Those of memfd_secret(2)."""
    return [one for one in mappings(pid) if "/secretmem" in one.name]


def needles_in(pid: int, needle: bytes) -> list[Mapping]:
    """Every mapping in which /proc/PID/mem shows the needle."""
    found = []
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for one in mappings(pid):
            try:
                memory.seek(one.start)
                held = memory.read(one.end - one.start)
            except (OSError, ValueError, OverflowError):
                continue
            if needle in held:
                found.append(one)
    return found


def open_files(pid: int) -> list[str]:
    """Where a process's descriptors lead, without the numbers of sockets."""
    folder = f"/proc/{pid}/fd"
    return sorted(os.readlink(f"{folder}/{name}").partition(":[")[0] for name in os.listdir(folder))


# Processes


@pytest.mark.parametrize("who", ["daemon", "parent"])
def test_core_limit_and_umask(mount: Mounted, who: str) -> None:
    """Daemon and parent have a core limit of 0 and a umask of 077."""
    pid = getattr(mount, who)
    assert proc_status(pid)["Umask"] == "0077"
    if ROOT:
        limits = Path(f"/proc/{pid}/limits").read_text(encoding="utf-8")
        assert re.search(r"Max core file size +0 +0 ", limits)


@needs_ordinary_user
@pytest.mark.parametrize("who", ["daemon", "parent"])
def test_undumpable(mount: Mounted, who: str) -> None:
    """The user's own processes can look into neither: /proc/PID/mem, maps, environ and fd, and a debugger."""
    pid = getattr(mount, who)
    assert os.stat(f"/proc/{pid}/environ").st_uid == 0, "it is dumpable"
    for name in ("mem", "maps", "environ", "auxv"):
        with pytest.raises(PermissionError):
            Path(f"/proc/{pid}/{name}").read_bytes()
    with pytest.raises(PermissionError):
        os.listdir(f"/proc/{pid}/fd")
    with pytest.raises(OSError, match="not permitted"):
        process_vm_read(pid, 0x1000, 1)
    attached = subprocess.run(["gdb", "-batch", "-p", str(pid)], capture_output=True, text=True, check=False)
    assert "Operation not permitted" in attached.stderr


@needs_root
def test_another_user_sees_nothing_of_root(mount: Mounted) -> None:
    """Another user cannot open what /proc tells of the daemon's memory."""
    for name in ("mem", "maps", "environ"):
        done = subprocess.run(
            ["cat", f"/proc/{mount.daemon}/{name}"], user=NOBODY, group=NOBODY, extra_groups=[],
            capture_output=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (1, b"")


@needs_root
def test_open_descriptors(mount: Mounted) -> None:
    """The daemon has open /dev/fuse, its socket and what its event loop needs; no file, no terminal, no secret area."""
    with open(mount.path / "f", "wb") as file:
        file.write(bytes(100_000))
        held = open_files(mount.daemon)
    assert held.count("/dev/fuse") == 1
    assert set(held) <= {"/dev/fuse", "/dev/null", "socket", "pipe", "anon_inode"}, held
    assert not any("secretmem" in one or "memfd" in one for one in held)


@needs_root
def test_the_parent_has_no_fuse_device(mount: Mounted) -> None:
    """The parent, which needs no secret, has no descriptor of /dev/fuse and no secret memory."""
    held = open_files(mount.parent)
    assert set(held) <= {"/dev/null", "socket", "pipe", "anon_inode:inotify"}, held
    assert secret_mappings(mount.parent) == []
    assert proc_status(mount.parent)["VmLck"] == "0 kB"


# Memory


def test_data_is_locked(mount: Mounted) -> None:
    """As much memory as a file has bytes becomes locked when it is written, and is given back when it was removed."""

    def locked() -> int:
        return int(proc_status(mount.daemon)["VmLck"].split()[0]) << 10

    before = locked()
    (mount.path / "f").write_bytes(os.urandom(3 * MIB))
    assert locked() - before >= 2 * MIB + MIB // 2
    assert proc_status(mount.daemon)["VmSwap"] == "0 kB"
    (mount.path / "f").unlink()
    os.statvfs(mount.path)  # the shim may have wiped the file, and then the rest is done before the next request
    assert locked() - before <= MIB


@needs_root
@needs_secretmem
def test_root_cannot_read_secret_areas(mount: Mounted) -> None:
    """/proc/PID/mem and process_vm_readv are refused on every page where files lie, and work on an ordinary one."""
    (mount.path / "f").write_bytes(os.urandom(2 * MIB))
    areas = secret_mappings(mount.daemon)
    assert sum(one.end - one.start for one in areas) >= 2 * MIB
    pages = [page for one in areas for page in range(one.start, one.end, 4096)]
    ordinary = next(one for one in mappings(mount.daemon) if one.name == "[stack]").end - 4096
    with open(f"/proc/{mount.daemon}/mem", "rb", buffering=0) as memory:
        memory.seek(ordinary)
        assert len(memory.read(16)) == 16
        for page in pages:
            with pytest.raises(OSError, match=r".") as refused:
                os.pread(memory.fileno(), 16, page)
            assert refused.value.errno == errno.EIO
    assert len(process_vm_read(mount.daemon, ordinary, 16)) == 16
    for page in pages:
        with pytest.raises(OSError, match="Bad address"):
            process_vm_read(mount.daemon, page, 16)
    (mount.path / "f").unlink()


@needs_root
def test_areas_are_left_out_of_dumps_and_forks(mount: Mounted) -> None:
    """Wherever root finds a file's bytes in the daemon, if at all, that memory is locked, in no dump and in no fork."""
    needle = os.urandom(48)
    (mount.path / "f").write_bytes(needle * 4 + bytes(8000))
    assert (mount.path / "f").read_bytes()[:48] == needle
    found = needles_in(mount.daemon, needle)
    areas = [one for one in mappings(mount.daemon) if "/secretmem" in one.name] or found
    assert areas
    for one in areas:
        assert {"lo", "dd", "dc"} <= one.flags, one
    assert all({"lo", "dd", "dc"} <= one.flags for one in found), found
    (mount.path / "f").unlink()
    assert needles_in(mount.daemon, needle) == [], "an unlinked file's bytes are still there"


@needs_root
@needs_secretmem
def test_root_finds_a_files_bytes_nowhere(mount: Mounted) -> None:
    """A file's bytes, the target of a symbolic link and an attribute's value are found by root nowhere."""
    needle = os.urandom(24).hex()
    (mount.path / "f").write_text(needle, encoding="ascii")
    (mount.path / "l").symlink_to(needle)
    os.setxattr(mount.path / "f", "user.a", needle.encode())
    assert needles_in(mount.daemon, needle.encode()) == []


def test_the_daemon_is_confined(mount: Mounted) -> None:
    """The daemon has no way to new rights, files, programs and processes; its parent has, because it must unmount."""
    daemon, parent = proc_status(mount.daemon), proc_status(mount.parent)
    mine = proc_status(os.getpid())
    assert (daemon["NoNewPrivs"], daemon["Seccomp"]) == ("1", "2")
    assert int(daemon["Seccomp_filters"]) == int(mine["Seccomp_filters"]) + 1
    assert (parent["NoNewPrivs"], parent["Seccomp_filters"]) == (mine["NoNewPrivs"], mine["Seccomp_filters"])
