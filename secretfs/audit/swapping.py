"""The attack by swap: the kernel is made to write a process's memory to a swap file, and the file is searched.

Two means: a memory cgroup that is squeezed, as a machine short of memory squeezes all of them; and process_madvise(2),
where no group can be made. "held" is said only if other memory of that same process has been swapped.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator

from secretfs import libc
from secretfs.audit import calls, spaces
from secretfs.audit.machine import wait_for
from secretfs.audit.model import NotTriedError
from secretfs.audit.needle import CHUNK, Needle
from secretfs.audit.subjects import Target
from secretfs.audit.undo import Undo

__all__ = ["swap"]

_MADV_PAGEOUT = 21
_SIZE = 64 << 20
"""Bytes of the swap file: several times what a victim has, else the last of it would go elsewhere or nowhere."""
_PRIORITY = 0x8000 | 32767  # SWAP_FLAG_PREFER, before all others


def swap(target: Target) -> bool:
    """Have its process written to a swap file of ours, as far as the kernel does it, and search the file."""
    if shutil.which("mkswap") is None:
        raise NotTriedError("mkswap is not installed")
    with _swap_file() as path, Undo() as undo:
        means = _page_out(target, undo)
        leaked = wait_for(lambda: bool(_page_out(target, undo)) and _is_in(target.needle, path))
        swapped = _swapped(target.pid)
    if not (leaked or swapped):
        raise NotTriedError(f"nothing of it could be swapped ({means})")
    target.detail = f"{means}: {swapped >> 10} KiB of its process were swapped"
    return leaked


def _page_out(target: Target, undo: Undo) -> str:
    """Have all of it swapped that can be; by what means, in words."""
    if target.group is not None:
        target.group.squeeze(undo)
        if _swapped(target.pid):
            return target.group.means
    with calls.pidfd(target.pid) as pidfd:
        for one in spaces.mappings(target.pid):
            with contextlib.suppress(OSError):  # EINVAL: it is locked
                calls.process_madvise(pidfd, one.start, one.size, _MADV_PAGEOUT)
    return "process_madvise(2)"


def _swapped(pid: int) -> int:
    """Bytes of a process that are in swap (proc(5))."""
    return int((libc.proc_status("VmSwap", pid) or "0").split()[0]) << 10


def _is_in(needle: Needle, path: str) -> bool:
    """Whether a needle is in a file on its disk: the kernel swaps past the page cache."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    zeros = bytes(CHUNK)
    try:
        with mmap.mmap(-1, CHUNK) as block, memoryview(block) as view:  # whole pages, which O_DIRECT wants
            while got := os.readv(fd, [block]):
                buffer = bytearray(view[:got])
                view[:] = zeros
                if buffer != zeros and needle.in_buffer(buffer):
                    return True
        return False
    finally:
        os.close(fd)


@contextlib.contextmanager
def _swap_file() -> Iterator[str]:
    folder = "/var/tmp" if os.path.isdir("/var/tmp") else tempfile.gettempdir()  # noqa: S108
    fd, path = tempfile.mkstemp(prefix="secretfs-audit-swap-", dir=folder)
    with Undo() as undo, undo.unless_done("unlink", path):
        try:
            try:
                for _ in range(_SIZE // CHUNK):
                    os.write(fd, bytes(CHUNK))  # fallocate(2) would leave what nobody can read afterwards
                os.fsync(fd)
                subprocess.run(["mkswap", path], check=True, capture_output=True, timeout=20)
            except (OSError, subprocess.SubprocessError) as error:
                raise NotTriedError(f"no swap file can be made in {folder}") from error
            with undo.unless_done("swapoff", path):
                try:
                    calls.swapon(path, _PRIORITY)
                except OSError as error:
                    raise NotTriedError(f"no swap file can be used in {folder}: {error.strerror}") from error
                try:
                    yield path
                finally:
                    calls.swapoff(path)
        finally:
            os.close(fd)
            os.unlink(path)
