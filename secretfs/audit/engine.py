"""Attacks every subject in every way, one after the other, and decides what "held" may be said of.

An attack from outside runs in a process of its own, as the user that its row names, for a limited time. "held" is said
only of an attack that was seen to work on ordinary memory in the same run.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import platform
import select
import signal
import time
from collections.abc import Callable, Sequence, Set

from secretfs.audit.advice import facts
from secretfs.audit.model import HELD, LEAKED, NOT_TRIED, SUBJECTS, Attack, Audit, Cell, NotTriedError
from secretfs.audit.squeeze import memory_group
from secretfs.audit.subjects import NOBODY, Target, become, start, users
from secretfs.audit.undo import Undo

__all__ = ["run"]

CONTROL = "ordinary"
LIMIT = 165.0
"""Seconds after which no more is tried, but for --machine: an audit takes at most three minutes."""
_REASON = 1 << 12
_NO_REFUSAL = {errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOSYS, errno.ENOSPC}
"""What a system call fails with for reasons of its own; a secret was not what it stumbled over."""
Progress = Callable[[int, int, str], None]


def run(
    attacks: Sequence[Attack],
    *,
    machine: bool,
    progress: Progress,
    guard: bool = False,
    subjects: Sequence[str] = SUBJECTS,
) -> Audit:
    """Try everything.

    Args:
        attacks: the rows.
        machine: also those of the group "machine", which change settings of the machine for a moment.
        guard: attack a mount that was made with --guard.
        subjects: what is attacked.
        progress: is told how many of how many cells are done, and what comes next.
    """
    with Undo() as undo, contextlib.ExitStack() as stack:
        return _Run(attacks, {CONTROL, *subjects}, machine, guard, progress, undo, stack).run()


class _Run:
    """One audit at work."""

    def __init__(
        self,
        attacks: Sequence[Attack],
        subjects: Set[str],
        machine: bool,
        guard: bool,
        progress: Progress,
        undo: Undo,
        stack: contextlib.ExitStack,
    ) -> None:
        self._audit = Audit(platform.release(), list(attacks), facts=facts())
        self._subjects = subjects
        self._machine = machine
        self._guard = guard
        self._end = math.inf if machine else time.monotonic() + LIMIT
        self._progress = progress
        self._undo = undo
        self._stack = stack
        self._targets: dict[str, Target | str] = {}
        """Living subjects, or why there is none."""

    def run(self) -> Audit:
        """Row by row, ordinary memory first."""
        order = sorted(self._audit.attacks, key=lambda attack: bool(attack.shown_by))
        steps = [(attack, subject) for attack in order for subject in SUBJECTS]
        for number, (attack, subject) in enumerate(steps):
            self._progress(number, len(steps), f"{attack.name} on {subject}")
            self._audit.cells[attack.name, subject] = self._cell(attack, subject)
        self._progress(len(steps), len(steps), "")
        for name, target in self._targets.items():
            self._audit.claims.setdefault(name, {} if isinstance(target, str) else target.claims)
        return self._audit

    def _cell(self, attack: Attack, subject: str) -> Cell:
        if attack.group == "machine" and not self._machine:
            return Cell(NOT_TRIED, "it changes settings of the machine: only with --machine")
        if subject not in self._subjects:
            return Cell(NOT_TRIED, "not asked for")
        if time.monotonic() > self._end:
            return Cell(NOT_TRIED, f"time was up: the machine is busy, and an audit ends after {LIMIT:.0f} seconds")
        if subject in attack.apart_from:
            return Cell(NOT_TRIED, attack.apart_from[subject])
        try:
            cell = self._fresh(attack, subject) if attack.fresh else self._attack(attack, self._living(subject))
        except NotTriedError as error:
            return Cell(NOT_TRIED, str(error))
        if cell.result == HELD:
            return self._checked(attack, subject, cell)
        return cell

    def _checked(self, attack: Attack, subject: str, cell: Cell) -> Cell:
        """That something held means something only if the attack works."""
        shown_by = attack.shown_by or attack.name
        if shown_by == attack.name and subject == CONTROL:
            why = f" ({cell.why})" if cell.why else ""
            return Cell(NOT_TRIED, f"it did not work here on ordinary memory{why}, so it shows nothing")
        shown = self._audit.cells.get((shown_by, CONTROL))
        if shown is None or shown.result != LEAKED:
            return Cell(NOT_TRIED, "it did not work here on ordinary memory, so it shows nothing")
        return cell

    def _living(self, subject: str) -> Target:
        """The subject that attacks share which leave it as it was."""
        target = self._targets.get(subject)
        if target is None or (isinstance(target, Target) and target.has_ended()):
            target = self._targets[subject] = self._first_start(subject)
        if isinstance(target, str):
            raise NotTriedError(target)
        return target

    def _first_start(self, subject: str) -> Target | str:
        """It at work, as the first user who can start it, or why there is none."""
        reason = ""
        for uid in users():
            with contextlib.ExitStack() as stack:
                try:
                    target = stack.enter_context(start(subject, uid, self._undo, guard=self._guard))
                    target.plant()
                except (NotTriedError, OSError) as error:
                    reason = str(error)
                    continue
                self._stack.enter_context(stack.pop_all())
                return target
        return reason

    def _fresh(self, attack: Attack, subject: str) -> Cell:
        living = self._living(subject)  # which says what is claimed, and whether it can be tried at all
        if attack.outside is not None:
            _attacker(attack, living)
        with contextlib.ExitStack() as stack:
            group = stack.enter_context(memory_group(self._undo)) if attack.grouped else None
            target = stack.enter_context(start(subject, living.uid, self._undo, guard=self._guard, group=group))
            if attack.planted:
                target.plant()
            return self._attack(attack, target)

    def _attack(self, attack: Attack, target: Target) -> Cell:
        if attack.inside is not None:
            return _outcome(lambda: bool(target.ask({"do": attack.name})["leaked"]))
        uid = _attacker(attack, target)
        return _in_process(attack, target, uid)


def _attacker(attack: Attack, target: Target) -> int:
    """As whom it is tried."""
    here = os.geteuid()
    if attack.source in ("root", "owner"):
        if here != 0 and attack.source == "root":
            raise NotTriedError("needs root")
        return here
    if attack.source == "same-user":
        if here == 0 == target.uid:
            raise NotTriedError("this subject is root's here, and root is no ordinary user: run the audit as one")
        return target.uid
    if here != 0:
        raise NotTriedError("needs root, to become another user")
    return NOBODY - 1


def _in_process(attack: Attack, target: Target, uid: int) -> Cell:
    """Run an attack in a child that is given up on when it takes too long."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.close(reader)
            os.write(writer, json.dumps(_as_user(attack, target, uid)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    try:
        if not select.select([reader], [], [], attack.patience)[0]:
            return Cell(NOT_TRIED, f"it did not end within {attack.patience:.0f} seconds")
        answer = os.read(reader, _REASON)
    finally:
        os.close(reader)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return Cell(*json.loads(answer)) if answer else Cell(NOT_TRIED, "the attacker died")


def _as_user(attack: Attack, target: Target, uid: int) -> tuple[str, str]:
    become(uid)
    assert attack.outside is not None
    function = attack.outside
    try:
        cell = _outcome(lambda: function(target))
    except NotTriedError as error:
        return NOT_TRIED, str(error)[: _REASON // 2]
    except Exception as error:  # noqa: BLE001 - told, not raised: this is a child
        return NOT_TRIED, f"the attack failed: {type(error).__name__}: {error}"[: _REASON // 2]
    return cell.result, cell.why or target.detail


def _outcome(attack: Callable[[], bool]) -> Cell:
    try:
        return Cell(LEAKED) if attack() else Cell(HELD)
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "")
        if error.errno in _NO_REFUSAL:
            raise NotTriedError(f"{name} ({os.strerror(error.errno).lower()})") from error
        return Cell(HELD, f"refused: {name} ({os.strerror(error.errno or 0).lower()})" if name else "refused")
