"""How bytes get into secrets and out of them: files, terminals, hexadecimal digits, base64.

Nothing here makes a str, bytes or int object of a secret (Python's ints for single bytes exist anyway, once for all).
The kernel reads and writes secret memory itself, but for what pins the pages: there a locked window stands between.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

from secretfs.window import Window

__all__ = [
    "ask", "base64_length", "decode_base64", "decode_hex", "hex_length", "in_thread", "opened", "read_all", "source",
    "without_newline", "write_all",
]  # fmt: skip

PIECE = 64 * 1024
LINE = 4096
"""The longest line that a terminal hands over (termios(3), canonical mode), with its newline."""
NOTICE = 250
"""Milliseconds after which a Ctrl-C is noticed that came just before a system call, and so did not interrupt it."""
_SPACE = frozenset(b" \t\r\n")
_HEX = {ord(digit): value for value in range(16) for digit in {f"{value:x}", f"{value:X}"}}
_BASE64 = {
    digit: value for value, digit in enumerate(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
} | {ord("-"): 62, ord("_"): 63}

S = TypeVar("S", bound="Fillable")
T = TypeVar("T")


class Fillable(Protocol):
    """A secret, as far as it matters here."""

    def __len__(self) -> int: ...

    def reveal(self, *, write: bool = False) -> Any:
        """A window."""

    def close(self) -> None:
        """Wipe it."""


@contextlib.contextmanager
def source(data: Any, *, wipe: bool) -> Iterator[memoryview]:
    """`data` as a flat memoryview of bytes, which is wiped afterwards if `wipe`.

    Raises:
        TypeError: it is to be wiped and cannot be, or is no buffer.
    """
    if isinstance(data, str):
        raise TypeError("a str cannot be wiped, nor read without a copy; use a bytearray")
    with memoryview(data) as whole, whole.cast("B") as view:
        if wipe and view.readonly:
            raise TypeError(
                f"{type(data).__name__} cannot be wiped: its copy would stay in ordinary memory; "
                "pass a bytearray, or wipe=False if that is known"
            )
        try:
            yield view
        finally:
            if wipe:
                view[:] = bytes(len(view))


async def in_thread(make: Callable[[], T]) -> T:
    """What `make` makes, in a worker thread."""
    import trio  # at first use: it costs a tenth of a second

    return await trio.to_thread.run_sync(make)


# Files


@contextlib.contextmanager
def opened(file: Any) -> Iterator[int]:
    """The descriptor of a path, closed afterwards, or of what is open already."""
    if isinstance(file, int):
        yield file
    elif hasattr(file, "fileno"):
        yield file.fileno()
    else:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)


def read_all(make: Callable[[int], S], fd: int) -> S:
    """A secret with everything up to the end of `fd`."""
    about = os.fstat(fd)
    known = stat.S_ISREG(about.st_mode) and about.st_size
    secret = make(about.st_size + 1 if known else PIECE)  # one more shows where the end is
    used = 0
    try:
        with _Reader(fd) as reader:
            while True:
                with secret.reveal(write=True) as view, view[used:] as rest:
                    got = reader.read(rest)
                used += got
                if not got:
                    return _cut(secret, used, make)
                if used == len(secret):
                    secret = _grown(secret, make, max(PIECE, used))
    except BaseException:
        secret.close()
        raise


def write_all(fd: int, view: memoryview) -> int:
    """Write all of `view` to `fd`."""
    sent = 0
    while sent < len(view):
        with view[sent:] as rest:
            try:
                sent += os.write(fd, rest)
            except OSError as error:
                if error.errno != errno.EFAULT:
                    raise
                sent += _write_through_window(fd, rest)
    return sent


def without_newline(secret: S, make: Callable[[int], S]) -> S:
    """`secret` if its last byte is no newline, else a new one without it."""
    with secret.reveal() as view:
        ends = view[-1] == ord("\n")
    return _cut(secret, len(secret) - 1, make) if ends else secret


class _Reader:
    """Reads into secret memory: straight, or through a window once the kernel has refused that."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._window: Window | None = None

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._window is not None:
            self._window.close()

    def read(self, target: memoryview) -> int:
        """Read at most as much as fits; 0 at the end."""
        if not len(target):
            return 0
        if self._window is None:
            try:
                return os.readv(self._fd, [target])
            except OSError as error:
                if error.errno != errno.EFAULT:
                    raise
            self._window = Window(PIECE)
        with self._window.lend(min(PIECE, len(target))) as lent:
            got = os.readv(self._fd, [lent])
            target[:got] = lent[:got]
        return got


