#!/usr/bin/python3
"""A TLS server and client in Python whose private keys exist only in a secretfs mount.

    secretfs mount ~/keys && python3 examples/python-ssl/run.py ~/keys

Both sides show a certificate and check the other's. `ssl` reads a key file through OpenSSL, so any program that calls
`SSLContext.load_cert_chain` can be given a path in a mount.
"""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from pathlib import Path


def make_certificate(folder: Path, name: str) -> Path:
    """A new key and its certificate, in one file that is read by its owner only."""
    pem, key = folder / f"{name}.pem", folder / f"{name}.key"
    curve = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
    subprocess.run(["openssl", "genpkey", "-quiet", *curve, "-out", key], check=True)
    request = ["openssl", "req", "-x509", "-key", key, "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
    certificate = subprocess.run([*request, "-days", "1"], check=True, capture_output=True).stdout
    with key.open("ab") as file:
        file.write(certificate)
    return key.rename(pem)


def context(mine: Path, theirs: Path, *, server: bool) -> ssl.SSLContext:
    """One side's settings: show `mine`, accept `theirs` and nothing else."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.load_cert_chain(mine)
    made.load_verify_locations(cadata=certificate_of(theirs))
    made.verify_mode = ssl.CERT_REQUIRED
    return made


def certificate_of(pem: Path) -> str:
    """The public part of the file."""
    begin = "-----BEGIN CERTIFICATE-----"
    return begin + pem.read_text(encoding="ascii").partition(begin)[2]


def serve_one(listener: socket.socket, settings: ssl.SSLContext) -> None:
    """Answer one client."""
    connection, _ = listener.accept()
    with connection, settings.wrap_socket(connection, server_side=True) as tls:
        common_name = tls.getpeercert()["subject"][0][0][1]
        tls.sendall(f"hello {common_name}: ".encode() + tls.recv(100))


def main() -> int:
    """Do it in the mountpoint given."""
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        print(f"usage: {sys.argv[0]} MOUNTPOINT        (secretfs mount MOUNTPOINT, before)", file=sys.stderr)
        return 2
    keys = Path(tempfile.mkdtemp(prefix="example.", dir=sys.argv[1]))
    try:
        ours, client = make_certificate(keys, "server.example"), make_certificate(keys, "client.example")
        with socket.create_server(("127.0.0.1", 0)) as listener:  # listens at once: no client can come too early
            listener.settimeout(15)
            thread = threading.Thread(
                target=serve_one, args=(listener, context(ours, client, server=True)), daemon=True
            )
            thread.start()
            settings = context(client, ours, server=False)
            with (
                socket.create_connection(listener.getsockname(), timeout=15) as plain,
                settings.wrap_socket(plain, server_hostname="server.example") as tls,
            ):
                tls.sendall(b"is it you?")
                answer = tls.recv(100).decode()
            thread.join(15)
    finally:
        shutil.rmtree(keys)
    print(f"{'ok' if answer == 'hello client.example: is it you?' else 'failed'}: the server answered {answer!r}")
    return 0 if answer == "hello client.example: is it you?" else 1


if __name__ == "__main__":
    sys.exit(main())
