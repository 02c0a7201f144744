"""Views of secrets in the hands of real libraries: what each computes is what it computes from plain bytes."""

from __future__ import annotations

import ctypes
import hashlib
import hmac
import os
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest
from programs import BACKENDS

from secretfs import Secret
from secretfs.rest import libsodium

KEY = bytes(range(7, 39))
MESSAGE = b"a message of no importance"


@pytest.fixture(params=[*BACKENDS, "at rest"])
def key(request) -> Secret:
    """A secret of 32 known bytes."""
    at_rest = request.param == "at rest"
    backend = "emulator" if at_rest else request.param
    return Secret.from_bytes(bytearray(KEY), backend=backend, at_rest=at_rest)


def test_hashlib_and_hmac(key: Secret) -> None:
    """hashlib, hmac.digest, pbkdf2_hmac and scrypt read the view."""
    with key.reveal() as view:
        assert hashlib.sha256(view).digest() == hashlib.sha256(KEY).digest()
        assert hashlib.blake2b(MESSAGE, key=view).digest() == hashlib.blake2b(MESSAGE, key=KEY).digest()
        assert hmac.digest(view, MESSAGE, "sha256") == hmac.digest(KEY, MESSAGE, "sha256")
        assert hashlib.pbkdf2_hmac("sha256", view, b"salt", 50) == hashlib.pbkdf2_hmac("sha256", KEY, b"salt", 50)
        scrypt = {"salt": b"salt", "n": 16, "r": 8, "p": 1}
        assert hashlib.scrypt(view, **scrypt) == hashlib.scrypt(KEY, **scrypt)
        assert hmac.compare_digest(view, KEY)
        with pytest.raises(TypeError):  # takes only bytes and bytearrays: hmac.digest() is the way
            hmac.new(view, MESSAGE, "sha256")


def test_cryptography(key: Secret) -> None:
    """AEADs, HMAC, HKDF, Ed25519 and X25519 of `cryptography` take the view; update_into() fills a secret."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives import hmac as crypto_hmac
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    nonce = bytes(12)
    with key.reveal() as view:
        for aead in (AESGCM, ChaCha20Poly1305):
            sealed = aead(view).encrypt(nonce, MESSAGE, b"more")
            assert sealed == aead(KEY).encrypt(nonce, MESSAGE, b"more")
            assert aead(KEY).decrypt(nonce, sealed, b"more") == MESSAGE
        codes = [crypto_hmac.HMAC(one, hashes.SHA256()) for one in (view, KEY)]
        for code in codes:
            code.update(MESSAGE)
        assert codes[0].finalize() == codes[1].finalize()
        for private in (Ed25519PrivateKey, X25519PrivateKey):
            ours, theirs = (private.from_private_bytes(one).public_key() for one in (view, KEY))
            assert ours.public_bytes_raw() == theirs.public_bytes_raw()
        derived = [HKDF(hashes.SHA256(), 32, b"salt", b"info").derive(one) for one in (view, KEY)]
        assert derived[0] == derived[1]
        encryptor = Cipher(algorithms.AES(view), modes.CTR(bytes(16))).encryptor()
        with Secret(64, backend="emulator", at_rest=False) as target, target.reveal(write=True) as room:
            written = encryptor.update_into(MESSAGE, room)
            decryptor = Cipher(algorithms.AES(KEY), modes.CTR(bytes(16))).decryptor()
            assert decryptor.update(room[:written].tobytes()) == MESSAGE


def test_a_pem_key(key: Secret, tmp_path: Path) -> None:
    """A private key in a file is read into a secret and loaded from its view, passphrase and all."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.generate()
    lock = form.BestAvailableEncryption(b"passphrase")
    path = tmp_path / "key.pem"
    path.write_bytes(private.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, lock))
    word = Secret.from_bytes(bytearray(b"passphrase"), backend=key.backend)
    with Secret.read(path, backend=key.backend) as pem, pem.reveal() as view, word.reveal() as passphrase:
        loaded = form.load_pem_private_key(view, passphrase)
    assert loaded.public_key() == private.public_key()


def test_socket(key: Secret) -> None:
    """socket.send, sendall and sendmsg hand the view to the kernel; recv_into fills a secret."""
    ours, theirs = socket.socketpair()
    with key.reveal() as view:
        assert ours.send(view) == 32
        ours.sendall(view)
        assert ours.sendmsg([view, view[:3]]) == 35
    assert theirs.recv(999) == KEY * 3 + KEY[:3]
    theirs.sendall(KEY[::-1])
    with Secret(32, backend=key.backend) as got:
        with got.reveal(write=True) as view:
            assert ours.recv_into(view) == 32
        with got.reveal() as view:
            assert view == KEY[::-1]
    ours.close(), theirs.close()


@pytest.mark.slow
def test_ssl_socket(key: Secret, tmp_path: Path) -> None:
    """SSLSocket.send and recv_into work on views."""
    pem = tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-keyout", pem, "-out", tmp_path / "cert.pem"], check=True, capture_output=True,
    )  # fmt: skip
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "cert.pem", pem)
    client = ssl.create_default_context(cafile=tmp_path / "cert.pem")
    ours, theirs = socket.socketpair()

    def echo() -> None:
        with server.wrap_socket(theirs, server_side=True) as there:
            there.sendall(there.recv(999)[::-1])

    thread = threading.Thread(target=echo)
    thread.start()
    with client.wrap_socket(ours, server_hostname="localhost") as here:
        with key.reveal() as view:
            assert here.send(view) == 32
        with Secret(32, backend=key.backend) as got, got.reveal(write=True) as view:
            assert here.recv_into(view) == 32
            assert view == KEY[::-1]
    thread.join()


def test_libsodium_by_pointer(key: Secret) -> None:
    """What takes only addresses gets them: crypto_secretbox_easy with a key in secret memory, into secret memory."""
    library = libsodium()
    if library is None:
        pytest.skip("libsodium: not installed")
    sealed, nonce = ctypes.create_string_buffer(len(MESSAGE) + 16), bytes(24)
    length = ctypes.c_ulonglong(len(MESSAGE))
    with key.pointer() as address:
        assert not library.crypto_secretbox_easy(sealed, MESSAGE, length, nonce, ctypes.c_void_p(address))
    with Secret(len(MESSAGE), backend=key.backend) as opened:
        with key.pointer() as address, opened.pointer(write=True) as target:
            words = ctypes.c_void_p(target), sealed, ctypes.c_ulonglong(len(sealed)), nonce, ctypes.c_void_p(address)
            assert not library.crypto_secretbox_open_easy(*words)
        with opened.reveal() as view:
            assert view == MESSAGE


def test_a_library_that_keeps_the_view(key: Secret) -> None:
    """An object that holds a buffer beyond the block is found, whoever made it."""
    window = key.reveal(write=True)
    kept = (ctypes.c_char * 32).from_buffer(window.__enter__())
    with pytest.raises(BufferError, match="outside its block"):
        window.__exit__(None, None, None)
    assert kept.raw == KEY
    del kept
    with key.reveal() as view:
        assert view == KEY


def test_files_through_the_kernel(key: Secret, tmp_path: Path) -> None:
    """os.write, os.pwritev and os.preadv take views."""
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT, 0o600)
    with key.reveal() as view:
        assert os.write(fd, view) == 32
        assert os.pwritev(fd, [view], 32) == 32
    with key.reveal(write=True) as view:
        assert os.preadv(fd, [view[:16]], 16) == 16
        assert view == KEY[16:] * 2
    os.close(fd)
