"""Looks at other processes: descriptors, mappings, limits, capabilities; never through a path that they name.

What is seen under a number is of that process only if its call is still waiting afterwards (`Listener.valid`), or, for
one that is no caller, if its pidfd is alive afterwards: numbers are used again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import signal

from secretfs_emulator.supervisor import system

__all__ = [
    "UNSEEN",
    "Process",
    "Status",
    "descriptor_numbers",
    "file_of",
    "flags_of",
    "identity",
    "in_first_user_namespace",
    "lock_limit",
    "mapped_ranges",
    "memory",
    "pidfd_of",
    "position_of",
    "proc_is_ours",
    "short",
    "string",
    "translate",
]

_FIRST_USER_NAMESPACE = 0xEFFFFFFD  # PROC_USER_INIT_INO of linux/proc_ns.h
UNSEEN = (FileNotFoundError, ProcessLookupError, PermissionError)
"""Why a process cannot be looked at: it has gone, or hides. Anything else is a want of ours (`short`)."""
_SHORT = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO}
Process = tuple[int, int]
"""A process by its number and when it was started: nobody else is ever both."""
_processes: dict[Process, Process] = {}  # by thread, which is named in the same way
_MOST_KNOWN = 4096
_CHUNK = 1 << 16
_PAGE = 4096
_OURS = re.compile(r"/secretmem \(deleted\)$|/memfd:|.*/\d+/mem$", re.DOTALL)


def short(error: OSError) -> bool:
    """Whether it was for want of memory or descriptors that a process could not be looked at."""
    return error.errno in _SHORT


def proc_is_ours() -> bool:
    """Whether /proc numbers processes as we do."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False


def file_of(pid: int, fd: int) -> os.stat_result | None:
    """What descriptor `fd` of a process is; None if it is not open, or cannot be anything of ours by its name.

    Only a file of ours is asked itself: any other may be on a file system that does not answer, or is served by a
    program that waits for us.

    Raises:
        PermissionError: an ordinary user may not look at a process that is not dumpable.
    """
    path = f"/proc/{pid}/fd/{fd}"
    try:
        return os.stat(path) if _OURS.match(os.readlink(path)) else None
    except PermissionError:
        raise
    except OSError as error:
        if short(error):
            raise
        return None


def is_open(pid: int, fd: int) -> bool:
    """Whether the number is taken."""
    try:
        os.readlink(f"/proc/{pid}/fd/{fd}")
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


def descriptor_numbers(pid: int) -> set[int]:
    """The numbers that are taken."""
    return {int(name) for name in os.listdir(f"/proc/{pid}/fd")}


def flags_of(pid: int, fd: int) -> int:
    """The flags of an open file, O_CLOEXEC among them (proc_pid_fdinfo(5))."""
    match = re.search(rb"^flags:\t(\d+)$", _read(f"/proc/{pid}/fdinfo/{fd}"), re.MULTILINE)
    return int(match[1], 8) if match else 0


def position_of(pid: int, fd: int) -> int:
    """The offset of an open file."""
    match = re.search(rb"^pos:\t(\d+)$", _read(f"/proc/{pid}/fdinfo/{fd}"), re.MULTILINE)
    return int(match[1]) if match else 0


class Status:
    """/proc/PID/status, read once."""

    def __init__(self, pid: int) -> None:
        self._text = _read(f"/proc/{pid}/status")

    def field(self, name: bytes) -> bytes:
        """The text of a field, b"" if there is none."""
        start = self._text.find(b"\n" + name + b":")
        if start < 0:
            return b""
        return self._text[start + len(name) + 2 : self._text.index(b"\n", start + 1)].strip()

    @property
    def process(self) -> int:
        """The thread group."""
        return int(self.field(b"Tgid") or b"0")

    def capable(self, capability: int) -> bool:
        """Whether it is in the effective set."""
        return bool(int(self.field(b"CapEff") or b"0", 16) >> capability & 1)

    @property
    def locked(self) -> int:
        """Bytes that are locked (mlock(2))."""
        return int((self.field(b"VmLck") or b"0").split()[0]) * 1024

    @property
    def numbers(self) -> list[int]:
        """Its number in each pid namespace, ours first."""
        return [int(word) for word in self.field(b"NSpid").split()]


