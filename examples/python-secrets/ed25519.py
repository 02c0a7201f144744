#!/usr/bin/env python3
"""cryptography's Ed25519: sign with a key that lies in a secret.

The key object holds a copy as long as it lives. Make it for a signature and let it go, rather than keep it.
"""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from secretfs import Secret


def sign(seed: Secret, message: bytes) -> bytes:
    """Whoever holds the seed can sign."""
    with seed.reveal() as view:
        return Ed25519PrivateKey.from_private_bytes(view).sign(message)


with Secret.random(32) as seed:
    with seed.reveal() as view:
        public = Ed25519PrivateKey.from_private_bytes(view).public_key()
    public.verify(sign(seed, b"a contract"), b"a contract")  # raises InvalidSignature
print("ok: signed and verified")
