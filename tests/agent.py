#!/usr/bin/python3
"""A process that makes system calls on command: one of several users of a file system.

    agent.py ROOT UID GID [GROUPS]

It goes into the directory ROOT for good (chroot(2), where it is root: absolute paths and symbolic links then mean the
same in every tree), becomes that user, and answers commands on its standard input and output: pickles of
(name, arguments), answered by (errno or 0, result). Descriptors are known by numbers that the commander gives.

Standard library only: it runs as users who cannot read the project. `twins.py` commands it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import pickle
import resource
import signal
import socket
import stat
import sys
import time
from typing import Any, TypeAlias

Path: TypeAlias = "bytes | tuple[int, bytes]"
"""A path, or one relative to a descriptor."""

AT_FDCWD = -100
REALTIME_COARSE = 5  # clock_gettime(2): the clock of the kernel's timestamps
libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> int:
    """A call into the C library; OSError where it fails."""
    done: int = getattr(libc, name)(*arguments)
    if done < 0:
        raise OSError(ctypes.get_errno(), name)
    return done


def facts(found: os.stat_result) -> tuple[int, ...]:
    """What stat(2) tells, but for the device."""
    return (
        found.st_ino, found.st_mode, found.st_nlink, found.st_uid, found.st_gid, found.st_rdev, found.st_size,
        found.st_blocks, found.st_blksize, found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns,
    )  # fmt: skip


class Agent:
    """Its descriptors, and one method for each call."""

    def __init__(self) -> None:
        self.fds: dict[int, int] = {}
        self.sockets: dict[int, socket.socket] = {}

    def answer(self, name: str, arguments: tuple[Any, ...]) -> tuple[int, Any]:
        try:
            return 0, getattr(self, name)(*arguments)
        except OSError as error:
            return error.errno or -1, None
        except ValueError as error:  # what Python refuses to pass on
            return errno.EINVAL, str(error)

    def at(self, path: Path) -> tuple[bytes, int | None]:
        return (path, None) if isinstance(path, bytes) else (path[1], self.fds[path[0]])

    def target(self, where: int | bytes) -> int | bytes:
        """A descriptor or a path, for the calls that take either."""
        return self.fds[where] if isinstance(where, int) else where

    # Descriptors

    def open(self, number: int, path: Path, flags: int, mode: int) -> None:
        name, directory = self.at(path)
        self.fds[number] = os.open(name, flags, mode, dir_fd=directory)

    def close(self, number: int) -> None:
        os.close(self.fds.pop(number))

    def dup(self, number: int, new: int) -> None:
        self.fds[new] = os.dup(self.fds[number])

    def read(self, number: int, length: int) -> bytes:
        return os.read(self.fds[number], length)

    def pread(self, number: int, length: int, offset: int) -> bytes:
        return os.pread(self.fds[number], length, offset)

    def readv(self, number: int, lengths: list[int]) -> bytes:
        buffers = [bytearray(length) for length in lengths]
        got = os.readv(self.fds[number], buffers)
        return b"".join(buffers)[:got]

    def write(self, number: int, data: bytes) -> int:
        return os.write(self.fds[number], data)

    def pwrite(self, number: int, data: bytes, offset: int) -> int:
        return os.pwrite(self.fds[number], data, offset)

    def writev(self, number: int, parts: list[bytes]) -> int:
        return os.writev(self.fds[number], parts)

    def pwritev2(self, number: int, data: bytes, offset: int, flags: int) -> int:
        return os.pwritev(self.fds[number], [data], offset, flags)

    def lseek(self, number: int, offset: int, whence: int) -> int:
        return os.lseek(self.fds[number], offset, whence)

    def copy(self, source: int, target: int, count: int, here: int | None, there: int | None) -> int:
        done = os.copy_file_range(self.fds[source], self.fds[target], count, here, there)
        self.touch(source, target, done < count)
        return done

    def sendfile(self, target: int, source: int, offset: int | None, count: int) -> int:
        self.refuse_one_file(source, target)
        done = os.sendfile(self.fds[target], self.fds[source], offset, count)
        self.touch(source, target, done < count)
        return done

    def refuse_one_file(self, source: int, target: int) -> None:
        """What is in a pipe on a tmpfs are the file's own pages: they change when it is written."""
        if os.path.sameopenfile(self.fds[source], self.fds[target]):
            raise OSError(errno.EINVAL, "one file")

    def touch(self, source: int, target: int, ended: bool) -> None:
        """On a tmpfs the access time is set anew where the end of the file was met, and after copying within one file:
        read, so that others set it too.
        """
        if ended or os.path.sameopenfile(self.fds[source], self.fds[target]):
            written = time.clock_gettime(REALTIME_COARSE)
            while time.clock_gettime(REALTIME_COARSE) == written:  # else a tmpfs does not know which came first
                time.sleep(0.0005)
            os.pread(self.fds[source], 1, 0)

    def splice(self, source: int, target: int, count: int, here: int | None, there: int | None) -> tuple[int, int]:
        """Through a pipe; what does not get through is lost."""
        self.refuse_one_file(source, target)
        reader, writer = os.pipe()
        try:
            taken = os.splice(self.fds[source], writer, count, here)
            self.touch(source, target, taken < count)
            return taken, os.splice(reader, self.fds[target], taken, None, there) if taken else 0
        finally:
            os.close(reader)
            os.close(writer)

    def map(self, number: int, length: int, offset: int) -> bytes:
        """What is seen through a private mapping, which on a tmpfs sets the access time."""
        with mmap.mmap(self.fds[number], length, mmap.MAP_PRIVATE, mmap.PROT_READ, offset=offset) as mapped:
            found = mapped[:]
        self.touch(number, number, ended=True)
        return found

    def fsync(self, number: int, data: bool) -> None:
        (os.fdatasync if data else os.fsync)(self.fds[number])

    def set_flags(self, number: int, flags: int) -> int:
        fcntl.fcntl(self.fds[number], fcntl.F_SETFL, flags)
        return fcntl.fcntl(self.fds[number], fcntl.F_GETFL)

    def fallocate(self, number: int, mode: int, offset: int, length: int) -> None:
        call("fallocate64", self.fds[number], mode, ctypes.c_long(offset), ctypes.c_long(length))

    def ioctl(self, number: int, request: int) -> bytes:
        return fcntl.ioctl(self.fds[number], request, bytes(8))

    def fchdir(self, number: int) -> None:
        os.fchdir(self.fds[number])

    def list(self, number: int) -> list[tuple[bytes, int]]:
        """The names in an open directory with the types that it says they have."""
        with os.scandir(self.fds[number]) as found:
            return sorted((os.fsencode(each.name), kind(each)) for each in found)

    # Names

    def mkdir(self, path: Path, mode: int) -> None:
        name, directory = self.at(path)
        os.mkdir(name, mode, dir_fd=directory)

    def rmdir(self, path: Path) -> None:
        name, directory = self.at(path)
        os.rmdir(name, dir_fd=directory)

    def unlink(self, path: Path) -> None:
        name, directory = self.at(path)
        os.unlink(name, dir_fd=directory)

    def rename(self, old: Path, new: Path, flags: int) -> None:
        (first, from_), (second, to) = self.at(old), self.at(new)
        here, there = (AT_FDCWD if each is None else each for each in (from_, to))
        call("renameat2", here, first, there, second, flags)

    def link(self, old: Path, new: Path, flags: int) -> None:
        (first, from_), (second, to) = self.at(old), self.at(new)
        here, there = (AT_FDCWD if each is None else each for each in (from_, to))
        call("linkat", here, first, there, second, flags)

    def symlink(self, target: bytes, path: Path) -> None:
        name, directory = self.at(path)
        os.symlink(target, name, dir_fd=directory)

    def readlink(self, path: Path) -> bytes:
        name, directory = self.at(path)
        return os.readlink(name, dir_fd=directory)

    def mknod(self, path: Path, mode: int, device: int) -> None:
        name, directory = self.at(path)
        os.mknod(name, mode, device, dir_fd=directory)

    def chdir(self, path: bytes) -> None:
        os.chdir(path)

    def getcwd(self) -> bytes:
        return os.getcwdb()

    def listdir(self, path: bytes) -> list[bytes]:
        return sorted(os.listdir(path))

    def bind(self, path: bytes) -> None:
        """A socket that is gone again, and the name that it leaves."""
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)

    def connect(self, path: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as client:
            client.connect(path)

    # Attributes

    def stat(self, path: Path, follow: bool) -> tuple[int, ...]:
        name, directory = self.at(path)
        return facts(os.stat(name, dir_fd=directory, follow_symlinks=follow))

    def fstat(self, number: int) -> tuple[int, ...]:
        return facts(os.fstat(self.fds[number]))

    def access(self, path: Path, mode: int, effective: bool, follow: bool) -> None:
        name, directory = self.at(path)
        flags = effective * 0x200 | (not follow) * 0x100
        call("faccessat", AT_FDCWD if directory is None else directory, name, mode, flags)

    def chmod(self, where: int | bytes, mode: int) -> None:
        os.chmod(self.target(where), mode)

    def chown(self, where: int | bytes, uid: int, gid: int) -> None:
        os.chown(self.target(where), uid, gid)

    def lchown(self, path: bytes, uid: int, gid: int) -> None:
        os.lchown(path, uid, gid)

    def truncate(self, where: int | bytes, size: int) -> None:
        os.truncate(self.target(where), size)

    def utimens(self, where: int | bytes, follow: bool, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
        times = (ctypes.c_long * 4)(*atime, *mtime)
        if isinstance(where, int):
            call("futimens", self.fds[where], times)
        else:
            call("utimensat", AT_FDCWD, where, times, 0 if follow else 0x100)

    def umask(self, mask: int) -> int:
        return os.umask(mask)

    def statvfs(self, where: int | bytes) -> tuple[int, ...]:
        """Block size, length of names, inodes in all and free, blocks in all and free."""
        full = os.statvfs(self.target(where))
        return full.f_bsize, full.f_namemax, full.f_files, full.f_ffree, full.f_blocks, full.f_bfree

    def limit_size(self, size: int) -> None:
        """The longest file that this process may make."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    # Extended attributes

    def setxattr(self, where: int | bytes, name: bytes, value: bytes, flags: int, follow: bool) -> None:
        os.setxattr(self.target(where), name, value, flags, **links(where, follow))

    def getxattr(self, where: int | bytes, name: bytes, size: int, follow: bool) -> tuple[int, bytes]:
        """With a buffer of `size` bytes: 0 asks how long the value is."""
        buffer = ctypes.create_string_buffer(size or 1)
        prefix = "f" if isinstance(where, int) else "" if follow else "l"
        length = call(f"{prefix}getxattr", self.target(where), name, buffer if size else None, size)
        return length, buffer.raw[:length] if size else b""

    def listxattr(self, where: int | bytes, follow: bool) -> list[bytes]:
        return sorted(os.fsencode(name) for name in os.listxattr(self.target(where), **links(where, follow)))

    def removexattr(self, where: int | bytes, name: bytes, follow: bool) -> None:
        os.removexattr(self.target(where), name, **links(where, follow))

    # For whoever looks at the tree as a whole

    def tree(self) -> list[tuple[bytes, tuple[int, ...], bytes]]:
        """Every path below with what lstat(2) says, and the targets of links; directories before what is in them."""
        found = []
        pending = [b"."]
        while pending:
            path = pending.pop()
            status = os.lstat(path)
            target = os.readlink(path) if stat.S_ISLNK(status.st_mode) else b""
            found.append((path, facts(status), target))
            if stat.S_ISDIR(status.st_mode):
                pending += sorted(os.path.join(path, name) for name in os.listdir(path))
        return found

    def contents(self, path: bytes) -> tuple[bytes, dict[bytes, bytes]]:
        """A digest of the first megabyte of a regular file, and the extended attributes of anything."""
        data = b""
        if stat.S_ISREG(os.lstat(path).st_mode):
            with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOATIME)) as file:
                data = hashlib.sha256(file.read(1 << 20)).digest()
        names = [os.fsencode(name) for name in os.listxattr(path, follow_symlinks=False)]
        return data, {name: os.getxattr(path, name, follow_symlinks=False) for name in names}

    def close_all(self) -> None:
        for number in list(self.fds):
            self.close(number)

    def clear(self) -> None:
        """Remove everything below; the mode, owner, attributes and times of the root are as new."""
        pending = [(path, status) for path, status, _ in self.tree()[1:]]
        for path, status in reversed(pending):
            (os.rmdir if stat.S_ISDIR(status[1]) else os.unlink)(path)
        for name in os.listxattr(b"."):
            os.removexattr(b".", name)
        os.chown(b".", 0, 0)
        os.chmod(b".", 0o777)
        os.utime(b".", (1, 1))

    def restart(self) -> None:
        """Be as in the beginning."""
        os.chdir(b"/")
        os.umask(0o022)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def links(where: int | bytes, follow: bool) -> dict[str, bool]:
    return {} if isinstance(where, int) else {"follow_symlinks": follow}


def kind(entry: os.DirEntry[str]) -> int:
    """The type that readdir(3) tells, without asking stat(2)."""
    if entry.is_dir(follow_symlinks=False):
        return 4
    return 8 if entry.is_file(follow_symlinks=False) else 10 if entry.is_symlink() else 0


def main(root: str, uid: int, gid: int, groups: list[int]) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    os.umask(0o022)
    os.chdir(root)
    if os.geteuid() == 0:
        os.chroot(".")
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    agent, commands, answers = Agent(), sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            name, arguments = pickle.load(commands)
        except EOFError:
            return
        pickle.dump(agent.answer(name, arguments), answers)
        answers.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), [int(word) for word in sys.argv[4:]])
