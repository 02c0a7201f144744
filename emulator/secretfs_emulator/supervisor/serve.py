"""The supervisor's own process: threads that answer calls, one that attends to the backing, until nobody is left.

It holds the secrets' files, so nobody of the same user may look at it; it has left the command's process group, so the
terminal's signals do not reach it. If it is killed, the programs go on: their secrets stay mapped, and memfd_secret(2)
and calls on reserved descriptors answer ENOSYS.
"""

from __future__ import annotations

import _thread
import contextlib
import errno
import os
import select
import sys
import threading
from collections.abc import Callable, Sequence

from secretfs_emulator.supervisor import target
from secretfs_emulator.supervisor.call import Call, Session
from secretfs_emulator.supervisor.calls import Treatment
from secretfs_emulator.supervisor.notify import CONTINUE, Answer, Notice, fail

__all__ = ["RECEIVERS", "Service"]

RECEIVERS = "SECRETFS_RUN_RECEIVERS"
"""The variable that says how many threads receive calls."""
_RECEIVERS = 8
_STARTED_WITHIN = 10
_NOTICE_SIZE = 80

Observer = Callable[[Session, Call, str, Answer], None]


class Service:
    """Answers the calls of one filter."""

    def __init__(self, session: Session, table: dict[int, Treatment], names: dict[int, str], observe: Observer) -> None:
        self._session, self._table, self._names, self._observe = session, table, names, observe

    def start(self) -> None:
        """Begin to answer, in threads of its own.

        Raises:
            RuntimeError: one of them cannot be had.
        """
        count = os.environ.get(RECEIVERS, "")
        receivers = int(count) if count.isdigit() and 0 < int(count) <= 256 else _RECEIVERS
        _start([self._receive] * receivers + [self._attend] * (self._session.backing is not None))

    def over(self, timeout: float | None) -> bool:
        """Wait until nobody is left under the filter, at most so many seconds."""
        poll = select.poll()
        poll.register(self._session.listener.fd, 0)
        return bool(poll.poll(None if timeout is None else timeout * 1000))

    def _receive(self) -> None:
        buffer = bytearray(_NOTICE_SIZE)
        listener = self._session.listener
        with contextlib.suppress(EOFError):
            try:
                while True:
                    notice = listener.receive(buffer)
                    if notice is not None:
                        listener.answer(notice.id, self._answer(notice))
            except OSError:
                os._exit(1)  # callers that nobody answers would wait for ever; so they get ENOSYS

    def _answer(self, notice: Notice) -> Answer:
        session = self._session
        name = self._names.get(notice.number, "")
        handler = self._table[notice.number].handler if name else None
        if handler is None:
            return CONTINUE
        call = Call(notice, session)
        with session.lock:
            try:
                answer = handler(call)
            except OSError as error:  # else the caller has gone while it was looked at, or hides from us
                answer = fail(errno.ENOMEM) if target.short(error) else CONTINUE
            except MemoryError:
                answer = fail(errno.ENOMEM)
            except Exception as error:  # noqa: BLE001 - a caller must not wait for ever for an answer
                session.counts[f"{type(error).__name__} in {name}"] += 1
                answer = CONTINUE
            self._observe(session, call, name, answer)
        return answer

    def _attend(self) -> None:
        backing = self._session.backing
        assert backing is not None
        while True:
            try:
                backing.attend()
            except (OSError, MemoryError) as error:
                if getattr(error, "errno", None) == errno.EBADF:  # it has nothing to attend to
                    return
                self._session.counts[f"{type(error).__name__} in the backing"] += 1


def _start(threads: Sequence[Callable[[], object]]) -> None:
    """Start them all, and return when they run. Not by threading.Thread, which waits for ever for one that finds no
    memory to begin with.
    """
    running = threading.Semaphore(0)
    failed: list[object] = []

    def begin(run: Callable[[], object]) -> None:
        running.release()
        run()

    def hook(told: object) -> None:
        failed.append(told)
        running.release()

    sys.unraisablehook = hook
    for run in threads:
        _thread.start_new_thread(begin, (run,))
    for _ in threads:
        if not running.acquire(timeout=_STARTED_WITHIN) or failed:
            raise RuntimeError("can't start new thread")
    sys.unraisablehook = sys.__unraisablehook__
