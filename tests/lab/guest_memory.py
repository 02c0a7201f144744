#!/usr/bin/python3 -I
"""Runs in a guest: what does a search of all its memory find of a file, of attributes, links and names, and when?

    guest_memory.py BACKEND         prints JSON: {STEP: {WHAT: [PLACES, LONGEST]}}, see kcore.c

Every secret is made here masked and never uncovered; only client.c does that, in memory that it wipes. Steps:

alive      everything is there, and programs hold mappings and open files
closed     those programs have ended, the files are still there
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
from pathlib import Path

KEY = secrets.randbelow(255) + 1
# What names and link targets may consist of, masked.
LETTERS = bytes(letter ^ KEY for letter in b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
LENGTH = 64
PATIENCE = 60.0
MOUNT = Path("/mnt")


class Client:
    """A client that holds something until it is told to end."""

    def __init__(self, *words: str) -> None:
        self._process = subprocess.Popen(
            ["client", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._line()

    def resident(self) -> int:
        """For a `client resident`: pages in the page cache."""
        assert self._process.stdin is not None
        self._process.stdin.write(".")
        self._process.stdin.flush()
        return int(self._line())

    def end(self) -> None:
        """Let it end, and see that it was content."""
        self._process.communicate()
        if self._process.returncode != 0:
            sys.exit(1)

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(1)
        return line


class Secrets:
    """The needles, and what was found of them."""

    def __init__(self) -> None:
        self._masked: dict[str, str] = {}
        self.found: dict[str, dict[str, list[int]]] = {}

    def words(self, what: str) -> tuple[str, str]:
        """Key and masked needle, for a client."""
        masked = self._masked.setdefault(what, bytes(secrets.choice(LETTERS) for _ in range(LENGTH)).hex())
        return f"{KEY:02x}", masked

    def client(self, what: str, needle: str, *words: str) -> None:
        """Run a client to its end."""
        subprocess.run(["client", what, *self.words(needle), *words], check=True)

    def hold(self, what: str, needle: str, *words: str) -> Client:
        """Start a client that holds something."""
        return Client(what, *self.words(needle), *words)

    def search(self, step: str) -> None:
        """Look for all of them."""
        words = [f"{what}={masked}" for what, masked in self._masked.items()]
        said = subprocess.run(["kcore", f"{KEY:02x}", *words], check=True, stdout=subprocess.PIPE, text=True).stdout
        print(f"{step}:\n{said}", file=sys.stderr)
        lines = [line.split() for line in said.splitlines()]
        self.found[step] = {line[0]: [int(line[1]), int(line[2])] for line in lines if len(line) == 3}


def main(backend: str) -> None:
    """Go through the steps."""
    needles = Secrets()
    mount(backend)
    live_and_die(needles)
    cut_what_is_mapped(needles)
    remove_all(needles)
    needles.client("write", "file at umount", f"{MOUNT}/umount")
    subprocess.run(["secretfs", "umount", MOUNT], check=True)
    needles.search("umounted")
    mount(backend)
    needles.client("write", "file at kill -9", f"{MOUNT}/kill")
    os.kill(int(os.getxattr(MOUNT, "user.secretfs.pid")), signal.SIGKILL)
    wait_until(lambda: " fuse.secretfs " not in Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
    needles.search("killed")
    json.dump(needles.found, sys.stdout)


def mount(backend: str) -> None:
    """A mount; its words go to the console."""
    subprocess.run(["secretfs", "mount", "--backend", backend, MOUNT], check=True, stdout=2)


def live_and_die(needles: Secrets) -> None:
    """The steps `alive` and `closed`."""
    locked = needles.hold("hold", "locked page", "-")
    needles.client("write", "tmpfs file", "/tmp/file")
    for name in ("file", "mapped", "sent"):
        needles.client("write", name, f"{MOUNT}/{name}")
    watchers = [needles.hold("resident", "-", f"{MOUNT}/{name}") for name in ("mapped", "sent")]
    holders = [needles.hold("map", "mapped", f"{MOUNT}/mapped"), needles.hold("send", "sent", f"{MOUNT}/sent")]
    needles.client("xattr", "attribute", f"{MOUNT}/file", "user.secret")
    needles.client("symlink", "link target", f"{MOUNT}/link")
    needles.client("name", "name", str(MOUNT))
    print("resident", *(watcher.resident() for watcher in watchers), file=sys.stderr)
    needles.search("alive")
    for client in (locked, *holders):
        client.end()
    wait_until(lambda: not any(watcher.resident() for watcher in watchers))
    for watcher in watchers:
        watcher.end()
    needles.search("closed")


def cut_what_is_mapped(needles: Secrets) -> None:
    """The step `cut`."""
    names = ("unlinked", "truncated")
    for name in names:
        needles.client("write", name, f"{MOUNT}/{name}")
    watchers = [needles.hold("resident", "-", f"{MOUNT}/{name}") for name in names]
    holders = [needles.hold("map", name, f"{MOUNT}/{name}") for name in names]
    print("resident", *(watcher.resident() for watcher in watchers), file=sys.stderr)
    (MOUNT / "unlinked").unlink()
    os.truncate(MOUNT / "truncated", 0)
    wait_until(lambda: not any(watcher.resident() for watcher in watchers))
    needles.search("cut")
    for client in (*holders, *watchers):
        client.end()


def remove_all(needles: Secrets) -> None:
    """The step `gone`."""
    os.unlink("/tmp/file")
    os.removexattr(MOUNT / "file", "user.secret")
    needles.client("unname", "name", str(MOUNT))
    for entry in MOUNT.iterdir():
        entry.unlink()
    needles.search("gone")


def wait_until(condition) -> None:  # type: ignore[no-untyped-def]
    """Return when `condition` holds; there is nothing to wait on, so it is asked again and again."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            sys.exit("what was waited for did not happen")
        os.sched_yield()


if __name__ == "__main__":
    main(*sys.argv[1:])
