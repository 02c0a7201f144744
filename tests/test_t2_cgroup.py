"""secretfs.cgroup: how much room the memory cgroups leave, from files as the kernel writes them, and in reality."""

from __future__ import annotations

import io
import os

import pytest

from secretfs import SecretArea, cgroup
from secretfs.errors import CgroupLimitExceeded
from secretfs.testing import outcome_in_child

MIB = 1 << 20
V2_MOUNT = "30 24 0:26 {root} {mountpoint} rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNT = "34 24 0:30 {root} {mountpoint} rw,nosuid shared:13 - cgroup cgroup rw,memory"
OTHERS = "22 24 0:21 / /proc rw - proc proc rw\n35 24 0:31 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Play a machine: what /proc says of mounts and groups, and the files of each group."""

    def play(mounts: str, groups: str, files: dict[str, dict[str, object]], *, root: str = "/") -> None:
        for group, values in files.items():
            directory = tmp_path / group.lstrip("/")
            directory.mkdir(parents=True, exist_ok=True)
            for name, value in values.items():
                (directory / name).write_text(f"{value}\n")
        texts = {
            "/proc/self/mountinfo": OTHERS + mounts.format(root=root, mountpoint=tmp_path),
            "/proc/self/cgroup": groups,
        }

        def fake_open(path, **options):
            return io.StringIO(texts[path]) if path in texts else open(path, **options)

        monkeypatch.setattr(cgroup, "open", fake_open, raising=False)

    return play


def v2(limit: object, current: int, *, cache: int = 0) -> dict[str, object]:
    """The files of one v2 group."""
    statistics = f"anon 1\nfile {cache}\ninactive_file {cache // 2}\nactive_file {cache - cache // 2}"
    return {"memory.max": limit, "memory.current": current, "memory.stat": statistics}


