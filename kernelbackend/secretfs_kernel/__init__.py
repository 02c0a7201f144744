"""The kernel's secret memory, memfd_secret(2), as a secretfs backend (entry point "kernel")."""

from secretfs_kernel.backend import Backend
from secretfs_kernel.region import Region

__all__ = ["Backend", "Region"]
