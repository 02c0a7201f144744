#!/usr/bin/env python3
"""The demo behind `make demo`: nginx serves TLS with a key that has only ever been in a secretfs mount.

It shows every command that it runs, works as root and as an ordinary user, undoes everything, also after a failure,
and exits with 1 if any step fails. What root can read of the key's memory is asked by demo_reader.py, as root.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

READER = Path(__file__).with_name("demo_reader.py")
PATIENCE = 10.0
"""Seconds for nginx to start or to end."""

NGINX_CONF = """\
{user}
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path       {folder}/proxy;
    fastcgi_temp_path     {folder}/fastcgi;
    uwsgi_temp_path       {folder}/uwsgi;
    scgi_temp_path        {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate     {folder}/cert.pem;
        ssl_certificate_key {keys}/key.pem;
        location / {{ return 200 "Hello over TLS: the key of this server is in no file on any disk.\\n"; }}
    }}
}}
"""


class StepError(Exception):
    """A step of the demo did not do what it should."""


def main() -> int:
    """Run the demo and say how it went."""
    parser = argparse.ArgumentParser(description="secretfs, shown on a TLS server")
    parser.add_argument("--installed", metavar="FILE", help="names of Debian packages that make has installed for it")
    installed = parser.parse_args().installed
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        check_programs()
        with temporary_folder() as folder:
            show(folder)
        say_what_is_left(folder, installed)
    except StepError as error:
        print(f"\ndemo: failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted; everything was cleaned up", file=sys.stderr)
        return 130
    return 0


def show(folder: Path) -> None:
    """The demo itself; `folder` is there for all its files, and goes away afterwards."""
    keys, port = folder / "keys", free_port()
    say("1. A mount. It is an empty folder until then, and needs no root.")
    run("mkdir", keys)
    with mounted(keys):
        say("2. A private key, written straight into the mount, and a certificate for it (which is no secret).")
        key = keys / "key.pem"
        run("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", key)
        run("ls", "-l", keys)
        subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1")
        run("openssl", "req", "-x509", "-key", key, "-days", "1", *subject, "-out", folder / "cert.pem")

        say("3. nginx, unmodified, reads the key from the mount like any file.")
        user = "user www-data;" if os.geteuid() == 0 else ""
        (folder / "nginx.conf").write_text(NGINX_CONF.format(folder=folder, keys=keys, port=port, user=user))
        with nginx(folder, port):
            run("curl", "--silent", "--show-error", "--cacert", folder / "cert.pem", f"https://127.0.0.1:{port}/")

            say("4. What is mounted, and what it promises on this machine.")
            run("secretfs", "status", keys)

            say(
                "5. Can root read the memory that the file lies in? (This is about that memory only, "
                "not about copies on the way there, nor those of programs that have read the file, as nginx has.)"
            )
            ask_as_root(keys)
        say("6. The end: nginx is stopped, and unmounting destroys the key.")
    run("ls", "-lA", keys)
    if any(keys.iterdir()):
        raise StepError(f"{keys} is not empty after the umount")
    print("The mountpoint is an ordinary empty folder again.")


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for everything, removed at the end: not below /root, where a service's user could not go."""
    folder = Path(tempfile.mkdtemp(prefix="secretfs-demo-", dir="/tmp"))
    try:
        yield folder
    finally:
        if mount_of(folder / "keys"):
            print(f"demo: {folder}/keys is still mounted; secretfs umount {folder}/keys", file=sys.stderr)
        else:
            shutil.rmtree(folder)


@contextlib.contextmanager
def mounted(keys: Path) -> Iterator[None]:
    """A secretfs on `keys`."""
    run("secretfs", "mount", keys)
    try:
        yield
    except BaseException:
        run("secretfs", "umount", "--lazy", keys, check=False)
        raise
    run("secretfs", "umount", keys)


