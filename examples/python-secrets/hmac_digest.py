#!/usr/bin/env python3
"""hmac.digest: authenticate a message. hmac.new() takes only bytes, which stay in memory; digest() reads the view."""

import hmac

from secretfs import Secret

with Secret.from_hex(bytearray(b"0b" * 20)) as key, key.reveal() as view:
    tag = hmac.digest(view, b"Hi There", "sha256")
assert hmac.compare_digest(tag, bytes.fromhex("b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"))
print("ok: the tag is that of RFC 4231, test case 1")
