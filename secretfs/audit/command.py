"""`secretfs audit`: runs it, shows it, and says whether every claim held."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from secretfs.audit import engine
from secretfs.audit.html import page
from secretfs.audit.model import SUBJECTS, Attack, Audit
from secretfs.audit.report import table
from secretfs.audit.table import TABLE
from secretfs.errors import SecretFSError

__all__ = ["main"]


def main(
    *,
    as_json: bool,
    html: str | None,
    machine: bool,
    guard: bool = False,
    attacks: Sequence[Attack] = TABLE,
    subjects: Sequence[str] = SUBJECTS,
) -> int:
    """Run an audit; 0 if every claim held, else 1."""
    file = None if html is None else _open(html)  # before three minutes were spent
    audit = engine.run(attacks, machine=machine, guard=guard, progress=_progress, subjects=subjects)
    if file is not None:
        with os.fdopen(file, "w", encoding="utf-8") as report:
            report.write(page(audit))
    print(_told(audit, as_json=as_json))
    return 1 if audit.broken() else 0


def _told(audit: Audit, *, as_json: bool) -> str:
    if as_json:
        return json.dumps(audit.as_dict())
    return table(audit, colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ)


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    except OSError as error:
        what = (error.strerror or "it failed").lower()
        raise SecretFSError(
            f"the report cannot be written to {path!r}: {what}", hint="name a file in a folder that you may write"
        ) from error


def _progress(done: int, total: int, what: str) -> None:
    """One line that overwrites itself, on a terminal only."""
    if not sys.stderr.isatty():
        return
    filled = 24 * done // total
    line = f"{'#' * filled}{'.' * (24 - filled)} {100 * done // total:3}%  {what}"
    print(f"\r\x1b[K{line[:78]}" if what else "\r\x1b[K", end="", file=sys.stderr, flush=True)
