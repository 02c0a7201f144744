"""The words of an audit: attacks, subjects, results. Everything else here is made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secretfs.audit.holders import Holder
    from secretfs.audit.subjects import Target

__all__ = ["HELD", "LEAKED", "NOT_TRIED", "SUBJECTS", "Attack", "Audit", "Cell", "NotTriedError"]

HELD, LEAKED, NOT_TRIED = "held", "leaked", "not tried"
SUBJECTS = ("ordinary", "emulator", "kernel", "secret-open", "secret-closed", "mount", "preload", "run")
GROUPS = ("process", "owner", "machine")
KINDS = ("read", "in-context", "inject", "inherit", "residue")
SOURCES = ("same-user", "other-user", "root", "owner")


class NotTriedError(Exception):
    """An attack that cannot be tried here, or has no meaning for its subject; the message says why."""


@dataclass(frozen=True)
class Attack:
    """One row: who tries what, how, and which promise it would break.

    `outside` runs in a process of its own, as the user that `source` names, and returns whether it has seen the needle;
    `inside` runs in the victim. An OSError means that the kernel refused, which is "held".
    """

    name: str
    title: str
    group: str
    kind: str
    source: str
    about: str
    """What it does, in one sentence."""
    guarantee: str | None = None
    """The field of Guarantees that says it cannot succeed, if one does."""
    outside: Callable[[Target], bool] | None = None
    inside: Callable[[Holder], bool] | None = None
    fresh: bool = False
    """It needs a victim of its own: it ends it, or must be there before there is a secret in it."""
    grouped: bool = False
    """It needs that victim to be in a memory cgroup of its own, if one can be made."""
    planted: bool = True
    """Whether the victim has its secret before the attack begins."""
    apart_from: dict[str, str] = field(default_factory=dict)
    """Subjects for which it has no meaning, and why."""
    shown_by: str = ""
    """The attack whose success on ordinary memory shows that this one works; "" for itself."""
    patience: float = 30.0
    """Seconds that it may take."""


@dataclass(frozen=True)
class Cell:
    """What came of one attack on one subject."""

    result: str
    why: str = ""


@dataclass
class Audit:
    """What came of everything."""

    kernel: str
    attacks: list[Attack]
    cells: dict[tuple[str, str], Cell] = field(default_factory=dict)
    """By attack and subject."""
    claims: dict[str, dict[str, bool]] = field(default_factory=dict)
    """What each subject promises, by the names of Guarantees."""
    facts: dict[str, str] = field(default_factory=dict)
    """The machine, for people."""

    def broken(self) -> list[dict[str, str]]:
        """Every promise that did not hold."""
        return [
            {"subject": subject, "guarantee": attack.guarantee, "attack": attack.name}
            for attack in self.attacks
            for subject in SUBJECTS
            if attack.guarantee
            and self.cells[attack.name, subject].result == LEAKED
            and self.claims.get(subject, {}).get(attack.guarantee, False)
        ]

    def as_dict(self) -> dict[str, Any]:
        """What `secretfs audit --json` prints."""
        return {
            "version": 1,
            "kernel": self.kernel,
            "attacks": [self._row(attack) for attack in self.attacks],
            "claims_broken": self.broken(),
        }

    def _row(self, attack: Attack) -> dict[str, Any]:
        cells = {subject: self.cells[attack.name, subject] for subject in SUBJECTS}
        return {
            "name": attack.name,
            "title": attack.title,
            "group": attack.group,
            "kind": attack.kind,
            "from": attack.source,
            "results": {subject: cell.result for subject, cell in cells.items()},
            "why": {subject: cell.why for subject, cell in cells.items() if cell.why},
        }
