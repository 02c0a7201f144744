"""The table for people: one line an attack, one column a subject."""

from __future__ import annotations

from secretfs.audit.advice import advice
from secretfs.audit.model import HELD, LEAKED, NOT_TRIED, SUBJECTS, Attack, Audit

__all__ = ["GROUP_TITLES", "SUBJECT_TITLES", "last_lines", "table"]

GROUP_TITLES = {
    "process": "From another process",
    "owner": "From inside the owner",
    "machine": "From the machine",
}
SUBJECT_TITLES = {
    "ordinary": "ordinary memory",
    "emulator": "emulator",
    "kernel": "kernel",
    "secret-open": "open Secret",
    "secret-closed": "closed Secret",
    "mount": "file in a mount",
    "preload": "preloaded OpenSSL",
    "run": "under secretfs run",
}
_COLOURS = {HELD: "32", LEAKED: "31;1", NOT_TRIED: "2"}
_WIDTH = 11


def table(audit: Audit, *, colour: bool) -> str:
    """All of it as text."""
    wide = max(len(_label(attack)) for attack in audit.attacks) + 2
    tops, bottoms = zip(*(_heading(subject) for subject in SUBJECTS), strict=True)
    lines = [" " * wide + "".join(word.ljust(_WIDTH) for word in words) for words in (tops, bottoms)]
    for group, title in GROUP_TITLES.items():
        rows = [attack for attack in audit.attacks if attack.group == group]
        lines += ["", title] if rows else []
        for attack in rows:
            cells = [audit.cells[attack.name, subject].result for subject in SUBJECTS]
            lines.append(_label(attack).ljust(wide) + "".join(_cell(cell, colour) for cell in cells))
    return "\n".join(line.rstrip() for line in [*lines, *_reasons(audit), "", *last_lines(audit), *_hints(audit)])


def last_lines(audit: Audit) -> list[str]:
    """The verdict."""
    broken = audit.broken()
    if not broken:
        return ["Every guarantee that is claimed has held."]
    return [f"Broken: {one['subject']} claims {one['guarantee']}, and {one['attack']} got through." for one in broken]


def _heading(subject: str) -> tuple[str, str]:
    """In two lines: "secret-" over "open"."""
    first, dash, second = subject.partition("-")
    return first + dash, second


def _label(attack: Attack) -> str:
    return f"  {attack.name} ({attack.source})" if attack.source == "root" else f"  {attack.name}"


def _cell(result: str, colour: bool) -> str:
    text = result.ljust(_WIDTH)
    return f"\x1b[{_COLOURS[result]}m{text}\x1b[0m" if colour else text


def _reasons(audit: Audit) -> list[str]:
    """Why whole columns or groups were not tried; the rest is in --json and --html."""
    found: dict[str, set[str]] = {}
    for (attack, subject), cell in audit.cells.items():
        if cell.result == NOT_TRIED:
            found.setdefault(cell.why, set()).add(f"{attack} on {subject}")
    often = [(why, where) for why, where in found.items() if len(where) >= _OFTEN]
    if not often:
        return []
    return ["", "Not tried:", *(f"  {len(where)} times, {min(where)} for one: {why}" for why, where in often)]


_OFTEN = 8


def _hints(audit: Audit) -> list[str]:
    found = advice(audit)
    return ["", "For a better result:", *(f"  {one.what}: {one.why}" for one in found)] if found else []
