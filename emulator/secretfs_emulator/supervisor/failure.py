"""What `secretfs run` says when the command could not be started, and with which exit code."""

from __future__ import annotations

from secretfs.errors import SecretFSError

__all__ = ["FAILED", "NOT_EXECUTABLE", "NOT_FOUND", "RunError", "failure", "not_started", "reason"]

FAILED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127


class RunError(SecretFSError):
    """The command was not started, or its end is not known."""

    def __init__(self, message: str, *, hint: str = "", exit_code: int = FAILED) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


def failure(text: str) -> RunError:
    """The error that another process tells of: exit code, message and hint."""
    code, message, hint = text.split("\0")
    return RunError(message, hint=hint, exit_code=int(code))


def not_started(error: BaseException) -> RunError:
    """What nobody has expected, as an error of ours."""
    return RunError(f"the command could not be started: {reason(error)}")


def reason(error: BaseException) -> str:
    """What an error says, for the end of a sentence."""
    if isinstance(error, MemoryError):
        return "out of memory"
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return (
        said.lower()
        if isinstance(error, (OSError, ValueError, RuntimeError, SecretFSError))
        else f"{type(error).__name__}: {said}"
    )
