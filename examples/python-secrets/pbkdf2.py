#!/usr/bin/env python3
"""hashlib.pbkdf2_hmac: a key from a passphrase. `Secret.prompt()` asks for one where there is a terminal.

The result is a bytes object, which Python does not wipe. For a result in secret memory see libsodium.py.
"""

import hashlib

from secretfs import Secret

with Secret.from_bytes(bytearray(b"passwd")) as passphrase, passphrase.reveal() as view:
    key = hashlib.pbkdf2_hmac("sha256", view, b"salt", 1, dklen=32)
assert key.hex() == "55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc"
print("ok: the key is that of RFC 7914, section 11")
