"""Getting a FUSE file system into the tree and out of it: mount(2) as root, fusermount3 as anybody else.

It returns /dev/fuse's descriptor and keeps none. What fusermount3 says is the only source of its reasons; it is
translated here and nowhere else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterable

from secretfs import libc, mountinfo
from secretfs.errors import FuseUnavailable, MountBusy, MountError, MountpointError, SecretFSError
from secretfs.mountinfo import KIND
from secretfs.quoting import quoted

__all__ = ["FLAGS", "MAX_READ", "attach", "detach", "is_dead", "require_fuse"]

DEVICE = "/dev/fuse"
MAX_READ = 1 << 20
"""The largest read that the kernel asks for at once, in bytes: the window's size."""
FLAGS = {
    "ro": 1,
    "nosuid": 2,
    "nodev": 4,
    "noexec": 8,
    "sync": 16,
    "dirsync": 128,
    "nosymfollow": 256,
    "noatime": 1024,
    "nodiratime": 2048,
    "strictatime": 1 << 24,
}
"""Words of mount(8) and fusermount3(1), and the flags of mount(2) that they stand for."""
_INSTALL_FUSE = "apt-get install fuse3"
_HELPERS = ("/usr/bin/fusermount3", "/bin/fusermount3", "/usr/local/bin/fusermount3")


def require_fuse() -> None:
    """Return if a mount can be tried.

    Raises:
        FuseUnavailable: /dev/fuse or, for an ordinary user, fusermount3 is missing.
    """
    try:
        mode = os.stat(DEVICE).st_mode
    except FileNotFoundError:
        raise FuseUnavailable(
            f"{DEVICE} does not exist", hint="modprobe fuse; in a container: docker run --device /dev/fuse"
        ) from None
    if not stat.S_ISCHR(mode):
        raise FuseUnavailable(f"{DEVICE} is not a device", hint="mknod -m 666 /dev/fuse c 10 229")
    if os.geteuid() != 0:
        _helper()


def attach(fd: int, path: str, *, source: str, allow_other: bool, flags: Iterable[str]) -> int:
    """Mount on the directory that `fd` (O_PATH) refers to, which is `path`, and return the descriptor of /dev/fuse.

    Args:
        fd: the mountpoint.
        path: where it is.
        source: what the mount table is to show as the source of the mount.
        allow_other: whether other users may look in.
        flags: words of FLAGS.

    Raises:
        FuseUnavailable: FUSE cannot be used here.
        MountpointError: the directory cannot be used.
    """
    options = [f"max_read={MAX_READ}", "default_permissions"] + ["allow_other"] * allow_other
    if os.geteuid() != 0:
        return _attach_with_helper(path, source, [*options, *flags])
    return _attach_as_root(fd, source, options, sum(FLAGS[flag] for flag in set(flags)))


def is_dead(mountpoint: str) -> bool:
    """Whether nobody serves what is mounted there. The daemon is asked; stat(2) may be answered by the kernel."""
    try:
        os.statvfs(mountpoint)
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


def detach(path: str, *, lazy: bool) -> None:
    """Unmount `path`, or with `lazy` take it out of the tree while files are still open.

    Raises:
        MountBusy: something is in use, and `lazy` was not asked for.
        MountError: it cannot be unmounted.
    """
    if os.geteuid() != 0:
        _detach_with_helper(path, lazy=lazy)
        return
    try:
        libc.umount(path, libc.UMOUNT_NOFOLLOW | (libc.MNT_DETACH if lazy else 0))
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise _busy(path) from error
        raise _not_unmounted(path, os.strerror(error.errno or 0).lower()) from error


def _attach_as_root(fd: int, source: str, options: list[str], flags: int) -> int:
    try:
        device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise FuseUnavailable(
            f"{DEVICE} cannot be opened: {os.strerror(error.errno or 0).lower()}",
            hint="modprobe fuse; in a container: docker run --device /dev/fuse --cap-add SYS_ADMIN",
        ) from error
    data = ",".join([f"fd={device}", f"rootmode={stat.S_IFDIR:o}", "user_id=0", "group_id=0", *options])
    try:
        libc.mount(source, f"/proc/self/fd/{fd}", KIND, flags, data)
    except OSError as error:
        os.close(device)
        raise _refused(error.errno or 0) from error
    return device


def _refused(number: int) -> FuseUnavailable:
    """mount(2) failed with that errno, which says nothing of the mountpoint: that was looked at before."""
    return FuseUnavailable(
        f"the kernel refuses to mount: {os.strerror(number).lower()}",
        hint="in a container: docker run --cap-add SYS_ADMIN --security-opt apparmor=unconfined",
    )


