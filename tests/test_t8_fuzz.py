"""Whatever comes from outside: mount options, words of the command line, descriptors, attributes, the environment.

Nothing that comes in may end in anything but a result or one of our errors, with one line and no byte of what was
secret; and nothing may be left half done.
"""

from __future__ import annotations

import contextlib
import io
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mounts import Mounted, clean_environment

from secretfs import registry
from secretfs.area import SecretArea
from secretfs.cli import main
from secretfs.errors import SecretFSError, UsageError
from secretfs.mounthelper import FLAGS, IGNORED, SWITCHES, VALUES, options_of
from secretfs.quoting import one_line
from secretfs.sizes import parse_count, parse_microseconds, parse_mode, parse_size
from secretfs.testing.children import in_child
from secretfs.testing.memory import descriptors

pytestmark = [pytest.mark.slow]

QUICK = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NUMBERS = st.one_of(st.integers(-(2**70), 2**70).map(str), st.from_regex(r"[0-9]{1,6}[KMGTkmgx. ]?", fullmatch=True))
TEXT = st.text(max_size=30)
KNOWN = sorted({*VALUES, *FLAGS, *IGNORED, *SWITCHES, "x-systemd.automount", "user", "remount"})


def outcome(call: Callable[[], Any], expected: type[Exception]) -> Any:
    """What a call returns, or the error if it is an expected one."""
    try:
        return call()
    except expected as error:
        return error


@st.composite
def options(draw: st.DrawFn) -> str:
    """Mount options, known and unknown, with values that fit and that do not."""
    words = st.tuples(
        st.one_of(st.sampled_from(KNOWN), TEXT), st.sampled_from(["", "=", "=="]), st.one_of(NUMBERS, TEXT)
    )
    return ",".join("".join(word) for word in draw(st.lists(words, max_size=6)))


@QUICK
@given(options())
def test_mount_options(text: str) -> None:
    """Mount options give keyword arguments of MountOptions, or a UsageError of one line."""
    found = outcome(lambda: options_of(text), UsageError)
    if isinstance(found, UsageError):
        assert "\n" not in one_line(str(found))
        assert found.hint
    else:
        assert set(found) <= {*VALUES, *FLAGS, "flags"}
        assert all(isinstance(found[name], int) for name in {"size", "max_files", "mode", "spin"} & set(found))


@QUICK
@given(st.one_of(NUMBERS, TEXT), st.sampled_from([parse_size, parse_count, parse_microseconds, parse_mode]))
def test_numbers(text: str, parse) -> None:
    """A number is read within its bounds, or refused with a ValueError that names it."""
    value = outcome(lambda: parse(text), ValueError)
    assert str(value) if isinstance(value, ValueError) else 0 <= value < 2**63


@contextlib.contextmanager
def not_empty() -> Iterator[None]:
    """A working directory that cannot be mounted on."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "file").touch()
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


COMMANDS = ("mount", "umount", "status", "backends", "no-such")
WORDS = st.one_of(
    st.sampled_from(
        ["--json", "--backend", "--size", "--mode", "--max-files", "--spin", "--lazy", "--guard", "--help"]
    ),
    st.sampled_from(["--", "-", "--size=", "--backend=kernel", "-x", "/nonexistent/mnt", "/dev/null", "", "é\udc80"]),
    NUMBERS,
    TEXT.filter(lambda text: "\0" not in text),
)


def said_by(words: list[str]) -> tuple[Any, str]:
    """The exit code of a command, and what it wrote to stderr."""
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            code: Any = main(words)
        except SystemExit as end:
            code = end.code
    return code, said.getvalue()


@FEW
@given(st.sampled_from(COMMANDS), st.lists(WORDS, max_size=4))
def test_command_line(command: str, words: list[str]) -> None:
    """Any words end in an exit code of the table; errors are lines that begin with the program's name."""
    with not_empty():
        code, said = in_child(lambda: said_by([command, *words]))  # mounting hardens the process for good
    assert code in (0, 1, 2, 3, 4, 5, 6, 7, 8), (command, words)
    assert "Traceback" not in said
    for line in said.splitlines():
        assert line.startswith(("secretfs: error: ", "secretfs: hint: ", "secretfs: warning: ")), said