def _write_through_window(fd: int, view: memoryview) -> int:
    window = Window(PIECE)
    try:
        length = min(PIECE, len(view))
        with window.lend(length) as lent:
            lent[:] = view[:length]
            return os.write(fd, lent)
    finally:
        window.close()


def _cut(secret: S, length: int, make: Callable[[int], S]) -> S:
    """The first `length` bytes; `secret` is closed unless those are all of it. (A slice would not be `alone`.)"""
    if length == len(secret):
        return secret
    with contextlib.closing(secret):
        if not length:
            raise ValueError("there is nothing to read: a secret has at least one byte")
        return _copied(secret, make, length)


def _grown(secret: S, make: Callable[[int], S], more: int) -> S:
    with contextlib.closing(secret):
        return _copied(secret, make, len(secret) + more)


def _copied(secret: S, make: Callable[[int], S], length: int) -> S:
    """A new one of `length` bytes, with as many of the bytes of `secret` as there are."""
    copy = make(length)
    with secret.reveal() as view, copy.reveal(write=True) as target, view[:length] as kept:
        target[: len(kept)] = kept
    return copy


# Terminals


def ask(message: str, make: Callable[[int], S]) -> S:
    """One line from the terminal, with its newline, while nothing of it is shown."""
    try:
        fd = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise OSError(errno.ENOTTY, "there is no terminal to ask on; Secret.read(0) reads standard input") from error
    try:
        # First the memory: where there is none nobody is asked. And making the first secret imports modules; a process
        # that was interrupted there CPython ends at its exit, as if nobody had handled that.
        line = make(LINE)
        typed = select.poll()
        typed.register(fd, select.POLLIN)
        try:
            with _silent(fd), line.reveal(write=True) as view:
                os.write(fd, message.encode())
                while not typed.poll(NOTICE):
                    pass
                got = os.readv(fd, [view])
                empty = not got or view[0] == ord("\n")
            if empty:
                raise ValueError("nothing was typed")
            return _cut(line, got, make)
        except BaseException:
            line.close()
            raise
    finally:
        os.close(fd)


@contextlib.contextmanager
def _silent(fd: int) -> Iterator[None]:
    """Nothing that is typed on this terminal is shown."""
    import termios

    before = termios.tcgetattr(fd)
    silent = [*before]
    silent[3] = (before[3] & ~termios.ECHO) | termios.ICANON
    try:
        termios.tcsetattr(fd, termios.TCSAFLUSH, silent)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSAFLUSH, before)
        os.write(fd, b"\n")


# Digits


def hex_length(text: memoryview) -> int:
    """How many bytes the digits stand for."""
    digits = sum(1 for digit in text if digit not in _SPACE)
    if digits % 2 or not digits:
        raise ValueError("there is an odd number of hexadecimal digits" if digits else "there are no digits")
    return digits // 2


def decode_hex(text: memoryview, target: memoryview) -> str:
    """Decode into `target`; what is wrong with it, or ""."""
    at, high = 0, -1
    for digit in text:
        if digit in _SPACE:
            continue
        value = _HEX.get(digit, -1)
        if value < 0:
            return "there is something else than hexadecimal digits"
        if high < 0:
            high = value
        else:
            target[at] = high << 4 | value
            at, high = at + 1, -1
    return ""


def base64_length(text: memoryview) -> int:
    """How many bytes the characters stand for."""
    digits = sum(1 for digit in text if digit not in _SPACE and digit != ord("="))
    if digits % 4 == 1 or not digits:
        raise ValueError("this is no whole number of bytes in base64" if digits else "there is nothing to decode")
    return digits * 6 // 8


def decode_base64(text: memoryview, target: memoryview) -> str:
    """Decode into `target`; what is wrong with it, or ""."""
    at = held = place = 0  # every number here is below 256: Python has those ready, and makes no object
    ended = False
    for digit in text:
        if digit in _SPACE:
            continue
        ended = ended or digit == ord("=")
        value = _BASE64.get(digit, -1)
        if ended and digit == ord("="):
            continue
        if ended or value < 0:
            return "there is something else than base64"
        if place == 0:
            held, place = value, 1
            continue
        kept = 2 * place  # bits of `held` that are missing to a byte
        target[at] = held << kept | value >> (6 - kept)
        at += 1
        held = value & ((1 << (6 - kept)) - 1)
        place = (place + 1) % 4
    return ""
