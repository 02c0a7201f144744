#!/usr/bin/env python3
"""cryptography's load_pem_private_key: a key file, read straight into a secret.

The file may lie in a secretfs mount: `python3 pem_key.py KEYFILE`. Without one the program makes a key itself. Loading
leaves pieces of the key in memory that cryptography has freed; where that matters, keep the 32 bytes (ed25519.py).
"""

import os
import sys
import tempfile

from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from secretfs import Secret


def load(path: str):
    """The private key in a file; Secret.read() works on pipes and descriptors too."""
    with Secret.read(path) as pem, pem.reveal() as view:
        return form.load_pem_private_key(view, None)


def fresh_key() -> str:
    """The path of a file with a key to try it with."""
    pem = Ed25519PrivateKey.generate().private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    fd, path = tempfile.mkstemp(suffix=".pem")
    with open(fd, "wb") as file:
        file.write(pem)
    return path


path = sys.argv[1] if len(sys.argv) > 1 else fresh_key()
try:
    private = load(path)
finally:
    if len(sys.argv) == 1:
        os.unlink(path)
private.public_key().verify(private.sign(b"a contract"), b"a contract")
print("ok: the key in the file signs")
