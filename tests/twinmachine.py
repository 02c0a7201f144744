"""The random system calls that are made in two trees at once."""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule
from twinbase import (
    DEVICES,
    FAR,
    FLAG_SET,
    KINDS,
    LENGTH,
    MODES,
    NO_FILE,
    OFFSET,
    PAGE,
    PATH,
    PICK,
    TIMES,
    USER,
    XATTRS,
    TwinBase,
)
from twins import BLOCKS, MODE, SIZE


class TwinMachine(TwinBase):
    """One rule for each call."""

    # Names

    @initialize()
    def start(self) -> None:
        """A few things to begin with."""
        for user, name in ((0, b"/a"), (1, b"/b")):
            self.ask(user, "mkdir", name, 0o777)
        for user, name in ((0, b"/a/a"), (1, b"/b/b"), (2, b"/c")):
            self.opened_file(user, name)
        self.ask(0, "symlink", b"../c", b"/a/d")
        self.ask(2, "symlink", b"/a", b"/d")
        self.paths = self.twins.look()

    @rule(user=USER, path=PATH, access=st.sampled_from([0, 1, 2, 2, 2, 3]), flags=FLAG_SET, mode=st.sampled_from(MODES))
    def open(self, user: int, path: Any, access: int, flags: int, mode: int) -> None:
        self.next += 1
        number = self.next
        code, _ = self.ask(user, "open", number, self.path(path, user), access | flags | os.O_NONBLOCK, mode)
        if code == 0:
            self.handles[user % len(self.handles)].append(number)

    @rule(user=USER, path=PATH, mode=st.sampled_from(MODES))
    def mkdir(self, user: int, path: Any, mode: int) -> None:
        self.ask(user, "mkdir", self.path(path, user), mode)

    @rule(user=USER, path=PATH, folder=st.booleans())
    def remove(self, user: int, path: Any, folder: bool) -> None:
        where = self.path(path, user)
        code, _ = self.ask(user, "rmdir" if folder else "unlink", where)
        if code in (errno.EISDIR, errno.ENOTDIR):
            self.ask(user, "unlink" if folder else "rmdir", where)

    @rule(user=USER, old=PATH, new=PATH, flags=st.sampled_from([0, 0, 0, 0, 1, 1, 2, 2, 3, 8]))
    def rename(self, user: int, old: Any, new: Any, flags: int) -> None:
        self.ask(user, "rename", self.path(old, user), self.path(new, user), flags)

    @rule(user=USER, old=PATH, new=PATH, flags=st.sampled_from([0, 0, 0x400, 0x1000]))
    def link(self, user: int, old: Any, new: Any, flags: int) -> None:
        if flags == 0x1000:  # AT_EMPTY_PATH
            handle = self.handle(user, old[1])
            if handle is None:
                return
            self.ask(user, "link", (handle, b""), self.path(new, user), flags)
        else:
            self.ask(user, "link", self.path(old, user), self.path(new, user), flags)

    @rule(user=USER, to=PATH, path=PATH, length=st.sampled_from([0, 0, 0, 1, 60, 127, 128, 4000, 4095]))
    def symlink(self, user: int, to: Any, path: Any, length: int) -> None:
        wanted = b"t" * length if length else self.name(to, user)
        self.ask(user, "symlink", wanted, self.path(path, user))

    @rule(user=USER, path=PATH)
    def readlink(self, user: int, path: Any) -> None:
        self.ask(user, "readlink", self.path(path, user))

    @rule(user=USER, path=PATH, pick=PICK, mode=st.sampled_from(MODES),
          kind=st.sampled_from(KINDS))  # fmt: skip
    def mknod(self, user: int, path: Any, kind: int, pick: int, mode: int) -> None:
        devices = DEVICES.get(kind, (0, 5))
        self.ask(user, "mknod", self.path(path, user), kind | mode, devices[pick % len(devices)])

    @rule(user=USER, path=PATH, connect=st.booleans())
    def socket(self, user: int, path: Any, connect: bool) -> None:
        name = self.name(path, user)
        if len(name) < 100:
            self.ask(user, "connect" if connect else "bind", name)

    @rule(user=USER, path=PATH)
    def chdir(self, user: int, path: Any) -> None:
        self.ask(user, "chdir", self.name(path, user))
        self.ask(user, "getcwd")

    @rule(user=USER, path=PATH)
    def listdir(self, user: int, path: Any) -> None:
        self.ask(user, "listdir", self.name(path, user))

    # Attributes

    @rule(user=USER, path=PATH, follow=st.booleans())
    def stat(self, user: int, path: Any, follow: bool) -> None:
        self.ask(user, "stat", self.path(path, user), follow)

    @rule(user=USER, path=PATH, mode=st.integers(0, 7), effective=st.booleans(), follow=st.booleans())
    def access(self, user: int, path: Any, mode: int, effective: bool, follow: bool) -> None:
        self.ask(user, "access", self.path(path, user), mode, effective, follow)

    @rule(user=USER, path=PATH, mode=st.sampled_from(MODES))
    def chmod(self, user: int, path: Any, mode: int) -> None:
        self.ask(user, "chmod", self.where(user, path), mode)

    @rule(user=USER, path=PATH, uid=st.sampled_from([-1, 0, 1001, 1002, 65534]), follow=st.booleans(),
          gid=st.sampled_from([-1, 0, 1001, 1002, 2001, 2002, 65534]))  # fmt: skip
    def chown(self, user: int, path: Any, uid: int, gid: int, follow: bool) -> None:
        if follow:
            self.ask(user, "chown", self.where(user, path), uid, gid)
        else:
            self.ask(user, "lchown", self.name(path, user), uid, gid)

    @rule(user=USER, path=PATH, size=FAR)
    def truncate(self, user: int, path: Any, size: int) -> None:
        self.ask(user, "truncate", self.where(user, path), size)

    @rule(user=USER, path=PATH)
    def truncate_to_its_size(self, user: int, path: Any) -> None:
        where = self.where(user, path)
        code, facts = self.ask(user, "fstat", where) if isinstance(where, int) else self.ask(user, "stat", where, True)
        if code == 0:
            self.ask(user, "truncate", where, facts[SIZE])

    @rule(user=USER, path=PATH, follow=st.booleans(), atime=st.sampled_from(TIMES), mtime=st.sampled_from(TIMES))
    def utimens(self, user: int, path: Any, follow: bool, atime: Any, mtime: Any) -> None:
        self.ask(user, "utimens", self.where(user, path), follow, atime, mtime)

    @rule(user=USER, mask=st.sampled_from([0, 0o022, 0o027, 0o077, 0o777]))
    def umask(self, user: int, mask: int) -> None:
        self.ask(user, "umask", mask)

    @rule(user=USER, path=PATH, name=st.sampled_from(XATTRS), length=st.sampled_from([0, 1, 10, 64, 300, 4096]),
          flags=st.sampled_from([0, 0, os.XATTR_CREATE, os.XATTR_REPLACE]), follow=st.booleans())  # fmt: skip
    def setxattr(self, user: int, path: Any, name: bytes, length: int, flags: int, follow: bool) -> None:
        self.ask(user, "setxattr", self.where(user, path), name, self.data(length), flags, follow)

    @rule(user=USER, path=PATH, rights=st.sampled_from([0, 1 << 10]))
    def setcap(self, user: int, path: Any, rights: int) -> None:
        """File capabilities, which writing takes away."""
        value = b"\x01\x00\x00\x02" + rights.to_bytes(4, "little") + bytes(12)
        self.ask(user, "setxattr", self.where(user, path), b"security.capability", value, 0, True)

    @rule(
        user=USER,
        path=PATH,
        name=st.sampled_from([*XATTRS, b"security.capability"]),
        size=st.sampled_from([0, 1, 10, 65536]),
        follow=st.booleans(),
    )
    def getxattr(self, user: int, path: Any, name: bytes, size: int, follow: bool) -> None:
        self.ask(user, "getxattr", self.where(user, path), name, size, follow)

    @rule(user=USER, path=PATH, follow=st.booleans())
    def listxattr(self, user: int, path: Any, follow: bool) -> None:
        self.ask(user, "listxattr", self.where(user, path), follow)

    @rule(user=USER, path=PATH, name=st.sampled_from(XATTRS), follow=st.booleans())
    def removexattr(self, user: int, path: Any, name: bytes, follow: bool) -> None:
        self.ask(user, "removexattr", self.where(user, path), name, follow)

    # Descriptors

    @rule(user=USER, pick=PICK, length=LENGTH)
    def read(self, user: int, pick: int, length: int) -> None:
        self.on(user, pick, "read", length + 1)  # FUSE has no request to read nothing, which would set the access time

    @rule(user=USER, pick=PICK, length=LENGTH)
    def write(self, user: int, pick: int, length: int) -> None:
        self.on(user, pick, "write", self.data(length))

    @rule(user=USER, pick=PICK, length=LENGTH, offset=FAR)
    def pread(self, user: int, pick: int, length: int, offset: int) -> None:
        self.on(user, pick, "pread", length + 1, offset)

    @rule(user=USER, pick=PICK, length=LENGTH, offset=FAR)
    def pwrite(self, user: int, pick: int, length: int, offset: int) -> None:
        self.on(user, pick, "pwrite", self.data(length), offset)

    @rule(user=USER, pick=PICK, length=LENGTH, offset=OFFSET, flags=st.sampled_from([os.RWF_APPEND, os.RWF_SYNC, 0x20]))
    def pwritev2(self, user: int, pick: int, length: int, offset: int, flags: int) -> None:
        self.on(user, pick, "pwritev2", self.data(length), offset, flags)

    @rule(user=USER, pick=PICK, lengths=st.lists(LENGTH, min_size=1, max_size=4), writes=st.booleans())
    def vector(self, user: int, pick: int, lengths: list[int], writes: bool) -> None:
        if writes:
            self.on(user, pick, "writev", [self.data(length) for length in lengths])
        else:
            self.on(user, pick, "readv", [*lengths, 1])

    @rule(user=USER, pick=PICK, offset=FAR, whence=st.sampled_from([0, 0, 1, 2]))
    def lseek(self, user: int, pick: int, offset: int, whence: int) -> None:
        handle = self.handle(user, pick)
        code, facts = self.ask(user, "fstat", handle) if handle is not None else (-1, None)
        if code == 0 and stat.S_ISDIR(facts[MODE]):
            offset = whence = 0  # no other place has the same meaning in both: docs/differences.md
        if code == 0:
            self.ask(user, "lseek", handle, offset, whence)

    @rule(user=USER, pick=PICK)
    def fstat(self, user: int, pick: int) -> None:
        self.on(user, pick, "fstat")

    @rule(user=USER, pick=PICK, size=FAR)
    def ftruncate(self, user: int, pick: int, size: int) -> None:
        self.on(user, pick, "truncate", size)

    @rule(user=USER, pick=PICK, far=OFFSET, size=OFFSET, near=OFFSET, length=LENGTH)
    def punch(self, user: int, pick: int, far: int, size: int, near: int, length: int) -> None:
        """Holes are made by writing far out, cut, and written into."""
        self.on(user, pick, "pwrite", self.data(length), far)
        self.on(user, pick, "truncate", size)
        self.on(user, pick, "pwrite", self.data(length), near)
        self.on(user, pick, "pread", 70_000, 0)

    @rule(user=USER, pick=PICK)
    def close(self, user: int, pick: int) -> None:
        handle = self.handle(user, pick)
        if handle is not None:
            self.handles[user % len(self.handles)].remove(handle)
            self.ask(user, "close", handle)

    @rule(user=USER, pick=PICK)
    def dup(self, user: int, pick: int) -> None:
        handle = self.handle(user, pick)
        if handle is not None:
            self.next += 1
            self.ask(user, "dup", handle, self.next)
            self.handles[user % len(self.handles)].append(self.next)

    @rule(user=USER, pick=PICK, data=st.booleans())
    def fsync(self, user: int, pick: int, data: bool) -> None:
        self.on(user, pick, "fsync", data)

    @rule(
        user=USER,
        pick=PICK,
        flags=st.sampled_from([0, os.O_APPEND, os.O_NOATIME, os.O_DIRECT, os.O_APPEND | os.O_NOATIME]),
    )
    def set_flags(self, user: int, pick: int, flags: int) -> None:
        self.on(user, pick, "set_flags", flags | os.O_NONBLOCK)

    @rule(user=USER, pick=PICK)
    def list(self, user: int, pick: int) -> None:
        self.on(user, pick, "list")

    @rule(user=USER, pick=PICK)
    def fchdir(self, user: int, pick: int) -> None:
        self.on(user, pick, "fchdir")

    @rule(user=USER, source=PICK, sink=PICK, count=LENGTH, here=st.none() | OFFSET, there=st.none() | OFFSET)
    def copy(self, user: int, source: int, sink: int, count: int, here: int | None, there: int | None) -> None:
        first, second = self.handle(user, source), self.handle(user, sink)
        if first is not None and second is not None:
            self.ask(user, "copy", first, second, count + 1, here, there)

    @rule(user=USER, source=PICK, sink=PICK, count=LENGTH, offset=st.none() | OFFSET)
    def sendfile(self, user: int, source: int, sink: int, count: int, offset: int | None) -> None:
        first, second = self.handle(user, source), self.handle(user, sink)
        if first is not None and second is not None:
            self.ask(user, "sendfile", second, first, offset, count + 1)

    @rule(user=USER, source=PICK, sink=PICK, count=LENGTH, here=st.none() | OFFSET, there=st.none() | OFFSET)
    def splice(self, user: int, source: int, sink: int, count: int, here: int | None, there: int | None) -> None:
        first, second = self.handle(user, source), self.handle(user, sink)
        if first is not None and second is not None:
            self.ask(user, "splice", first, second, count + 1, here, there)

    @rule(user=USER, pick=PICK, length=LENGTH, page=st.integers(0, 5))
    def map(self, user: int, pick: int, length: int, page: int) -> None:
        """What was written is seen through a private mapping."""
        handle = self.handle(user, pick)
        if handle is None:
            return
        code, facts = self.ask(user, "fstat", handle)
        if code or not stat.S_ISREG(facts[MODE]) or facts[BLOCKS] * 512 < facts[SIZE]:
            return  # a tmpfs fills holes when they are looked at
        left = facts[SIZE] - page * PAGE
        if left > 0:  # beyond the end is SIGBUS
            self.ask(user, "map", handle, min(length + 1, left), page * PAGE)

    @rule(user=USER, size=st.sampled_from([0, 100, 4096, 10_000, 1 << 30]))
    def limit_size(self, user: int, size: int) -> None:
        """RLIMIT_FSIZE: then EFBIG."""
        self.ask(user, "limit_size", size)

    # What a secretfs does not serve: docs/differences.md. It must fail, and change nothing.

    @rule(user=USER, pick=PICK, mode=st.sampled_from([0, 1, 3, 0x10, 0x11, 8, 0x20]), offset=OFFSET, length=LENGTH)
    def fallocate(self, user: int, pick: int, mode: int, offset: int, length: int) -> None:
        self.refused(user, pick, (errno.EOPNOTSUPP, *NO_FILE, errno.EFBIG), "fallocate", mode, offset, length + 1)

    @rule(user=USER, pick=PICK)
    def ioctl(self, user: int, pick: int) -> None:
        """FS_IOC_GETFLAGS."""
        self.refused(user, pick, (errno.ENOTTY, *NO_FILE), "ioctl", 0x80086601)

    @rule(user=USER, path=PATH)
    def tmpfile(self, user: int, path: Any) -> None:
        _, actual = self.twins.pairs[user % len(self.twins.pairs)]
        code, _ = actual.ask("open", 0, self.name(path, user), os.O_TMPFILE | os.O_RDWR, 0o600)
        assert code in (errno.EOPNOTSUPP, errno.EACCES, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)

    @rule(user=USER, pick=PICK, whence=st.sampled_from([os.SEEK_DATA, os.SEEK_HOLE]), offset=OFFSET)
    def seek(self, user: int, pick: int, whence: int, offset: int) -> None:
        """All is data up to the end, where the hole is."""
        handle = self.handle(user, pick)
        code, facts = self.ask(user, "fstat", handle) if handle is not None else (-1, None)
        if code == 0 and stat.S_ISREG(facts[MODE]) and self.ask(user, "lseek", handle, 0, 0)[0] == 0:
            _, actual = self.twins.pairs[user % len(self.twins.pairs)]
            there = (0, offset if whence == os.SEEK_DATA else facts[SIZE])
            found = actual.ask("lseek", handle, offset, whence)
            assert found == (there if offset < facts[SIZE] else (errno.ENXIO, None)), found
            self.ask(user, "lseek", handle, 0, 0)

    @rule()
    def read_all(self) -> None:
        self.twins.read_all()
