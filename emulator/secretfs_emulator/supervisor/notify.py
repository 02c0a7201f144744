"""seccomp(2) user notification: installing a filter, receiving the calls it names, answering them.

Sources: seccomp_unotify(2), linux/seccomp.h. Kernels: 5.9 for descriptors that are put into the caller, 5.14 for doing
that and answering in one step, 5.19 for calls that only a deadly signal ends once they were received, 6.6 for waking
the other side on the same CPU. Where the later ones are missing the older way is taken.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from secretfs_emulator.supervisor import system

__all__ = ["CONTINUE", "Answer", "Listener", "Notice", "fail", "install", "value"]

_SET_MODE_FILTER = 1
_SPEC_ALLOW, _NEW_LISTENER, _WAIT_KILLABLE = 1 << 2, 1 << 3, 1 << 5
_NOTICE = struct.Struct("=QIIiIQ6Q")  # struct seccomp_notif
_ANSWER = struct.Struct("=QqiI")  # struct seccomp_notif_resp
_ADDFD = struct.Struct("=QIIII")  # struct seccomp_notif_addfd
_VALID = struct.Struct("=Q")
_RECEIVE, _SEND, _ID_VALID, _ADD_FD, _SET_FLAGS = 0xC0502100, 0xC0182101, 0x40082102, 0x40182103, 0x40082104
_FLAG_CONTINUE, _FLAG_SETFD, _FLAG_SEND = 1, 1, 2
_SYNC_WAKE_UP = 1
_ZEROS = bytes(_NOTICE.size)


class Notice(NamedTuple):
    """A call that waits for its answer. `pid` is the caller's thread, in our own pid namespace."""

    id: int
    pid: int
    number: int
    arguments: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """What the caller gets: a value, or an errno, or what the kernel itself makes of the call."""

    value: int = 0
    error: int = 0
    flags: int = 0
    sent: bool = False


CONTINUE = Answer(flags=_FLAG_CONTINUE)
"""The kernel carries the call out. What was looked at may have changed by then: arguments in registers cannot."""


@lru_cache(maxsize=64)
def fail(code: int) -> Answer:
    """The call fails with this errno."""
    return Answer(error=-code)


def value(result: int) -> Answer:
    """The call returns this."""
    return Answer(value=result)


def install(program: bytes, *, listener: bool) -> int:
    """Put a filter over this process and what it starts; returns the descriptor on which its calls are received.

    Raises:
        OSError: EBUSY if another listener serves this process, EACCES without CAP_SYS_ADMIN and no_new_privs.
    """
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    if not listener:
        return system.raw("seccomp", _SET_MODE_FILTER, _SPEC_ALLOW, header)
    try:
        return system.raw("seccomp", _SET_MODE_FILTER, _SPEC_ALLOW | _NEW_LISTENER | _WAIT_KILLABLE, header)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return system.raw("seccomp", _SET_MODE_FILTER, _SPEC_ALLOW | _NEW_LISTENER, header)


class Listener:
    """The descriptor of a filter's notifications. Any number of threads may receive."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._one_step = True
        with contextlib.suppress(OSError):  # kernels before 6.6
            fcntl.ioctl(fd, _SET_FLAGS, _SYNC_WAKE_UP)

    def receive(self, buffer: bytearray) -> Notice | None:
        """Wait for a call. None if there was none: a signal, or a caller that was killed meanwhile.

        Raises:
            EOFError: nobody is left under the filter (kernels from 6.11 on tell; for older ones see `serve`).
        """
        buffer[:] = _ZEROS  # the kernel insists
        try:
            fcntl.ioctl(self.fd, _RECEIVE, buffer)
        except OSError as error:
            if error.errno in (errno.EINTR, errno.EAGAIN):
                return None
            if error.errno == errno.ENOENT:
                self._raise_if_over()
                return None
            raise
        identity, pid, _, number, _, _, *arguments = _NOTICE.unpack(buffer)
        return Notice(identity, pid, number, tuple(arguments))

    def _raise_if_over(self) -> None:
        import select

        poll = select.poll()
        poll.register(self.fd, 0)
        if poll.poll(0):
            raise EOFError

    def answer(self, identity: int, answer: Answer) -> None:
        """Send it. A caller that was killed meanwhile needs none."""
        if not answer.sent:
            data = _ANSWER.pack(identity, answer.value, answer.error, answer.flags)
            with contextlib.suppress(OSError):
                _control(self.fd, _SEND, data)

    def valid(self, identity: int) -> bool:
        """Whether the caller still waits: what was seen under its number then was it."""
        try:
            _control(self.fd, _ID_VALID, _VALID.pack(identity))
        except OSError:
            return False
        return True

    def put(self, identity: int, fd: int, number: int, *, cloexec: bool, answer: int | None = None) -> Answer:
        """Put our `fd` into the caller as `number`, and answer with that, or with `answer`."""
        flags, mode = _FLAG_SETFD, os.O_CLOEXEC if cloexec else 0
        if self._one_step and answer is None:
            try:
                _control(self.fd, _ADD_FD, _ADDFD.pack(identity, flags | _FLAG_SEND, fd, number, mode))
            except OSError as error:
                if error.errno != errno.EINVAL:
                    return self._refused(error)
                self._one_step = False
            else:
                return Answer(number, sent=True)
        try:
            _control(self.fd, _ADD_FD, _ADDFD.pack(identity, flags, fd, number, mode))
        except OSError as error:
            return self._refused(error)
        return value(number if answer is None else answer)

    @staticmethod
    def _refused(error: OSError) -> Answer:
        """EBADF: the number is beyond the caller's RLIMIT_NOFILE."""
        return fail(errno.EMFILE if error.errno == errno.EBADF else error.errno or errno.EMFILE)


def _control(fd: int, request: int, data: bytes) -> None:
    """ioctl(2), once more if a signal has interrupted it: a caller that gets no answer would wait for ever."""
    while True:
        try:
            fcntl.ioctl(fd, request, data)
        except InterruptedError:
            continue
        return
