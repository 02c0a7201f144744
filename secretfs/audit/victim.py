"""The process that is attacked: it plants a needle when it is told to, and does what it is told.

It speaks over a socket, a message a JSON object; it never sends the needle in the clear.

    {"plant": {...}, "path": FILE} -> {"address": N, "pid": N, "claims": {...}}
    {"do": ATTACK}       -> {"leaked": true|false}
    {"release": 1}       -> {}      give the memory back, or remove the file
    {"stack": 1}         -> {"thread": N}  start a thread whose stack lies right below the needle
    {"use": 1}           -> {}      call CALLED with the address; a client of a mount writes it again
    anything             -> {"error": ERRNO} | {"not tried": "…"} where it could not be done
    end of file: it ends.

`python -m secretfs.audit.victim SUBJECT` has the socket as its standard input: for what another program starts.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import socket
import sys
import traceback
from typing import Any

from secretfs import libc
from secretfs.audit import calls
from secretfs.audit.holders import HOLDERS, File, Holder
from secretfs.audit.model import NotTriedError
from secretfs.audit.needle import Needle
from secretfs.errors import SecretFSError

__all__ = ["CALLED", "live"]

CALLED = "memfrob"
"""A function of the C library that nothing else calls; of no bytes, it does not touch the address it is given."""
_PR_SET_PDEATHSIG = 1


def live(subject: str, channel: socket.socket) -> None:
    """Do what comes, until nobody is there any more."""
    calls.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.set_dumpable(dumpable=True)  # as any program is; what a backend promises must hold all the same
    holder: Holder | None = None
    channel.send(json.dumps({"pid": os.getpid(), "uid": os.geteuid()}).encode())
    while message := channel.recv(1 << 16):
        words = json.loads(message)
        try:
            holder, answer = _answer(subject, holder, words)
        except NotTriedError as error:
            answer = {"not tried": str(error)}
        except SecretFSError as error:
            answer = {"not tried": str(error)}
        except OSError as error:
            answer = {"error": error.errno or errno.EIO}
        except Exception as error:  # noqa: BLE001 - told to the audit; a message of ours has no secret in it
            where = traceback.extract_tb(error.__traceback__)[-1]
            answer = {"not tried": f"{type(error).__name__} in {where.name}, line {where.lineno}: {error}"}
        channel.send(json.dumps(answer).encode())


def _answer(subject: str, holder: Holder | None, words: dict[str, Any]) -> tuple[Holder | None, dict[str, Any]]:
    if "plant" in words:
        if holder is not None:
            holder.release()
        holder = HOLDERS[subject](Needle.from_json(words["plant"]), words["path"])
        pid = getattr(holder, "pid", os.getpid())
        return holder, {"address": holder.address, "pid": pid, "claims": holder.claims}
    if holder is None:
        raise NotTriedError("nothing was planted")
    if "release" in words:
        holder.release()
        return None, {}
    if "stack" in words:
        from secretfs.audit.stacks import thread_below

        return holder, {"thread": thread_below(holder)}
    if "use" in words:
        _use(holder)
        return holder, {}
    from secretfs.audit.table import named

    attack = named(words["do"])
    assert attack.inside is not None
    return holder, {"leaked": attack.inside(holder)}


def _use(holder: Holder) -> None:
    if isinstance(holder, File):
        holder.write()
        return
    function = getattr(ctypes.CDLL(None), CALLED)
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_size_t), ctypes.c_void_p
    function(holder.address, 0)


if __name__ == "__main__":
    live(sys.argv[1], socket.socket(fileno=0))
