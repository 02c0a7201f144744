"""--strict: /proc/PID/mem, which reads secret memory by pinning it, and so is EIO there.

A process that opens its own gets a descriptor at a reserved number, through which its secrets cannot be read; another
process's is refused, and debuggers then use ptrace(2). Paths are judged by their text, with the working directory or
the directory descriptor before it: a symbolic link with another name is not seen through.
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

_CAP_DAC_OVERRIDE = 1
_LONGEST_PATH = 4096
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
    if text is None or not text.rstrip(b"/").endswith(b"mem") or flags & os.O_PATH:
        return CONTINUE
    match = _MEMORY.fullmatch(_absolute(call, directory, os.fsdecode(bytes(text))))
    if match is None or not call.waiting():
        return CONTINUE
    return _open_own(call, flags) if _is_own(call, match) else fail(errno.EACCES)


def _absolute(call: Call, directory: int | None, text: str) -> str:
    if not text.startswith("/"):
        here = "cwd" if directory in (None, -100) else f"fd/{directory}"  # AT_FDCWD
        text = os.path.join(os.readlink(f"/proc/{call.pid}/{here}"), text)
    return "/" + os.path.normpath(text).lstrip("/")


def _is_own(call: Call, match: re.Match[str]) -> bool:
    if not match[1].isdigit():
        return match[2] is None or target.Status(call.pid).numbers[-1] == int(match[2])
    other = target.translate(call.pid, int(match[1]))
    return other is not None and target.Status(other).process == target.Status(call.pid).process


def _open_own(call: Call, flags: int) -> Answer:
    """The caller's memory, if it may open it: by its owner, as for any file; a process may always look at itself."""
    status = target.Status(call.pid)
    path = f"/proc/{status.process}/mem"
    if os.stat(path).st_uid != int(status.field(b"Uid").split()[3]) and not status.capable(_CAP_DAC_OVERRIDE):
        return CONTINUE
    try:
        fd = os.open(path, flags & os.O_ACCMODE | os.O_CLOEXEC)
    except OSError as error:
        return fail(error.errno or errno.EACCES)
    try:
        about = os.fstat(fd)
        call.session.memories[about.st_dev, about.st_ino] = status.process
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
