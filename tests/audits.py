"""Running `secretfs audit`, all of it or some attacks, in processes of their own; what it may leave behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from box import command as in_box
from mounts import clean_environment

from secretfs.audit.model import SUBJECTS

PATIENCE = 180.0
"""Seconds: what a default run may take at most."""
_SOME = """
import sys
from secretfs.audit.command import main
from secretfs.audit.table import TABLE
wanted = sys.argv[2].split(",")
attacks = [attack for attack in TABLE if attack.name in wanted]
subjects = sys.argv[3].split(",")
guard = sys.argv[1] == "guard"
sys.exit(main(as_json=True, html=None, machine=False, guard=guard, attacks=attacks, subjects=subjects))
"""


def some(
    *names: str,
    subjects: Sequence[str] = SUBJECTS,
    box: dict[str, Any] | None = None,
    guard: bool = False,
    env: dict[str, str] | None = None,
) -> tuple[int, dict[str, Any]]:
    """The exit code and the JSON of an audit with these attacks only, on ordinary memory and these subjects."""
    words = [sys.executable, "-B", "-c", _SOME, "guard" if guard else "", ",".join(names), ",".join(subjects)]
    command = words if box is None else in_box(words, **box)
    done = subprocess.run(
        command, env={**clean_environment(), **(env or {})}, capture_output=True, text=True, timeout=PATIENCE,
        check=False, cwd="/",
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def results(told: dict[str, Any]) -> dict[str, dict[str, str]]:
    """What came of each attack, by subject."""
    return {attack["name"]: attack["results"] for attack in told["attacks"]}


def leftovers() -> set[str]:
    """Folders, mounts and processes of audits."""
    folders = {str(path) for folder in ("/tmp", "/var/tmp") for path in Path(folder).glob("secretfs-audit-*")}
    table = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    mounts = {line.split()[4] for line in table.splitlines() if "secretfs-audit-" in line}
    return folders | mounts | {f"process {pid}" for pid in os.listdir("/proc") if _is_audit(pid)}


def _is_audit(pid: str) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"secretfs.audit" in words or b"secretfs-audit-" in words
