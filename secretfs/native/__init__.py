"""The native parts: whether they are there, why not, and the shim's loading.

The shim (shim.c) stands between libfuse and pyfuse3. It leans on how those two call each other, so it is used only with
versions it was tried with (`LIBFUSE`, `PYFUSE3`); with any other the mount says that a guarantee is gone. Where it was
not built, `fallback.py` does its work in Python, for the same versions.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from secretfs.errors import SecretFSError

__all__ = ["SHIM", "Shim", "ShimUnavailable", "shim_state", "untried_libfuse", "untried_pyfuse3"]

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
        self.library = self._library = ctypes.CDLL(SHIM)
        self._page_cache_read = ctypes.c_int.in_dll(self._library, "secretfs_shim_page_cache_read")
        self._open_flags = ctypes.c_uint32.in_dll(self._library, "secretfs_shim_open_flags")
        self._keeps_privileges = ctypes.c_int.in_dll(self._library, "secretfs_shim_keeps_privileges")
        self._xattr_flags = ctypes.c_uint32.in_dll(self._library, "secretfs_shim_xattr_flags")
        self._library.secretfs_shim_requests.restype = ctypes.c_ulong
        self.spun = ctypes.c_int.in_dll(self._library, "secretfs_shim_spun")
        """Not 0: it has just polled in vain; whoever has seen that sets it to 0."""
        self.answers = ctypes.c_int.in_dll(self._library, "secretfs_shim_answers")
        """Not 0: it answers requests by itself (fast.c). For a wait that lets Python do what it has left."""
        self.forget_registers = self._library.secretfs_shim_forget_registers
        """Call it when a secret has been copied: no copy of its last bytes is left in the vector registers."""
        self.forget_registers.restype = None
        self.lost_handle = ctypes.c_uint64.in_dll(self._library, "secretfs_shim_lost_handle")
        """What was opened for a reply that did not reach the kernel, or 0."""
        window = ctypes.c_void_p(window_address), ctypes.c_size_t(window_size)
        if self._library.secretfs_shim_prepare(*window, ctypes.c_long(spin * 1000)):
            raise ShimUnavailable("not usable: libfuse lacks a function that it replaces")
        ctypes.CDLL(SHIM, mode=ctypes.RTLD_GLOBAL)  # only now, when it can be called

    def fills_page_cache(self) -> bool:
        """Whether the request in hand is a read that fills the kernel's page cache."""
        return bool(self._page_cache_read.value)

    def leaves_atime(self) -> bool:
        """Whether the request in hand reads through a descriptor with O_NOATIME, as it is now."""
        return bool(self._open_flags.value & os.O_NOATIME)

    def keeps_privileges(self) -> bool:
        """Whether the request in hand is a direct write by somebody with CAP_FSETID: set-user-ID bits stay."""
        return bool(self._keeps_privileges.value)

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
    problem = untried_pyfuse3()
    if problem:
        return problem
    ours, pyfuse3s = _libfuse_names(SHIM), _libfuse_names(_compiled_pyfuse3())
    if ours != pyfuse3s:
        return f"built for {', '.join(ours)}, but pyfuse3 for {', '.join(pyfuse3s) or 'none'}"
    try:
        library = ctypes.CDLL(SHIM)
    except OSError as error:
        return f"not loadable: {error}"
    return untried_libfuse(library) or True


def untried_pyfuse3() -> str:
    """Why pyfuse3 is not one that this was tried with, or ""."""
    try:
        found = version("pyfuse3")
    except PackageNotFoundError:
        return "pyfuse3 is not installed"
    if found.startswith(PYFUSE3):
        return ""
    return f"not tried with pyfuse3 {found}, only with {', '.join(v + 'x' for v in PYFUSE3)}"


def untried_libfuse(library: ctypes.CDLL) -> str:
    """Why the libfuse that `library` is linked with is not one that this was tried with, or ""."""
    found: int = library.fuse_version()
    return "" if found in LIBFUSE else f"not tried with libfuse {found // 100}.{found % 100}"


def _compiled_pyfuse3() -> str:
    """The file of pyfuse3's compiled module. It is not imported: the shim has to be there first."""
    spec = importlib.util.find_spec("pyfuse3")
    return (spec and spec.origin) or ""


def _libfuse_names(path: str) -> list[str]:
    """Which libfuse a library asks the dynamic linker for; two in one process would share no session."""
    try:
        return sorted({name.decode() for name in re.findall(rb"libfuse3\.so\.\d+", Path(path).read_bytes())})
    except OSError:
        return []
