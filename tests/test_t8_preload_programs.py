"""More real programs with the preload library: sshd with a login, curl, gpg-agent, one that may write no file."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from mounts import PATIENCE, Mounted, clean_environment, needs_root
from preloads import found_in, has_secret_memory, make_key, needles, preloaded, wait_until

SSHD = """
Port {port}
ListenAddress 127.0.0.1
HostKey {key}
AuthorizedKeysFile {folder}/user.pub
StrictModes no
PidFile none
UsePAM no
"""
LOGIN = "-oStrictHostKeyChecking=no -oUserKnownHostsFile=/dev/null -oBatchMode=yes -oLogLevel=ERROR"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with keys for sshd and for its client."""
    made = tmp_path_factory.mktemp("ssh")
    for name, words in (("host", ["-t", "rsa", "-b", "2048", "-m", "PEM"]), ("user", ["-t", "ed25519"])):
        subprocess.run(["ssh-keygen", "-q", "-N", "", *words, "-f", made / name], check=True)
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    return made


def modulus(key: Path) -> dict[str, bytes]:
    """48 bytes of the public number of an RSA key, in both byte orders."""
    words = ["openssl", "rsa", "-in", key, "-noout", "-modulus"]
    told = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    number = bytes.fromhex(told.strip().partition("=")[2])
    return {"modulus big": number[8:56], "modulus little": number[::-1][8:56]}


@contextmanager
def sshd(folder: Path, environment: dict[str, str], *, key: Path | None = None) -> Iterator[tuple[int, int]]:
    """sshd and its port. Its stderr is a file: whoever may not write to files dies of a line there."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "config").write_text(SSHD.format(folder=folder, port=port, key=key or folder / "host"))
    words = ["/usr/sbin/sshd", "-D", "-e", "-f", str(folder / "config")]
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stderr=log)
    try:
        wait_until(server, lambda: b"Server listening" in (folder / "log").read_bytes())
        yield server.pid, port
    finally:
        server.terminate()
        server.wait(PATIENCE)


@contextmanager
def logged_in(folder: Path, port: int) -> Iterator[int]:
    """The process of a session, through a login that lasts as long."""
    words = ["ssh", f"-p{port}", f"-i{folder / 'user'}", *LOGIN.split(), "root@127.0.0.1", "echo $PPID; cat"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        assert client.stdin
        assert client.stdout
        line = client.stdout.readline()
        assert line, (folder / "log").read_text()
        yield int(line)
        client.stdin.close()


@needs_root
@pytest.mark.mount
@pytest.mark.slow
def test_sshd_with_its_key_in_a_mount(folder: Path, tmp_path: Path) -> None:
    """The same with the host key in a mount: no number is found, and the login works."""
    wanted = needles(folder / "host") | modulus(folder / "host")
    with (
        in_a_mount(folder / "host", tmp_path / "mnt") as key,
        sshd(folder, preloaded("kernel"), key=key) as (listener, port),
        logged_in(folder, port) as session,
    ):
        assert [found_in(pid, wanted) for pid in (listener, session)] == [set(), set()]


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize("backend", [None, "kernel", "emulator"])
def test_sshd(folder: Path, backend: str | None) -> None:
    """A preloaded sshd lets in, through a process that may write no file; on the kernel backend no number is found.

    sshd keeps its private keys encrypted, so that in a plain one they are found by chance only; the public number of
    the same key is always found there, in the listener and in the session.
    """
    environment = preloaded(backend, REPORT="/dev/stderr") if backend else clean_environment()
    wanted = needles(folder / "host") | modulus(folder / "host")
    with sshd(folder, environment) as (listener, port), logged_in(folder, port) as session:
        assert session != listener
        for pid in (listener, session):
            assert has_secret_memory(pid) == (backend == "kernel")
            if backend == "kernel":
                assert found_in(pid, wanted) == set()
            else:
                assert "modulus little" in found_in(pid, wanted)


@contextmanager
def waiting_server(folder: Path) -> Iterator[tuple[int, socket.socket]]:
    """A TLS server that asks for a certificate: its port, and the socket that it listens on."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert", folder / "key")
    context.load_verify_locations(folder / "cert")
    context.verify_mode = ssl.CERT_REQUIRED
    with context.wrap_socket(socket.create_server(("127.0.0.1", 0)), server_side=True) as server:
        server.settimeout(PATIENCE)
        yield server.getsockname()[1], server


