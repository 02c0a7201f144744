#!/usr/bin/python3
"""Runs a command in a box: as another user, with a FUSE device of its own, without memfd_secret, with a lock limit.

    box.py [--user NAME] [--without ENOSYS|EPERM] [--memlock BYTES] [--no-fuse] [--fuse-conf TEXT]
           [--cgroup-limit BYTES] [--] CMD...

It must be started by root and needs nothing but the standard library, so any Python runs it. CMD takes its place:
exit code and signals are CMD's own. The box is a private mount namespace: nothing done in it is seen outside, and what
CMD mounts is gone with its last process. Tests use `command()`, which makes the argument list.

It alone knows how to take things away from a program. Exit codes of its own: 125 the box could not be made,
126 CMD cannot be run, 127 CMD does not exist.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import os
import platform
import pwd
import resource
import signal
import stat
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

FAILED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127
NO_CGROUP = "no memory cgroup can be made here"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PASSED_ON = ("SECRETFS_", "LC_", "LANG", "TERM")

FUSE, FUSE_CONF = "/dev/fuse", "/etc/fuse.conf"
FUSE_NUMBER = os.makedev(10, 229)
PLAIN_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "kvm", "log", "pts", "shm", "mqueue")
DEVICE_LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "ptmx": "pts/ptmx"}

FORWARDED = {
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCONT,
}

CLONE_NEWNS = 0x20000
MS_NOSUID, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
CAP_IPC_LOCK = 14
PR_CAPBSET_DROP = 24
MEMFD_SECRET = 447
ARCHITECTURES = {"x86_64": (0xC000003E, 317), "aarch64": (0xC00000B7, 277)}
"""The audit number of each, and the number of seccomp(2)."""

libc = ctypes.CDLL(None, use_errno=True)


def command(
    words: Sequence[str],
    *,
    user: str | None = None,
    without: str | None = None,
    memlock: int | None = None,
    fuse: bool = True,
    fuse_conf: str | None = None,
    cgroup_limit: int | None = None,
) -> list[str]:
    """The argument list that runs `words` in such a box, for subprocess."""
    options = {
        "--user": user,
        "--without": without,
        "--memlock": memlock,
        "--fuse-conf": fuse_conf,
        "--cgroup-limit": cgroup_limit,
    }
    given = [f"{name}={value}" for name, value in options.items() if value is not None]
    return ["/usr/bin/python3", "-I", os.path.abspath(__file__), *given, *([] if fuse else ["--no-fuse"]), "--", *words]


def main(words: Sequence[str]) -> int:
    """Make the box and become the command. Returns only if that failed."""
    parser = _parser()
    asked = parser.parse_args(words)
    if asked.command[:1] == ["--"]:
        del asked.command[0]
    if not asked.command:
        parser.error("which command?")
    try:
        if os.geteuid() != 0:
            raise PermissionError(errno.EPERM, "needs root")
        _make(asked)
    except (OSError, KeyError) as error:
        print(f"box.py: {error}", file=sys.stderr)
        return FAILED
    try:
        os.execvpe(asked.command[0], asked.command, _environment())
    except OSError as error:
        print(f"box.py: {asked.command[0]}: {error.strerror}", file=sys.stderr)
        return NOT_FOUND if error.errno == errno.ENOENT else NOT_EXECUTABLE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("box.py", usage="box.py [OPTIONS] [--] CMD...")
    parser.add_argument("--user", help="become this user for good")
    parser.add_argument("--without", choices=("ENOSYS", "EPERM"), help="memfd_secret(2) fails with this")
    parser.add_argument("--memlock", type=int, metavar="BYTES", help="RLIMIT_MEMLOCK, without CAP_IPC_LOCK around it")
    parser.add_argument("--no-fuse", action="store_true", help="a /dev without /dev/fuse")
    parser.add_argument("--fuse-conf", metavar="TEXT", help=f"what {FUSE_CONF} says")
    parser.add_argument("--cgroup-limit", type=int, metavar="BYTES", help="the limit of a memory cgroup of its own")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="CMD")
    return parser


def _make(asked: argparse.Namespace) -> None:
    """Everything that takes root, in the order in which it can be done, and then root itself is given up."""
    if asked.cgroup_limit is not None:
        _enter_cgroup(asked.cgroup_limit)
    _call("unshare", CLONE_NEWNS)
    _keep_mounts_to_ourselves()
    if asked.no_fuse or not os.path.exists(FUSE):
        _replace_dev(with_fuse=not asked.no_fuse)
    else:
        _cover(FUSE, lambda node: _make_device(node, 0o666, FUSE_NUMBER))
    if asked.fuse_conf is not None:
        _cover(FUSE_CONF, lambda file: _write(file, asked.fuse_conf.encode() + b"\n"))
    if asked.memlock is not None:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (asked.memlock, asked.memlock))
        _drop_ipc_lock()
    if asked.without is not None:
        _forbid_memfd_secret(asked.without)
    if asked.user is not None:
        _become(pwd.getpwnam(asked.user))


def _environment() -> dict[str, str]:
    """Nothing of the caller's but what belongs to the project or to the language."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    return {"LANG": "C.UTF-8", **kept, "HOME": "/", "PATH": PATH}


