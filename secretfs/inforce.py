"""What is really in force: for one secret, one area, or the whole process. And letting go of all of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

from secretfs import area, cachelines, libc, mapping, registry
from secretfs.area import SecretArea
from secretfs.errors import SecretFSError
from secretfs.interface import Guarantees
from secretfs.kinds import release_kinds
from secretfs.rest import libsodium
from secretfs.slab import close_slabs

__all__ = ["Protection", "protection", "release_all", "wipe_on_signals"]

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT") if hasattr(signal, name))

_WHY = {
    "off_direct_map": "ordinary memory is in the kernel's direct map, where /proc/kcore finds it",
    "refuses_pinning": "ordinary memory can be pinned: root reads it with ptrace, /proc/PID/mem, process_vm_readv",
    "cleared_by_kernel": "the kernel clears ordinary pages after a kill -9 only when booted with init_on_free=1",
    "not_hibernated": "a hibernation image holds locked memory too",
    "unforkable": "it was made to be shared with forked children, or to be inherited by them",
    "no_descriptor": "it was made to be shared: while its descriptor is open, root can take it and map it",
    "device_io": "drivers cannot read or write secret pages (a convenience that is missing, not a protection)",
}


@dataclass(frozen=True)
class Protection:
    """A report; see protection(). Sizes are bytes."""

    subject: str
    """What it is about: repr() of a secret or an area, or "this process"."""
    backend: str
    guarantees: Guarantees
    why_not: dict[str, str]
    """For each guarantee that is False, the reason."""
    locked: int
    """What this process has locked (VmLck)."""
    lock_limit: int | None
    """RLIMIT_MEMLOCK; None where there is none."""
    blocks_hibernation: bool
    """Whether secret memory of this process keeps the machine from hibernating."""
    after_kill: str
    """What a kill -9 would leave."""
    dumpable: bool
    """Whether the process can be dumped, and traced by others of its user (PR_SET_DUMPABLE)."""
    core_limit: int | None
    """RLIMIT_CORE; None where there is none."""
    traced_by: int
    """The process that traces this one, or 0."""

    @property
    def lock_left(self) -> int | None:
        """What may still be locked; None where there is no limit."""
        return None if self.lock_limit is None else max(0, self.lock_limit - self.locked)

    def as_dict(self) -> dict[str, Any]:
        """Everything, for json.dumps()."""
        return {
            **{name: getattr(self, name) for name in self.__dataclass_fields__},
            "guarantees": self.guarantees.as_dict(),
            "lock_left": self.lock_left,
        }

    def to_json(self) -> str:
        """as_dict() as one JSON object."""
        return json.dumps(self.as_dict())

    def __str__(self) -> str:
        held = [name for name, holds in self.guarantees.as_dict().items() if holds]
        limit = "no limit" if self.lock_limit is None else f"{self.lock_left} of {self.lock_limit} left"
        core = "unlimited" if self.core_limit is None else str(self.core_limit)
        hibernation = "blocked by this process" if self.blocks_hibernation else "not blocked by this process"
        lines = [
            f"{self.subject}: backend {self.backend}",
            f"  guaranteed:     {', '.join(held) or 'nothing'}",
            *(f"  not {name}: {reason}" for name, reason in self.why_not.items()),
            f"  locked bytes:   {self.locked}, {limit}",
            f"  hibernation:    {hibernation}",
            f"  after kill -9:  {self.after_kill}",
            f"  this process:   {'' if self.dumpable else 'not '}dumpable, core limit {core}, "
            + (f"traced by process {self.traced_by}" if self.traced_by else "not traced"),
        ]
        return "\n".join(lines)


def protection(subject: Any = None) -> Protection:
    """What is in force for a Secret or a SecretArea, or, without one, for what this process would make by default.

    Raises:
        BackendUnavailable: without a subject: no backend works here.
        TypeError: `subject` is something else.
    """
    guarantees: Guarantees
    if subject is None:
        choice = registry.choose()
        backend, guarantees = choice.backend.name, choice.backend.guarantees
    elif isinstance(getattr(subject, "guarantees", None), Guarantees):
        backend, guarantees = subject.backend, subject.guarantees
    else:
        raise TypeError(f"protection() is for a Secret or a SecretArea, not {type(subject).__name__}")
    import resource  # not everywhere; elsewhere the registry has said what is missing

    core, _ = resource.getrlimit(resource.RLIMIT_CORE)
    return Protection(
        subject="this process" if subject is None else repr(subject),
        backend=backend,
        guarantees=guarantees,
        why_not=_why_not(guarantees, subject),
        locked=libc.locked_bytes(),
        lock_limit=libc.lock_limit(),
        blocks_hibernation=_has_secret_mappings(),
        after_kill=_after_kill(guarantees),
        dumpable=libc.is_dumpable(),
        core_limit=None if core == resource.RLIM_INFINITY else core,
        traced_by=int(libc.proc_status("TracerPid") or 0),
    )


def _after_kill(guarantees: Guarantees) -> str:
    if guarantees.cleared_by_kernel:
        return "nothing: the kernel clears secret pages when it frees them"
    bytes_ = "the bytes, enciphered, and the parts of the key" if guarantees.enciphered_at_rest else "the bytes"
    return f"{bytes_}, in freed memory, until it is used again (unless the kernel was booted with init_on_free=1)"


def _why_not(guarantees: Guarantees, subject: Any) -> dict[str, str]:
    mode = getattr(subject, "mode", "exclusive")
    flush = "asked for by mode='uncached'" if mode != "uncached" else "this machine or installation has no way to do it"
    if mode != "uncached" and not cachelines.available():
        flush = "this machine or installation has no way to do it"
    rest = "not asked for (at_rest=True)" if libsodium() is not None else "libsodium is not installed"
    if isinstance(subject, SecretArea):
        rest = "areas are never enciphered: their bytes can be read all the time; a Secret can be"
    why = {**_WHY, "cache_flushed": flush, "enciphered_at_rest": rest}
    missing = [name for name, holds in guarantees.as_dict().items() if not holds]
    return {name: why.get(name, "the backend does not promise it") for name in missing}


def _has_secret_mappings() -> bool:
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as lines:
        return any("/secretmem" in line for line in lines)


def release_all() -> None:
    """Wipe and unmap every secret, area and mapping of this process, so that the machine can hibernate.

    What exists cannot be used any more (ClosedError); new ones can be made.

    Raises:
        BufferError: something is revealed, or a view is kept: that is wiped, and stays mapped until the view is gone.
    """
    survivor: BufferError | None = None
    try:
        release_kinds()
    except BufferError as error:
        survivor = error
    area.wipe_all()
    mapping.unmap_all()
    if survivor is not None:
        raise survivor


def wipe_on_signals(*numbers: int) -> None:
    """Wipe everything when one of these signals comes, then let it do what it did before.

    Without arguments: SIGTERM, SIGINT, SIGHUP and SIGQUIT. A signal that is ignored stays ignored. To be called from
    the main thread, after handlers of your own are in place: they run afterwards. SIGKILL cannot be caught; what that
    leaves is in protection().after_kill. The library installs no handler unless this is called.

    Raises:
        ValueError: not in the main thread, or no such signal.
    """
    for number in numbers or SIGNALS:
        before = signal.getsignal(number)
        if before != signal.SIG_IGN:
            signal.signal(number, _Wiper(before))


class _Wiper:
    """A signal handler that wipes, then does what was done before it."""

    def __init__(self, before: Callable[[int, FrameType | None], Any] | int | None) -> None:
        self._before = before.before if isinstance(before, _Wiper) else before

    @property
    def before(self) -> Any:
        """What was done before."""
        return self._before

    def __call__(self, number: int, frame: FrameType | None) -> None:
        # Not release_all(): what is left of the process makes no new secrets, and canaries were overwritten or not.
        with contextlib.suppress(SecretFSError, BufferError):
            close_slabs()
        area.wipe_all()
        mapping.unmap_all()
        if callable(self._before):
            self._before(number, frame)
            return
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
