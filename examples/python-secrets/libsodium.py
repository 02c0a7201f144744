#!/usr/bin/env python3
"""libsodium through pointers: for what PyNaCl and hmac.new() do, which take only bytes.

`secret.pointer()` gives the address for as long as the block lasts; the key is read there, and results go straight into
other secrets: an HMAC, a key from a passphrase (Argon2id), a sealed box and its opening. Debian: libsodium23.
"""

import ctypes
import sys

from secretfs import Secret

try:
    sodium = ctypes.CDLL("libsodium.so.23")
except OSError:
    sys.exit("libsodium is not installed: apt-get install libsodium23")
if sodium.sodium_init() < 0:
    sys.exit("libsodium does not work here")

MESSAGE, SALT, NONCE = b"a message", bytes(16), bytes(24)
TAG, SECRETBOX_MAC = 32, 16
OPERATIONS, MEMORY, ARGON2ID13 = 1, 8 << 20, 2  # the least that libsodium has; use more


def check(result: int) -> None:
    """libsodium answers 0 where it succeeds."""
    if result:
        raise ValueError("libsodium refused")


def size(number: int) -> ctypes.c_ulonglong:
    """A length, as libsodium declares it."""
    return ctypes.c_ulonglong(number)


with Secret.from_bytes(bytearray(b"correct horse")) as passphrase, Secret(32) as key:
    # A key from a passphrase, in place: what nacl.pwhash does.
    with passphrase.pointer() as word, key.pointer(write=True) as target:
        check(
            sodium.crypto_pwhash(
                ctypes.c_void_p(target), size(32), ctypes.c_void_p(word), size(len(passphrase)), SALT,
                size(OPERATIONS), ctypes.c_size_t(MEMORY), ARGON2ID13,
            )
        )  # fmt: skip

    # A tag, as hmac.new(key, MESSAGE, "sha256") would make: libsodium's crypto_auth_hmacsha256.
    tag = ctypes.create_string_buffer(TAG)
    with key.pointer() as address:
        check(sodium.crypto_auth_hmacsha256(tag, MESSAGE, size(len(MESSAGE)), ctypes.c_void_p(address)))
        check(sodium.crypto_auth_hmacsha256_verify(tag, MESSAGE, size(len(MESSAGE)), ctypes.c_void_p(address)))

    # A box: what nacl.secret.SecretBox does. A nonce is used once; here it is zero, for a key that is used once.
    with Secret.random(100) as document, Secret(100) as opened:
        box = ctypes.create_string_buffer(len(document) + SECRETBOX_MAC)
        with key.pointer() as address, document.pointer() as plain:
            words = ctypes.c_void_p(plain), size(len(document)), NONCE, ctypes.c_void_p(address)
            check(sodium.crypto_secretbox_easy(box, *words))
        with key.pointer() as address, opened.pointer(write=True) as target:
            words = box, size(len(box)), NONCE, ctypes.c_void_p(address)
            check(sodium.crypto_secretbox_open_easy(ctypes.c_void_p(target), *words))
        assert opened == document
print("ok: a passphrase became a key, which made a tag and a box")
