"""probe(): whether memory can be locked here."""

from __future__ import annotations

import os

from secretfs import libc
from secretfs.errors import BackendUnavailable, LimitError
from secretfs.interface import Guarantees
from secretfs_emulator.region import Region

__all__ = ["probe"]


def probe() -> None:
    """Return if one page can be locked.

    Raises:
        BackendUnavailable: with the reason, and the remedy as hint.
    """
    try:
        Region.create(libc.PAGE_SIZE, Guarantees(), shared=False).close()
    except LimitError as error:
        raise BackendUnavailable(str(error), hint=error.hint) from error
    except OSError as error:
        raise BackendUnavailable(f"memory cannot be locked here: {os.strerror(error.errno or 0)!r}") from error
