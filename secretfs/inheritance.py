"""Secrets that forked children are given (`Secret(…, inherit=True)`): a copy each, made at the fork.

Secret memory is a shared mapping: a child that had its parent's pages would wipe them for both. So before a fork the
parent makes a second region with the same bytes, which the child takes over and the parent lets go. It is a matter of
os.fork() and what is built on it; a fork that Python does not see gives the child nothing.
"""

from __future__ import annotations

import contextlib
from typing import Protocol

import secretfs.kinds  # noqa: F401 - in a child its hook must run before ours: hooks run in the order of their making
from secretfs import turns
from secretfs.errors import SecretFSError
from secretfs.interface import MappedRegion, Region
from secretfs.living import Living

__all__ = ["Inheritable", "add"]


class Inheritable(Protocol):
    """A secret that can be given to a child."""

    def copy_for_child(self) -> Region:
        """A region with the same bytes."""

    def adopt(self, region: Region) -> None:
        """In the child: go on with that region."""


_secrets: Living[Inheritable] = Living()
_copies: list[tuple[Inheritable, MappedRegion]] = []


def add(secret: Inheritable) -> None:
    """Give `secret` to the children that are forked from now on."""
    _secrets.add(secret)


def _before() -> None:
    """What cannot be copied, for want of memory or because it was closed, the child does not have: its use raises.

    From here until the fork is done no other thread forks, or the copies would get into the wrong child.
    """
    turns.lock.acquire()
    for secret in _secrets.all():
        with contextlib.suppress(SecretFSError, OSError):
            region = secret.copy_for_child()
            if isinstance(region, MappedRegion):
                region.lend_to_child()
                _copies.append((secret, region))


def _in_parent() -> None:
    while _copies:
        with contextlib.suppress(OSError):  # its end tries again
            _copies.pop()[1].let_go()
    turns.lock.release()


def _in_child() -> None:
    while _copies:
        secret, region = _copies.pop()
        with contextlib.suppress(SecretFSError, OSError):  # it cannot be locked here: its use raises
            region.adopt()
            secret.adopt(region)


turns.at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
