"""The file systems that are compared: how each is started, which processes it consists of, how it is ended.

It alone knows what must be there for a system to run; where something is missing it says what (`Missing`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
WARNINGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror")
START_LIMIT = 30.0
END_LIMIT = 3.0


class Missing(Exception):
    """A system cannot run here; the message says what is missing."""


@dataclass
class System:
    """One file system under test."""

    name: str
    title: str
    command: Callable[[Path, Path], list[str]] | None
    """Arguments (folder for its own use, mountpoint) of a process that stays in the foreground; None: no process."""
    client: tuple[str, ...] = ()
    """Options of the client."""
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    mountpoint: Path = field(default=Path(), repr=False)

    def pids(self) -> list[int]:
        """Its processes: the one that was started, and all that came from it."""
        if self.process is None:
            return []
        parents: dict[int, list[int]] = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
                    parents.setdefault(int(fields[1]), []).append(int(entry))
        found = [self.process.pid]
        for pid in found:
            found += parents.get(pid, [])
        return found

    def prioritise(self, nice: int) -> None:
        """Run it with this priority, also against other sessions (sched(7), "The autogroup feature")."""
        for pid in self.pids():
            prioritise(pid, nice)

    def pin(self, cpus: set[int]) -> None:
        """Let all its threads run on these CPUs only."""
        for pid in self.pids():
            with contextlib.suppress(OSError):
                for task in os.listdir(f"/proc/{pid}/task"):
                    os.sched_setaffinity(int(task), cpus)

    def daemon(self) -> int:
        """The process that serves requests: the last that was started."""
        return self.pids()[-1]


def prioritise(pid: int, nice: int) -> None:
    """Give a process this priority, and its session too."""
    os.setpriority(os.PRIO_PROCESS, pid, nice)
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(nice))


def build(folder: Path) -> dict[str, Path]:
    """Compile the client and the C reference into `folder`."""
    if shutil.which("gcc") is None:
        raise Missing("gcc is not installed: apt-get install gcc libc6-dev pkg-config libfuse3-dev")
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], capture_output=True, text=True, check=False)
    programs = {"client": HERE / "client.c"}
    if flags.returncode == 0:
        programs["memfs"] = HERE / "reference/memfs.c"
    built = {}
    for name, source in programs.items():
        built[name] = folder / name
        extra = flags.stdout.split() if name == "memfs" else []
        subprocess.run(["gcc", *WARNINGS, str(source), "-o", str(built[name]), *extra], check=True)
    return built


def _secretfs(*options: str) -> Callable[[Path, Path], list[str]]:
    program = Path(sys.executable).with_name("secretfs")

    def command(_folder: Path, mountpoint: Path) -> list[str]:
        if not program.exists():
            raise Missing(f"secretfs is not installed beside {sys.executable}")
        return [str(program), "mount", "--foreground", *options, str(mountpoint)]

    return command


def _mfusepy(_folder: Path, mountpoint: Path) -> list[str]:
    if subprocess.run([sys.executable, "-c", "import mfusepy"], capture_output=True, check=False).returncode:
        raise Missing("pip install mfusepy")
    return [sys.executable, "-W", "ignore", str(HERE / "peer_mfusepy.py"), str(mountpoint)]


def _gocryptfs(folder: Path, mountpoint: Path) -> list[str]:
    if shutil.which("gocryptfs") is None:
        raise Missing("apt-get install gocryptfs")
    cipher = Path("/dev/shm") / f"{folder.parent.name}-gocryptfs"  # noqa: S108 - a tmpfs is wanted
    cipher.mkdir()
    password = folder / "password"
    password.write_text("benchmark\n")
    subprocess.run(["gocryptfs", "-q", "-init", "-scryptn", "10", "-passfile", str(password), str(cipher)], check=True)
    return ["gocryptfs", "-q", "-fg", "-passfile", str(password), str(cipher), str(mountpoint)]


def all_systems(built: dict[str, Path], *, size: str = "64M", max_files: int = 200_000) -> dict[str, System]:
    """Every system there is, by name, the reference first."""

    def reference(_folder: Path, mountpoint: Path) -> list[str]:
        if "memfs" not in built:
            raise Missing("libfuse3 is not there: apt-get install pkg-config libfuse3-dev")
        return [str(built["memfs"]), "-f", "-o", "fsname=reference", str(mountpoint)]

    def spinning(folder: Path, mountpoint: Path) -> list[str]:
        return ["env", "MEMFS_SPIN=50", *reference(folder, mountpoint)]

    limits = ("--size", size, "--max-files", str(max_files))
    systems = (
        System("c-st", "plain C on libfuse, one thread (the reference)", reference),
        System("c-spin", "the same, polling for 50 us before it sleeps, as secretfs does", spinning),
        System("kernel", "secretfs, kernel backend", _secretfs("--backend", "kernel", *limits)),
        System("emulator", "secretfs, emulator", _secretfs("--backend", "emulator", *limits)),
        System("mfusepy", "mfusepy, bytearrays", _mfusepy),
        System("gocryptfs", "gocryptfs on tmpfs, O_DIRECT client", _gocryptfs, ("-d",)),
        System("tmpfs", "tmpfs itself (the limit)", None),
    )
    return {system.name: system for system in systems}


@contextlib.contextmanager
def running(system: System, folder: Path) -> Iterator[System]:
    """Start it, give it a mountpoint, and end it.

    Raises:
        Missing: something that it needs is not there.
    """
    own, system.mountpoint = folder / f"{system.name}-own", folder / system.name
    if system.command is None:
        system.mountpoint = Path("/dev/shm") / f"{folder.name}-{system.name}"  # noqa: S108 - a tmpfs is wanted
        system.mountpoint.mkdir()
        try:
            yield system
        finally:
            shutil.rmtree(system.mountpoint)
        return
    own.mkdir()
    system.mountpoint.mkdir()
    log = own / "log"
    try:
        command = system.command(own, system.mountpoint)
        with log.open("wb") as stream:
            system.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
        _wait_until_mounted(system, log)
        yield system
    finally:
        if system.process is not None:
            unmount = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
            if os.path.ismount(system.mountpoint):
                subprocess.run([*unmount, str(system.mountpoint)], check=False)
            _end(system.process)
            system.process = None
        shutil.rmtree(Path("/dev/shm") / f"{folder.name}-{system.name}", ignore_errors=True)  # noqa: S108
        system.mountpoint.rmdir()
        shutil.rmtree(own)


def _end(process: subprocess.Popen[bytes]) -> None:
    """It ends by itself, unless another mount namespace (a test's, a container's) still has a copy of the mount."""
    for remedy in (lambda: None, process.terminate, process.kill):
        remedy()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_LIMIT)
            return


def _wait_until_mounted(system: System, log: Path) -> None:
    assert system.process is not None
    end = time.monotonic() + START_LIMIT
    while not os.path.ismount(system.mountpoint):
        if system.process.poll() is not None or time.monotonic() > end:
            lines = log.read_text(errors="replace").strip().splitlines() or ["it ended without a word"]
            raise Missing(lines[0])
        time.sleep(0.01)
