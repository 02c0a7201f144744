"""Living: which of our objects are alive, for those who have to reach all of them at an exit, a signal or a fork."""

from __future__ import annotations

import weakref
from typing import Generic, TypeVar

__all__ = ["Living"]

T = TypeVar("T")


class Living(Generic[T]):
    """Objects, kept by weak references and told apart by identity.

    What a WeakSet cannot do: list them while other threads add some, and hold what has no hash.
    """

    def __init__(self) -> None:
        self._references: dict[int, weakref.ref[T]] = {}

    def add(self, thing: T) -> None:
        """Know `thing` until it dies."""
        number, references = id(thing), self._references

        def gone(reference: weakref.ref[T]) -> None:
            references.pop(number, None)

        references[number] = weakref.ref(thing, gone)

    def all(self) -> list[T]:
        """Those that live now."""
        known = self._references.copy().values()  # a copy is made in one step, whatever other threads do
        return [thing for reference in known if (thing := reference()) is not None]

    def clear(self) -> None:
        """Forget them."""
        self._references.clear()
