"""Idle secrets at rest: enciphered where they lie, while no access window is open.

After Go's memguard (Enclave) and OpenSSH (shielded keys): a dump that leaks, or what a cold-boot attack recovers of the
memory, is useless unless all of a large random prekey is recovered without a bit error.

The key K is nowhere while nothing is being enciphered. It is rest XOR stream(hash(prekey)): `prekey` is 16 KiB of
random bytes in one slab, `rest` 32 bytes in another. Both change with every RENEWED uses, while K stays. K exists in
the second slab while one secret is enciphered or deciphered, and is wiped.

All of it is libsodium's work, by pointer and in place: XSalsa20-Poly1305 (crypto_secretbox_detached), BLAKE2b and
XChaCha20. Its own copies are in registers and on the stack; it wipes the subkeys that it derives.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from secretfs import libc, turns
from secretfs.errors import BackendUnavailable, SecretFSError
from secretfs.interface import Backend
from secretfs.slab import Slab, map_region

__all__ = ["Rest", "Sealed", "libsodium"]

PREKEY = 16 * 1024
KEY, NONCE, MAC = 32, 24, 16
RENEWED = 256
_NAMES = ("libsodium.so.26", "libsodium.so.23", "libsodium.so")
_ZERO = bytes(NONCE)


class Sealed(NamedTuple):
    """What opens a secret again, with the key: no secret itself."""

    nonce: bytes
    mac: bytes


@functools.cache
def libsodium() -> Any:
    """The library, or None where it is not installed."""
    for name in _NAMES:
        with contextlib.suppress(OSError):
            library = ctypes.CDLL(name)
            if library.sodium_init() >= 0:
                return library
    return None


class Rest:
    """Enciphers and deciphers secrets in place (`secretfs.slab.Sealer`)."""

    def __init__(self, backend: Backend) -> None:
        """Make a key, in memory of `backend`.

        Raises:
            BackendUnavailable: libsodium is not installed.
            LimitError: there is no room for the key.
        """
        self._library = libsodium()
        if self._library is None:
            raise BackendUnavailable(
                "secrets cannot be enciphered at rest: libsodium is not installed",
                hint="apt-get install libsodium23, or at_rest=False",
            )
        self.busy = False
        self._uses = 0
        self._prekey = Slab(map_region(backend, PREKEY), vacated=lambda _: None)
        self._keys = Slab(map_region(backend, 3 * KEY), vacated=lambda _: None)
        # Three places: the rest of the key, the key itself, the hash of the prekey.
        self._rest, self._key, self._hash = (self._keys.address + n * KEY for n in range(3))
        with self._open():
            libc.fill_random(self._prekey.address, PREKEY)
            libc.fill_random(self._rest, KEY)

    def seal(self, address: int, length: int, note: Callable[[Sealed], object]) -> None:
        """Encipher `length` bytes at `address` in place; `note` is given what opens them."""
        nonce = os.urandom(NONCE)
        mac = ctypes.create_string_buffer(MAC)
        with self._open():
            self._derive()
            self._call("crypto_secretbox_detached", address, mac, address, length, nonce, self._key)
            note(Sealed(nonce, mac.raw))

    def unseal(self, address: int, length: int, sealed: Sealed, note: Callable[[None], object]) -> None:
        """Decipher them in place; `note` is given None.

        Raises:
            SecretFSError: somebody has changed them.
        """
        with self._open():
            self._derive()
            self._call("crypto_secretbox_open_detached", address, address, sealed.mac, length, sealed.nonce, self._key)
            note(None)

    @contextlib.contextmanager
    def _open(self) -> Iterator[None]:
        """Both slabs, and a key that is wiped at the end."""
        with turns.lock, self._prekey.opened(), self._keys.opened():
            try:
                yield
                self._uses += 1
                if self._uses % RENEWED == 0:
                    self._renew()
            finally:
                libc.wipe(self._key, 2 * KEY)

    def _derive(self) -> None:
        """K = rest XOR stream(hash(prekey))."""
        self._mask(self._key, self._rest)

    def _renew(self) -> None:
        """Another prekey, and the rest of the key that goes with it."""
        self._derive()
        try:
            libc.fill_random(self._prekey.address, PREKEY)
        finally:  # whatever the prekey is now
            self._mask(self._rest, self._key)

    def _mask(self, target: int, source: int) -> None:
        self._call("crypto_generichash", self._hash, KEY, self._prekey.address, PREKEY, None, 0)
        self._call("crypto_stream_xchacha20_xor", target, source, KEY, _ZERO, self._hash)

    def _call(self, name: str, *arguments: Any) -> None:
        """Call libsodium: addresses are ints, lengths are unsigned long long or size_t, which are the same here."""
        words = [ctypes.c_void_p(word) if isinstance(word, int) else word for word in arguments]
        if getattr(self._library, name)(*words):
            raise SecretFSError("a secret at rest was changed by somebody: it does not decipher")
