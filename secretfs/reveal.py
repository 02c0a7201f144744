"""An access window as a context manager: the view that is valid inside its block, and the watch over what survives it.

Every window has an exporter of its own. Slices, memoryviews and foreign exports keep that object alive; when the last
of them goes, so does the exporter, and the window is closed. Leaving the block while it lives raises BufferError.
"""

from __future__ import annotations

import ctypes
import functools
from types import TracebackType
from typing import Any

from secretfs.slab import Cell

__all__ = ["Reveal"]


class Reveal:
    """An access window; see Secret.reveal()."""

    __slots__ = ("_cell", "_view", "_write", "ended")

    def __init__(self, cell: Cell, write: bool) -> None:
        self._cell = cell
        self._write = write
        self._view: memoryview | None = None
        self.ended = False

    def __enter__(self) -> memoryview:
        if self._view is not None or self.ended:
            raise RuntimeError("a window is opened once; reveal() makes another one")
        cell, write = self._cell, self._write
        cell.open(write)
        exporter = _revealed_type(cell.length).from_address(cell.address)
        exporter.window = self
        view = memoryview(exporter).cast("B")
        self._view = view = view if write else view.toreadonly()
        return view

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        view, self._view = self._view, None
        assert view is not None
        try:  # noqa: SIM105 - suppress() costs a tenth of the whole window
            view.release()
        except BufferError:
            pass  # a foreign export of it; said below
        del view
        if not self.ended and error is None:
            raise BufferError("a view of a secret is used outside its block; the secret stays open until that is gone")

    def end(self) -> None:
        """The last view is gone."""
        self.ended = True
        self._cell.shut(self._write)


class _Revealed:
    """Mixed into a ctypes array type: the exporter under all views of one window, which ends with the last of them."""

    window: Reveal

    def __del__(self) -> None:
        self.window.end()


@functools.lru_cache(maxsize=256)
def _revealed_type(length: int) -> Any:
    return type("_RevealedBytes", (_Revealed, ctypes.c_char * length), {"_type_": ctypes.c_char, "_length_": length})
