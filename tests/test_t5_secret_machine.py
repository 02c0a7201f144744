"""secretfs.Secret against a model of bytearrays: the emulator, the kernel and secrets at rest at once, with equal
answers.
"""

from __future__ import annotations

import contextlib
import gc
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from mounts import have_secretmem

from secretfs import ClosedError, Secret, release_all
from secretfs.rest import libsodium

LENGTHS = st.one_of(st.sampled_from([1, 16, 17, 64, 2048, 2049, 4080, 4096, 9000]), st.integers(1, 300))
PICK = st.integers(0, 1000)


@dataclass
class Known:
    """One secret: what the model knows of it, and each subject's."""

    data: bytearray
    each: list[Secret]
    closed: bool = False
    released: bool = False

    @property
    def usable(self) -> bool:
        """Whether its bytes can be had."""
        return not self.closed and not self.released


@dataclass
class Window:
    """One access window of each subject's secret, perhaps not yet open, perhaps only slices of it left."""

    of: Known
    write: bool
    windows: list[Any]
    views: list[memoryview] = field(default_factory=list)


class SecretMachine(RuleBasedStateMachine):
    """One rule for each thing that can be done to secrets."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: list[dict[str, Any]] = [{"backend": "emulator", "at_rest": False}]
        if have_secretmem():
            self.kinds.append({"backend": "kernel", "at_rest": False})
        if libsodium() is not None:
            self.kinds.append({"backend": "emulator", "at_rest": True})
        self.secrets: list[Known] = []
        self.waiting: list[Window] = []
        self.open: list[Window] = []
        self.stale: list[Window] = []

    def secret(self, number: int) -> Known:
        """One of them."""
        return self.secrets[number % len(self.secrets)]

    def ask(self, operations: Any) -> Any:
        """The one answer of all subjects: a value, or the type and the text of what was raised."""
        answers = []
        for operation in operations:
            try:
                answers.append(operation())
            except Exception as error:
                answers.append((type(error), str(error)))
        assert answers == answers[:1] * len(answers)
        return answers[0]

    def make(self, data: bytes, make: Any) -> None:
        """A secret of each kind, which the model expects to hold `data`."""
        if len(self.secrets) < 12:
            self.secrets.append(Known(bytearray(data), [make(kind) for kind in self.kinds]))

    # Coming to be

    @rule(length=LENGTHS, alone=st.booleans())
    def zeros(self, length: int, alone: bool) -> None:
        """A new secret is zero, whatever was in its place before."""
        self.make(bytes(length), lambda kind: Secret(length, alone=alone, **kind))

    @rule(data=st.binary(min_size=1, max_size=3000))
    def from_bytes(self, data: bytes) -> None:
        """The source is zero afterwards."""
        sources = [bytearray(data) for _ in self.kinds]
        left = iter(sources)
        self.make(data, lambda kind: Secret.from_bytes(next(left), **kind))
        assert all(not any(source) or len(self.secrets) == 12 for source in sources)

    @rule(length=LENGTHS)
    def random(self, length: int) -> None:
        """Random bytes; the model learns them from the first subject, the others from the model."""
        first = Secret.random(length, **self.kinds[0])
        with first.reveal() as view:
            drawn = bytearray(view)
        first.close()
        assert length < 16 or any(drawn)
        self.make(drawn, lambda kind: Secret.from_bytes(bytearray(drawn), **kind))

    @precondition(lambda self: self.secrets)
    @rule(numbers=st.lists(PICK, min_size=1, max_size=4))
    def concat(self, numbers: list[int]) -> None:
        """All parts in a row; with an unusable one among them, none."""
        parts = [self.secret(number) for number in numbers]
        columns = [[part.each[at] for part in parts] for at in range(len(self.kinds))]
        if all(part.usable for part in parts):
            made = iter([Secret.concat(*column, **kind) for column, kind in zip(columns, self.kinds, strict=True)])
            self.make(b"".join(part.data for part in parts), lambda _: next(made))
        else:
            kind, _ = self.ask(lambda column=column: Secret.concat(*column, backend="emulator") for column in columns)
            assert kind is ClosedError

    @precondition(lambda self: self.secrets)
    @rule(number=PICK, start=PICK, stop=PICK)
    def slice(self, number: int, start: int, stop: int) -> None:
        """New secrets, of at least one byte."""
        known = self.secret(number)
        data = known.data[start:stop]
        if known.usable and data:
            made = iter([secret[start:stop] for secret in known.each])
            self.make(data, lambda _: next(made))
        else:
            answer = self.ask(lambda secret=secret: secret[start:stop] for secret in known.each)
            assert isinstance(answer, tuple)

    @precondition(lambda self: self.secrets)
    @rule(number=PICK, at=PICK)
    def split(self, number: int, at: int) -> None:
        """Two pieces of each, which the rest of the run uses."""
        known = self.secret(number)
        at %= len(known.data) + 1
        if known.usable and 0 < at < len(known.data):
            first, second = (iter(column) for column in zip(*(s.split(at) for s in known.each), strict=True))
            self.make(known.data[:at], lambda _: next(first))
            self.make(known.data[at:], lambda _: next(second))
        else:
            answer = self.ask(lambda secret=secret: secret.split(at) for secret in known.each)
            assert isinstance(answer, tuple)

    # Using

    @precondition(lambda self: self.secrets)
    @rule(number=PICK, offset=PICK, data=st.binary(min_size=1, max_size=40))
    def write(self, number: int, offset: int, data: bytes) -> None:
        """What is written in a window is there; what does not fit is refused by the view."""
        known = self.secret(number)
        offset %= len(known.data)

        def put(secret: Secret) -> None:
            with secret.reveal(write=True) as view:
                view[offset : offset + len(data)] = data

        answer = self.ask(lambda secret=secret: put(secret) for secret in known.each)
        if answer is None:
            known.data[offset : offset + len(data)] = data
        else:
            assert answer[0] is (ValueError if known.usable else ClosedError)
            assert not known.usable or offset + len(data) > len(known.data)

    @precondition(lambda self: self.secrets)
    @rule(number=PICK, other=PICK)
    def compare(self, number: int, other: int) -> None:
        """True only for equal bytes."""
        one, two = self.secret(number), self.secret(other)
        answer = self.ask(lambda a=a, b=b: a == b for a, b in zip(one.each, two.each, strict=True))
        if one.usable and two.usable:
            assert answer is (one.data == two.data)
        else:
            assert answer[0] is ClosedError

    # Windows

    @precondition(lambda self: self.secrets and len(self.waiting) + len(self.open) + len(self.stale) < 12)
    @rule(number=PICK, write=st.booleans())
    def reveal(self, number: int, write: bool) -> None:
        """Ask for windows, which are opened later, in any order."""
        known = self.secret(number)
        self.waiting.append(Window(known, write, [secret.reveal(write=write) for secret in known.each]))

    @precondition(lambda self: self.waiting)
    @rule(number=PICK)
    def enter(self, number: int) -> None:
        """A window shows its own secret, or nothing if that was closed since: never the one that has its place now."""
        window = self.waiting.pop(number % len(self.waiting))
        if window.of.usable:
            window.views = [one.__enter__() for one in window.windows]
            self.open.append(window)
        else:
            kind, _ = self.ask(one.__enter__ for one in window.windows)
            assert kind is ClosedError

    @precondition(lambda self: self.open)
    @rule(number=PICK, at=PICK, value=st.integers(0, 255))
    def write_in_window(self, number: int, at: int, value: int) -> None:
        """One byte, through a window that was made for that."""
        window = self.open[number % len(self.open)]
        at %= len(window.of.data)

        def put(view: memoryview) -> None:
            view[at] = value

        answer = self.ask(lambda view=view: put(view) for view in window.views)
        assert (answer is None) == window.write
        if window.write:
            window.of.data[at] = value

    @precondition(lambda self: self.open)
    @rule(number=PICK)
    def leave(self, number: int) -> None:
        """Close a window, not always the last that was opened."""
        window = self.open.pop(number % len(self.open))
        window.views.clear()
        for one in window.windows:
            one.__exit__(None, None, None)

    @precondition(lambda self: self.open)
    @rule(number=PICK)
    def leave_with_a_slice(self, number: int) -> None:
        """Leaving raises BufferError while a slice is in use, and the slice can be read until it is gone."""
        window = self.open.pop(number % len(self.open))
        window.views = [view[:] for view in window.views]
        kind, _ = self.ask(lambda one=one: one.__exit__(None, None, None) for one in window.windows)
        assert kind is BufferError
        self.stale.append(window)

    @precondition(lambda self: self.stale)
    @rule(number=PICK)
    def drop_slice(self, number: int) -> None:
        """The last view goes, and with it the window."""
        self.stale.pop(number % len(self.stale))

    # The end

    @precondition(lambda self: self.secrets)
    @rule(number=PICK)
    def close(self, number: int) -> None:
        """Bytes are gone at once, also where they are revealed; the second time nothing happens."""
        known = self.secret(number)
        answer = self.ask(secret.close for secret in known.each)
        revealed = not known.released and any(w.of is known for w in [*self.open, *self.stale])
        assert (answer is not None and answer[0] is BufferError) == (revealed and not known.closed)
        known.closed = True
        known.data[:] = bytes(len(known.data)) if not known.released else known.data
        assert all(secret.closed for secret in known.each)

    @precondition(lambda self: self.secrets)
    @rule(number=PICK)
    def forget(self, number: int) -> None:
        """Drop a secret without closing it."""
        self.secrets.pop(number % len(self.secrets))

    @precondition(lambda self: len(self.secrets) > 6)
    @rule()
    def release(self) -> None:
        """Everything is gone at once; what is revealed shows zeros."""
        shown = [window.of for window in [*self.open, *self.stale]]
        with pytest.raises(BufferError) if any(not known.released for known in shown) else contextlib.nullcontext():
            release_all()
        for known in [*self.secrets, *shown, *(window.of for window in self.waiting)]:
            known.data[:] = known.data if known.released else bytes(len(known.data))
            known.released = True

    @invariant()
    def agrees(self) -> None:
        """Every window and every secret that is not closed has the model's bytes."""
        for window in [*self.open, *self.stale]:
            for view in window.views:
                assert view == window.of.data
        for known in self.secrets:
            assert [len(secret) for secret in known.each] == [len(known.data)] * len(known.each)
            for secret in known.each if known.usable else ():
                with secret.reveal() as view:
                    assert view == known.data

    def teardown(self) -> None:
        """Nothing is left open."""
        for window in self.open:
            window.views.clear()
            for one in window.windows:
                one.__exit__(None, None, None)
        self.open.clear()
        self.stale.clear()
        self.secrets.clear()
        gc.collect()


def test_machine() -> None:
    """The model and all kinds of secrets agree, whatever is done in whatever order."""
    run_state_machine_as_test(SecretMachine, settings=settings(max_examples=30, stateful_step_count=40))