def _attach_with_helper(path: str, source: str, options: list[str]) -> int:
    """fusermount3 opens the device, mounts and sends the descriptor through the socket in _FUSE_COMMFD."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        try:
            with theirs:
                name = source.replace("\\", "\\\\").replace(",", "\\,")
                words = ",".join([*options, f"fsname={name}", f"subtype={KIND.partition('.')[2]}"])
                said = _run([_helper(), "-o", words, "--", path], pass_fd=theirs.fileno())
            if said is not None:
                raise _refusal(path, said)
            return _sent(ours)
        except BaseException:
            _take_back(path, ours)
            raise


def _sent(channel: socket.socket) -> int:
    _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
    if not descriptors:
        raise FuseUnavailable("fusermount3 mounted, but sent no descriptor", hint=_INSTALL_FUSE)
    try:
        os.set_inheritable(descriptors[0], False)
    except OSError:
        os.close(descriptors[0])
        raise
    return descriptors[0]


def _take_back(path: str, channel: socket.socket) -> None:
    """Unmount what fusermount3 has mounted before something went wrong, in it or here: a mount that nobody serves."""
    with contextlib.suppress(OSError, SecretFSError):
        while channel.recv(1):  # to the end of file: fusermount3 has ended, even if it could not be waited for
            pass
        if mountinfo.find(path) is not None and is_dead(path):
            _detach_with_helper(path, lazy=True)


def _detach_with_helper(path: str, *, lazy: bool) -> None:
    said = _run([_helper(), "-u", *(["-z"] if lazy else []), "--", path])
    if said is None:
        return
    if "busy" in said.lower():
        raise _busy(path)
    raise _not_unmounted(path, said)


def _run(command: list[str], *, pass_fd: int | None = None) -> str | None:
    """Run the helper; None if it succeeded, else what it said."""
    environment = {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    if pass_fd is not None:
        environment["_FUSE_COMMFD"] = str(pass_fd)
    done = subprocess.run(
        command, env=environment, pass_fds=() if pass_fd is None else (pass_fd,), stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", check=False,
    )  # fmt: skip
    if done.returncode == 0:
        return None
    said = done.stderr.replace(f"{command[0]}: ", "").replace("fusermount3: ", "").strip().replace("\n", "; ")
    return said or f"exit code {done.returncode}"


def _refusal(path: str, said: str) -> SecretFSError:
    if "user_allow_other" in said:
        return FuseUnavailable(
            "an ordinary user may not use --allow-other here",
            hint="root adds the line user_allow_other to /etc/fuse.conf",
        )
    if DEVICE in said or "fuse device" in said or "modprobe" in said:
        return FuseUnavailable(f"FUSE cannot be used: {said}", hint="chmod 666 /dev/fuse, as udev does by default")
    if "mount failed" in said and "permission denied" in said.lower():
        return _refused(errno.EACCES)
    if "mountpoint" in said or "permission" in said.lower():
        return MountpointError(f"the mountpoint {path!r} is refused: {said}", hint="mount on a directory of your own")
    if "not permitted" in said.lower():
        return FuseUnavailable(f"fusermount3 failed: {said}", hint=_privileges_hint())
    return FuseUnavailable(f"fusermount3 failed: {said}", hint="root may mount without it; `man fusermount3`")


def _privileges_hint() -> str:
    """Why fusermount3, a set-user-ID program, has no privileges."""
    if libc.proc_status("NoNewPrivs") == "1":
        return "start without no_new_privs (systemd: NoNewPrivileges=no), which takes fusermount3's privileges away"
    helper = _helper()
    if not os.stat(helper).st_mode & stat.S_ISUID:
        return f"chmod u+s {quoted(os.path.realpath(helper))} as root, or apt-get install --reinstall fuse3"
    return "in a container: docker run --cap-add SYS_ADMIN; elsewhere look for a mount with nosuid over fusermount3"


def _busy(path: str) -> MountBusy:
    name = quoted(path)
    return MountBusy(
        f"{path!r} is in use", hint=f"close what uses it (fuser -vm {name}), or secretfs umount --lazy {name}"
    )


def _not_unmounted(path: str, reason: str) -> MountError:
    return MountError(f"{path!r} cannot be unmounted: {reason}", hint=f"as root: umount --lazy {quoted(path)}")


def _helper() -> str:
    """fusermount3; not through PATH alone, because mount(8) and units run with odd ones."""
    found = shutil.which("fusermount3")
    for candidate in ((found,) if found else ()) + _HELPERS:
        if os.access(candidate, os.X_OK):
            return candidate
    raise FuseUnavailable("fusermount3 is not installed, and only root can mount without it", hint=_INSTALL_FUSE)
