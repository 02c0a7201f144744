#!/usr/bin/env python3
"""SSLSocket.send: a secret over TLS, read from the view and enciphered in OpenSSL's buffer.

The private key of the server is read by OpenSSL from a file: SSLContext takes nothing but paths. A path in a secretfs
mount (../python-ssl) keeps it off the disk; OpenSSL's own copy in this process stays.
"""

import socket
import ssl
import subprocess
import tempfile
import threading
from pathlib import Path

from secretfs import Secret

LENGTH = 32


def make_certificate(folder: Path) -> Path:
    """A key for this run, and its certificate, in one file."""
    pem = folder / "server.pem"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", "1", "-subj", "/CN=localhost"]
    command = ["openssl", "req", "-x509", *curve, "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command, "-keyout", pem, "-out", folder / "cert.pem"], check=True, capture_output=True)
    with pem.open("ab") as file:
        file.write((folder / "cert.pem").read_bytes())
    return pem


def receive(connection: socket.socket, settings: ssl.SSLContext, received: Secret) -> None:
    """The other side fills a secret of its own."""
    with settings.wrap_socket(connection, server_side=True) as tls, received.reveal(write=True) as view:
        tls.recv_into(view, LENGTH)  # one record
        tls.send(b"thanks")


with tempfile.TemporaryDirectory() as folder, Secret.random(LENGTH) as token, Secret(LENGTH) as received:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(make_certificate(Path(folder)))
    client = ssl.create_default_context(cafile=Path(folder) / "cert.pem")
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=receive, args=(theirs, server, received))
    thread.start()
    with client.wrap_socket(ours, server_hostname="localhost") as tls:
        with token.reveal() as view:
            tls.send(view)
        answer = tls.recv(100)
    thread.join()
    assert answer == b"thanks"
    assert received == token
print(f"ok: {LENGTH} bytes went over TLS")
