"""The table for people: one line an attack, one column a subject."""

from __future__ import annotations

from secretfs.audit.model import HELD, LEAKED, NOT_TRIED, SUBJECTS, Audit

__all__ = ["GROUP_TITLES", "table"]

GROUP_TITLES = {
    "process": "From another process",
    "owner": "From inside the owner",
    "machine": "From the machine",
}
_COLOURS = {HELD: "32", LEAKED: "31;1", NOT_TRIED: "2"}
_WIDTH = 13


def table(audit: Audit, *, colour: bool) -> str:
    """All of it as text."""
    wide = max(len(_label(attack.name, attack.source)) for attack in audit.attacks) + 2
    lines = [" " * wide + "".join(subject.ljust(_WIDTH) for subject in SUBJECTS).rstrip()]
    for group, title in GROUP_TITLES.items():
        rows = [attack for attack in audit.attacks if attack.group == group]
        lines += ["", title] if rows else []
        for attack in rows:
            cells = [audit.cells[attack.name, subject].result for subject in SUBJECTS]
            lines.append(_label(attack.name, attack.source).ljust(wide) + "".join(_cell(c, colour) for c in cells))
    return "\n".join(line.rstrip() for line in [*lines, "", *_last_lines(audit)])


def _label(name: str, source: str) -> str:
    return f"  {name} ({source})"


def _cell(result: str, colour: bool) -> str:
    text = result.ljust(_WIDTH)
    return f"\x1b[{_COLOURS[result]}m{text}\x1b[0m" if colour else text


def _last_lines(audit: Audit) -> list[str]:
    broken = audit.broken()
    if not broken:
        return ["every guarantee that is claimed has held"]
    return [f"BROKEN: {one['subject']} claims {one['guarantee']}, and {one['attack']} got through" for one in broken]
