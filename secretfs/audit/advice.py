"""The machine, and what to change on it for a better result."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable
from typing import NamedTuple

from secretfs.audit.model import HELD, LEAKED, NOT_TRIED, SUBJECTS, Audit

__all__ = ["Advice", "advice", "facts"]

PROTECTED = SUBJECTS[1:]


class Advice(NamedTuple):
    """Something to change."""

    what: str
    why: str


def facts() -> dict[str, str]:
    """What of this machine bears on the results."""
    from secretfs import __version__

    user = os.geteuid()
    return {
        "kernel": f"{platform.system()} {platform.release()} ({platform.machine()})",
        "secretfs": f"{__version__}, Python {platform.python_version()}",
        "run by": "root" if user == 0 else f"uid {user}",
        "kernel.yama.ptrace_scope": _setting("/proc/sys/kernel/yama/ptrace_scope", "no yama in this kernel"),
        "lockdown": _chosen("/sys/kernel/security/lockdown", "not known: no securityfs here"),
        "init_on_free": "1" if "init_on_free=1" in _setting("/proc/cmdline", "").split() else "not asked for",
        "swap": "in use" if _has_swap() else "off",
        "kernel.core_pattern": _setting("/proc/sys/kernel/core_pattern", "?"),
        "kernel.perf_event_paranoid": _setting("/proc/sys/kernel/perf_event_paranoid", "?"),
    }


def advice(audit: Audit) -> list[Advice]:
    """What would turn a "leaked" of this audit into a "held", most useful first."""
    return [one for fits, one in _RULES if fits(audit)]


def _leaked(*names: str) -> Callable[[Audit], bool]:
    """Whether one of these attacks got something that should be protected."""
    return lambda audit: any(
        audit.cells[name, subject].result == LEAKED
        for name in names
        for subject in PROTECTED
        if (name, subject) in audit.cells
    )


def _no_secret_memory(audit: Audit) -> bool:
    own = [cell for (_, subject), cell in audit.cells.items() if subject == "kernel"]
    return all(cell.result == NOT_TRIED for cell in own)


def _weak_yama(audit: Audit) -> bool:
    return _leaked("pidfd-getfd-race", "pidfd-getfd-fuse", "ptrace-inject", "pidfd-getfd")(audit) and (
        _setting("/proc/sys/kernel/yama/ptrace_scope", "") != "3"
    )


def _open_to_users(audit: Audit) -> bool:
    names = ("proc-mem-user", "process-vm-readv-user", "ptrace-peek-user", "ptrace-inject-user")
    return _leaked(*names)(audit) and _setting("/proc/sys/kernel/yama/ptrace_scope", "0") == "0"


def _uncleared(audit: Audit) -> bool:
    emulated = audit.cells.get(("kill", "emulator"))
    return "init_on_free=1" not in _setting("/proc/cmdline", "").split() and (
        emulated is None or emulated.result != HELD
    )


_RULES: tuple[tuple[Callable[[Audit], bool], Advice], ...] = (
    (
        _no_secret_memory,
        Advice(
            "Linux 6.5 or newer, or boot 5.14 and newer with secretmem.enable=1",
            "there is no memfd_secret(2) here, so that nothing is out of root's reach (`secretfs backends` says why)",
        ),
    ),
    (
        _open_to_users,
        Advice("sysctl kernel.yama.ptrace_scope=1 or more", "other programs of the same user can read what is theirs"),
    ),
    (
        _weak_yama,
        Advice("sysctl kernel.yama.ptrace_scope=3", "the one answer to pidfd_getfd and ptrace by root, until reboot"),
    ),
    (
        _leaked("uprobe"),
        Advice(
            "boot with lockdown=confidentiality",
            "the one answer to uprobe events, which read in the owner's own context; BPF and perf still do",
        ),
    ),
    (
        _leaked("proc-mem-inject"),
        Advice("boot with proc_mem.force_override=never (Linux 6.12)", "code cannot be written through /proc/PID/mem"),
    ),
    (_uncleared, Advice("boot with init_on_free=1", "the kernel then clears ordinary memory too when it is freed")),
    (
        lambda _: _has_swap(),
        Advice(
            "turn swap off, or encrypt it with a key made at boot", "what programs hold besides may be written there"
        ),
    ),
)


def _setting(path: str, default: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return default


def _chosen(path: str, default: str) -> str:
    """The word in brackets, as in /sys/kernel/security/lockdown."""
    found = re.search(r"\[(\w+)\]", _setting(path, ""))
    return found[1] if found else default


def _has_swap() -> bool:
    return len(_setting("/proc/swaps", "").splitlines()) > 1
