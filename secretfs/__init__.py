"""Secret memory for Linux applications: as Python objects here, as files through `secretfs mount`.

Promised to stay: this module, `secretfs.interface`, `secretfs.errors`, `secretfs.libc` and `secretfs.testing`.
"""

from __future__ import annotations

from secretfs.area import SecretArea
from secretfs.errors import (
    BackendError,
    BackendUnavailable,
    BoundsError,
    CgroupLimitExceeded,
    ClosedError,
    LimitError,
    LockLimitExceeded,
    PluginError,
    SecretFSError,
)
from secretfs.inforce import Protection, protection, release_all, wipe_on_signals
from secretfs.interface import Guarantees
from secretfs.mapping import mmap
from secretfs.registry import ReducedGuaranteesWarning
from secretfs.secret import Secret

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "BackendUnavailable",
    "BoundsError",
    "CgroupLimitExceeded",
    "ClosedError",
    "Guarantees",
    "LimitError",
    "LockLimitExceeded",
    "PluginError",
    "Protection",
    "ReducedGuaranteesWarning",
    "Secret",
    "SecretArea",
    "SecretFSError",
    "__version__",
    "mmap",
    "protection",
    "release_all",
    "wipe_on_signals",
]
