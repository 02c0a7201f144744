#!/usr/bin/python3 -I
"""Runs in a guest: what the probe observes of its kernel, or what it observes under `secretfs run`.

guest_run.py native|run. Prints JSON: for each way to run it the exit code and what came on stdout and stderr.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

PROBE = "/lab/probe"
NOBODY = 65534
UNDER_RUN: dict[str, tuple[str, ...]] = {
    "run": (),
    "tmpfs-strict": ("--emulate", "--strict"),
    "memfd": ("--emulate", "--backing", "memfd"),
}


def observe(words: Sequence[str], *, user: int = 0) -> dict[str, Any]:
    """Run the probe in a folder of its own."""
    os.makedirs("/tmp/probe", mode=0o777, exist_ok=True)
    os.chmod("/tmp/probe", 0o777)
    done = subprocess.run(
        words, cwd="/tmp/probe", capture_output=True, text=True, check=False, user=user, group=user, extra_groups=[]
    )
    return {"code": done.returncode, "stdout": done.stdout, "stderr": done.stderr}


def main(kind: str) -> None:
    """All of it."""
    told = {}
    if kind == "native":
        told = {"root": observe([PROBE]), "nobody": observe([PROBE], user=NOBODY)}
    else:
        for name, options in UNDER_RUN.items():
            told[name] = observe(["secretfs", "run", *options, "--", PROBE])
        told["user"] = observe(["secretfs", "run", "--", PROBE], user=NOBODY)
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
