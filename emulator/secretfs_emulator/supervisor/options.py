"""What was asked for: the words of the command line, read."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Options"]


@dataclass(frozen=True)
class Options:
    """See docs/run.md. Sizes are bytes; `failure` is an errno or None; `succeed` is --fail-after or None."""

    command: tuple[str, ...]
    emulate: bool = False
    without: bool = False
    strict: bool = False
    rfc2020: bool = False
    backing: str | None = None
    memlock: int | None = None
    succeed: int | None = None
    failure: int | None = None
    log: str | None = None
    stats: bool = False

    @property
    def needs_own_supervisor(self) -> bool:
        """Whether something is asked for that an outer `secretfs run` does not do."""
        return self.strict or self.rfc2020 or self.backing is not None or self.succeed is not None
