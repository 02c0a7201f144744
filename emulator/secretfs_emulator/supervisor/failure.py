"""What `secretfs run` says when the command could not be started, and with which exit code."""

from __future__ import annotations

from secretfs.errors import SecretFSError

__all__ = ["FAILED", "NOT_EXECUTABLE", "NOT_FOUND", "RunError"]

FAILED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127


class RunError(SecretFSError):
    """The command was not started, or its end is not known."""

    def __init__(self, message: str, *, hint: str = "", exit_code: int = FAILED) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code
