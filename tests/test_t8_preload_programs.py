"""More real programs with the preload library: sshd with a login, gpg-agent, one that may write no file any more."""

from __future__ import annotations

import re
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mounts import PATIENCE, clean_environment, needs_root
from preloads import has_secret_memory, preloaded, wait_until

SSHD = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
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


@contextmanager
def sshd(folder: Path, environment: dict[str, str]) -> Iterator[tuple[int, int]]:
    """sshd and its port. Its stderr is a file: whoever may not write to files dies of a line there."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "config").write_text(SSHD.format(folder=folder, port=port))
    words = ["/usr/sbin/sshd", "-D", "-e", "-f", str(folder / "config")]
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stderr=log)
    try:
        wait_until(server, lambda: b"Server listening" in (folder / "log").read_bytes())
        yield server.pid, port
    finally:
        server.terminate()
        server.wait(PATIENCE)


def log_in(folder: Path, port: int, words: str) -> str:
    """What a command prints that is run through a login."""
    command = ["ssh", f"-p{port}", f"-i{folder / 'user'}", *LOGIN.split(), "root@127.0.0.1", words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr + (folder / "log").read_text()
    return done.stdout


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize("backend", ["kernel", "emulator"])
def test_sshd(folder: Path, backend: str) -> None:
    """A preloaded sshd lets in, through a process that may write no file; it and the session have secret memory.

    Its memory is not searched: sshd keeps its keys encrypted, and in a plain one they are found by chance only.
    """
    with sshd(folder, preloaded(backend, REPORT="/dev/stderr")) as (pid, port):
        session, kinds = log_in(folder, port, "echo $PPID; grep -c secretmem /proc/$PPID/maps; exec true").split()
        assert int(session) != pid
        assert (has_secret_memory(pid), int(kinds) > 0) == ((backend == "kernel"),) * 2


@needs_root
@pytest.mark.slow
def test_gpg_agent() -> None:
    """A key is made and signed with by a gpg-agent whose pool is secret memory."""
    with tempfile.TemporaryDirectory(prefix="gpg-") as home:  # its sockets' path must be short
        environment = {**preloaded("kernel"), "GNUPGHOME": home}

        def gpg(*words: str, data: str = "") -> str:
            command = ["gpg", "--batch", "--quiet", "--passphrase", "", "--pinentry-mode", "loopback", *words]
            done = subprocess.run(
                command, env=environment, input=data, capture_output=True, text=True, timeout=PATIENCE, check=False
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        gpg("--quick-generate-key", "somebody", "ed25519", "sign")
        try:
            assert "BEGIN PGP SIGNATURE" in gpg("--armor", "--detach-sign", data="text")
            asked = ["gpg-connect-agent", "--no-autostart", "getinfo pid", "/bye"]
            told = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True).stdout
            (agent,) = re.findall(r"^D (\d+)$", told, re.MULTILINE)
            assert has_secret_memory(int(agent))
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
