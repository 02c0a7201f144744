#!/usr/bin/env python3
"""cryptography's HMAC, for a message that comes in pieces.

It copies no key, but a state that is derived from it and can make further tags: let go of it when the tag is there.
"""

from cryptography.hazmat.primitives import hashes, hmac

from secretfs import Secret

with Secret.from_hex(bytearray(b"0b" * 20)) as key:
    with key.reveal() as view:
        code = hmac.HMAC(view, hashes.SHA256())
    code.update(b"Hi ")
    code.update(b"There")
    code.verify(bytes.fromhex("b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"))
    del code
print("ok: the tag is that of RFC 4231, test case 1")
