"""Backing for root: a tmpfs that is mounted nowhere, watched by fanotify(7).

What the kernel then does by itself: executable mappings are refused (the mount is noexec); read(2), splice(2), io_uring
and their like on any descriptor are refused with EPERM; a second open is refused; the file name, link count and core
dumps are those of secret memory. And it tells when the last descriptor and the last mapping of a file are gone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct

from secretfs_emulator.supervisor import system
from secretfs_emulator.supervisor.backing import FILE_NAME, Area, Key, forget, give, lock_pages, wipe_file

__all__ = ["TmpfsBacking"]

_CLOSE_WRITE, _OPEN_PERM, _ACCESS_PERM = 0x8, 0x10000, 0x20000
_EVENT = struct.Struct("=IBBHQii")  # struct fanotify_event_metadata
_RESPONSE = struct.Struct("=iI")
_DENY = 2
_LEAKS = (
    "root, and any process outside the command's tree that may trace it, can read the memory",
    "the pages are in the kernel's direct map, and are wiped by the supervisor only: not after its kill -9",
    "a descriptor below the reserved numbers (dup2, SCM_RIGHTS, pidfd_getfd) answers some calls differently",
)


class TmpfsBacking:
    """See `backing.Backing`."""

    name = "tmpfs"
    lacks: tuple[str, ...] = _LEAKS

    def __init__(self) -> None:
        """Mount and mark.

        Raises:
            OSError: CAP_SYS_ADMIN is missing, or the kernel's fanotify cannot refuse.
        """
        self.areas: dict[Key, Area] = {}
        self._made = 0
        self._root, self._swaps = _mount()
        try:
            self._group = system.fanotify_init()
            # Before any file is opened: whether an open file asks for permission is fixed by then.
            system.fanotify_mark(self._group, _ACCESS_PERM | _CLOSE_WRITE, self._root, filesystem=True)
        except BaseException:
            os.close(self._root)
            raise
        self.device = os.fstat(self._root).st_dev
        self.keep: tuple[int, ...] = (self._root, self._group)

    def create(self, uid: int, gid: int) -> tuple[Area, int]:
        """See `backing.Backing.create`. The file keeps one hidden link, so that it counts as a file and not as
        shared anonymous memory, which core dumps have.
        """
        self._made += 1
        name = f"kept{self._made}"
        fd = os.open(FILE_NAME, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self._root)
        try:
            os.link(FILE_NAME, name, src_dir_fd=self._root, dst_dir_fd=self._root)
            os.unlink(FILE_NAME, dir_fd=self._root)
            reader = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._root) if self._swaps else -1
            system.fanotify_mark(self._group, _OPEN_PERM, fd)
            give(fd, uid, gid)
        except BaseException:
            for left in (FILE_NAME, name):  # or no other could be made
                with contextlib.suppress(OSError):
                    os.unlink(left, dir_fd=self._root)
            os.close(fd)
            raise
        area = Area((self.device, os.fstat(fd).st_ino), name, reader)
        self.areas[area.key] = area
        return area, fd

    def reopen(self, area: Area) -> int:
        """See `backing.Backing.reopen`. The end of one is taken for the end of all."""
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    def resize(self, area: Area, size: int) -> None:
        """See `backing.Backing.resize`. By name: an open file of ours would be one more to be closed."""
        os.truncate(f"/proc/self/fd/{self._root}/{area.name}", size)
        area.size = size

    def hold(self, area: Area) -> None:
        """See `backing.Backing.hold`. Before Linux 6.4 a tmpfs may be swapped: then the pages are locked."""
        if self._swaps:
            lock_pages(area)

    def attend(self) -> None:
        """See `backing.Backing.attend`."""
        events = os.read(self._group, 1 << 14)
        at = 0
        while at < len(events):
            length, _, _, _, mask, fd, _ = _EVENT.unpack_from(events, at)
            at += length
            if fd < 0:
                continue
            with contextlib.ExitStack() as each:  # what fails with one of them does not keep us from the others
                each.callback(os.close, fd)
                each.enter_context(contextlib.suppress(OSError))
                if mask & (_OPEN_PERM | _ACCESS_PERM):
                    os.write(self._group, _RESPONSE.pack(fd, _DENY))
                elif mask & _CLOSE_WRITE:
                    self._closed(fd)

    def _closed(self, fd: int) -> None:
        area = self.areas.pop((self.device, os.fstat(fd).st_ino), None)
        if area is not None:
            try:
                wipe_file(fd)
            finally:
                forget(area)
                os.unlink(area.name, dir_fd=self._root)


def _mount() -> tuple[int, bool]:
    """The root of the mount, and whether its pages may go to swap."""
    options: dict[str, str | None] = {"size": "0", "nr_inodes": "0", "mode": "0700", "noswap": None}
    try:
        return system.fsopen_tmpfs(options), False
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    del options["noswap"]  # came with Linux 6.4
    return system.fsopen_tmpfs(options), True
