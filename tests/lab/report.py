#!/usr/bin/env python3
"""Boots all guests and writes what was found in their memory into a file: `make lab-docs` does it for docs/lab.md.

`report.py FILE` replaces what stands in it between the two marks.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from boots import AUDITED, BOOTS, EMULATED, SECRET, Answer, Boots

__all__ = ["main"]

BEGIN, END = "<!-- results: make lab-docs -->\n", "<!-- end of results -->\n"
BEGIN_AUDIT, END_AUDIT = "<!-- audit: make lab-docs -->\n", "<!-- end of audit -->\n"
SHOWN = ("ordinary", "emulator", "kernel", "secret-closed", "mount")
WHOLE = 64
# What a row tells, the step of guest_memory.py, and the names there, of which the worst is shown.
ROWS = (
    ("*ordinary locked memory, in use*", "alive", ["locked-page"]),
    ("*the same, wiped*", "closed", ["locked-page"]),
    ("*a file on a tmpfs*", "alive", ["tmpfs-file"]),
    ("*the same, removed*", "gone", ["tmpfs-file"]),
    ("a file of 64 bytes, written and read", "written", ["file-64"]),
    ("a file of 12 KiB", "written", ["file-12K"]),
    ("a file of 1 MiB", "written", ["file-1M"]),
    ("files removed", "gone", ["file-64", "file-12K", "file-1M"]),
    ("a file at the unmount", "umounted", ["umounted-file"]),
    ("a file at kill -9 of the daemon", "killed", ["killed-file"]),
    ("a file in a private mapping", "alive", ["mapped"]),
    ("the mapping closed", "closed", ["mapped"]),
    ("a mapped file unlinked", "cut", ["unlinked"]),
    ("a mapped file truncated", "cut", ["truncated"]),
    ("a file sent with sendfile, still open", "alive", ["sent"]),
    ("the same, closed", "closed", ["sent"]),
    ("a link's target, made and read", "linked", ["link-target"]),
    ("the link removed", "gone", ["link-target"]),
    ("an attribute's value, set and read", "marked", ["attribute"]),
    ("the attribute removed", "gone", ["attribute"]),
    ("after the unmount", "umounted", ["attribute"]),
    ("a name in use", "named", ["name"]),
    ("the name removed", "gone", ["name"]),
    ("after the unmount", "umounted", ["name"]),
)


def main(path: str) -> None:
    """Boot them all and rewrite the file."""
    names = (*EMULATED, *SECRET, *AUDITED)
    boots = Boots(names)
    answers = {name: boots.answer(name) for name in names}
    boots.close()
    file = Path(path)
    text = file.read_text(encoding="utf-8")
    text = between(text, BEGIN, END, table({name: answers[name] for name in (*EMULATED, *SECRET)}))
    text = between(text, BEGIN_AUDIT, END_AUDIT, audits({name: answers[name] for name in AUDITED}))
    file.write_text(text, encoding="utf-8")


def between(text: str, begin: str, end: str, new: str) -> str:
    """`text` with something else between two marks."""
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}{new}{end}{after}"


def audits(answers: dict[str, Answer]) -> str:
    """What each kernel's audit has shown, in Markdown: one row an attack, one column a kernel and subject."""
    headings = [f"{kernel(name)}: {subject}" for name in answers for subject in SHOWN]
    found = [{one["name"]: one["results"] for one in answer.told["audit"]["attacks"]} for answer in answers.values()]
    lines = ["| | " + " | ".join(headings) + " |", "|---|" + "---|" * len(headings)]
    lines += [
        f"| `{attack}` | " + " | ".join(results[attack][subject] for results in found for subject in SHOWN) + " |"
        for attack in found[0]
    ]
    taken = [
        f"- {kernel(name)}: `{answer.result.package}`, {answer.result.took:.0f} s; claims broken:"
        f" {len(answer.told['audit']['claims_broken'])}."
        for name, answer in answers.items()
    ]
    return "\n".join([*lines, "", *taken]) + "\n"


def kernel(name: str) -> str:
    """What a guest is called in the table of audits."""
    boot = BOOTS[name]
    return " ".join((boot.kernel, *(f"`{word}`" for word in boot.append)))


def table(answers: dict[str, Answer]) -> str:
    """The results in Markdown."""
    lines = [
        f"Measured on {time.strftime('%Y-%m-%d', time.gmtime())}.\n",
        "| | " + " | ".join(heading(name) for name in answers) + " |",
        "|---|" + "---|" * len(answers),
        *(
            f"| {what} | " + " | ".join(cell(answer.told[step], names) for answer in answers.values()) + " |"
            for what, step, names in ROWS
        ),
        "",
        *(
            f"- {heading(name)}: `{answer.result.package}`; the script began after {answer.result.booted:.0f} s,"
            f" and all of it took {answer.result.took:.0f} s."
            for name, answer in answers.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def heading(name: str) -> str:
    """What a guest is called in the table."""
    boot = BOOTS[name]
    return " ".join((boot.kernel, *(f"`{word}`" for word in boot.append))) + f", {boot.arguments[0]}"


def cell(found: dict[str, Any], names: list[str]) -> str:
    """In how many places it was found; where it was not whole, the longest piece."""
    places, longest = max(found[name] for name in names)
    return str(places) if longest in (0, WHOLE) else f"{places} ({longest} bytes)"


if __name__ == "__main__":
    main(*sys.argv[1:])
