"""Classic BPF: a small assembler, and the filters of `secretfs run` made with it.

A filter sees the number and the arguments of a call, never what a pointer leads to. Only numbers that are looked at get
a branch: a binary search finds it in few steps, and the kernel itself caches that a call is always allowed.
Sources: seccomp(2), linux/bpf_common.h, linux/seccomp.h.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

__all__ = [
    "ERRNO",
    "TRACE",
    "Asked",
    "Window",
    "absent",
    "absent_for",
    "always",
    "among",
    "descriptor",
    "mapped",
    "notifying",
    "with_bit",
    "without",
]

ALLOW, NOTIFY, TRACE, ERRNO = 0x7FFF0000, 0x7FC00000, 0x7FF00000, 0x00050000
"""SECCOMP_RET_*. TRACE without a tracer is ENOSYS, as from a kernel without the call, and a filter further in that
notifies outranks it; ERRNO outranks all others."""

_LOAD, _RETURN = 0x20, 0x06  # 32 bits of struct seccomp_data, by offset
_EQUAL, _GREATER_OR_EQUAL, _ANY_BIT = 0x15, 0x35, 0x45
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_LONGEST_JUMP = 255
MAP_ANONYMOUS = 0x20


@dataclass(frozen=True)
class Window:
    """The descriptor numbers at which emulated memory lies: `first` and the `count` from there on."""

    first: int
    count: int

    def __contains__(self, number: int) -> bool:
        return self.first <= number < self.first + self.count


@dataclass
class Program:
    """Instructions with labels; `assemble` turns them into what the kernel takes."""

    _code: list[tuple[int, str, str, int]] = field(default_factory=list)
    _labels: dict[str, int] = field(default_factory=dict)

    def label(self, name: str) -> None:
        """Name the next instruction."""
        self._labels[name] = len(self._code)

    def fresh_label(self) -> str:
        """A name that is not taken, for what comes later."""
        return f"after {len(self._code)}"

    def load_argument(self, index: int) -> None:
        """Load the low half of an argument: descriptors and flags are no wider."""
        self.emit(_LOAD, _ARGUMENTS + 8 * index)

    def emit(self, operation: int, value: int) -> None:
        """An instruction that does not branch."""
        self._code.append((operation, "", "", value))

    def leave(self, answer: int) -> None:
        """Return one of SECCOMP_RET_*."""
        self.emit(_RETURN, answer)

    def branch(self, operation: int, value: int, yes: str, no: str = "") -> None:
        """Compare what was loaded; "" is the next instruction."""
        self._code.append((operation, yes, no, value))

    def equal(self, value: int, yes: str, no: str = "") -> None:
        """Go on at `yes` if what was loaded is `value`, else at `no`."""
        self.branch(_EQUAL, value, yes, no)

    def assemble(self) -> bytes:
        """An array of struct sock_filter."""
        return b"".join(
            struct.pack("=HBBI", operation, self._distance(at, yes), self._distance(at, no), value)
            for at, (operation, yes, no, value) in enumerate(self._code)
        )

    def _distance(self, at: int, label: str) -> int:
        distance = self._labels[label] - at - 1 if label else 0
        if not 0 <= distance <= _LONGEST_JUMP:
            raise ValueError(f"a jump to {label!r} over {distance} instructions")
        return distance


Asked = Callable[[Program, Window], None]
"""Emits the instructions that decide about one call: they go to "notify" or "allow", or leave by themselves."""


def always(program: Program, _: Window) -> None:
    """Each such call is looked at."""
    program.leave(NOTIFY)


def descriptor(*indices: int) -> Asked:
    """The call is looked at if one of these arguments is a descriptor in the window."""

    def decide(program: Program, window: Window) -> None:
        for index in indices:
            other = "allow" if index == indices[-1] else program.fresh_label()
            program.load_argument(index)
            program.branch(_GREATER_OR_EQUAL, window.first, "", other)
            program.branch(_GREATER_OR_EQUAL, window.first + window.count, other, "notify")
            if index != indices[-1]:
                program.label(other)

    return decide


def mapped(program: Program, window: Window) -> None:
    """mmap(2) of a descriptor in the window."""
    program.load_argument(3)
    program.branch(_ANY_BIT, MAP_ANONYMOUS, "allow")
    descriptor(4)(program, window)


def among(index: int, *values: int) -> Asked:
    """The call is looked at if this argument is one of `values`."""

    def decide(program: Program, _: Window) -> None:
        program.load_argument(index)
        for value in values:
            program.equal(value, "notify")
        program.leave(ALLOW)

    return decide


def with_bit(index: int, bit: int) -> Asked:
    """The call is looked at if this argument, a set of flags, has that bit."""

    def decide(program: Program, _: Window) -> None:
        program.load_argument(index)
        program.branch(_ANY_BIT, bit, "notify", "allow")

    return decide


def absent(program: Program, _: Window) -> None:
    """The call is not there: ENOSYS, without anybody being asked."""
    program.leave(ERRNO | errno.ENOSYS)


def absent_for(index: int, *values: int) -> Asked:
    """The call is not there for these values of an argument."""

    def decide(program: Program, _: Window) -> None:
        program.load_argument(index)
        for value in values:
            program.equal(value, "absent")
        program.leave(ALLOW)

    return decide


def notifying(
    asked: Mapping[int, Asked], window: Window, architecture: int, *, often: Sequence[int | None] = ()
) -> bytes:
    """The supervisor's filter: numbers of calls, and what decides about each; those that come often are compared first.
    Other architectures are let through.
    """
    program = Program()
    program.emit(_LOAD, _ARCHITECTURE)
    program.equal(architecture, "", "other")
    program.emit(_LOAD, _NUMBER)
    for number in often:
        if number is not None and number in asked:
            program.equal(number, f"call {number}")
    _search(program, sorted(asked.keys() - set(often)))
    program.label("other")
    program.leave(ALLOW)
    _place(program, asked, window)
    return program.assemble()


def _search(program: Program, wanted: list[int]) -> None:
    """Find the number that was loaded among `wanted`, by halves."""
    if len(wanted) == 1:
        program.equal(wanted[0], f"call {wanted[0]}", "other")
        return
    middle = len(wanted) // 2
    upper = f"from {wanted[middle]}"
    program.branch(_GREATER_OR_EQUAL, wanted[middle], upper)
    _search(program, wanted[:middle])
    program.label(upper)
    _search(program, wanted[middle:])


def _place(program: Program, asked: Mapping[int, Asked], window: Window) -> None:
    """The tests, each once, however many calls share it, and where they lead to."""
    for test in dict.fromkeys(asked.values()):
        for number in (number for number, its in asked.items() if its is test):
            program.label(f"call {number}")
        test(program, window)
    program.label("allow")
    program.leave(ALLOW)
    program.label("notify")
    program.leave(NOTIFY)
    program.label("absent")
    program.leave(ERRNO | errno.ENOSYS)


def without(memfd_secret: int, answer: int) -> bytes:
    """A filter under which one call is answered so, on every architecture: its number is the same on all."""
    program = Program()
    program.emit(_LOAD, _NUMBER)
    program.equal(memfd_secret, "", "allow")
    program.leave(answer)
    program.label("allow")
    program.leave(ALLOW)
    return program.assemble()
