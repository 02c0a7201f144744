#!/usr/bin/python3 -I
"""Runs in a guest whose kernel has no memfd_secret(2): what does secretfs do there?

Prints JSON: for each command its exit code and what it said, the mount's status, and what a file holds after a reader
and a writer. The file's bytes are no secret.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

MOUNT = Path("/mnt")
FILE = MOUNT / "file"


def run(*words: str) -> dict[str, Any]:
    """One command of secretfs."""
    done = subprocess.run(["secretfs", *words], capture_output=True, text=True, check=False)
    return {"code": done.returncode, "stdout": done.stdout, "stderr": done.stderr}


def main() -> None:
    """All of it."""
    told: dict[str, Any] = {"backends": run("backends", "--json")}
    told["refused"] = run("mount", "--backend", "kernel", str(MOUNT))
    told["mounted"] = run("mount", str(MOUNT))
    FILE.write_bytes(b"a" * 10_000)
    with FILE.open("r+b") as file:
        file.seek(5000)
        file.write(b"b")
    told["file"] = FILE.read_bytes() == b"a" * 5000 + b"b" + b"a" * 4999
    told["status"] = run("status", "--json", str(MOUNT))
    told["umounted"] = run("umount", str(MOUNT))
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