# Mounts


def _keep_mounts_to_ourselves() -> None:
    """Let nothing that is mounted from here on reach the namespace we come from.

    In a plain chroot / is no mount point: there it is done for each mount that can be seen. The one that the chroot
    lies in cannot be reached, so what is mounted straight on it may be seen outside.
    """
    try:
        _mount("none", "/", flags=MS_REC | MS_PRIVATE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            paths = [line.split()[4].encode("utf-8", "surrogateescape").decode("unicode_escape") for line in file]
        for path in paths:
            _mount("none", path, flags=MS_PRIVATE)


def _cover(path: str, make: Callable[[str], None]) -> None:
    """Bind over `path` a file that `make` creates; it lies in a tmpfs that nobody else sees."""
    with _tmpfs() as directory:
        fresh = os.path.join(directory, "file")
        make(fresh)
        _mount(fresh, path, flags=MS_BIND)


def _replace_dev(*, with_fuse: bool) -> None:
    """A /dev of the usual nodes; a bind cannot take a name away, nor give one that is not there."""
    with _tmpfs() as directory:
        for name in filter(lambda name: os.path.exists(f"/dev/{name}"), PLAIN_DEVICES):
            target = os.path.join(directory, name)
            if os.path.isdir(f"/dev/{name}"):
                os.mkdir(target)
            else:
                _write(target, b"")
            _mount(f"/dev/{name}", target, flags=MS_BIND | MS_REC)
        for name, target in DEVICE_LINKS.items():
            os.symlink(target, os.path.join(directory, name))
        if with_fuse:
            _make_device(os.path.join(directory, "fuse"), 0o666, FUSE_NUMBER)
        os.chmod(directory, 0o755)
        _mount(directory, "/dev", flags=MS_BIND | MS_REC)


@contextlib.contextmanager
def _tmpfs() -> Iterator[str]:
    """A fresh tmpfs on which devices work; its directory goes away again, what was bound from it stays."""
    directory = tempfile.mkdtemp(prefix="secretfs-box-")
    try:
        _mount("box", directory, kind="tmpfs", flags=MS_NOSUID)
        try:
            yield directory
        finally:
            _call("umount2", directory.encode(), MNT_DETACH)
    finally:
        os.rmdir(directory)


def _make_device(path: str, mode: int, number: int) -> None:
    os.mknod(path, stat.S_IFCHR | mode, number)
    os.chmod(path, mode)  # the umask


def _write(path: str, text: bytes) -> None:
    with open(path, "wb") as file:
        file.write(text)
    os.chmod(path, 0o644)


def _mount(source: str, target: str, *, kind: str = "none", flags: int = 0) -> None:
    _call("mount", source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), None, about=target)


# Privileges


