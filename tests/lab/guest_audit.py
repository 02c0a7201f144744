#!/usr/bin/python3 -I
"""Runs in a guest: the attacks of `secretfs audit --machine` that tell kernels apart. Prints its JSON and exit code.

    guest_audit.py [NAME...]        these attacks only

An emulated processor is slow, so the rest is left out: what another user tries, and what the tests try on any machine.
"""

from __future__ import annotations

import json
import sys
import time

from secretfs.audit import engine
from secretfs.audit.table import TABLE

WANTED = (
    "proc-mem", "process-vm-readv", "ptrace-peek", "map-files", "pidfd-getfd", "pidfd-getfd-fuse", "file-as-owner",
    "uprobe", "bpf-probe-read-user", "perf-stack", "ptrace-inject", "proc-mem-inject", "proc-mem-user", "vmsplice",
    "io-uring", "use-after-free", "fork", "exec", "after-unlink", "core-dump", "swap", "kcore", "kill", "page-cache",
)  # fmt: skip


def main(wanted: tuple[str, ...]) -> None:
    """The audit; how long each step took goes to the console."""
    began = [time.monotonic()]

    def progress(_: int, __: int, step: str) -> None:
        began.append(time.monotonic())
        print(f"{began[-1] - began[-2]:.1f} s, then {step}", file=sys.stderr)

    audit = engine.run([attack for attack in TABLE if attack.name in wanted], machine=True, progress=progress)
    json.dump({"code": 1 if audit.broken() else 0, "audit": audit.as_dict()}, sys.stdout)


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or WANTED)