def v1(limit: int, usage: int, *, cache: int = 0) -> dict[str, object]:
    """The files of one v1 group."""
    statistics = f"cache 7\ntotal_inactive_file {cache}\ntotal_active_file 0"
    return {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": usage, "memory.stat": statistics}


def test_v2_limit_less_usage(machine, tmp_path) -> None:
    """The room in a v2 group is memory.max less memory.current."""
    machine(V2_MOUNT, "0::/app", {"/app": v2(100 * MIB, 30 * MIB)})
    assert cgroup.headroom() == (70 * MIB, str(tmp_path / "app"))


def test_v1_limit_less_usage(machine, tmp_path) -> None:
    """The room in a v1 group is memory.limit_in_bytes less memory.usage_in_bytes."""
    machine(V1_MOUNT, "9:pids:/x\n4:memory:/app\n0::/", {"/app": v1(100 * MIB, 30 * MIB)})
    assert cgroup.headroom() == (70 * MIB, str(tmp_path / "app"))


@pytest.mark.parametrize(("mount", "line", "files"), [(V2_MOUNT, "0::/app", v2), (V1_MOUNT, "4:cpu,memory:/app", v1)])
def test_page_cache_is_room(machine, mount, line, files) -> None:
    """File pages in the group count as room, as the kernel drops them first."""
    machine(mount, line, {"/app": files(100 * MIB, 95 * MIB, cache=60 * MIB)})
    assert cgroup.headroom().headroom == 65 * MIB


def test_tightest_ancestor_counts(machine, tmp_path) -> None:
    """Every ancestor limits: the one with the least room is named."""
    machine(
        V2_MOUNT,
        "0::/a/b/c",
        {"/a": v2(50 * MIB, 45 * MIB), "/a/b": v2("max", 40 * MIB), "/a/b/c": v2(20 * MIB, 1 * MIB)},
    )
    assert cgroup.headroom() == (5 * MIB, str(tmp_path / "a"))


@pytest.mark.parametrize(
    ("mount", "line", "files"),
    [
        (V2_MOUNT, "0::/app", {"/app": v2("max", 5 * MIB)}),
        (V1_MOUNT, "4:memory:/app", {"/app": v1(9223372036854771712, 5 * MIB)}),
        (V2_MOUNT, "0::/", {}),
        (V2_MOUNT, "0::/app", {"/app": {"memory.max": "nonsense", "memory.current": 1, "memory.stat": ""}}),
        ("", "0::/app", {}),
        (V2_MOUNT, "", {}),
    ],
)
def test_no_limit_is_none(machine, mount, line, files) -> None:
    """Where no group limits memory, or none can be read, there is no number."""
    machine(mount, line, files)
    assert cgroup.headroom() is None
    cgroup.require_headroom(1 << 40)


def test_container_sees_its_part_of_the_tree(machine, tmp_path) -> None:
    """Where the mount shows a subtree, the group's path is taken from there."""
    machine(V1_MOUNT, "4:memory:/docker/abc/app", {"/app": v1(10 * MIB, 4 * MIB)}, root="/docker/abc")
    assert cgroup.headroom() == (6 * MIB, str(tmp_path / "app"))


def test_group_outside_the_namespace(machine, tmp_path) -> None:
    """A group above the namespace's root is shown with dots, and then the mount's own limit still counts."""
    machine(V2_MOUNT, "0::/../..", {"/": v2(10 * MIB, 4 * MIB)})
    assert cgroup.headroom().headroom == 6 * MIB


def test_group_is_named_and_a_spare_left(machine) -> None:
    """What fits only without the spare megabyte is refused, with the group's name, the room and a remedy."""
    machine(V2_MOUNT, "0::/app", {"/app": v2(10 * MIB, 2 * MIB)})
    cgroup.require_headroom(7 * MIB)
    with pytest.raises(CgroupLimitExceeded, match=r"/app' has 8388608 bytes left") as caught:
        cgroup.require_headroom(7 * MIB + 1)
    assert "memory.max" in caught.value.hint


def test_group_that_is_over_its_limit_has_nothing(machine) -> None:
    """A group above its limit is said to have 0 bytes left, not fewer."""
    machine(V2_MOUNT, "0::/app", {"/app": v2(10 * MIB, 12 * MIB)})
    with pytest.raises(CgroupLimitExceeded, match="has 0 bytes left"):
        cgroup.require_headroom(1)


def test_area_asks_first(machine, fake) -> None:
    """An area that would wake the OOM killer is refused before its backend is asked for memory."""
    machine(V2_MOUNT, "0::/app", {"/app": v2(10 * MIB, 2 * MIB)})
    with pytest.raises(CgroupLimitExceeded):
        SecretArea(8 * MIB, backend=fake)
    assert fake.used == 0


@pytest.fixture
def small_group():
    """A real memory cgroup of 24 MiB, removed afterwards."""
    mounts = dict(cgroup._mounts())
    for kind, files in (("cgroup", cgroup._V1), ("cgroup2", cgroup._V2)):
        if kind not in mounts:
            continue
        path = os.path.join(mounts[kind][1], f"secretfs-test-{os.getpid()}")
        try:
            os.mkdir(path)
        except OSError:
            continue
        try:
            with open(os.path.join(path, files.limit), "w") as limit:
                limit.write(str(24 * MIB))
        except OSError:
            os.rmdir(path)
            continue
        yield path
        os.rmdir(path)
        return
    pytest.skip("cgroup: no memory cgroup can be made here")


def test_real_group_refuses_instead_of_killing(small_group, emulator) -> None:
    """In a real cgroup an area that does not fit is CgroupLimitExceeded; the process lives, and less still works."""

    def allocate() -> str:
        with open(os.path.join(small_group, "cgroup.procs"), "w") as processes:
            processes.write(str(os.getpid()))
        try:
            SecretArea(64 * MIB, backend=emulator)
        except CgroupLimitExceeded as error:
            SecretArea(4 * MIB, backend=emulator).close()
            return str(error)
        return "nothing raised"

    outcome = outcome_in_child(allocate)
    assert (outcome.signal, outcome.error) == (0, "")
    assert small_group in outcome.value