def _become(user: pwd.struct_passwd) -> None:
    """Give up root for good: real, effective and saved ids, supplementary groups, and with them every capability."""
    os.setgroups([])
    os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
    os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)


def _drop_ipc_lock() -> None:
    """Without CAP_IPC_LOCK the lock limit is a limit for root too. What execve() gives root is the bounding set."""
    _call("prctl", PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0)


def _forbid_memfd_secret(name: str) -> None:
    """A seccomp filter for everything from here on. Root may install it without no_new_privs, which would break
    fusermount3: a set-user-ID program.

    ENOSYS is said by SECCOMP_RET_TRACE without a tracer, as by a kernel that lacks the call: a filter further in (that
    of `secretfs run`) may then still answer it. EPERM is said by SECCOMP_RET_ERRNO, as by a container: nothing
    overrides that.
    """
    audit, seccomp = ARCHITECTURES[platform.machine()]
    answer = 0x7FF00000 if name == "ENOSYS" else 0x00050000 | errno.EPERM
    load, jump_if_equal, leave, allow = 0x20, 0x15, 0x06, 0x7FFF0000
    program = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (load, 0, 0, 4),  # seccomp_data.arch
            (jump_if_equal, 0, 3, audit),
            (load, 0, 0, 0),  # seccomp_data.nr
            (jump_if_equal, 0, 1, MEMFD_SECRET),
            (leave, 0, 0, answer),
            (leave, 0, 0, allow),
        )
    )
    code = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(code)))
    _call("syscall", seccomp, 1, 0, header, about="seccomp")


# The memory cgroup


def _enter_cgroup(limit: int) -> None:
    """Move into a memory cgroup of our own; only a fork does, since somebody must stay outside and remove the group."""
    try:
        group, limit_file = _new_cgroup()
    except (OSError, KeyError) as error:
        raise OSError(errno.ENOTSUP, f"{NO_CGROUP}: {error}") from error
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    pid = os.fork()
    if pid == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        _write_number(group, limit_file, limit)
        _write_number(group, "cgroup.procs", os.getpid())
        return
    for number in FORWARDED:
        signal.signal(number, lambda received, _: os.kill(pid, received))
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    _, status = os.waitpid(pid, 0)
    try:
        os.rmdir(group)
    except OSError as error:
        print(f"box.py: {group} stays: {error.strerror}", file=sys.stderr)
    _end_like(status)


def _new_cgroup() -> tuple[str, str]:
    """A fresh group below our own, and the name of its limit file. In cgroup v2 a group with processes in it has no
    children with controllers: there it is made below the nearest ancestor that has.
    """
    name = f"secretfs-box-{os.getpid()}"
    with open("/proc/self/cgroup", encoding="ascii") as file:
        groups = {line.split(":")[1]: line.strip().split(":", 2)[2] for line in file}
    if "memory" in groups:
        group, limit_file = f"/sys/fs/cgroup/memory{groups['memory']}", "memory.limit_in_bytes"
    else:
        group, limit_file = f"/sys/fs/cgroup{groups['']}", "memory.max"
        while "memory" not in _read(group, "cgroup.subtree_control").split():
            if group.rstrip("/") == "/sys/fs/cgroup":
                raise FileNotFoundError(errno.ENOENT, "no group has the memory controller")
            group = os.path.dirname(group)
    path = os.path.join(group, name)
    os.mkdir(path)
    return path, limit_file


def _read(group: str, name: str) -> str:
    with open(os.path.join(group, name), encoding="ascii") as file:
        return file.read()


def _write_number(group: str, name: str, number: int) -> None:
    with open(os.path.join(group, name), "w", encoding="ascii") as file:
        file.write(str(number))


def _end_like(status: int) -> NoReturn:
    """End as a child ended: by its exit code, or by its signal (without a core dump of our own)."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _call(name: str, *arguments: object, about: str = "") -> None:
    """A call into the C library.

    Raises:
        OSError: with its errno.
    """
    if getattr(libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), about or name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