@contextlib.contextmanager
def nginx(folder: Path, port: int) -> Iterator[None]:
    """nginx with a configuration, log and temporary files of its own."""
    words: list[str | Path] = [
        "nginx",
        "-p",
        folder,
        "-e",
        folder / "nginx.log",
        "-c",
        folder / "nginx.conf",
        "-g",
        "daemon off;",
    ]
    print_command(words, suffix=" &")
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, env=environment()) as process:
        try:
            wait_for_port(process, port, folder / "nginx.log")
            yield
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_for_port(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Return when nginx accepts connections.

    Raises:
        StepError: it has ended instead, or takes too long.
    """
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if process.poll() is not None:
            said = log.read_text() if log.exists() else ""
            raise StepError(f"nginx ended with exit code {process.returncode}: {said}")
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), PATIENCE):
            return
        time.sleep(0.02)
    raise StepError("nginx does not answer")


def ask_as_root(keys: Path) -> None:
    """Run the reader as root, if there is a way."""
    mount = mount_of(keys)
    if mount is None:
        raise StepError(f"{keys} is not in /proc/self/mountinfo")
    pid = ""
    with contextlib.suppress(OSError):
        pid = os.getxattr(keys, "user.secretfs.pid").decode()
    words = ["/usr/bin/python3", "-I", str(READER), f"--connection={mount.partition(':')[2]}", f"--pid={pid}"]
    if os.geteuid() == 0:
        run(*words)
    elif shutil.which("sudo") and sudo_works():
        run("sudo", *words)
    else:
        print("This part needs root: you are not root, and sudo is not there or not allowed. It is skipped.")
        print("(As root `make demo` shows it.)")


def sudo_works() -> bool:
    """sudo may ask for a password only where somebody can answer."""
    words = ["sudo", "true"] if sys.stdin.isatty() else ["sudo", "-n", "true"]
    return subprocess.run(words, check=False, stderr=subprocess.DEVNULL).returncode == 0


def mount_of(path: Path) -> str | None:
    """major:minor of the secretfs on `path`; root cannot ask a user's mount itself."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == str(path) and "fuse.secretfs" in fields:
            return fields[2]
    return None


def say_what_is_left(folder: Path, installed: str | None) -> None:
    """The last words: nothing but Debian packages remains."""
    if folder.exists():
        raise StepError(f"{folder} is still there")
    packages = Path(installed).read_text().split() if installed and Path(installed).exists() else []
    say("Done. Everything that the demo made is gone: the mount, the key, nginx, its folder.")
    if packages:
        print(textwrap.fill(f"make has installed these Debian packages, which stay: {' '.join(packages)}", 110))
    else:
        print("No Debian package had to be installed for it.")


def check_programs() -> None:
    """Everything that will be called is there.

    Raises:
        StepError: naming what is missing.
    """
    missing = [name for name in ("secretfs", "openssl", "nginx", "curl") if not shutil.which(name, path=search_path())]
    if missing:
        raise StepError(f"not installed: {', '.join(missing)}; `make demo` installs what it needs")


def free_port() -> int:
    """A port of the loopback interface on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def search_path() -> str:
    """PATH, with the folders of administrators' programs: Debian has nginx in /usr/sbin."""
    return f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"


def environment() -> dict[str, str]:
    """This process's environment with the wider PATH, and without what would change curl's or openssl's mind."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return {**kept, "PATH": search_path(), "LC_ALL": "C"}


def run(*words: str | Path, check: bool = True) -> None:
    """Show a command and run it.

    Raises:
        StepError: it failed.
    """
    print_command(words)
    done = subprocess.run(
        words, stdin=None if words[0] == "sudo" else subprocess.DEVNULL, env=environment(), check=False
    )
    if check and done.returncode != 0:
        raise StepError(f"`{shlex.join(map(str, words))}` ended with exit code {done.returncode}")


def print_command(words: Sequence[str | Path], suffix: str = "") -> None:
    """The command as it could be typed."""
    print(f"$ {shlex.join(map(str, words))}{suffix}", flush=True)


def say(text: str) -> None:
    """A sentence of the narration."""
    print("\n" + textwrap.fill(f"== {text}", 110), flush=True)


if __name__ == "__main__":
    sys.exit(main())
