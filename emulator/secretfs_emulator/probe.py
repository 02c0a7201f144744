"""probe(): whether memory can be locked here."""

from __future__ import annotations

import contextlib
import os

from secretfs import libc
from secretfs.errors import BackendUnavailable
from secretfs.interface import Guarantees
from secretfs_emulator.region import Region

__all__ = ["probe"]


def probe() -> None:
    """Return if one page can be locked.

    Raises:
        BackendUnavailable: with the reason, and the remedy as hint.
        LimitError: not even one page may be had.
    """
    try:
        region = Region.create(libc.PAGE_SIZE, Guarantees(), shared=False)
    except OSError as error:
        raise BackendUnavailable(
            f"memory cannot be locked here: {os.strerror(error.errno or 0)!r}",
            hint="allow mlock in the container's seccomp profile",
        ) from error
    with contextlib.suppress(OSError):  # which says nothing of locked memory; its end tries again
        region.close()
