#!/usr/bin/env python3
"""What libraries copy of a secret that they are shown: the table in docs/python.md, measured.

    librarycopies.py            all of it, as a Markdown table; as root, where secretfs and cryptography are installed

Each case is a program of its own. It reads the secret straight into secret memory, hands a view of it to a library, and
stops twice: "held", while what the library made exists, and "after", when all of it is gone. Each time all its ordinary
memory is searched from outside (residue.py). What is found there is a copy that somebody made who was not told to.

A copy is looked for as it is and as HMAC keeps it, XORed with its two pads: from that the key is known as well.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import residue

PADS = {"as it is": 0, "inner pad": 0x36, "outer pad": 0x5C}
HEADER = """
import ctypes, gc, hashlib, hmac, os, socket, ssl, sys, threading, warnings
warnings.simplefilter("ignore")
from secretfs import Secret
def at(stage):
    print(stage, flush=True)
    sys.stdin.readline()
key = Secret.read(int(sys.argv[1]))
"""
FOOTER = """
key.close()
gc.collect()
at("after")
"""


class Case(NamedTuple):
    """A library, what is done with it, and which secret it is given."""

    name: str
    program: str
    secret: str = "key"
    """ "key": 32 random bytes; "bulk": 4096; "hex": 32 bytes in digits; "pem", "locked pem": an Ed25519 key."""


CASES = {
    "hashlib": Case("`hashlib.sha256(view)`", """
        with key.reveal() as view:
            made = hashlib.sha256(view)
        at("held")
        made.digest()
        del made, view
    """),
    "hashlib bulk": Case("`hashlib.sha256(view)`, 4096 bytes", """
        with key.reveal() as view:
            made = hashlib.sha256(view)
        at("held")
        made.digest()
        del made, view
    """, "bulk"),
    "blake2b": Case("`hashlib.blake2b(key=view)`", """
        with key.reveal() as view:
            made = hashlib.blake2b(b"message", key=view)
        at("held")
        made.digest()
        del made, view
    """),
    "hmac.digest": Case("`hmac.digest(view, …)`", """
        with key.reveal() as view:
            hmac.digest(view, b"message", "sha256")
        del view
    """),
    "pbkdf2": Case("`hashlib.pbkdf2_hmac(…, view, …)`", """
        with key.reveal() as view:
            hashlib.pbkdf2_hmac("sha256", view, b"salt", 1000)
        del view
    """),
    "scrypt": Case("`hashlib.scrypt(view, …)`", """
        with key.reveal() as view:
            hashlib.scrypt(view, salt=b"salt", n=16, r=8, p=1)
        del view
    """),
    "AESGCM": Case("cryptography `AESGCM(view)`", """
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        with key.reveal() as view:
            made = AESGCM(view)
        made.encrypt(bytes(12), b"message", None)
        at("held")
        del made, view
    """),
    "ChaCha20Poly1305": Case("cryptography `ChaCha20Poly1305(view)`", """
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
        with key.reveal() as view:
            made = ChaCha20Poly1305(view)
        made.encrypt(bytes(12), b"message", None)
        at("held")
        del made, view
    """),
    "encrypted": Case("cryptography `AESGCM.encrypt(…, view, …)`", """
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        made = AESGCM(bytes(32))
        with key.reveal() as view:
            made.encrypt(bytes(12), view, None)
        at("held")
        del made, view
    """, "bulk"),
    "HMAC": Case("cryptography `HMAC(view, …)`", """
        from cryptography.hazmat.primitives import hashes, hmac as codes
        with key.reveal() as view:
            made = codes.HMAC(view, hashes.SHA256())
        made.update(b"message")
        at("held")
        made.finalize()
        del made, view
    """),
    "Ed25519": Case("cryptography `Ed25519PrivateKey.from_private_bytes(view)`", """
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        with key.reveal() as view:
            made = Ed25519PrivateKey.from_private_bytes(view)
        made.sign(b"message")
        at("held")
        del made, view
    """),
    "PEM": Case("cryptography `load_pem_private_key(view, None)`", """
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
        with key.reveal() as view:
            made = load_pem_private_key(view, None)
        made.sign(b"message")
        at("held")
        del made, view
    """, "pem"),
    "locked PEM": Case("the same, enciphered, with a passphrase", """
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
        with key.reveal() as view:
            made = load_pem_private_key(view, b"passphrase")
        made.sign(b"message")
        at("held")
        del made, view
    """, "locked pem"),
    "socket": Case("`socket.send(view)`", """
        ours, theirs = socket.socketpair()
        with key.reveal() as view:
            ours.send(view)
        del view
        at("held")
        ours.close(), theirs.close()
    """),
    "SSLSocket": Case("`SSLSocket.send(view)`", """
        ours, theirs = socket.socketpair()
        server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        server.load_cert_chain(sys.argv[2])
        client.check_hostname = False
        client.verify_mode = ssl.CERT_NONE
        # The other end is another process, or its copy would be found here.
        if os.fork() == 0:
            os.close(1), ours.close()
            with server.wrap_socket(theirs, server_side=True) as tls:
                while tls.recv(100):
                    pass
            os._exit(0)
        theirs.close()
        tls = client.wrap_socket(ours)
        with key.reveal() as view:
            tls.send(view)
        del view
        at("held")
        tls.close()
        del tls
    """),
    "load_cert_chain": Case("`SSLContext.load_cert_chain(path)`", """
        key.write_to(os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT, 0o600))
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(sys.argv[2], sys.argv[3])
        os.unlink(sys.argv[3])
        at("held")
        del made
    """, "pem of the certificate"),
    "libsodium": Case("libsodium `crypto_auth(pointer)`", """
        sodium = ctypes.CDLL("libsodium.so.23")
        sodium.sodium_init()
        tag = ctypes.create_string_buffer(32)
        with key.pointer() as address:
            sodium.crypto_auth(tag, b"message", ctypes.c_ulonglong(7), ctypes.c_void_p(address))
    """),
    "libsodium box": Case("libsodium `crypto_secretbox_easy(pointer)`", """
        sodium = ctypes.CDLL("libsodium.so.23")
        sodium.sodium_init()
        room = ctypes.create_string_buffer(23)
        with key.pointer() as address:
            sodium.crypto_secretbox_easy(room, b"message", ctypes.c_ulonglong(7), bytes(24), ctypes.c_void_p(address))
    """),
    "ours": Case("`compare`, `split`, `concat`, `write_to`, `from_bytes(bytearray)`", """
        room = bytearray(len(key))
        with key.reveal() as view:
            for place in range(len(view)):
                room[place] = view[place]
        del view
        other = Secret.from_bytes(room)
        assert other == key
        half, rest = key.split(16)
        whole = Secret.concat(half, rest)
        assert whole.write_to(os.open("/dev/null", os.O_WRONLY)) == len(key)
        at("held")
    """),
    "digits": Case("`Secret.from_hex(bytearray)`", """
        room = bytearray(len(key))
        with key.reveal() as view:
            for place in range(len(view)):
                room[place] = view[place]
        del view
        other = Secret.from_hex(room)
        at("held")
    """, "hex"),
    "bytes": Case("`bytes(view)`: for comparison", """
        with key.reveal() as view:
            made = bytes(view)
        at("held")
        del made, view
    """),
}  # fmt: skip


def secret_of(kind: str) -> tuple[bytes, dict[str, bytes], bytes]:
    """What is given to a program, what is looked for, and a certificate that goes with it if that is a key."""
    if kind == "key":
        made = secrets.token_bytes(32)
        return made, {name: bytes(byte ^ pad for byte in made) for name, pad in PADS.items()}, b""
    if kind == "bulk":
        made = secrets.token_bytes(4096)
        return made, {"as it is": made}, b""
    if kind == "hex":
        made = secrets.token_bytes(32)
        return made.hex().encode(), {"as it is": made, "digits": made.hex().encode()}, b""
    return _pem(kind)


def _pem(kind: str) -> tuple[bytes, dict[str, bytes], bytes]:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.generate()
    locked = form.BestAvailableEncryption(b"passphrase") if kind == "locked pem" else form.NoEncryption()
    text = private.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, locked)
    # Its middle: a PEM file, and the DER in it, begin like all others.
    needles = {"as it is": private.private_bytes_raw()}
    if kind != "locked pem":
        needles["as text"] = text.splitlines()[1][24:]
    return text, needles, _certificate(private) if kind.endswith("certificate") else b""


def _certificate(private: Any) -> bytes:
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number()).not_valid_before(now)
    return made.not_valid_after(now + datetime.timedelta(days=2)).sign(private, None).public_bytes(Encoding.PEM)


class Found(NamedTuple):
    """Copies found, in ordinary memory: of how much of the secret, in copies of all of it."""

    held: dict[str, float] | None
    after: dict[str, float]


def measure(case: Case, folder: Path) -> Found:
    """Run a case."""
    text, needles, certificate = secret_of(case.secret)
    if certificate:
        (folder / "certificate.pem").write_bytes(certificate)
    elif "sys.argv[2]" in case.program:
        other, _, certificate = secret_of("pem of the certificate")
        (folder / "certificate.pem").write_bytes(other + certificate)
    stages = dict(_stages(case, text, needles, folder))
    return Found(stages.get("held"), stages["after"])


def _stages(case: Case, text: bytes, needles: dict[str, bytes], folder: Path) -> Iterator[tuple[str, dict[str, float]]]:
    reader, writer = os.pipe()
    os.write(writer, text)
    os.close(writer)
    program = HEADER + textwrap.dedent(case.program) + FOOTER
    command = [sys.executable, "-I", "-c", program, str(reader), folder / "certificate.pem", folder / "key.pem"]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        command, pass_fds=[reader], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        os.close(reader)
        assert process.stdin is not None
        assert process.stdout is not None
        while stage := process.stdout.readline().strip().decode():
            answer = residue.search(residue.mask(needles, pid=process.pid, kinds=["ordinary"]))
            found = {name: sum(kinds.values()) for name, kinds in answer["counts"].items() if kinds}
            yield stage, {name: round(n * residue.PIECE / len(needles[name]), 2) for name, n in found.items()}
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(b"\n")
                process.stdin.flush()
    assert process.returncode == 0, f"{case.name} ended with {process.returncode}"


def main() -> None:
    """Print the table."""
    import tempfile

    print("| what | while it is held | afterwards |\n|---|---|---|")
    for name, case in CASES.items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            found = measure(case, Path(folder))
        print(f"| {case.name} | {_told(found.held)} | {_told(found.after)} |", flush=True)


def _told(found: dict[str, float] | None) -> str:
    if found is None:
        return ""
    return ", ".join(f"{number:g} {name}" for name, number in found.items()) or "nothing"


if __name__ == "__main__":
    main()
