"""--strict: /proc/PID/mem, which reads secret memory by pinning it, and so is EIO there; /proc/PID/fd, by which no
secret can be opened a second time (ENXIO).

A process that may open a memory gets a descriptor at a reserved number, through which secrets cannot be read. Paths are
judged by their text, with the working directory or the directory descriptor before it: a symbolic link with another
name is not seen through.
"""

from __future__ import annotations

import errno
import os
import re

from secretfs import libc
from secretfs_emulator.supervisor import pinning, target
from secretfs_emulator.supervisor.call import Call, Handler
from secretfs_emulator.supervisor.notify import CONTINUE, Answer, fail

__all__ = ["guarded", "open_path", "openat", "openat2"]

_CAP_DAC_OVERRIDE, _CAP_SYS_PTRACE = 1, 19
_YAMA = "/proc/sys/kernel/yama/ptrace_scope"
_LONGEST_PATH = 4096
_DESCRIPTOR = re.compile(r"(?:/proc/(self|thread-self|\d+)(?:/task/(\d+))?/fd|/dev/fd)/(\d+)")
_MEMORY = re.compile(r"/proc/(self|thread-self|\d+)(?:/task/(\d+))?/mem")


def open_path(call: Call) -> Answer:
    """open(2)."""
    return _judge(call, directory=None, path=0, flags=call.number(1))


def openat(call: Call) -> Answer:
    """openat(2)."""
    return _judge(call, directory=call.number(0), path=1, flags=call.number(2))


def openat2(call: Call) -> Answer:
    """openat2(2): the flags are the first word of struct open_how."""
    how = target.memory(call.pid, call.arguments[2], 8)
    return CONTINUE if how is None else _judge(call, call.number(0), 1, int.from_bytes(how[:4], "little"))


def _judge(call: Call, directory: int | None, path: int, flags: int) -> Answer:
    text = target.string(call.pid, call.arguments[path], _LONGEST_PATH)
    if text is None or flags & os.O_PATH:
        return CONTINUE
    name = text.rpartition(b"/")[2]
    if name == b"mem":
        return _judge_memory(call, _MEMORY.fullmatch(_absolute(call, directory, text)), flags)
    if name.isdigit() and not flags & (os.O_NOFOLLOW | os.O_DIRECTORY):
        return _judge_descriptor(call, _DESCRIPTOR.fullmatch(_absolute(call, directory, text)))
    return CONTINUE


def _judge_descriptor(call: Call, match: re.Match[str] | None) -> Answer:
    """Another open of what a descriptor is: the file of secret memory has no open."""
    if match is None or (match[1] is None and os.readlink(f"/proc/{call.pid}/root/dev/fd") != "/proc/self/fd"):
        return CONTINUE
    process = call.pid if match[1] is None else _process_meant(call, match)
    if process is None:
        return CONTINUE
    own = process in (call.pid, call.status.process)
    area = call.secret_at(int(match[3])) if own else call.secret_of(process, int(match[3]))
    return fail(errno.ENXIO) if area is not None else CONTINUE


def _judge_memory(call: Call, match: re.Match[str] | None, flags: int) -> Answer:
    if match is None:
        return CONTINUE
    process = _process_meant(call, match)
    if process is None or not call.waiting():
        return CONTINUE
    return _open(call, process, flags) if _may_look(call, process) else fail(errno.EACCES)


def _absolute(call: Call, directory: int | None, path: bytearray) -> str:
    text = os.fsdecode(bytes(path))
    if not text.startswith("/"):
        here = "cwd" if directory in (None, -100) else f"fd/{directory}"  # AT_FDCWD
        text = os.path.join(os.readlink(f"/proc/{call.pid}/{here}"), text)
    return "/" + os.path.normpath(text).lstrip("/")


def _process_meant(call: Call, match: re.Match[str]) -> int | None:
    """The process whose memory it is."""
    number = match[2] or match[1]
    if not number.isdigit():
        return target.Status(call.pid).process
    other = target.translate(call.pid, int(number))
    return None if other is None else target.Status(other).process


def _may_look(call: Call, process: int) -> bool:
    """Whether the kernel would let the caller (ptrace(2), "Ptrace access mode checking"): a process may always look at
    itself, and at one that it traces, since that was allowed when it began to.
    """
    own, other = target.Status(call.pid), target.Status(process)
    tracer = int(other.field(b"TracerPid") or b"0")
    if own.process == other.process or (tracer and target.Status(tracer).process == own.process):
        return True
    if _yama_restricts() or os.readlink(f"/proc/{call.pid}/ns/user") != os.readlink(f"/proc/{process}/ns/user"):
        return False  # more is asked for than is known here
    if own.capable(_CAP_SYS_PTRACE):
        return True
    effective = [own.field(name).split()[1] for name in (b"Uid", b"Gid")]
    its = [set(other.field(name).split()[:3]) for name in (b"Uid", b"Gid")]
    return its == [{effective[0]}, {effective[1]}] and os.stat(f"/proc/{process}/mem").st_uid == int(effective[0])


def _yama_restricts() -> bool:
    try:
        with open(_YAMA, encoding="ascii") as file:
            return file.read().strip() != "0"
    except FileNotFoundError:
        return False


def _open(call: Call, process: int, flags: int) -> Answer:
    """The memory of a process, if its owner is the caller, as for any file."""
    status, path = target.Status(call.pid), f"/proc/{process}/mem"
    if os.stat(path).st_uid != int(status.field(b"Uid").split()[3]) and not status.capable(_CAP_DAC_OVERRIDE):
        return CONTINUE
    try:
        fd = os.open(path, flags & os.O_ACCMODE | os.O_CLOEXEC)
    except OSError as error:
        return fail(error.errno or errno.EACCES)
    try:
        about = os.fstat(fd)
        call.session.memories[about.st_dev, about.st_ino] = process
        return call.put(fd, cloexec=bool(flags & os.O_CLOEXEC))
    finally:
        os.close(fd)


def guarded(handler: Handler, *, offset: int | None = None, vector: bool = False) -> Handler:
    """`handler`, and EIO for such a descriptor where the bytes are a secret's. Without `offset`, an argument, the
    file's own is used; of a `vector` only the first byte's place is looked at.
    """

    def handle(call: Call) -> Answer:
        memories = call.session.memories
        process = memories.get(call.file(call.number(0)) or (0, 0)) if memories else None
        if process is None:
            return handler(call)
        start = target.position_of(call.pid, call.number(0)) if offset is None else call.arguments[offset]
        end = start + (libc.PAGE_SIZE if vector else call.arguments[2])
        secret = pinning.touches(pinning.secret_ranges(call, process), [(start, end)])
        return fail(errno.EIO) if secret else CONTINUE

    return handle
