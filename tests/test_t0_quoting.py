"""secretfs.quoting: what comes from outside shows as one line and goes back into a shell as it was."""

from __future__ import annotations

import errno
import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secretfs.quoting import one_line, printable, quoted, reason_of


@given(st.lists(st.binary(min_size=1, max_size=20).map(lambda name: name.replace(b"\0", b"")), min_size=1, max_size=5))
def test_bash_reads_back_what_is_quoted(names: list[bytes]) -> None:
    """Any bytes but zero, printed on one line, are the same bytes again as bash's arguments."""
    words = [quoted(os.fsdecode(name)) for name in names]
    assert all(word.isprintable() for word in words)
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {' '.join(words)}"], capture_output=True, check=True)
    assert done.stdout == b"".join(name + b"\0" for name in names)


@pytest.mark.parametrize(
    ("path", "shown", "pasted"),
    [
        ("/run/keys", "/run/keys", "/run/keys"),
        ("/a b", "/a b", "'/a b'"),
        ("/\u00fcn", "/\u00fcn", "'/\u00fcn'"),
        ("/a\nb", "$'/a\\nb'", "$'/a\\nb'"),
        ("/\x1b[31m'", "$'/\\x1b[31m\\''", "$'/\\x1b[31m\\''"),
        ("/\udcff", "$'/\\xff'", "$'/\\xff'"),
    ],
    ids=ascii,
)
def test_ordinary_paths_stay_as_they_are(path: str, shown: str, pasted: str) -> None:
    """What can be shown is shown as it is; what cannot is escaped as the shell does it."""
    assert (printable(path), quoted(path)) == (shown, pasted)


@pytest.mark.parametrize("text", ["one\ntwo", "one\r\ntwo\n", "\none\n\ntwo"])
def test_lines_become_one(text: str) -> None:
    """What somebody else says in several lines is one sentence."""
    assert one_line(text) == "one; two"


def test_nothing_reaches_the_terminal() -> None:
    """Escapes, bells and characters that turn the direction of writing are shown, not obeyed."""
    assert one_line("\x1b]0;title\x07 \u202e") == r"\x1b]0;title\x07 \xe2\x80\xae"


def test_reason_of_shows_no_more_than_the_kind() -> None:
    """The system's words for an error of its own; of any other, whose text may hold a secret, only its kind."""

    class Group(Exception):
        """As in Python 3.11."""

        def __init__(self, *exceptions: Exception) -> None:
            super().__init__("secret")
            self.exceptions = exceptions

    inner = OSError(errno.EMFILE, "secret", "secret")
    group = Group(Group(inner), ValueError())
    because = RuntimeError("secret")
    because.__cause__ = group
    assert [reason_of(error) for error in (inner, ValueError("secret"), OSError("secret"), because)] == [
        "too many open files", "ValueError", "OSError", "too many open files",
    ]  # fmt: skip
