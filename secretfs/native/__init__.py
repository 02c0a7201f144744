"""The native parts: whether they are there, why not, and the shim's loading.

The shim (shim.c) stands between libfuse and pyfuse3. It leans on how those two call each other, so it is used only with
versions it was tried with (`LIBFUSE`, `PYFUSE3`); with any other the mount says that a guarantee is gone.
"""

from __future__ import annotations

import ctypes
import os
from importlib.metadata import PackageNotFoundError, version

from secretfs.errors import SecretFSError

__all__ = ["SHIM", "Shim", "ShimUnavailable", "preload_state", "shim_state"]

SHIM = os.path.join(os.path.dirname(__file__), "libsecretfs-shim.so")
LIBFUSE = range(314, 319)
"""fuse_version() of the libfuse releases that the shim was tried with: 3.14.0, 3.16.2, 3.17.4, 3.18.2."""
PYFUSE3 = ("3.4.", "3.5.")
BUILD = (
    "not built: apt-get install gcc libc6-dev pkg-config libfuse3-dev,"
    " then pip install --force-reinstall 'memfd-secretfs[mount]'"
)


class ShimUnavailable(SecretFSError):
    """The shim cannot be used; the message says why."""


class Shim:
    """The loaded shim. Make it before pyfuse3 is imported."""

    def __init__(self, window_address: int, window_size: int, spin: int) -> None:
        """Load it, so that pyfuse3 will find its functions before libfuse's.

        Args:
            window_address: where the window lies.
            window_size: its bytes.
            spin: microseconds to poll after a request that it has answered.

        Raises:
            ShimUnavailable: it was not built, or does not fit what is installed.
        """
        state = shim_state()
        if state is not True:
            raise ShimUnavailable(str(state))
        self.library = self._library = ctypes.CDLL(SHIM, mode=ctypes.RTLD_GLOBAL)
        self._page_cache_read = ctypes.c_int.in_dll(self._library, "secretfs_shim_page_cache_read")
        self._xattr_flags = ctypes.c_uint32.in_dll(self._library, "secretfs_shim_xattr_flags")
        self._library.secretfs_shim_requests.restype = ctypes.c_ulong
        self.spun = ctypes.c_int.in_dll(self._library, "secretfs_shim_spun")
        """Not 0: it has just polled in vain; whoever has seen that sets it to 0."""
        self.forget_registers = self._library.secretfs_shim_forget_registers
        """Call it when a secret has been copied: no copy of its last bytes is left in the vector registers."""
        self.forget_registers.restype = None
        window = ctypes.c_void_p(window_address), ctypes.c_size_t(window_size)
        if self._library.secretfs_shim_prepare(*window, ctypes.c_long(spin * 1000)):
            raise ShimUnavailable("libfuse lacks a function that it replaces")

    def fills_page_cache(self) -> bool:
        """Whether the request in hand is a read that fills the kernel's page cache."""
        return bool(self._page_cache_read.value)

    def xattr_flags(self) -> int:
        """The flags of the setxattr(2) in hand, which pyfuse3 does not get to see."""
        return self._xattr_flags.value

    def verify(self) -> None:
        """After the first request: return if requests pass through it and the receive buffer is locked.

        Raises:
            ShimUnavailable: they do not, or it is not.
        """
        if not self._library.secretfs_shim_requests():
            raise ShimUnavailable("pyfuse3 is not bound to it (linked statically, or loaded before it)")
        error = self._library.secretfs_shim_error()
        if error:
            raise ShimUnavailable(f"the receive buffer cannot be locked: {os.strerror(error).lower()}")


def shim_state() -> bool | str:
    """True if the shim can be loaded here, or why not."""
    if not os.path.exists(SHIM):
        return BUILD
    try:
        pyfuse3 = version("pyfuse3")
    except PackageNotFoundError:
        return "pyfuse3 is not installed"
    if not pyfuse3.startswith(PYFUSE3):
        return f"not tried with pyfuse3 {pyfuse3}, only with {', '.join(v + 'x' for v in PYFUSE3)}"
    try:
        libfuse = ctypes.CDLL(SHIM).fuse_version()  # of the libfuse that the shim is linked with
    except OSError as error:
        return f"cannot be loaded: {error}"
    if libfuse not in LIBFUSE:
        return f"not tried with libfuse {libfuse // 100}.{libfuse % 100}"
    return True


def preload_state() -> bool | str:
    """True if the preload library is there, or why not."""
    return "this version has none"
