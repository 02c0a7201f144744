#!/usr/bin/python3 -I
"""Runs in a guest: what does a search of all its memory find of files, attributes, links and names, and when?

    guest_memory.py BACKEND         prints JSON: {STEP: {WHAT: [PLACES, LONGEST]}}, see kcore.c

Every secret is made here masked and never uncovered; only client.c does that, in memory that it wipes. Steps:

written    three files were written and read back, the first ones of a new mount
linked     a symbolic link was made and read
marked     an extended attribute was set and read
named      a file was made, found and renamed
alive      programs hold a private mapping, a file that was read with sendfile(2), and ordinary locked memory
closed     those programs have ended; all files are still there
cut        of two files that a program has mapped, one is unlinked and the other truncated; the mappings are still there
gone       everything is removed
umounted   a file was there when the mount was unmounted
killed     a file was there when the daemon of another mount was killed
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

KEY = secrets.randbelow(255) + 1
# What names and link targets may consist of, masked.
LETTERS = bytes(letter ^ KEY for letter in b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
LENGTH = 64
SIZES = {"file-64": 64, "file-12K": 12288, "file-1M": 1 << 20}
PATIENCE = 60.0
MOUNT = Path("/mnt")


class Client:
    """A client that holds something until it is told to end."""

    def __init__(self, *words: str) -> None:
        self._process = subprocess.Popen(
            ["client", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._line()

    def pages(self) -> int:
        """Of a watching client: how many pages of its file are in the page cache."""
        assert self._process.stdin is not None
        self._process.stdin.write(".")
        self._process.stdin.flush()
        return int(self._line())

    def end(self) -> None:
        """Let it end, and see that all went well."""
        self._process.communicate()
        if self._process.returncode != 0:
            sys.exit("a client failed")

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit("a client failed")
        return line


class Search:
    """The secrets, and where they were found."""

    def __init__(self) -> None:
        self._masked: dict[str, str] = {}
        self.found: dict[str, dict[str, list[int]]] = {}

    def run(self, what: str, secret: str, *words: str) -> None:
        """Run a client to its end."""
        subprocess.run(["client", what, *self._words(secret), *words], check=True)

    def start(self, what: str, secret: str, *words: str) -> Client:
        """Start a client that holds something."""
        return Client(what, *self._words(secret), *words)

    def watch(self, path: Path) -> Client:
        """Start a client that sees what of a file is in the page cache."""
        return Client("watch", "0", "00", str(path))

    def step(self, name: str) -> None:
        """Look for all secrets there are."""
        words = [f"{what}={masked}" for what, masked in self._masked.items()]
        said = subprocess.run(["kcore", f"{KEY:02x}", *words], check=True, stdout=subprocess.PIPE, text=True).stdout
        print(f"{name}:\n{said}", file=sys.stderr)
        lines = [line.split() for line in said.splitlines()]
        self.found[name] = {line[0]: [int(line[1]), int(line[2])] for line in lines if len(line) == 3}

    def _words(self, secret: str) -> tuple[str, str]:
        masked = self._masked.setdefault(secret, bytes(secrets.choice(LETTERS) for _ in range(LENGTH)).hex())
        return f"{KEY:02x}", masked


def main(backend: str) -> None:
    """Go through the steps."""
    search = Search()
    mount(backend)
    pass_through(search)
    hold_and_close(search)
    cut_what_is_mapped(search)
    remove_all(search)
    search.run("write", "umounted-file", f"{MOUNT}/file")
    subprocess.run(["secretfs", "umount", MOUNT], check=True)
    search.step("umounted")
    mount(backend)
    search.run("write", "killed-file", f"{MOUNT}/file")
    os.kill(int(os.getxattr(MOUNT, "user.secretfs.pid")), signal.SIGKILL)
    wait_until(lambda: " fuse.secretfs " not in Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
    search.step("killed")
    json.dump(search.found, sys.stdout)


def mount(backend: str) -> None:
    """A mount; what it says goes to the console."""
    subprocess.run(["secretfs", "mount", "--backend", backend, MOUNT], check=True, stdout=2)


def pass_through(search: Search) -> None:
    """The steps in which one thing after the other passes through the mount."""
    for name, size in SIZES.items():
        search.run("write", name, f"{MOUNT}/{name}", str(size))
    search.step("written")
    search.run("symlink", "link-target", f"{MOUNT}/link")
    search.step("linked")
    search.run("xattr", "attribute", f"{MOUNT}/file-64", "user.secret")
    search.step("marked")
    search.run("name", "name", str(MOUNT))
    search.step("named")


def hold_and_close(search: Search) -> None:
    """The steps `alive` and `closed`, with what the search must find: ordinary memory, a file on a tmpfs."""
    paths = [MOUNT / "mapped", MOUNT / "sent"]
    for path in paths:
        search.run("write", path.name, str(path))
    search.run("write", "tmpfs-file", "/tmp/file")
    watchers = [search.watch(path) for path in paths]
    holders = [
        search.start("hold", "locked-page", "-"),
        search.start("map", "mapped", str(paths[0])),
        search.start("send", "sent", str(paths[1])),
    ]
    search.step("alive")
    for client in holders:
        client.end()
    wait_until(lambda: not any(watcher.pages() for watcher in watchers))
    search.step("closed")
    for watcher in watchers:
        watcher.end()


def cut_what_is_mapped(search: Search) -> None:
    """The step `cut`."""
    paths = [MOUNT / "unlinked", MOUNT / "truncated"]
    for path in paths:
        search.run("write", path.name, str(path))
    watchers = [search.watch(path) for path in paths]
    holders = [search.start("map", path.name, str(path)) for path in paths]
    if not all(watcher.pages() for watcher in watchers):
        sys.exit("a mapped file is not in the page cache")
    paths[0].unlink()
    os.truncate(paths[1], 0)
    wait_until(lambda: not any(watcher.pages() for watcher in watchers))
    search.step("cut")
    for client in (*holders, *watchers):
        client.end()


def remove_all(search: Search) -> None:
    """The step `gone`."""
    os.unlink("/tmp/file")
    os.removexattr(MOUNT / "file-64", "user.secret")
    search.run("unname", "name", str(MOUNT))
    for entry in MOUNT.iterdir():
        entry.unlink()
    search.step("gone")


def wait_until(condition: Callable[[], bool]) -> None:
    """Return when `condition` holds; there is nothing to wait on, so it is asked again and again."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            sys.exit("what was waited for did not happen")
        os.sched_yield()


if __name__ == "__main__":
    main(*sys.argv[1:])