@contextmanager
def in_a_mount(key: Path, mountpoint: Path) -> Iterator[Path]:
    """That key in a secretfs mount."""
    with Mounted(mountpoint) as mount:
        (mount.path / "key").write_bytes(key.read_bytes())
        (mount.path / "key").chmod(0o600)
        yield mount.path / "key"


@needs_root
@pytest.mark.mount
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "disk", "mount"])
def test_curl(tmp_path: Path, kind: str) -> None:
    """curl proves who it is with a key; while it waits for the answer the key is found in a plain one only."""
    key = make_key(tmp_path)
    environment = clean_environment() if kind == "plain" else preloaded("kernel")
    with ExitStack() as stack:
        port, server = stack.enter_context(waiting_server(tmp_path))
        read = stack.enter_context(in_a_mount(key, tmp_path / "mnt")) if kind == "mount" else key
        proof = ["--cert", tmp_path / "cert", "--key", read]
        words = ["curl", "--silent", "--insecure", *proof, f"https://127.0.0.1:{port}"]
        with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE) as curl:
            connection = server.accept()[0]
            with connection:
                assert b"GET / HTTP" in connection.recv(1000)
                assert connection.getpeercert()
                found = found_in(curl.pid, needles(key))
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            assert curl.communicate(timeout=PATIENCE)[0] == b"ok"
    assert {"prime1 little", "prime2 little"} <= found if kind == "plain" else found == set()


def numbers_of(stored: str) -> dict[str, bytes]:
    """48 bytes from the middle of n, d, p, q and u in both byte orders, from the file that gpg-agent keeps a key in."""
    found = {}
    for name in "ndpqu":
        (digits,) = re.findall(rf"\({name}\s+#([0-9A-F\s]+)#", stored)
        number = bytes.fromhex("".join(digits.split())).lstrip(b"\0")
        found |= {f"{name} big": number[8:56], f"{name} little": number[::-1][8:56]}
    return found


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize("is_preloaded", [False, True])
def test_gpg_agent(is_preloaded: bool) -> None:
    """A key is made and signed with by a gpg-agent; its numbers are found in a plain one only."""
    started = preloaded("kernel") if is_preloaded else clean_environment()
    with tempfile.TemporaryDirectory(prefix="gpg-") as home:  # its sockets' path must be short
        environment = {**started, "GNUPGHOME": home}

        def gpg(*words: str, data: str = "") -> str:
            command = ["gpg", "--batch", "--quiet", "--passphrase", "", "--pinentry-mode", "loopback", *words]
            done = subprocess.run(
                command, env=environment, input=data, capture_output=True, text=True, timeout=PATIENCE, check=False
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        gpg("--quick-generate-key", "somebody", "rsa2048", "sign")
        try:
            assert "BEGIN PGP SIGNATURE" in gpg("--armor", "--detach-sign", data="text")
            asked = ["gpg-connect-agent", "--no-autostart", "getinfo pid", "/bye"]
            told = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True).stdout
            (agent,) = map(int, re.findall(r"^D (\d+)$", told, re.MULTILINE))
            (stored,) = Path(home, "private-keys-v1.d").iterdir()
            found = found_in(agent, numbers_of(stored.read_text()))
            assert has_secret_memory(agent) == is_preloaded
            assert found == set() if is_preloaded else {"p big", "q big"} <= found
        finally:
            end = ["gpgconf", "--homedir", home, "--kill", "gpg-agent"]
            subprocess.run(end, env=clean_environment(), check=True, timeout=PATIENCE)


@pytest.mark.parametrize("backend", ["kernel", "emulator"])
def test_no_file_may_be_written(backend: str) -> None:
    """A program that sets RLIMIT_FSIZE to 0 has a megabyte set aside, and is never killed for a report."""
    script = (
        "import ctypes, os, resource\n"
        "allocate = ctypes.CDLL(None).secretfs_alloc\n"
        "allocate.restype = ctypes.c_void_p\n"
        "allocate(100)\n"
        "set_limit = ctypes.CDLL(None).setrlimit\n"
        "fsize, limit = 1, (ctypes.c_ulong * 2)(0, 0)\n"
        "assert set_limit(fsize, limit) == 0\n"
        "assert all(allocate(1000) for _ in range(900))\n"
        "assert not all(allocate(1000) for _ in range(3000))\n"
    )
    with tempfile.TemporaryFile() as errors:
        words = ["/usr/bin/python3", "-I", "-c", script]
        environment = preloaded(backend, REPORT="/dev/stderr")
        done = subprocess.run(words, env=environment, stderr=errors, timeout=PATIENCE, check=False)
        errors.seek(0)
        assert (done.returncode, errors.read()) == (0, b"")
