"""Attacks from another process that read the victim's memory, by its page tables or a debugger."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator

from secretfs.audit import calls
from secretfs.audit.model import NotTriedError
from secretfs.audit.needle import LENGTH
from secretfs.audit.spaces import Place, holds
from secretfs.audit.subjects import Target
from secretfs.audit.tracing import Traced

__all__ = ["gcore", "gdb", "leftovers", "proc_mem", "proc_mem_before", "process_vm_readv", "ptrace_peek"]

_DEBUGGER_PATIENCE = 12.0


def proc_mem(target: Target) -> bool:
    """Read /proc/PID/mem: where the needle is, and then everywhere."""
    with _memory_of(target.pid) as memory:
        try:
            return _read_places(target, memory)
        except OSError:
            if holds(target.pid, target.needle, memory):
                return True
            raise


def proc_mem_before(target: Target) -> bool:
    """The same, through a descriptor that was opened before there was a secret."""
    with _memory_of(target.pid) as memory:
        target.plant()
        return _read_places(target, memory)


def process_vm_readv(target: Target) -> bool:
    """Read with process_vm_readv(2)."""
    return _each_place(target, lambda place, buffer: calls.read_process(target.pid, place.start, buffer))


def ptrace_peek(target: Target) -> bool:
    """Attach, and read word by word with PTRACE_PEEKDATA."""
    with Traced(target.pid) as traced:

        def peek(place: Place, buffer: bytearray) -> int:
            words = (ctypes.c_ulong * (len(buffer) // 8)).from_buffer(buffer)
            for at in range(len(words)):
                words[at] = traced.peek(place.start + 8 * at)
            return len(buffer)

        return _each_place(target, peek)


def gdb(target: Target) -> bool:
    """Let gdb attach and dump the memory."""
    _require("gdb")
    with tempfile.TemporaryDirectory(prefix="secretfs-audit-") as folder:
        places = target.places()
        dumps = [f"dump binary memory {folder}/{at} {one.start} {one.end}" for at, one in enumerate(places)]
        words = [each for dump in dumps for each in ("-ex", dump)]
        _run("gdb", "-nx", "-batch", "-p", str(target.pid), *words)
        return target.needle.in_files(f"{folder}/{at}" for at in range(len(places)))


def gcore(target: Target) -> bool:
    """Let gdb write a core of the running process, and search it."""
    _require("gcore")
    with tempfile.TemporaryDirectory(prefix="secretfs-audit-") as folder:
        _run("gcore", "-o", f"{folder}/core", str(target.pid))
        cores = os.listdir(folder)
        if not cores:
            raise PermissionError(1, "gcore wrote no core")
        return target.needle.in_files(f"{folder}/{name}" for name in cores)


def leftovers(target: Target) -> bool:
    """Let it give the memory back, or remove the file, and search all its memory for pieces."""
    pid = target.pid
    target.ask({"release": 1})
    with _memory_of(pid) as memory:
        return holds(pid, target.needle, memory, pieces=True)


@contextlib.contextmanager
def _memory_of(pid: int) -> Iterator[int]:
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield memory
    finally:
        os.close(memory)


def _read_places(target: Target, memory: int) -> bool:
    return _each_place(target, lambda place, buffer: os.preadv(memory, [buffer], place.start))


def _each_place(target: Target, read: Callable[[Place, bytearray], int]) -> bool:
    """Whether the needle is in what `read` gets of any place where it may be; OSError where all were refused."""
    refused: OSError | None = None
    for place in target.places():
        buffer = bytearray(place.size)
        try:
            read(place, buffer)
        except OSError as error:
            refused = error
        if target.needle.in_buffer(buffer):
            return True
    if refused is not None:
        raise refused
    return False


def _require(program: str) -> None:
    if shutil.which(program) is None:
        raise NotTriedError(f"{program} is not installed")


def _run(*words: str) -> None:
    """Run a debugger; one that takes too long is ended with all that it has started, or it would hold the victim."""
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            process.wait(_DEBUGGER_PATIENCE)
        except subprocess.TimeoutExpired as error:
            os.killpg(process.pid, signal.SIGKILL)
            raise NotTriedError(f"{words[0]} took too long") from error


assert LENGTH % 8 == 0, "PTRACE_PEEKDATA reads words"
