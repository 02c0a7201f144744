"""`secretfs audit`: runs it, shows it, and says whether every claim held."""

from __future__ import annotations

import json
import sys

from secretfs.audit import engine
from secretfs.audit.model import Audit
from secretfs.audit.report import table

__all__ = ["main"]


def main(*, as_json: bool, html: str | None, machine: bool) -> int:
    """Run an audit; 0 if every claim held, else 1."""
    audit = engine.run(machine=machine, progress=_progress)
    if as_json:
        print(json.dumps(audit.as_dict()))
    else:
        print(table(audit, colour=sys.stdout.isatty()))
    return 1 if audit.broken() else 0


def _progress(done: int, total: int, what: str) -> None:
    """One line that overwrites itself, on a terminal only."""
    if not sys.stderr.isatty():
        return
    filled = 24 * done // total
    line = f"{'#' * filled}{'.' * (24 - filled)} {100 * done // total:3}%  {what}"
    print(f"\r\x1b[K{line[:78]}" if what else "\r\x1b[K", end="", file=sys.stderr, flush=True)


def _summary(audit: Audit) -> str:
    return f"{len(audit.broken())} claims broken"
