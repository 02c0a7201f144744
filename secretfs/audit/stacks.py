"""A secret right above a thread's stack: what perf(1) takes along when it samples stacks for a profile.

The kernel copies up to 64 KiB from the stack pointer up (PERF_SAMPLE_STACK_USER, perf_event_open(2)). It does so in the
thread's context, where no page is pinned, and does not ask where the stack ends: it stops at what cannot be read. So it
depends on what lies above a stack, which a process leaves to chance; the victim has such a thread made on purpose.
"""

from __future__ import annotations

import atexit
import ctypes
import mmap
import os
import select
import struct
import threading
from typing import TYPE_CHECKING, Any

from secretfs import libc
from secretfs.audit import calls
from secretfs.audit.model import NotTriedError
from secretfs.audit.spaces import mappings

if TYPE_CHECKING:
    from secretfs.audit.holders import Holder
    from secretfs.audit.subjects import Target

__all__ = ["perf_stack", "thread_below"]

_STACK = 48 << 10
_COPIED = 65000
"""Bytes that are asked for: about the most that the size of a record can say."""
_NEAR = 48 << 10
"""Bytes between stack and needle; with what the thread uses of its stack, that is still copied."""
_TRIES = 32
_SOFTWARE, _CONTEXT_SWITCHES, _SAMPLE_STACK = 1, 3, 1 << 13
_PAGES = 64
"""Of the buffer that records are written to: room for a few."""
_PATIENCE = 20.0
"""Seconds in which a thread that sleeps again and again has slept once."""


def perf_stack(target: Target) -> bool:
    """Sample a thread whose stack lies right below the secret, each time it goes to sleep."""
    thread = target.ask({"stack": 1})["thread"]
    attributes = ctypes.create_string_buffer(128)  # struct perf_event_attr
    struct.pack_into("<IIQQQ", attributes, 0, _SOFTWARE, 128, _CONTEXT_SWITCHES, 1, _SAMPLE_STACK)
    struct.pack_into("<I", attributes, 48, 1)  # wake who waits after one record
    struct.pack_into("<I", attributes, 88, _COPIED)
    try:
        fd = calls.perf_event_open(attributes, thread)
    except OSError as error:
        raise NotTriedError(f"perf cannot sample a stack here: {error.strerror}") from error
    try:
        with mmap.mmap(fd, (1 + _PAGES) * libc.PAGE_SIZE) as ring:
            if not select.select([fd], [], [], _PATIENCE)[0]:
                raise NotTriedError("no sample was taken")
            written = struct.unpack_from("<Q", ring, 1024)[0]  # data_head
            with memoryview(ring) as view:
                return target.needle.in_buffer(bytearray(view[libc.PAGE_SIZE : libc.PAGE_SIZE + written]))
    finally:
        os.close(fd)


def thread_below(holder: Holder) -> int:
    """Start a thread, here in the victim, whose stack lies right below a needle; its number.

    Raises:
        NotTriedError: there is something else.
    """
    address = holder.address
    for _ in range(_TRIES):
        end = _beginning(address)
        if address - end > _NEAR:
            break
        try:
            return _thread(calls.map_fixed(end - _STACK, _STACK))
        except FileExistsError:
            address = holder.another()
    raise NotTriedError("no stack can be put right below it")


def _beginning(address: int) -> int:
    """Where the mapping that it lies in begins, with others that lie right before it: guard pages."""
    begins = {one.end: one.start for one in mappings(os.getpid())}
    at = next(start for end, start in begins.items() if start <= address < end)
    while address - begins.get(at, 0) <= _NEAR:
        at = begins[at]
    return at


def _thread(stack: int) -> int:
    """A thread with its stack there; it sleeps until the process ends."""
    pthread: Any = ctypes.CDLL(None)
    told, ended, numbers = threading.Event(), threading.Event(), list[int]()

    def sleep(_: int | None) -> None:
        numbers.append(threading.get_native_id())
        told.set()
        while not ended.wait(0.01):
            pass

    body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(sleep)
    attributes, made = ctypes.create_string_buffer(64), ctypes.c_ulong()
    pthread.pthread_attr_init(attributes)
    pthread.pthread_attr_setstack(attributes, ctypes.c_void_p(stack), ctypes.c_size_t(_STACK))
    if pthread.pthread_create(ctypes.byref(made), attributes, body, None) or not told.wait(_PATIENCE):
        raise NotTriedError("no thread can be made")

    def end(_: object = body) -> None:  # which must live as long as the thread
        ended.set()
        pthread.pthread_join(made, None)

    atexit.register(end)
    return numbers[0]
