"""The supervisor's own process: threads that answer calls, one that attends to the backing, until nobody is left.

It holds the secrets' files, so nobody of the same user may look at it; it has left the command's process group, so the
terminal's signals do not reach it. If it is killed, the programs go on: their secrets stay mapped, and memfd_secret(2)
and calls on reserved descriptors answer ENOSYS.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable

from secretfs_emulator.supervisor.call import Call, Session
from secretfs_emulator.supervisor.calls import Treatment
from secretfs_emulator.supervisor.notify import CONTINUE, Answer, Notice

__all__ = ["RECEIVERS", "Service"]

RECEIVERS = "SECRETFS_RUN_RECEIVERS"
"""The variable that says how many threads receive calls."""
_RECEIVERS = 8
_NOTICE_SIZE = 80

Observer = Callable[[Session, Call, str, Answer], None]


class Service:
    """Answers the calls of one filter."""

    def __init__(self, session: Session, table: dict[int, Treatment], names: dict[int, str], observe: Observer) -> None:
        self._session, self._table, self._names, self._observe = session, table, names, observe

    def start(self) -> None:
        """Begin to answer, in threads of its own."""
        count = os.environ.get(RECEIVERS, "")
        for _ in range(int(count) if count.isdigit() and 0 < int(count) <= 256 else _RECEIVERS):
            threading.Thread(target=self._receive, daemon=True).start()
        if self._session.backing is not None:
            threading.Thread(target=self._attend, daemon=True).start()

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
            except OSError:
                answer = CONTINUE  # the caller has gone while it was looked at, or hides from us
            except Exception as error:  # noqa: BLE001 - a caller must not wait for ever for an answer
                session.counts[f"{type(error).__name__} in {name}"] += 1
                answer = CONTINUE
            self._observe(session, call, name, answer)
        return answer

    def _attend(self) -> None:
        backing = self._session.backing
        assert backing is not None
        with contextlib.suppress(OSError):
            while True:
                backing.attend()
