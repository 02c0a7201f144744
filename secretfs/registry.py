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
from secretfs.errors import BackendUnavailable, LimitError, PluginError, SecretFSError
from secretfs.interface import BACKEND_API, Backend, Guarantees, MappedRegion, Region
from secretfs.quoting import one_line

__all__ = [
    "ENTRY_POINTS",
    "VARIABLE",
    "Candidate",
    "Choice",
    "ReducedGuaranteesWarning",
    "candidates",
    "choose",
    "choose_warning",
    "map_region",
    "named",
    "wanted",
]

ENTRY_POINTS = "secretfs.backends"
VARIABLE = "SECRETFS_BACKEND"
PREFERENCE = ("kernel", "emulator")
_INSTALL = "install memfd-secretfs again; `secretfs backends` lists what is installed"
_OF_NO_PAGES = ("cache_flushed", "enciphered_at_rest", "device_io")
"""Guarantees that the kernel's pages do not give: what is asked for of each secret, and a convenience."""
_BEST = Guarantees(**{name: name not in _OF_NO_PAGES for name in Guarantees.names()})
"""What is given up where there is no preferred backend to compare with: everything that protects."""


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
        LimitError: but for a limit something would be.
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
    """The first of PREFERENCE that is installed and works; one that is broken is an error, not passed over."""
    name, name_of_fallback = PREFERENCE
    best = _BEST
    try:
        backend = _load(name)
        best = backend.guarantees
        _probed(backend)
        return Choice(backend, "prefer")
    except (BackendUnavailable, LimitError) as error:
        first = error
    try:
        fallback = _load(name_of_fallback)
        _probed(fallback)
    except LimitError:
        raise  # the remedy is a higher limit, whatever else is missing
    except BackendUnavailable as second:
        if isinstance(first, LimitError):
            raise first from second
        raise BackendUnavailable(
            f"no backend works here: {name}: {first}; {name_of_fallback}: {second}", hint=second.hint or first.hint
        ) from second
    return Choice(fallback, "prefer", fallback.guarantees.lost_against(best), str(first), first.hint)


@functools.cache
def _entry_points() -> dict[str, dict[str, str]]:
    """Name -> the distinct "module:class" values registered under it, and which distribution brings each."""
    from importlib.metadata import entry_points

    found: dict[str, dict[str, str]] = {}
    for entry in entry_points(group=ENTRY_POINTS):  # one distribution may be seen twice on sys.path
        found.setdefault(entry.name, {}).setdefault(entry.value, entry.dist.name if entry.dist else "")
    return found


@functools.cache
def _load(name: str) -> Backend:
    values = _entry_points().get(name)
    if not values and name in PREFERENCE:
        raise BackendUnavailable(f"the backend {name!r} is not installed", hint=_INSTALL)
    if not values:
        known = ", ".join(sorted({"auto", *_entry_points()}))
        raise BackendUnavailable(f"there is no backend named {name!r}", hint=f"use one of: {known}")
    if len(values) > 1:
        both = " and ".join(filter(None, values.values()))
        raise PluginError(
            f"the backend name {name!r} is claimed twice: by {' and by '.join(values)}",
            hint=f"uninstall one of them: {both}",
        )
    return _instance(name, next(iter(values)))


def _instance(name: str, value: str) -> Backend:
    from importlib.metadata import EntryPoint

    try:
        backend: Backend = EntryPoint(name, value, ENTRY_POINTS).load()()
        api, own_name, guarantees = backend.api, backend.name, backend.guarantees
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"the backend {name!r} ({value}) cannot be loaded: {_what(error)}", hint=_repair(name)
        ) from error
    if api != BACKEND_API:
        raise PluginError(
            f"the backend {name!r} ({value}) has API version {api!r}, and this secretfs knows {BACKEND_API}",
            hint="install versions of the two that fit together",
        )
    if own_name != name:  # or a stranger could pass for ours in every message
        raise PluginError(f"the backend {name!r} ({value}) calls itself {own_name!r}", hint=_repair(name))
    if not isinstance(guarantees, Guarantees):
        raise PluginError(f"the backend {name!r} ({value}) promises no Guarantees", hint=_repair(name))
    return backend


_verdicts: dict[str, SecretFSError | None] = {}
_warned: set[str] = set()


def _probed(backend: Backend) -> None:
    """Probe once per process; a verdict is raised again each time it is asked for, but for a limit that was reached."""
    if backend.name not in _verdicts:
        try:
            backend.probe()
            _verdicts[backend.name] = None
        except BackendUnavailable as error:
            _verdicts[backend.name] = error
        except LimitError:
            raise  # which may be another one the next time
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a stranger's code raises
            broken = PluginError(
                f"the backend {backend.name!r} failed its probe: {_what(error)}", hint=_repair(backend.name)
            )
            broken.__cause__ = error
            _verdicts[backend.name] = broken
    verdict = _verdicts[backend.name]
    if verdict is not None:
        raise verdict.with_traceback(None)


def map_region(backend: Backend, size: int, *, shared: bool = False) -> tuple[Region, memoryview]:
    """A region and a view of it, where whatever a stranger's code does but refuse is an error that names it.

    The region lies between guard pages, if it is one that can have them.

    Raises:
        PluginError: it raised something else than errors of ours or of the system's, or gave no region of that size.
    """
    try:
        region = backend.map(size, shared=shared)
        if isinstance(region, MappedRegion):
            region.enclose()
        view = region.view()
        given = len(view)
    except (SecretFSError, OSError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"the backend {backend.name!r} failed to map {size} bytes: {_what(error)}", hint=_repair(backend.name)
        ) from error
    if given != size:
        raise PluginError(
            f"the backend {backend.name!r} was asked for {size} bytes and mapped {given}", hint=_repair(backend.name)
        )
    return region, view


def _what(error: BaseException) -> str:
    return one_line(f"{type(error).__name__}: {error}").removesuffix(": ").rstrip(".")


def _repair(name: str) -> str:
    if name in PREFERENCE:
        return _INSTALL
    owner = next(iter(_entry_points().get(name, {}).values()), "")
    return f"repair or uninstall {owner or 'the distribution'}, which brings it; --backend auto does without"
