"""Which backend serves: finds those installed, probes them, applies the policy.

It alone reads the entry points "secretfs.backends" and the variable SECRETFS_BACKEND. A backend of ours gets no
privilege but its name: "auto" means kernel, else emulator; a stranger's backend is used only when it is named.
Entry points are looked up at first use (reading them costs 25-30 ms) and each probe runs once per process.
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
from dataclasses import dataclass

from secretfs import libc
from secretfs.errors import BackendUnavailable, PluginError, SecretFSError
from secretfs.interface import BACKEND_API, Backend, Guarantees

__all__ = [
    "ENTRY_POINTS",
    "VARIABLE",
    "Candidate",
    "Choice",
    "ReducedGuaranteesWarning",
    "candidates",
    "choose",
    "choose_warning",
    "named",
    "wanted",
]

ENTRY_POINTS = "secretfs.backends"
VARIABLE = "SECRETFS_BACKEND"
PREFERENCE = ("kernel", "emulator")
_INSTALL = "install memfd-secretfs again; `secretfs backends` lists what is installed"


class ReducedGuaranteesWarning(RuntimeWarning):
    """The emulator stands in for the kernel's secret memory; the message names what is not promised."""


@dataclass(frozen=True)
class Choice:
    """The backend that serves, and how it came to that."""

    backend: Backend
    policy: str
    """prefer, require or emulate."""
    lost: tuple[str, ...] = ()
    """Under prefer: the guarantees that the preferred backend gives and this one does not."""
    reason: str = ""
    """Why the preferred backend does not serve."""
    hint: str = ""
    """What would make it serve."""

    @property
    def warning(self) -> str:
        """One sentence for people, or "" when nothing was lost."""
        if not self.lost:
            return ""
        return f"using the {self.backend.name} because {self.reason}; not guaranteed: {', '.join(self.lost)}"


@dataclass(frozen=True)
class Candidate:
    """One installed backend, probed."""

    name: str
    usable: bool
    guarantees: Guarantees
    reason: str = ""
    hint: str = ""


def wanted(argument: str | None) -> str:
    """The backend word in force: `argument`, else SECRETFS_BACKEND, else "auto".

    The variable may tighten an explicit "auto" to "kernel", and is ignored in a program with raised privileges.

    Raises:
        BackendUnavailable: this is not Linux.
    """
    _require_linux()
    variable = "" if libc.at_secure() else os.environ.get(VARIABLE, "")
    if argument is None:
        return variable or "auto"
    if argument == "auto" and variable == "kernel":
        return "kernel"
    return argument


def choose(argument: str | None = None) -> Choice:
    """Apply the policy that the backend word stands for.

    Args:
        argument: "auto", "kernel", "emulator" or the name of an installed backend; None asks SECRETFS_BACKEND.

    Raises:
        BackendUnavailable: nothing usable is left under that policy; the message says why.
        PluginError: the backend is broken or its name is ambiguous.
    """
    word = wanted(argument)
    if word == "auto":
        return _preferred()
    backend = _load(word)
    _probed(backend)
    return Choice(backend, "emulate" if word == "emulator" else "require")


def choose_warning(argument: str | None = None) -> Choice:
    """choose(), with one ReducedGuaranteesWarning per process where guarantees were lost: for the Python API."""
    choice = choose(argument)
    if choice.warning and choice.warning not in _warned:
        warnings.warn(choice.warning, ReducedGuaranteesWarning, stacklevel=3)
        _warned.add(choice.warning)  # not if the warning was made an error: then each attempt fails
    return choice


def named(name: str) -> Backend:
    """The installed backend of that name, not probed.

    Raises:
        BackendUnavailable: there is none.
        PluginError: it is broken or its name is ambiguous.
    """
    _require_linux()
    return _load(name)


def candidates() -> list[Candidate]:
    """Every installed backend, usable or not, those of ours first."""
    names = sorted(_entry_points(), key=lambda name: (name not in PREFERENCE, name != PREFERENCE[0], name))
    return [_candidate(name) for name in names]


def _require_linux() -> None:
    if sys.platform != "linux":
        raise BackendUnavailable(f"secret memory needs Linux, and this is {sys.platform}")


def _candidate(name: str) -> Candidate:
    guarantees = Guarantees()
    try:
        backend = _load(name)
        guarantees = backend.guarantees
        _probed(backend)
    except SecretFSError as error:
        return Candidate(name, False, guarantees, str(error), error.hint)
    return Candidate(name, True, guarantees)


def _preferred() -> Choice:
    best, fallback = (_load(name) for name in PREFERENCE)
    try:
        _probed(best)
    except BackendUnavailable as first:
        try:
            _probed(fallback)
        except BackendUnavailable as second:
            raise BackendUnavailable(
                f"no backend works here: {best.name}: {first}; {fallback.name}: {second}",
                hint=second.hint or first.hint,
            ) from second
        lost = fallback.guarantees.lost_against(best.guarantees)
        return Choice(fallback, "prefer", lost, str(first), first.hint)
    return Choice(best, "prefer")


@functools.cache
def _entry_points() -> dict[str, list[str]]:
    """Name -> the distinct "module:class" values registered under it."""
    from importlib.metadata import entry_points

    found: dict[str, list[str]] = {}
    for entry in entry_points(group=ENTRY_POINTS):
        values = found.setdefault(entry.name, [])
        if entry.value not in values:  # one distribution may be seen twice on sys.path
            values.append(entry.value)
    return found


@functools.cache
def _load(name: str) -> Backend:
    values = _entry_points().get(name)
    if not values:
        known = ", ".join(sorted({"auto", *_entry_points()}))
        raise BackendUnavailable(f"there is no backend named {name!r}", hint=f"use one of: {known}")
    if len(values) > 1:
        raise PluginError(
            f"the backend name {name!r} is claimed twice: by {' and by '.join(values)}", hint="uninstall one of them"
        )
    from importlib.metadata import EntryPoint

    try:
        backend: Backend = EntryPoint(name, values[0], ENTRY_POINTS).load()()
        api, own_name = backend.api, backend.name
    except Exception as error:
        raise PluginError(
            f"the backend {name!r} ({values[0]}) cannot be loaded: {type(error).__name__}: {error}", hint=_INSTALL
        ) from error
    if api != BACKEND_API:
        raise PluginError(
            f"the backend {name!r} ({values[0]}) has API version {api!r}, and this secretfs knows {BACKEND_API}",
            hint="install versions of the two that fit together",
        )
    if own_name != name:  # or a stranger could pass for ours in every message
        raise PluginError(f"the backend {name!r} ({values[0]}) calls itself {own_name!r}")
    return backend


_verdicts: dict[str, SecretFSError | None] = {}
_warned: set[str] = set()


def _probed(backend: Backend) -> None:
    """Probe once per process; a verdict is raised again each time it is asked for."""
    if backend.name not in _verdicts:
        try:
            backend.probe()
            _verdicts[backend.name] = None
        except BackendUnavailable as error:
            _verdicts[backend.name] = error
        except Exception as error:  # noqa: BLE001 - whatever a stranger's code raises
            broken = PluginError(f"the backend {backend.name!r} failed its probe: {type(error).__name__}: {error}")
            broken.__cause__ = error
            _verdicts[backend.name] = broken
    verdict = _verdicts[backend.name]
    if verdict is not None:
        raise verdict.with_traceback(None)
