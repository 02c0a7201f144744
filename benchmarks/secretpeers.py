"""What small secrets are compared with, through ctypes as a Python program would: libsodium, OpenSSL, mprotect(2).

It alone knows how the peers are called, and what must be installed for them (`systems.Missing`).
"""

from __future__ import annotations

import contextlib
import ctypes
from typing import Any

from systems import Missing

from secretfs import libc
from secretfs.interface import Backend, MappedRegion
from secretfs.slab import map_region

LENGTH = 32
ARENA = 1 << 20
"""Bytes of OpenSSL's secure heap, which is allocated once and for all."""
SMALLEST = 16
"""The size of its smallest blocks."""
_size, _pointer, _int, _text = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p


def _library(*names: str, package: str) -> Any:
    for name in names:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    raise Missing(f"apt-get install {package}")


def _declare(library: Any, name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(library, name)
    function.restype, function.argtypes = result, arguments
    return function


class Sodium:
    """libsodium: each allocation has pages of its own, locked, between guard pages, with a canary."""

    def __init__(self) -> None:
        """Load it.

        Raises:
            Missing: it is not installed.
        """
        library = _library("libsodium.so.26", "libsodium.so.23", package="libsodium23")
        if library.sodium_init() < 0:
            raise Missing("a libsodium that can be initialised")
        self.malloc = _declare(library, "sodium_malloc", _pointer, _size)
        self.free = _declare(library, "sodium_free", None, _pointer)
        self.noaccess = _declare(library, "sodium_mprotect_noaccess", _int, _pointer)
        self.readonly = _declare(library, "sodium_mprotect_readonly", _int, _pointer)
        self.readwrite = _declare(library, "sodium_mprotect_readwrite", _int, _pointer)
        self.random = _declare(library, "randombytes_buf", None, _pointer, _size)
        self.kept = self.malloc(LENGTH)
        self.noaccess(self.kept)

    def create(self) -> None:
        """sodium_malloc and sodium_free, which wipes."""
        self.free(self.malloc(LENGTH))

    def create_random(self) -> None:
        """The same, filled at random and out of reach in between."""
        secret = self.malloc(LENGTH)
        self.random(secret, LENGTH)
        self.noaccess(secret)
        self.free(secret)

    def life(self) -> None:
        """The same, filled from a bytearray, and read once."""
        data = bytearray(LENGTH)
        secret = self.malloc(LENGTH)
        ctypes.memmove(secret, (ctypes.c_char * LENGTH).from_buffer(data), LENGTH)
        self.noaccess(secret)
        self.readonly(secret)
        self.noaccess(secret)
        self.free(secret)

    def reveal(self) -> None:
        """Its own way to open one for reading, and to close it."""
        self.readonly(self.kept)
        self.noaccess(self.kept)

    def write(self) -> None:
        """The same for writing."""
        self.readwrite(self.kept)
        self.noaccess(self.kept)


class OpenSSL:
    """OpenSSL's secure heap: one locked arena between two guard pages, readable all the time."""

    def __init__(self, arena: int = ARENA) -> None:
        """Load it, and allocate its arena.

        Raises:
            Missing: it is not installed, or its arena cannot be locked.
        """
        library = _library("libcrypto.so.3", "libcrypto.so.1.1", package="libssl3")
        if _declare(library, "CRYPTO_secure_malloc_init", _int, _size, _size)(arena, SMALLEST) != 1:
            raise Missing(f"a lock limit that allows OpenSSL an arena of {arena} bytes")
        self._malloc = _declare(library, "CRYPTO_secure_malloc", _pointer, _size, _text, _int)
        self._free = _declare(library, "CRYPTO_secure_clear_free", None, _pointer, _size, _text, _int)
        self._random = _declare(library, "RAND_priv_bytes", _int, _pointer, _int)

    def malloc(self, length: int) -> int | None:
        """What OPENSSL_secure_malloc() is."""
        found: int | None = self._malloc(length, None, 0)
        return found

    def create(self) -> None:
        """OPENSSL_secure_malloc and OPENSSL_secure_clear_free."""
        self._free(self._malloc(LENGTH, None, 0), LENGTH, None, 0)

    def create_random(self) -> None:
        """The same, filled at random."""
        secret = self._malloc(LENGTH, None, 0)
        self._random(secret, LENGTH)
        self._free(secret, LENGTH, None, 0)


class Mprotect:
    """Two bare mprotect(2) calls on pages like a slab's, through the very ctypes function that secretfs calls."""

    def __init__(self, backend: Backend, size: int) -> None:
        """Map `size` bytes between guard pages."""
        self._region = map_region(backend, size)
        assert isinstance(self._region, MappedRegion)
        self._region.enclose()
        self._address, self._size = self._region._address, self._region.size
        self._call = libc._mprotect

    def reveal(self) -> None:
        """Readable, and out of reach again."""
        self._call(self._address, self._size, libc.PROT_READ)
        self._call(self._address, self._size, libc.PROT_NONE)

    def write(self) -> None:
        """Writable, and out of reach again."""
        self._call(self._address, self._size, libc.PROT_READ | libc.PROT_WRITE)
        self._call(self._address, self._size, libc.PROT_NONE)

    def close(self) -> None:
        """The region knows nothing of those calls."""
        libc.mprotect(self._address, self._size, libc.PROT_READ | libc.PROT_WRITE)
        self._region.close()
