"""Every error secretfs raises, with its errno, its exit code and its remedy.

The tree::

    SecretFSError
     +- UsageError                  the caller's words are off
     +- BackendError
     |   +- BackendUnavailable      a backend can't work here, and why
     |   +- PluginError             an installed backend is broken or ambiguous
     +- LimitError                  a limit was reached; nothing is left half allocated
     |   +- LockLimitExceeded       RLIMIT_MEMLOCK
     |   +- CgroupLimitExceeded     memory.max of this or an enclosing cgroup
     +- ClosedError (ValueError)    used after close, or in a forked child
     +- BoundsError (IndexError)    offset or length outside an area
     +- TracedError                 a debugger is attached
     +- MountError
     |   +- MountpointError         the directory can't be mounted on
     |   +- FuseUnavailable         /dev/fuse, fusermount3, allow_other, pyfuse3
     |   +- MountBusy               files are still open
     |   +- NotMounted              nothing of ours is mounted there
     +- FileError                   an operation inside the file system failed: errno only

A message is one sentence: lower case, no full stop, it names the value that was wrong, never a byte of a secret.
`hint`, where there is one, is the remedy. Exit codes are the command line's contract (docs/cli.md).
"""

from __future__ import annotations

import errno
import os

__all__ = [
    "BackendError",
    "BackendUnavailable",
    "BoundsError",
    "CgroupLimitExceeded",
    "ClosedError",
    "FileError",
    "FuseUnavailable",
    "LimitError",
    "LockLimitExceeded",
    "MountBusy",
    "MountError",
    "MountpointError",
    "NotMounted",
    "PluginError",
    "SecretFSError",
    "TracedError",
    "UsageError",
]


MORE_LOCKED = (
    "raise the limit: `ulimit -l KIB` as root, LimitMEMLOCK= in a systemd unit, "
    "memlock in /etc/security/limits.conf, or docker run --ulimit memlock=BYTES"
)
MORE_MAPPINGS = "make fewer and larger areas, or as root `sysctl vm.max_map_count=NUMBER`"
MORE_IN_CGROUP = "raise its memory.max (systemd: MemoryMax=, docker run --memory)"


class SecretFSError(Exception):
    """Base of all errors of secretfs.

    Attributes:
        errno: what a system call would report (an `errno` number).
        exit_code: what the command line ends with.
        hint: the remedy in one sentence, or "".
    """

    errno: int = errno.EIO
    exit_code: int = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        if hint and hasattr(self, "add_note"):  # Python 3.11: shown with an error that nobody catches
            self.add_note(f"hint: {hint}")


class UsageError(SecretFSError):
    """The caller asked for something that has no meaning."""

    errno = errno.EINVAL
    exit_code = 2


class BackendError(SecretFSError):
    """Something is wrong with a backend."""

    errno = errno.ENODEV
    exit_code = 3


class BackendUnavailable(BackendError):
    """A backend can't work here; the message says why and the hint what to do."""


class PluginError(BackendError):
    """An installed backend can't be loaded, has an unknown API version, or shares its name with another one."""


class LimitError(SecretFSError):
    """A limit was reached. Whatever was partly allocated has been given back."""

    errno = errno.ENOMEM
    exit_code = 8


class LockLimitExceeded(LimitError):
    """RLIMIT_MEMLOCK does not allow that many bytes of locked memory (setrlimit(2))."""

    def __init__(self, wanted: int, *, used: int, limit: int) -> None:
        super().__init__(
            f"cannot lock {wanted} bytes of memory: {used} of the {limit} bytes that RLIMIT_MEMLOCK allows are in use",
            hint=MORE_LOCKED,
        )


class CgroupLimitExceeded(LimitError):
    """A memory cgroup has no room; going on would wake the OOM killer instead of raising."""

    def __init__(self, wanted: int, *, headroom: int, path: str, spare: int = 0) -> None:
        kept = f", and {spare} of them must stay free" if spare else ""
        super().__init__(
            f"cannot take {wanted} bytes of memory: the memory cgroup {path!r} has {max(0, headroom)} bytes left{kept}",
            hint=f"{MORE_IN_CGROUP}, or free memory in it",
        )


class ClosedError(SecretFSError, ValueError):
    """The memory was closed, or belongs to the process this one was forked from."""

    errno = errno.EBADF


class BoundsError(SecretFSError, IndexError):
    """An offset or a length lies outside the area."""

    errno = errno.EINVAL


class TracedError(SecretFSError):
    """A debugger is attached, so nothing would be secret from it."""

    errno = errno.EPERM


class MountError(SecretFSError):
    """Mounting, unmounting or asking a mount failed."""


class MountpointError(MountError):
    """The directory cannot be used as a mountpoint."""

    errno = errno.ENOTDIR
    exit_code = 4


class FuseUnavailable(MountError):
    """FUSE cannot be used: /dev/fuse, fusermount3, allow_other or pyfuse3 is missing or forbidden."""

    errno = errno.ENODEV
    exit_code = 5


class MountBusy(MountError):
    """Files or directories of the mount are still in use."""

    errno = errno.EBUSY
    exit_code = 6


class NotMounted(MountError):
    """No secretfs of the caller is mounted there."""

    errno = errno.EINVAL
    exit_code = 7


class FileError(SecretFSError):
    """A file system operation failed as the system call would: the errno is all there is to say.

    It carries no name and no bytes, so that it can be logged.
    """

    def __init__(self, code: int) -> None:
        super().__init__(os.strerror(code))
        self.errno = code
