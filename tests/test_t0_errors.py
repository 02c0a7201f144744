"""secretfs.errors: the tree, the codes and the messages."""

from __future__ import annotations

import errno
import inspect
import re
import sys
import traceback

import pytest

from secretfs import errors
from secretfs.errors import FileError, LockLimitExceeded, SecretFSError

CLASSES = [
    value for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__
]
# Exit codes: CLI.md, in the words of docs/cli.md.
EXIT_CODES = {
    "UsageError": 2,
    "BackendError": 3,
    "BackendUnavailable": 3,
    "PluginError": 3,
    "MountpointError": 4,
    "FuseUnavailable": 5,
    "MountBusy": 6,
    "NotMounted": 7,
    "LimitError": 8,
    "LockLimitExceeded": 8,
    "CgroupLimitExceeded": 8,
}


def drawn() -> dict[str, tuple[str, str]]:
    """Name -> (parent, builtin parent in brackets or "") as the docstring draws it."""
    found: dict[str, tuple[str, str]] = {"SecretFSError": ("Exception", "")}
    path = [(0, "SecretFSError")]
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^([ |]*)\+- (\w+)(?: \((\w+)\))?", line)
        if match:
            depth = len(match[1])
            while path and len(path) > 1 and path[-1][0] >= depth:
                path.pop()
            found[match[2]] = (path[-1][1], match[3] or "")
            path.append((depth, match[2]))
    return found


def test_tree_in_the_docstring_is_the_tree_of_classes() -> None:
    """Every class is drawn, under its parent, with its second parent in brackets, and nothing else is."""
    real = {
        cls.__name__: (cls.__bases__[0].__name__, "".join(b.__name__ for b in cls.__bases__[1:])) for cls in CLASSES
    }
    assert drawn() == real


def test_all_is_every_class_sorted() -> None:
    """`__all__` names the classes and nothing else."""
    assert errors.__all__ == sorted(cls.__name__ for cls in CLASSES)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_exit_codes_are_the_contract(cls: type[SecretFSError]) -> None:
    """Each class ends the command line with the code in the contract, 1 where it names none."""
    assert cls.exit_code == EXIT_CODES.get(cls.__name__, 1)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_errno_is_one(cls: type[SecretFSError]) -> None:
    """Each class has an errno that exists."""
    assert cls.errno in errno.errorcode


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_class_docstring_is_a_sentence(cls: type[SecretFSError]) -> None:
    """Each class says in a sentence what it means."""
    assert re.match(r"[A-Z].*[.;]?", cls.__doc__ or "")
    assert (cls.__doc__ or "").splitlines()[0].endswith((".", "say."))


def test_messages_are_lower_case_without_full_stop() -> None:
    """The classes that make up their message keep the form: lower case, no full stop, a hint with the remedy."""
    for error in (
        LockLimitExceeded(4096, used=8192, limit=8192),
        errors.CgroupLimitExceeded(4096, headroom=0, path="/sys/fs/cgroup/a"),
    ):
        assert str(error)[0].islower()
        assert not str(error).endswith(".")
        assert "4096" in str(error)
        assert error.hint


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no notes")
def test_remedy_is_shown_with_an_error_that_nobody_catches() -> None:
    """A traceback ends with the remedy: Python prints an exception's notes."""
    error = LockLimitExceeded(8, used=1, limit=4)
    shown = "".join(traceback.format_exception_only(error))
    assert shown.splitlines()[-1] == f"hint: {error.hint}"
    assert "hint" not in "".join(traceback.format_exception_only(SecretFSError("without one")))


def test_file_error_is_its_errno_and_nothing_else() -> None:
    """FileError has the errno it was made from, and no word of its own."""
    error = FileError(errno.ENOSPC)
    assert error.errno == errno.ENOSPC
    assert error.args == ("No space left on device",)
    assert SecretFSError.errno == errno.EIO


def test_closed_and_bounds_errors_are_python_errors_too() -> None:
    """Code that knows nothing of secretfs can catch ValueError and IndexError."""
    assert issubclass(errors.ClosedError, ValueError)
    assert issubclass(errors.BoundsError, IndexError)
