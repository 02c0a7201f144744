"""An access window as a context manager: the view that is valid inside its block, and the watch over what survives it.

Every window has an exporter of its own. Slices, memoryviews and foreign exports keep that object alive; when the last
of them goes, so does the exporter, and the window is closed. Leaving the block while it lives raises BufferError.
"""

from __future__ import annotations

import ctypes
import functools
from types import TracebackType
from typing import Any, Protocol

from secretfs import turns
from secretfs.slab import Cell

__all__ = ["Reveal", "shut"]


class Revealable(Protocol):
    """What has a window: a secret."""

    def open_window(self, write: bool) -> Cell:
        """Open one; the place that was opened."""


def shut(cell: Cell, write: bool) -> None:
    """Close a window of `cell`."""
    try:
        with turns.lock:
            cell.shut(write)
    finally:
        if turns.late:
            turns.catch_up()


class Reveal:
    """An access window; see Secret.reveal()."""

    __slots__ = ("_cell", "_leaving", "_secret", "_used", "_view", "_write", "gone")

    def __init__(self, secret: Revealable, write: bool) -> None:
        self._secret = secret
        self._write = write
        self._cell: Cell | None = None
        self._view: memoryview | None = None
        self._used = self._leaving = False
        self.gone = False
        """Whether the last view is."""

    def __enter__(self) -> memoryview:
        if self._used:
            raise RuntimeError("a window is opened once; reveal() makes another one")
        self._used = True
        write = self._write
        # Only now is asked where the bytes are: since reveal() the secret may have been closed, and its place be
        # another's.
        self._cell = cell = self._secret.open_window(write)
        try:
            exporter = _revealed_type(cell.length).from_address(cell.address)
            exporter.window = self
            view = memoryview(exporter).cast("B")
            self._view = view = view if write else view.toreadonly()
        except BaseException:
            self._finish()
            raise
        return view

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        view, self._view = self._view, None
        if view is None:
            raise RuntimeError("this window is not open")
        self._leaving = True
        try:  # noqa: SIM105 - suppress() costs a tenth of the whole window
            view.release()
        except BufferError:
            pass  # a foreign export of it; said below
        del view
        self._leaving = False  # before `gone` is looked at, see last_view_gone()
        if self.gone:
            self._finish()
        elif error is None:
            raise BufferError("a view of a secret is used outside its block; the secret stays open until that is gone")

    def last_view_gone(self) -> None:
        """Close the window: here, if this is no block's end, which does so itself, and may wait for its turn."""
        self.gone = True
        if not self._leaving:
            turns.later(self._finish_once)

    def _finish(self) -> None:
        try:
            with turns.lock:
                self._finish_once()
        finally:
            if turns.late:
                turns.catch_up()

    def _finish_once(self) -> None:
        """The lock is held. Of a view that dies in another thread while the block is left, both may want this."""
        cell, self._cell = self._cell, None
        if cell is not None:
            cell.shut(self._write)


class _Revealed:
    """Mixed into a ctypes array type: the exporter under all views of one window, which ends with the last of them."""

    window: Reveal

    def __del__(self) -> None:
        window = getattr(self, "window", None)  # None where __enter__ failed
        if window is not None:
            window.last_view_gone()


@functools.lru_cache(maxsize=256)
def _revealed_type(length: int) -> Any:
    return type("_RevealedBytes", (_Revealed, ctypes.c_char * length), {"_type_": ctypes.c_char, "_length_": length})
