"""Areas in more than one process: which backend a descriptor belongs to, and how multiprocessing sends an area.

What is shared is the memory, never an object: each process maps the descriptor for itself, after the backend has
checked that it is what it says (secret memory of the kernel, or a memfd whose size is sealed).
"""

from __future__ import annotations

import os
from typing import Any

from secretfs import registry
from secretfs.errors import BackendUnavailable
from secretfs.interface import Backend, MappedRegion, Region, Shareable

__all__ = ["attach", "teach_multiprocessing"]


def attach(fd: int, backend: str | Backend | None) -> tuple[Backend, Region]:
    """The backend whose memory is behind `fd`, and the region that it has mapped, between guard pages if it can.

    Raises:
        BackendUnavailable: it is nothing of that backend's, or of any.
        LimitError: it cannot be locked, or have guard pages.
    """
    refusals = []
    for candidate in _candidates(backend):
        if not isinstance(candidate, Shareable):
            refusals.append(f"the backend {candidate.name} shares nothing")
            continue
        try:
            region = candidate.attach(fd)
        except BackendUnavailable as error:
            refusals.append(str(error))
            continue
        if isinstance(region, MappedRegion):
            region.enclose()
        return candidate, region
    raise BackendUnavailable("; ".join(refusals), hint="send what SecretArea.share(…).fileno() gives")


def _candidates(backend: str | Backend | None) -> list[Backend]:
    if backend is not None and not isinstance(backend, str):
        return [backend]
    word = registry.wanted(backend)
    return [registry.named(name) for name in (registry.PREFERENCE if word == "auto" else (word,))]


def teach_multiprocessing(kind: type) -> None:
    """Let multiprocessing send shared areas as descriptors; pickle alone still refuses."""
    from multiprocessing.reduction import ForkingPickler

    ForkingPickler.register(kind, _reduce)


def _reduce(area: Any) -> tuple[Any, ...]:
    from multiprocessing.reduction import DupFd

    return _rebuild, (type(area), DupFd(area.fileno()), area.backend)


def _rebuild(kind: Any, sent: Any, backend: str) -> Any:
    fd = sent.detach()
    try:
        return kind.attach(fd, backend=backend)
    finally:
        os.close(fd)
