"""The kinds of secrets there are in a process: one heap for each combination of backend, mode and rest.

It alone turns the words of a caller into a heap, keeps the heaps, checks their canaries and wipes them at the end of
the process, and forgets them in a forked child, which has none of their memory.
"""

from __future__ import annotations

import atexit
from dataclasses import replace
from typing import Any

from secretfs import cachelines, registry, turns
from secretfs.cells import CellHeap
from secretfs.interface import Backend, Guarantees
from secretfs.rest import Rest, libsodium
from secretfs.slab import check_canaries, close_slabs, forget_slabs

__all__ = ["Kind", "all_kinds", "kind_of", "release_kinds"]

_kinds: dict[tuple[Any, ...], Kind] = {}


class Kind:
    """One kind: where its cells come from, and what is promised for them."""

    def __init__(self, backend: Backend, mode: str, at_rest: bool) -> None:
        """Make it, with an empty heap."""
        uncached = cachelines.is_uncached(mode)
        self.mode = mode
        self.at_rest = at_rest
        self.heap = CellHeap(backend, uncached=uncached, sealer=Rest(backend) if at_rest else None)
        self.guarantees: Guarantees = replace(
            backend.guarantees,
            cache_flushed=uncached and cachelines.available(),
            enciphered_at_rest=at_rest,
        )

    @property
    def backend(self) -> Backend:
        """Where its memory comes from."""
        return self.heap.backend


def kind_of(backend: str | Backend | None, mode: str, at_rest: bool | None) -> Kind:
    """The kind that goes by these words. SECRETFS_BACKEND is looked at when it is asked for the first time.

    Raises:
        UsageError: there is no such mode.
        BackendUnavailable: no backend works under that word, or libsodium is missing.
        LimitError: the key for secrets at rest cannot be locked.
    """
    words = (backend, mode, at_rest)
    found = _kinds.get(words)
    return found if found is not None else _make(words)


def all_kinds() -> list[Kind]:
    """All that are in use."""
    return list({id(kind): kind for kind in _kinds.values()}.values())


def release_kinds() -> None:
    """Wipe and unmap all secrets. Those that exist are unusable afterwards; new ones can be made.

    Raises:
        BufferError: one is revealed: its memory is wiped, and goes with the last view of it.
    """
    survivor: BufferError | None = None
    with turns.lock:
        turns.settle()
        kinds = all_kinds()
        _kinds.clear()
        check_canaries()
        for kind in kinds:
            try:
                kind.heap.close()
            except BufferError as error:
                survivor = error
        close_slabs()  # also the keys of what was at rest
    turns.catch_up()
    if survivor is not None:
        raise survivor


def _make(words: tuple[Any, ...]) -> Kind:
    backend, mode, at_rest = words
    cachelines.is_uncached(mode)  # or it is an error, before anything is asked for
    chosen = registry.choose_warning(backend).backend if backend is None or isinstance(backend, str) else backend
    if at_rest is None:
        at_rest = chosen.name == "emulator" and libsodium() is not None
    with turns.lock:
        if words in _kinds:  # another thread was quicker, perhaps with another instance of the backend
            return _kinds[words]
        wanted = chosen, mode, at_rest
        same = (kind for kind in _kinds.values() if (kind.backend, kind.mode, kind.at_rest) == wanted)
        _kinds[words] = next(same, None) or Kind(chosen, mode, at_rest)
        return _kinds[words]


def _forked() -> None:
    """In a forked child: its secrets are its own from here on."""
    _kinds.clear()
    forget_slabs()


@atexit.register
def _end() -> None:
    check_canaries()
    close_slabs()


turns.at_fork(after_in_child=_forked)
