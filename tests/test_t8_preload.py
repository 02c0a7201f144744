"""Real programs with the preload library: what a search of their memory from outside finds of their key."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from secretfs.preload import LIBRARY

PYTHON = """
import socket, ssl
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("{folder}/cert", "{folder}/key")
server = socket.create_server(("127.0.0.1", {port}))
while True:
    try:
        context.wrap_socket(server.accept()[0], server_side=True).close()
    except OSError:
        pass
"""
NGINX = """
daemon off; worker_processes 3; pid {folder}/pid; error_log stderr; events {{ }}
http {{ access_log off; client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {folder}/cert; ssl_certificate_key {folder}/key; }} }}
"""
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tls")
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    subprocess.run([*request, "-keyout", made / "key", "-out", made / "cert"], check=True, capture_output=True)
    return made


def needles(folder: Path) -> dict[str, bytes]:
    """48 bytes from the middle of d, p and q in both byte orders, and a line of the PEM file."""
    command = ["openssl", "rsa", "-in", folder / "key", "-noout", "-text"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    found = {"pem": (folder / "key").read_bytes().splitlines()[5]}
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
            with suppress(OSError, OverflowError):
                memory.seek(start)
                content = memory.read(end - start)
                found |= {name for name, value in wanted.items() if value in content}
    return found


def command(kind: str, folder: Path, port: int) -> list[str]:
    if kind == "nginx":
        (folder / "conf").write_text(NGINX.format(folder=folder, port=port))
        return ["/usr/sbin/nginx", "-c", str(folder / "conf")]
    if kind == "python":
        return [sys.executable, "-c", PYTHON.format(folder=folder, port=port)]
    files = ["-key", str(folder / "key"), "-cert", str(folder / "cert")]
    return ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", *files, "-quiet", "-www"]


@contextmanager
def serving(kind: str, folder: Path, **environment: str) -> Iterator[list[int]]:
    """The server's processes, after a handshake."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(command(kind, folder, port), env=os.environ | environment, stdin=subprocess.DEVNULL)
    try:
        while not handshake(port):
            assert server.poll() is None
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        yield [server.pid, *map(int, children)]
    finally:
        server.terminate()
        server.wait(10)


def handshake(port: int) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as plain, context.wrap_socket(plain):
        return True
    return False


@pytest.mark.parametrize("kind", ["nginx", "s_server", "python"])
def test_plain_is_found(kind: str, folder: Path) -> None:
    """The control: the search finds the key's numbers in a server that is started plain."""
    with serving(kind, folder) as pids:
        assert {"prime1 little", "prime2 little"} <= found_in(pids[0], needles(folder))


@pytest.mark.parametrize("kind", ["nginx", "s_server", "python"])
def test_preloaded_is_not_found(kind: str, folder: Path) -> None:
    """On the kernel backend nothing of the key is found in the server or in its workers."""
    probe = subprocess.run(["true"], env=os.environ | {"LD_PRELOAD": LIBRARY, "SECRETFS_BACKEND": "kernel"})
    if probe.returncode:
        pytest.skip("memfd_secret: not on this kernel")
    with serving(kind, folder, LD_PRELOAD=LIBRARY, SECRETFS_BACKEND="kernel") as pids:
        assert [found_in(pid, needles(folder)) for pid in pids] == [set()] * len(pids)


def test_report_outlives_the_title(folder: Path) -> None:
    """nginx writes over its arguments and environment; its report has the path and the name from before that."""
    report = folder / "report"
    with serving("nginx", folder, LD_PRELOAD=LIBRARY, SECRETFS_PRELOAD_REPORT=str(report)):
        pass
    assert {json.loads(line)["program"] for line in report.read_text().splitlines()} == {"nginx"}


@pytest.mark.parametrize("name", ["BACKEND", "PRELOAD_TOOLKIT", "PRELOAD_EXHAUSTED", "PRELOAD_CHILDREN"])
def test_bad_value(name: str) -> None:
    """A value that is not known ends the program before it starts, with one sentence that names both."""
    environment = os.environ | {"LD_PRELOAD": LIBRARY, f"SECRETFS_{name}": "nonsense"}
    done = subprocess.run(["true"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (125, 1)
    assert f"SECRETFS_{name}" in done.stderr and "nonsense" in done.stderr
