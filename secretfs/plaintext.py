"""Bytes objects that leave nothing behind: the one place where immutable Python bytes are filled and wiped in place.

pyfuse3 hands requests over as bytes, and for link targets, attribute values and names takes nothing else. Such an
object cannot be avoided, but it need not outlive its use: `consume` wipes one that was received, and a `Plaintext`,
filled where it lies, wipes itself when its last reference goes.

This knows how CPython lays out a bytes object (Include/cpython/bytesobject.h: the bytes follow the header). Objects of
one byte or none are shared by all of Python and are never touched.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from secretfs import libc

__all__ = ["LARGEST", "Plaintext", "consume"]

LARGEST = 65536
"""The longest Plaintext: that of an extended attribute's value (xattr(7))."""
_HEADER = bytes.__basicsize__ - 1  # ob_sval is the last member, one byte long
_Window: Any = ctypes.c_char * LARGEST


class Plaintext(bytes):
    """Bytes that are wiped when nobody refers to them any more. Never shared, not even when they are one byte long."""

    @classmethod
    def read(cls, length: int, fill: Callable[[memoryview], object]) -> Plaintext:
        """`length` bytes, which `fill` writes into the memory that it is given, so that there is no other copy."""
        made = cls(bytes(length))
        if length:
            with memoryview(_Window.from_address(id(made) + _HEADER)) as all_of_it:
                fill(all_of_it.cast("B")[:length])
        return made

    def __repr__(self) -> str:
        return f"<Plaintext, {len(self)} bytes>"

    def __del__(self) -> None:
        libc.wipe_bytes(self)


def consume(received: bytes) -> None:
    """Wipe a bytes object that nobody else refers to, such as one that pyfuse3 made for a request."""
    if len(received) > 1:
        libc.wipe_bytes(received)
