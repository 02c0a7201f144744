"""Locked, undumpable ordinary memory as a secretfs backend (entry point "emulator")."""

from secretfs_emulator.backend import Backend
from secretfs_emulator.region import Region

__all__ = ["Backend", "Region"]
