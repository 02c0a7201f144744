"""Sessions: a mount of each kind with commands beside it, for tests of programs that people really use.

A module that imports the fixtures `session` and `here` runs its tests as root and as an ordinary user, on each backend.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from box import command as box
from mounts import NOBODY, PATIENCE, ROOT, SECRETFS, clean_environment, have_secretmem, wait_readable

__all__ = ["EXAMPLES", "Folder", "Session", "here", "session"]

EXAMPLES = Path(__file__).parent.parent / "examples"
PROFILES = ("root kernel", "root emulator", "user kernel", "user emulator")
LOCK_LIMIT = 8 << 20


class Session:
    """A mount, made by `secretfs mount --foreground`, and commands run as its user where that user sees it."""

    def __init__(self, base: Path, backend: str, *, ordinary_user: bool) -> None:
        self.mount, self.tmp, self.examples = base / "mnt", base / "tmp", base / "examples"
        self.root = ROOT and not ordinary_user
        for folder in (self.mount, self.tmp):
            folder.mkdir()
        shutil.copytree(EXAMPLES, self.examples)  # a clone may lie where another user can't read
        command = [SECRETFS, "mount", "--foreground", self.mount]
        self._enter: list[str] = []
        if ordinary_user:
            for path in (base, *base.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
            become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
            give_a_shell = 'mount --bind "$1" /etc/passwd; shift; exec "$@"'
            command = box(["sh", "-ec", give_a_shell, "sh", _passwd(base), *become, *command], memlock=LOCK_LIMIT)
        self._process = subprocess.Popen(
            command, env={**clean_environment(), "SECRETFS_BACKEND": backend}, stderr=subprocess.PIPE, text=True
        )
        assert self._process.stderr is not None
        self.log = ""
        while "mounted on" not in self.log:
            wait_readable(self._process.stderr.fileno())
            line = self._process.stderr.readline()
            assert line, f"no mount: {self.log}"
            self.log += line
        if ordinary_user:
            self._enter = ["nsenter", f"--target={self._process.pid}", "--mount", "--", *become]

    def run(self, *words: str | Path, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command beside the mount, in `folder`."""
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
            "HOME": str(self.tmp),
            "TMPDIR": str(self.tmp),
        }
        return subprocess.run(
            [*self._enter, "env", "-C", folder or self.mount, *words],
            env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
            cwd="/",
        )  # fmt: skip

    def close(self) -> None:
        """Unmount, not lazily: nothing may be open any more. Nothing may have gone wrong inside either.

        Not by `secretfs umount`, which waits: a mount namespace that somebody else's test made in the meantime may
        hold a copy of the mount, and with it the daemon.
        """
        done = self.run(*(("umount",) if self.root else ("fusermount3", "-u")), self.mount, folder=self.tmp)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2 if done.returncode == 0 else 0)
        self._process.terminate()
        _, rest = self._process.communicate(timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        assert self._process.returncode == 0, rest
        assert "failed" not in self.log + rest, self.log + rest


class Folder:
    """A fresh folder in a session's mount, and one outside."""

    def __init__(self, session: Session, name: str) -> None:
        self.session = session
        self.path, self.outside = session.mount / name, session.tmp / name
        self.python("import os, sys\nfor path in sys.argv[1:]: os.mkdir(path)", self.path, self.outside, at=session.tmp)

    def sh(self, script: str) -> str:
        """Run a shell script in the folder, with $out the one outside; it must say nothing on stderr."""
        done = self.session.run("sh", "-euc", f"out=$1\n{script}", "sh", self.outside, folder=self.path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not done.stderr, done.stderr
        return done.stdout.strip()

    def python(self, script: str, *words: str | Path, at: Path | None = None) -> str:
        """Run a Python script in the folder."""
        done = self.session.run(sys.executable, "-I", "-c", script, *words, folder=at or self.path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def manifest(self, path: str, *, attributes: bool = True) -> dict[str, object]:
        """Everything that can be known of what lies below `path`, by name."""
        found: dict[str, object] = json.loads(self.python(MANIFEST, path, "attributes" if attributes else ""))
        assert len(found) > 20
        return found

    def remove(self) -> None:
        """Remove both folders."""
        remove = 'chmod -R u+rwX "$@"; rm -rf "$@"'
        done = self.session.run("sh", "-euc", remove, "sh", self.path, self.outside, folder=self.session.tmp)
        assert done.returncode == 0, done.stderr


def _passwd(base: Path) -> str:
    """The user database, where our user can log in; only the session's mount namespace sees it.

    Not by the name "nobody": that one is locked by nss-systemd, whatever the files say.
    """
    lines = Path("/etc/passwd").read_text(encoding="utf-8").splitlines()
    others = [line for line in lines if line.split(":")[2] != str(NOBODY)]
    fresh = base / "passwd"
    fresh.write_text("\n".join([*others, f"somebody:x:{NOBODY}:{NOBODY}::{base}:/bin/sh", ""]), encoding="utf-8")
    fresh.chmod(0o644)
    return str(fresh)


def _safe_folder() -> str:
    """A folder that nobody else may write to, nor to any above it: sshd insists."""
    here = (Path("/run"), Path(os.environ.get("XDG_RUNTIME_DIR", "/nonexistent")), Path.home())
    safe = (path for path in here if os.access(path, os.W_OK) and not path.stat().st_mode & 0o022)
    return str(next(safe, tempfile.gettempdir()))


@pytest.fixture(scope="module", params=PROFILES)
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    """One mount of each kind for all tests."""
    who, backend = request.param.split()
    if who == "root" and not ROOT:
        who = "self"
    if who == "user" and not ROOT:
        pytest.skip("needs root: it becomes another user")
    if backend == "kernel" and not have_secretmem():
        pytest.skip("memfd_secret: the kernel has none here")
    with tempfile.TemporaryDirectory(prefix="secretfs-test-", dir=_safe_folder()) as name:
        os.chmod(name, 0o755)
        made = Session(Path(name), backend, ordinary_user=who == "user")
        try:
            yield made
        finally:
            made.close()


@pytest.fixture
def here(session: Session, request: pytest.FixtureRequest) -> Iterator[Folder]:
    """An empty folder in the mount, and one outside."""
    folder = Folder(session, request.node.originalname)
    yield folder
    folder.remove()


MANIFEST = """
import hashlib, json, os, stat, sys
found, first = {}, {}
top = os.fsencode(sys.argv[1])
paths = [top] + [os.path.join(d, n) for d, ds, fs in os.walk(top) for n in ds + fs]
for path in sorted(paths):
    name, info = os.path.relpath(path, top).decode("latin-1"), os.lstat(path)
    about = [oct(info.st_mode), info.st_uid, info.st_gid, info.st_mtime_ns, first.setdefault(info.st_ino, name)]
    if not stat.S_ISDIR(info.st_mode):
        about.append(info.st_nlink)
    if stat.S_ISLNK(info.st_mode):
        about.append(os.readlink(path).decode("latin-1"))
    if stat.S_ISREG(info.st_mode):
        readable = os.geteuid() == 0 or info.st_mode & 0o400
        about += [info.st_size, hashlib.sha256(open(path, "rb").read()).hexdigest() if readable else "closed"]
    if sys.argv[2] and not stat.S_ISLNK(info.st_mode):
        readable = os.geteuid() == 0 or info.st_mode & 0o400
        about += [[n, os.getxattr(path, n).hex()] for n in sorted(os.listxattr(path))] if readable else ["closed"]
    found[name] = about
print(json.dumps(found))
"""