def in_first_user_namespace(pid: int) -> bool:
    """Whether its capabilities are those of the machine: in a user namespace of its own they are worth little."""
    return os.stat(f"/proc/{pid}/ns/user").st_ino == _FIRST_USER_NAMESPACE


def identity(thread: int) -> Process:
    """The process that a thread belongs to."""
    key = thread, _start_of(thread)
    if key not in _processes:
        process = Status(thread).process
        if len(_processes) >= _MOST_KNOWN:
            _processes.clear()
        _processes[key] = process, key[1] if process == thread else _start_of(process)
    return _processes[key]


def _start_of(thread: int) -> int:
    return int(_read(f"/proc/{thread}/stat").rpartition(b")")[2].split()[19])


def lock_limit(pid: int) -> int | None:
    """The soft RLIMIT_MEMLOCK of a process; None for no limit."""
    try:
        soft = resource.prlimit(pid, resource.RLIMIT_MEMLOCK)[0]
    except PermissionError:  # another user's, and no CAP_SYS_RESOURCE: root may not have it in a container
        match = re.search(rb"^Max locked memory +(\S+)", _read(f"/proc/{pid}/limits"), re.MULTILINE)
        return None if not match or match[1] == b"unlimited" else int(match[1])
    return None if soft == resource.RLIM_INFINITY else soft


def mapped_ranges(pid: int, device: int) -> list[tuple[int, int, int]]:
    """Mappings of files on a device: first address, the one behind the last, inode.

    Raises:
        OSError: the process is gone, or may not be looked at.
    """
    wanted = b" %02x:%02x " % (os.major(device), os.minor(device))
    found = []
    for line in _read(f"/proc/{pid}/maps").splitlines():
        if wanted in line:
            addresses, _, _, _, inode, *_ = line.split(None, 5)
            first, _, last = addresses.partition(b"-")
            found.append((int(first, 16), int(last, 16), int(inode)))
    return found


def translate(caller: int, number: int) -> int | None:
    """The process that `caller` means by a number of its own pid namespace, as we number it; None if there is none."""
    its = Status(caller).numbers
    if len(its) <= 1:
        return number
    if its[-1] == number:
        return its[0]
    namespace = os.readlink(f"/proc/{caller}/ns/pid")
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                numbers = Status(int(name)).numbers
                if (
                    len(numbers) >= len(its)
                    and numbers[len(its) - 1] == number
                    and (len(numbers) > len(its) or os.readlink(f"/proc/{name}/ns/pid") == namespace)
                ):
                    return int(name)
    return None


def pidfd_of(pid: int) -> int:
    """A pidfd of the process that a thread belongs to."""
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if short(error):
            raise
        return os.pidfd_open(Status(pid).process)


def alive(pidfd: int) -> bool:
    """Whether the process is still there, so that what was seen under its number was it."""
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def memory(pid: int, address: int, length: int) -> bytearray | None:
    """A copy of a caller's bytes, None where they cannot be read."""
    try:
        return system.read_memory(pid, address, length)
    except OSError as error:
        if short(error):
            raise
        return None


def string(pid: int, address: int, most: int) -> bytearray | None:
    """A copy of a caller's string, cut off after `most` bytes; None where it cannot be read."""
    text = bytearray()
    while len(text) < most:
        upto_page_end = _PAGE - (address + len(text)) % _PAGE
        piece = memory(pid, address + len(text), min(upto_page_end, most - len(text)))
        if piece is None:
            return None
        end = piece.find(0)
        text += piece if end < 0 else piece[:end]
        if end >= 0:
            break
    return text


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b""
        while piece := os.read(fd, _CHUNK):
            data += piece
        return data
    finally:
        os.close(fd)
