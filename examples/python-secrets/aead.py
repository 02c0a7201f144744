#!/usr/bin/env python3
"""cryptography's AEADs: the key stays in a secret, what is enciphered and deciphered as well.

AESGCM and ChaCha20Poly1305 copy their key: make one inside the window, and let go of it there. Their `encrypt` reads a
view; `decrypt` would return bytes, `decrypt_into` fills a secret.
"""

import os

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from secretfs import Secret

TAG = 16

for algorithm in (AESGCM, ChaCha20Poly1305):
    nonce = os.urandom(12)
    with Secret.random(32) as key, Secret.random(1000) as document:
        with key.reveal() as view, document.reveal() as plain:
            sealed = algorithm(view).encrypt(nonce, plain, b"header")
        with Secret(len(sealed) - TAG) as opened:
            with key.reveal() as view, opened.reveal(write=True) as room:
                algorithm(view).decrypt_into(nonce, sealed, b"header", room)
            assert opened == document
print("ok: AES-GCM and ChaCha20-Poly1305 gave back what they were given")
