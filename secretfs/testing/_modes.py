"""What secret memory a test shall meet: the modes, the command that runs a program in one, and whether one is in force.

It alone knows which options of `secretfs run` a mode is. A mode is in force for a whole tree of processes, which knows
it by a variable in its environment; `check()` asks the kernel whether that is true.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["MODES", "UNCHANGED", "VARIABLE", "Mode", "ModeError", "check", "current", "parse"]

VARIABLE = "SECRETFS_TESTING_MODE"
UNCHANGED = "unchanged"
"""What `current()` says where nothing was asked for."""
MODES = {
    "with": "secret memory works: the kernel's, or emulated",
    "emulated": "secret memory is emulated, also where the kernel has it",
    "without": "a kernel without it: memfd_secret(2) answers ENOSYS",
    "over-limit": "RLIMIT_MEMLOCK is in the way (over-limit:SIZE, one page if SIZE is left out)",
    "failing": "memfd_secret(2) fails (failing:N:ERRNO: after N that worked, with ERRNO; 0 and EPERM if left out)",
}
_MEMFD_SECRET = 447


class ModeError(ValueError):
    """There is no such mode, or it is not in force."""


@dataclass(frozen=True)
class Mode:
    """A mode, as `parse()` made it."""

    name: str
    options: tuple[str, ...]
    """Those of `secretfs run`."""
    text: str
    """What `parse()` makes the same mode of."""

    def command(self, words: Sequence[str]) -> list[str]:
        """What runs a command in this mode; exit code and signals are the command's own."""
        return [sys.executable, "-I", "-m", "secretfs", "run", *self.options, "--", *words]

    def environment(self) -> dict[str, str]:
        """This process's environment, with the mode in it."""
        return {**os.environ, VARIABLE: self.text}


def parse(text: str) -> Mode:
    """The mode of that text: a name in MODES, with its values after colons.

    Raises:
        ModeError: there is none.
    """
    name, *values = text.split(":")
    if name in ("with", "emulated", "without") and not values:
        return Mode(name, {"with": (), "emulated": ("--emulate",), "without": ("--without",)}[name], name)
    if name == "over-limit" and len(values) <= 1:
        size = values[0] if values else "4K"
        if re.fullmatch(r"\d+[KMG]?", size):
            return Mode(name, ("--limit-memlock", size), f"{name}:{size}")
    if name == "failing" and len(values) <= 2:
        after, code = (*values, *("0", "EPERM")[len(values) :])
        if after.isdecimal() and hasattr(errno, code):
            first = ("--fail-after", after) if int(after) else ("--without",)  # which takes no supervisor
            return Mode(name, (*first, "--errno", code), f"{name}:{after}:{code}")
    raise ModeError(f"there is no mode {text!r} of secret memory; there are {', '.join(MODES)}")


def current() -> str:
    """The text of the mode that this process was started in, or UNCHANGED."""
    return os.environ.get(VARIABLE, UNCHANGED)


def check(mode: Mode) -> None:
    """Ask the kernel whether what that mode promises is so; makes at most one secret, and closes it.

    Raises:
        ModeError: it is not, for example because one mode was asked for inside another.
    """
    if mode.name == "failing" and not mode.text.startswith("failing:0:"):
        return  # to ask would be one of the calls that are counted
    expected = {"without": errno.ENOSYS, "over-limit": errno.EAGAIN}.get(mode.name, 0)
    if mode.name == "failing":
        expected = getattr(errno, mode.text.rpartition(":")[2])
    found = _make_secret(mode.options[1] if mode.name == "over-limit" else "0")
    if found != expected:
        raise ModeError(f"the mode {mode.text!r} is not in force: secret memory {_told(found)}, not {_told(expected)}")


def _told(code: int) -> str:
    return f"fails with {errno.errorcode.get(code, code)}" if code else "works"


def _make_secret(beside: str) -> int:
    """Make a secret of one page more than `beside`, map and forget it: 0, or the errno of what failed."""
    unit = {"K": 10, "M": 20, "G": 30}.get(beside[-1], 0)
    size = (int(beside.rstrip("KMG")) << unit) + os.sysconf("SC_PAGE_SIZE")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    ctypes.set_errno(0)
    fd = libc.syscall(_MEMFD_SECRET, os.O_CLOEXEC)
    if fd == -1:
        return ctypes.get_errno()
    try:
        os.ftruncate(fd, size)
        address = libc.mmap(None, ctypes.c_size_t(size), 3, 1, fd, ctypes.c_long(0))
        if address in (None, ctypes.c_void_p(-1).value):
            return ctypes.get_errno()
        libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
    finally:
        os.close(fd)
    return 0
