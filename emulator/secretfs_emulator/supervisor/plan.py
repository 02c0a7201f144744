"""What the words take: become the command at once, perhaps under a filter, or start a supervisor for it."""

from __future__ import annotations

import errno
import os
import platform
import resource
from dataclasses import replace

from secretfs import libc
from secretfs_emulator.supervisor import become, bpf, calls, numbers
from secretfs_emulator.supervisor.backing import Backing
from secretfs_emulator.supervisor.call import Session
from secretfs_emulator.supervisor.failure import RunError
from secretfs_emulator.supervisor.launch import Job, launch
from secretfs_emulator.supervisor.memfds import MemfdBacking, keep_out_of_core_dumps
from secretfs_emulator.supervisor.notify import Listener
from secretfs_emulator.supervisor.options import Options
from secretfs_emulator.supervisor.serve import Service
from secretfs_emulator.supervisor.tmpfs import TmpfsBacking
from secretfs_emulator.supervisor.transfer import MARK

__all__ = ["carry_out"]

_WINDOW = 128
_FD_SETSIZE = 1024
_FSID_OFFSET = 56


def carry_out(options: Options) -> int:
    """Run the command as asked. Returns its exit code, or does not return.

    Raises:
        RunError: it was not started.
    """
    if not numbers.supported():
        raise RunError(
            f"the system calls of the architecture {platform.machine()!r} are not known here",
            hint=f"use one of: {', '.join(sorted(numbers.AUDIT))}",
        )
    if options.without:
        return _without(options)
    here = None if options.emulate else _ask_kernel()
    if options.emulate or here == errno.ENOSYS:
        return _emulate(options)
    if here == errno.EPERM:
        raise RunError(
            "memfd_secret is forbidden here (EPERM), most likely by a container's seccomp profile, and no other "
            "filter can overrule that",
            hint="allow memfd_secret in the profile, for example docker run --security-opt seccomp=PROFILE.json",
        )
    if options.succeed is not None:
        return _inject(options)
    _prepare(options)
    become.execute(options.command)


def _ask_kernel() -> int:
    """0 if memfd_secret(2) works here, else its errno."""
    try:
        os.close(libc.memfd_secret(os.O_CLOEXEC))
    except OSError as error:
        return error.errno or errno.ENOSYS
    return 0


def _prepare(options: Options) -> None:
    if options.memlock is not None:
        become.limit_locked_memory(options.memlock)


def _without(options: Options) -> int:
    """No supervisor: the filter answers by itself. TRACE lets a `secretfs run --emulate` further in answer instead."""
    failure = options.failure or errno.ENOSYS
    answer = bpf.TRACE if failure == errno.ENOSYS and not _emulated_here() else bpf.ERRNO | failure
    _prepare(options)
    become.install(bpf.without(numbers.NUMBERS["memfd_secret"][0] or 0, answer), listener=False)
    become.execute(options.command)


def _emulated_here() -> bool:
    """Whether we run under a supervisor of our own kind."""
    import ctypes

    try:
        fd = libc.memfd_secret(os.O_CLOEXEC)
    except OSError:
        return False
    buffer = ctypes.create_string_buffer(512)
    try:
        return libc._fstatfs(fd, buffer) == 0 and buffer.raw[_FSID_OFFSET : _FSID_OFFSET + len(MARK)] == MARK
    finally:
        os.close(fd)


def _inject(options: Options) -> int:
    """The kernel's own secrets, but for the failures."""
    return _supervise(options, None, calls.CREATION)


def _emulate(options: Options) -> int:
    backing = _backing(options.backing)
    table = calls.EMULATION if backing.name == "tmpfs" else {**calls.EMULATION, **calls.NO_IO_URING}
    return _supervise(options, backing, table)


def _supervise(options: Options, backing: Backing | None, table: dict[str, calls.Treatment]) -> int:
    window = _window()
    by_number = calls.by_number(table)
    program = bpf.notifying(
        {number: treatment.when for number, treatment in by_number.items()}, window, numbers.AUDIT[platform.machine()]
    )
    names = {number: name for name in table if (number := numbers.number(name)) is not None}

    def prepare() -> None:
        _prepare(options)
        if backing is not None and backing.name == "memfd":
            keep_out_of_core_dumps()

    session: list[Session] = []

    def serve(fd: int):  # type: ignore[no-untyped-def]
        session.append(Session(Listener(fd), backing, window, options.succeed, options.failure or errno.EMFILE))
        service = Service(session[0], by_number, names, None)
        service.start()
        return service.over

    return launch(
        Job(
            options.command,
            program,
            prepare,
            serve,
            lambda: "",
            keep=backing.keep if backing else (),
            emulates=backing is not None,
        )
    )


def _window() -> bpf.Window:
    """Reserved numbers: below 1024, where select(2) can use them, and below the limit; high, where files seldom are."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    top = _FD_SETSIZE if soft == resource.RLIM_INFINITY else min(soft, _FD_SETSIZE)
    count = min(_WINDOW, top // 2)
    return bpf.Window(top - count, count)


def _backing(name: str | None) -> Backing:
    if name != "memfd":
        try:
            return TmpfsBacking()
        except OSError as error:
            if name == "tmpfs":
                raise RunError(
                    f"the backing 'tmpfs' cannot be used here: {os.strerror(error.errno or 0).lower()}",
                    hint="run as root outside of a container, or use --backing memfd",
                ) from error
    try:
        return MemfdBacking()
    except OSError as error:
        raise RunError(
            f"memfds cannot be made here, so nothing can stand for secret memory: {os.strerror(error.errno or 0).lower()}",
            hint="allow memfd_create and inotify in the container's seccomp profile",
        ) from error
