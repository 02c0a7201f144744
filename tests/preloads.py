"""TLS servers with and without the preload library, and the search of their memory for the key, from outside as root.

The numbers of the key are read with openssl(1), in another process; what is searched for is never in an argument.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from mounts import PATIENCE, clean_environment, have_secretmem
from preloadscripts import HELPERS

from secretfs.preload import LIBRARY

PRELOAD = os.environ.get("SECRETFS_TEST_PRELOAD", LIBRARY)
"""What LD_PRELOAD is set to: the installed library, or another build of it behind a sanitizer's."""
WORKERS = 3
PYTHON = """
import socket, ssl
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
{before}
context.load_cert_chain("{folder}/cert", "{key}")
server = socket.create_server(("127.0.0.1", {port}))
while True:
    try:
        context.wrap_socket(server.accept()[0], server_side=True).close()
    except OSError:
        pass
"""
NGINX = """
daemon off; worker_processes {workers}; pid {folder}/pid; error_log stderr; events {{ }}
http {{ access_log off; client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {folder}/cert; ssl_certificate_key {key}; }} }}
"""
KINDS = ("nginx", "s_server", "python", "gnutls")


def preloaded(backend: str = "auto", **more: str) -> dict[str, str]:
    """The environment of a program with the library; names in `more` are given without SECRETFS_PRELOAD_."""
    if backend == "kernel" and not have_secretmem():
        pytest.skip("memfd_secret: the kernel has none here")
    variables = {f"SECRETFS_PRELOAD_{name}": value for name, value in more.items()}
    return {**clean_environment(), "LD_PRELOAD": PRELOAD, "SECRETFS_BACKEND": backend, **variables}


def make_key(folder: Path) -> Path:
    """A certificate in `folder`/cert and its RSA key in `folder`/key."""
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    subprocess.run([*request, "-keyout", folder / "key", "-out", folder / "cert"], check=True, capture_output=True)
    return folder / "key"


def needles(key: Path) -> dict[str, bytes]:
    """48 bytes from the middle of d, p and q in both byte orders, and a line of the PEM file.

    DER has the numbers in big-endian order, so it needs no needle of its own.
    """
    command = ["openssl", "rsa", "-in", key, "-noout", "-text"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    found = {"pem": key.read_bytes().splitlines()[5]}
    for label in ("privateExponent", "prime1", "prime2"):
        at = next(i for i, line in enumerate(lines) if line.startswith(label)) + 1
        end = next(i for i in range(at, len(lines)) if not lines[i].startswith(" "))
        number = bytes.fromhex("".join(line.strip().replace(":", "") for line in lines[at:end])).lstrip(b"\0")
        found |= {f"{label} big": number[8:56], f"{label} little": number[::-1][8:56]}
    return found


def found_in(pid: int, wanted: dict[str, bytes]) -> set[str]:
    """The names of what is in that process's readable memory."""
    found: set[str] = set()
    with open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            if "r" not in line.split()[1]:
                continue  # reserved addresses: gigabytes of nothing
            start, end = (int(word, 16) for word in line.split()[0].split("-"))
            if end - start > 1 << 32:
                continue  # what a sanitizer has reserved
            with suppress(OSError, OverflowError):
                memory.seek(start)
                content = memory.read(end - start)
                found |= {name for name, value in wanted.items() if value in content}
    return found


def has_secret_memory(pid: int) -> bool:
    """Whether a process has memory from memfd_secret(2)."""
    return "/secretmem" in Path(f"/proc/{pid}/maps").read_text()


def command(kind: str, folder: Path, key: Path, port: int, before: str = "") -> list[str]:
    """The words that start such a server."""
    if kind == "nginx":
        (folder / "conf").write_text(NGINX.format(folder=folder, key=key, port=port, workers=WORKERS))
        return ["/usr/sbin/nginx", "-c", str(folder / "conf")]
    if kind == "python":
        return [sys.executable, "-c", PYTHON.format(folder=folder, key=key, port=port, before=before)]
    if kind == "gnutls":
        files = ["--x509keyfile", str(key), "--x509certfile", str(folder / "cert")]
        return ["gnutls-serv", "--port", str(port), *files, "--http", "--quiet"]
    files = ["-key", str(key), "-cert", str(folder / "cert")]
    return ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", *files, "-quiet", "-www"]


@contextmanager
def serving(
    kind: str, folder: Path, environment: dict[str, str], *, key: Path | None = None, before: str = ""
) -> Iterator[list[int]]:
    """The server's processes, after a handshake; for nginx once all workers are there."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = command(kind, folder, key or folder / "key", port, before)
    server = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL)
    try:
        wait_until(server, lambda: handshake(port))
        wanted = WORKERS if kind == "nginx" else 0
        wait_until(server, lambda: len(children_of(server.pid)) == wanted)
        yield [server.pid, *children_of(server.pid)]
    finally:
        server.terminate()
        server.wait(PATIENCE)


@contextmanager
def reading(script: str, environment: dict[str, str], data: bytes = b"") -> Iterator[int]:
    """The process of a Python script that got `data`, has said that it is ready and waits for the end of its input."""
    words = ["/usr/bin/python3", "-I", "-c", HELPERS + script]
    with subprocess.Popen(words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdin
        assert program.stdout
        try:
            program.stdin.write(data)
            program.stdin.flush()
            assert program.stdout.readline() == b"ready\n"
            yield program.pid
        finally:
            program.stdin.close()
    assert program.returncode == 0


def wait_until(server: subprocess.Popen[Any], happened: Callable[[], bool], patience: float = PATIENCE) -> None:
    """Return when it has happened; fail when the server ends instead, or time is up."""
    end = time.monotonic() + patience
    pidfd = os.pidfd_open(server.pid)
    try:
        while not happened():
            assert not select.select([pidfd], [], [], 0.02)[0], f"{server.args!r} ended"
            assert time.monotonic() < end, f"{server.args!r} does not get ready"
    finally:
        os.close(pidfd)


def children_of(pid: int) -> list[int]:
    """The child processes of a process with one thread."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def handshake(port: int) -> bool:
    """Whether a TLS server answers there."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as plain, context.wrap_socket(plain):
        return True
    return False
