#!/usr/bin/env python3
"""Fails if a test was skipped for a reason that nobody has approved; ends with one line of totals.

    check-skips.py ALLOWED REPORT...

ALLOWED  tests/allowed-skips.txt: one beginning of a reason per line, `#` starts a comment
REPORT   the JUnit XML that `make test` writes, or one of its sisters
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree


def main(allowed: str, *reports: str) -> int:
    """Return 0 if every skip is allowed and no test failed."""
    roots = [ElementTree.parse(report).getroot() for report in reports]  # noqa: S314 - written by our own pytest
    cases = [case for root in roots for case in root.iter("testcase")]
    beginnings = tuple(line for line in map(strip_comment, Path(allowed).read_text("utf-8").splitlines()) if line)
    skipped = [(case, mark) for case in cases for mark in case.iter("skipped") if "xfail" not in mark.get("type", "")]
    failed = sum(1 for case in cases if case.find("failure") is not None or case.find("error") is not None)
    unapproved = [(case, mark) for case, mark in skipped if not mark.get("message", "").startswith(beginnings)]
    for case, mark in unapproved:
        name = f"{case.get('classname')}::{case.get('name')}"
        print(f"skipped without being allowed in {allowed}: {name}: {mark.get('message')}", file=sys.stderr)
    print(f"{len(cases) - failed - len(skipped)} passed, {failed} failed, {len(skipped)} skipped")
    return 1 if failed or unapproved or not cases else 0


def strip_comment(line: str) -> str:
    """What stands before a `#`."""
    return line.partition("#")[0].strip()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
