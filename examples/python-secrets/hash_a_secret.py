#!/usr/bin/env python3
"""hashlib: a fingerprint of a secret, and a keyed hash.

Until its end a hash object keeps what does not fill a block yet (at most 63 bytes for sha256, a whole key for blake2b).
"""

import hashlib

from secretfs import Secret

with Secret.random(32) as key:
    with key.reveal() as view:
        fingerprint = hashlib.sha256(view).hexdigest()
        keyed = hashlib.blake2b(b"a message", key=view).digest()  # hashed and gone in one line: nothing is kept
    with Secret.concat(key) as copy, copy.reveal() as view:
        assert hashlib.sha256(view).hexdigest() == fingerprint
        assert hashlib.blake2b(b"a message", key=view).digest() == keyed
    print(f"ok: {key} has the fingerprint {fingerprint[:16]}…")
