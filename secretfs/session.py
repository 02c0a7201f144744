"""The FUSE session of one mount: load the shim, then pyfuse3, serve requests, end on a signal.

The order matters: pyfuse3 is bound to the shim only if the shim is there first. So pyfuse3 and trio are imported inside
functions here, and nowhere else in the daemon.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from secretfs.errors import FuseUnavailable
from secretfs.native import Shim, ShimUnavailable
from secretfs.native.fallback import AnyShim, Fallback
from secretfs.window import Window

if TYPE_CHECKING:
    from secretfs.fast import FastFiles
    from secretfs.fuse import Operations

__all__ = ["ENDING", "Session"]

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_EXTRA = (
    f"{sys.executable} -m pip install pyfuse3 trio (needs gcc, python3-dev, pkg-config and libfuse3-dev), "
    "or in a clone of the repository: sudo make install"
)

log = logging.getLogger(__name__)


class Session:
    """One session. Make it before the file system, so that what is missing is found before anything is mounted."""

    def __init__(self, window: Window, spin: int) -> None:
        """Load the shim if it can be had, and pyfuse3.

        Args:
            window: where replies to reads are bounced.
            spin: microseconds to poll after a request before sleeping.

        Raises:
            FuseUnavailable: pyfuse3, trio or libfuse is missing.
        """
        self._spin = spin
        self.shim: bool | str = True
        """True, or why the shim is not in use."""
        self.no_residue = True
        """Whether requests and replies are wiped: by the shim, or by what stands in for it."""
        self._shim: AnyShim | None = None
        try:
            self._shim = Shim(window.address, window.size, spin)
        except ShimUnavailable as error:
            self.shim = str(error)
        try:
            import pyfuse3
            import trio
        except ImportError as error:
            raise FuseUnavailable(f"a mount needs pyfuse3 and trio: {error}", hint=_EXTRA) from error
        self._pyfuse3: Any = pyfuse3
        self._trio: Any = trio
        if self._shim is None:
            self._fall_back(window)

    def _fall_back(self, window: Window) -> None:
        """Let callbacks in Python do the shim's work, if they can."""
        try:
            self._shim = Fallback(self._pyfuse3.__file__, window.address, window.size)
            self.shim = f"{self.shim}; Python does its work, which takes longer"
        except ShimUnavailable as error:
            self.no_residue = False
            if str(error) != self.shim:
                self.shim = f"{self.shim}; nor can Python do its work: {error}"

    def verify_shim(self) -> None:
        """Once the first request has come: make sure that it really passed through the shim, or what stands in."""
        if self._shim is None:
            return
        try:
            self._shim.verify()
        except ShimUnavailable as error:
            self.shim = f"not in force: {error}"
            self.no_residue = False

    def loaded(self) -> AnyShim | None:
        """The shim, or what stands in for it."""
        return self._shim

    def fast_files(self, *, direct_io: bool) -> FastFiles | None:
        """The table of files that the shim answers for, and opens past the page cache where `direct_io` is given."""
        from secretfs.fast import FastFiles

        return FastFiles(self._shim.library, direct_io=direct_io) if isinstance(self._shim, Shim) else None

    def serve(self, fd: int, operations: Operations, detach: Callable[[], None]) -> None:
        """Answer the kernel on /dev/fuse (`fd`) until the mount ends; after a signal call `detach`, then end."""
        from secretfs import loop

        loop.keep_memory()
        self._pyfuse3.init(operations, f"/dev/fd/{fd}", set())
        if self._shim is not None:
            os.set_blocking(fd, False)
        polling = self._shim if isinstance(self._shim, Shim) else None
        if not loop.install(fd, self._spin, polling, operations.follow_up):
            log.warning("this pyfuse3 waits in a way of its own; requests will be slower")
        try:
            self._trio.run(self._run, operations, detach)
        finally:
            self._pyfuse3.close(unmount=False)  # open handles now get ENOTCONN

    async def _run(self, operations: Operations, detach: Callable[[], None]) -> None:
        from secretfs import pagecache

        async with self._trio.open_nursery() as nursery:
            nursery.start_soon(self._end_on_signal, detach)
            nursery.start_soon(pagecache.keep_empty, operations.page_cached, self._pyfuse3.invalidate_inode)
            # One worker: no handler ever waits, and each worker has a receive buffer of a megabyte.
            await self._pyfuse3.main(min_tasks=1, max_tasks=1)
            nursery.cancel_scope.cancel()

    async def _end_on_signal(self, detach: Callable[[], None]) -> None:
        with self._trio.open_signal_receiver(*ENDING) as signals:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
            try:
                number = await anext(aiter(signals))
            finally:
                signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        log.info("ending on %s", signal.Signals(number).name)
        await self._trio.to_thread.run_sync(detach)  # requests are still answered meanwhile
        self._pyfuse3.terminate()
