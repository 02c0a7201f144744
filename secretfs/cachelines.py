"""Dropping bytes from the CPU's caches: what mode "uncached" has in place of memory that is not cached.

The mode of that name in the patches of 2020 (MFD_SECRET_UNCACHED) was dropped before memfd_secret(2) was merged: no
kernel offers it. A program can only have the lines of a secret written back and dropped when it is done with it. That
takes an instruction which Python has not, hence the native part (native/flush.c), and an architecture that has it.
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any

from secretfs.errors import UsageError

__all__ = ["available", "flush", "is_uncached"]

MODES = ("exclusive", "uncached")
"""The protection modes of the proposal of 2020; the first is what memfd_secret(2) became."""

LIBRARY = os.path.join(os.path.dirname(__file__), "native", "libsecretfs-flush.so")


def is_uncached(mode: str) -> bool:
    """Whether `mode` is that one.

    Raises:
        UsageError: it is none of MODES.
    """
    if mode not in MODES:
        raise UsageError(f"there is no mode {mode!r}", hint=f"use one of: {', '.join(MODES)}")
    return mode == "uncached"


def available() -> bool:
    """Whether flush() does anything here."""
    flusher = _flusher()
    return flusher is not None and bool(flusher(None, 0))


def flush(address: int, length: int) -> None:
    """Write `length` bytes at `address` back to memory and drop them from all caches, where that is possible."""
    flusher = _flusher()
    if flusher is not None:
        flusher(address, length)


@functools.cache
def _flusher() -> Any:
    try:
        flusher = ctypes.CDLL(LIBRARY).secretfs_flush
    except OSError:
        return None
    flusher.argtypes = ctypes.c_void_p, ctypes.c_size_t
    flusher.restype = ctypes.c_int
    return flusher
