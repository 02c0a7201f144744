"""Debian packages for the lab, through an apt of its own: lists, cache and state lie in the lab's folder.

The user's sources, preferences and apt hooks play no part, and nothing is installed on this machine. Taken over from
the machine's apt is only what it takes to reach a mirror: its address, and the settings of the transport.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

__all__ = ["BACKPORTS", "RELEASE", "Apt", "NotRun"]

RELEASE = "bookworm"
BACKPORTS = f"{RELEASE}-backports"
MIRROR = "SECRETFS_LAB_MIRROR"
"""Environment variable: the one mirror to use, instead of those that apt knows."""
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
PATIENCE = 600.0
"""Seconds for one call of apt."""
NOT_TRANSPORT = ("Acquire::IndexTargets", "Acquire::Changelogs", "Acquire::Languages", "Acquire::cdrom")


class NotRun(Exception):
    """The lab cannot run here, because something cannot be downloaded."""


class Apt:
    """An apt with its state in `folder`; made anew each time, which takes it some seconds."""

    def __init__(self, folder: Path) -> None:
        """Fetch the package lists.

        Raises:
            NotRun: there is no apt here, or it knows no mirror of Debian.
        """
        self._folder = folder
        self._configuration = folder / "apt.conf"
        for name in ("etc", "lists/partial", "archives/partial"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        try:
            self._configuration.write_text(self._settings(), encoding="utf-8")
            (folder / "etc/sources.list").write_text(_sources(), encoding="utf-8")
        except FileNotFoundError as error:
            raise NotRun(f"lab: cannot download anything: {error.filename} is not installed") from error
        self._run("apt-get", "update", "-qq", check=False)  # a suite that a mirror lacks shows when it is needed

    def newest_kernel(self, package: str, suite: str | None) -> str:
        """The package that the metapackage `package` of `suite` stands for.

        Raises:
            NotRun: there is no such package.
        """
        said = self._run("apt-cache", *_from(suite), "show", "--no-all-versions", package, check=False)
        for line in said.splitlines():
            if line.startswith("Depends: linux-image-"):
                return line.split()[1]
        raise NotRun(f"lab: cannot download {package}{f' from {suite}' if suite else ''}")

    def unpack(self, package: str, suite: str | None, root: Path) -> None:
        """One package, without what it depends on, into the folder `root`."""
        downloads = self._folder / "archives"
        _empty(downloads)
        self._run("apt-get", *_from(suite), "download", "-qq", package, cwd=downloads)
        self._unpack_all(downloads, root)

    def unpack_with_dependencies(self, packages: tuple[str, ...], root: Path) -> None:
        """Packages and what they depend on, into the folder `root`; no script of theirs is run."""
        _empty(self._folder / "archives")
        self._run("apt-get", "install", "-qq", "-y", "--download-only", *packages)
        self._unpack_all(self._folder / "archives", root)

    def _unpack_all(self, downloads: Path, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        for file in sorted(downloads.glob("*.deb")):
            self._run("dpkg-deb", "--extract", file, root)
        _empty(downloads)

    def _settings(self) -> str:
        lines = [
            f'Dir "{self._folder}";',
            f'Dir::State "{self._folder}"; Dir::State::status "{self._folder}/status";',
            f'Dir::Cache "{self._folder}"; Dir::Log "{self._folder}"; Dir::Etc "{self._folder}/etc";',
            'Dir::Etc::parts "/dev/null"; Dir::Etc::main "/dev/null"; Dir::Etc::preferencesparts "/dev/null";',
            'Dir::Etc::trustedparts "/etc/apt/trusted.gpg.d"; APT::Sandbox::User "";',
            'APT::Architecture "amd64"; APT::Architectures { "amd64"; };',
            'APT::Install-Recommends "false"; Acquire::Languages "none";',
            *(line for line in _machine("apt-config", "dump", "Acquire").splitlines() if _is_transport(line)),
        ]
        return "\n".join(lines) + "\n"

    def _run(self, *words: str | Path, cwd: Path | None = None, check: bool = True) -> str:
        """Run one of apt's programs with our configuration, and return what it prints.

        Raises:
            NotRun: it failed, and `check` is true.
        """
        environment = {**os.environ, "APT_CONFIG": str(self._configuration), "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            list(map(str, words)), env=environment, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=PATIENCE, check=False,
        )  # fmt: skip
        if check and done.returncode != 0:
            reason = done.stderr.strip().splitlines() or ["no reason given"]
            raise NotRun(f"lab: cannot download {words[-1]}: {reason[-1]}")
        return done.stdout


def _from(suite: str | None) -> tuple[str, ...]:
    return ("-t", suite) if suite else ()


def _sources() -> str:
    """The lab's list of sources."""
    signed = f"[signed-by={KEYRING}] " if os.path.exists(KEYRING) else ""
    mirror, security = _mirrors()
    lines = [f"deb {signed}{mirror} {RELEASE} main", f"deb {signed}{mirror} {BACKPORTS} main"]
    if security:
        lines.append(f"deb {signed}{security} {RELEASE}-security main")
    return "\n".join(lines) + "\n"


def _mirrors() -> tuple[str, str | None]:
    """The mirror of Debian that this machine's apt uses, whatever its release, and that of security updates.

    Raises:
        NotRun: it has none.
    """
    given = os.environ.get(MIRROR)
    if given:
        return given, None
    said = _machine("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(ORIGIN)", "Created-By: Packages")
    known: dict[bool, str] = {}
    for uri, suite, origin in (line.split(maxsplit=2) for line in said.splitlines()):
        # Before the first `apt-get update` apt does not know a repository's origin, and leaves the word as it is.
        if origin == "Debian" or (origin.startswith("$") and uri.rstrip("/").endswith(("/debian", "/debian-security"))):
            known.setdefault("security" in suite, uri)
    if False not in known:
        raise NotRun(f"lab: cannot download anything: apt knows no mirror of Debian; set {MIRROR}")
    return known[False], known.get(True)


def _machine(*words: str) -> str:
    """What the machine's own apt says."""
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout


def _is_transport(line: str) -> bool:
    return line.startswith("Acquire::") and not line.startswith(NOT_TRANSPORT)


def _empty(folder: Path) -> None:
    for file in folder.glob("*.deb"):
        file.unlink()