@contextlib.contextmanager
def odd_descriptor(kind: str, size: int) -> Iterator[int]:
    """A descriptor that is no shared area."""
    with contextlib.ExitStack() as stack:
        if kind == "closed":
            yield 900
            return
        if kind == "negative":
            yield -size - 1
            return
        if kind == "pipe":
            reader, writer = os.pipe()
            stack.callback(os.close, writer)
        elif kind == "socket":
            reader = socket.socket().detach()
        elif kind == "memfd":
            reader = os.memfd_create("fuzz", 0)
            os.ftruncate(reader, size)
        elif kind == "directory":
            reader = os.open("/", os.O_RDONLY)
        else:
            reader = os.open(kind, os.O_RDONLY)
        stack.callback(os.close, reader)
        yield reader


KINDS = ("closed", "negative", "pipe", "socket", "memfd", "directory", "/dev/zero", "/proc/self/maps", "/etc/passwd")


@QUICK
@given(st.sampled_from(KINDS), st.integers(0, 1 << 24))
def test_attach(kind: str, size: int) -> None:
    """A descriptor of anything else is refused with an error of ours, and no descriptor or mapping is left."""
    with odd_descriptor(kind, size) as fd:
        before = descriptors()
        with pytest.raises((SecretFSError, OverflowError)):
            SecretArea.attach(fd)
        assert descriptors() == before


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """One mount for the module, with a file."""
    with Mounted(tmp_path_factory.mktemp("fuzz") / "mnt") as mounted:
        (mounted.path / "file").touch()
        yield mounted


NAMES = st.one_of(
    st.binary(min_size=1, max_size=255),
    st.sampled_from([b"user.", b"user.secretfs.status", b"user.secretfs.pid", b"security.capability", b"trusted.x"]),
    st.binary(min_size=1, max_size=250).map(lambda name: b"user." + name),
    st.sampled_from([b"system.posix_acl_access", b"system.posix_acl_default", b"security.selinux"]),
).filter(lambda name: b"\0" not in name)


@pytest.mark.mount
@QUICK
@given(NAMES, st.binary(max_size=5000), st.sampled_from([0, os.XATTR_CREATE, os.XATTR_REPLACE]))
def test_attributes(mount: Mounted, name: bytes, value: bytes, flags: int) -> None:
    """A user's attribute of any name and value is kept as it is, or refused with an errno; the mount lives on."""
    file = os.fsencode(mount.path / "file")
    try:
        os.setxattr(file, name, value, flags)
    except OSError:
        pass
    else:
        if not name.startswith(b"user."):
            return  # the kernel reads a meaning into it, above the file system
        assert os.getxattr(file, name) == value
        assert name in map(os.fsencode, os.listxattr(file))
        os.removexattr(file, name)
    assert mount.held()[0] >= 1


@QUICK
@given(st.text(max_size=40).filter(lambda text: "\0" not in text))
def test_backend_word(word: str) -> None:
    """A word in SECRETFS_BACKEND names a backend, or is refused with an error of ours that has the word."""
    try:
        os.environ["SECRETFS_BACKEND"] = word
    except UnicodeEncodeError:
        return
    try:
        found = outcome(registry.choose, SecretFSError)
    finally:
        del os.environ["SECRETFS_BACKEND"]
    if isinstance(found, SecretFSError):
        assert repr(word) in str(found)
        assert found.hint


PRELOAD_WORDS = st.one_of(
    st.sampled_from(["all", "openssl", "openssl,gnutls", "abort", "fallback", "0", "1", "kernel", "emulator", ""]),
    st.text(st.characters(min_codepoint=32, max_codepoint=0x17F), max_size=300),
)


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(["SECRETFS_BACKEND", "SECRETFS_PRELOAD_TOOLKIT", "SECRETFS_PRELOAD_EXHAUSTED",
                     "SECRETFS_PRELOAD_CHILDREN"]),
    PRELOAD_WORDS,
)  # fmt: skip
def test_preload_environment(variable: str, value: str) -> None:
    """A preloaded program starts as ever, or not at all with 125 and one sentence: never a crash."""
    environment = {**clean_environment(), variable: value}
    command = [sys.executable, "-I", "-m", "secretfs", "preload", "--", "/bin/true"]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, errors="surrogateescape", timeout=60, check=False
    )
    assert done.returncode in (0, 125, 3), (variable, value, done)
    if done.returncode:
        assert "\n" not in done.stderr.strip() or "hint" in done.stderr
        assert done.stderr
        assert all(" " <= letter <= "~" for letter in done.stderr.strip() if letter != "\n"), done.stderr
