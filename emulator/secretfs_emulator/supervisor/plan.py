"""What the words take: become the command at once, perhaps under a filter, or start a supervisor for it."""

from __future__ import annotations

import errno
import os
import platform
import resource
from typing import NoReturn

from secretfs import libc
from secretfs_emulator.supervisor import become, bpf, calls, numbers, target
from secretfs_emulator.supervisor.backing import Backing
from secretfs_emulator.supervisor.call import Session
from secretfs_emulator.supervisor.failure import RunError
from secretfs_emulator.supervisor.genuine import KernelBacking
from secretfs_emulator.supervisor.launch import Job, launch
from secretfs_emulator.supervisor.memfds import MemfdBacking, keep_out_of_core_dumps
from secretfs_emulator.supervisor.notify import Listener
from secretfs_emulator.supervisor.options import Options
from secretfs_emulator.supervisor.report import Journal, open_log, say_plain, summary
from secretfs_emulator.supervisor.serve import Service
from secretfs_emulator.supervisor.tmpfs import TmpfsBacking

__all__ = ["carry_out"]

_WINDOW = 128
_FD_SETSIZE = 1024
EMULATED = -1


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
    if not target.proc_is_ours():
        raise RunError(
            "/proc is missing here, or shows the processes of another pid namespace",
            hint="mount one: `mount -t proc proc /proc`, or unshare --mount-proc",
        )
    here = _ask_kernel()
    if here == EMULATED and not options.needs_own_supervisor:
        return _plain(options, "an outer `secretfs run` emulates memfd_secret")
    if here == errno.EPERM:
        raise RunError(
            "memfd_secret is forbidden here (EPERM), most likely by a container's seccomp profile, and no other "
            "filter can overrule that",
            hint="allow memfd_secret in the profile, for example docker run --security-opt seccomp=PROFILE.json",
        )
    if options.emulate or here == errno.ENOSYS:
        return _emulate(options)
    if options.rfc2020:
        counted = calls.CREATION if options.succeed is not None else {}
        return _supervise(options, KernelBacking(), counted | calls.RFC2020)
    if options.succeed is not None:
        return _supervise(options, None, calls.CREATION)
    return _plain(options, "the kernel has memfd_secret, so nothing is emulated")


def _ask_kernel() -> int:
    """0 if memfd_secret(2) works here, EMULATED if we run under a supervisor of our own kind, else its errno."""
    try:
        fd = libc.memfd_secret(os.O_CLOEXEC)
    except OSError as error:
        return error.errno or errno.ENOSYS
    try:
        return EMULATED if libc.is_emulated(fd) else 0
    finally:
        os.close(fd)


def _plain(options: Options, why: str) -> NoReturn:
    say_plain(why, open_log(options.log), stats=options.stats)
    _prepare(options)
    become.execute(options.command)


def _prepare(options: Options) -> None:
    if options.memlock is not None:
        become.limit_locked_memory(options.memlock)


def _without(options: Options) -> NoReturn:
    """No supervisor: the filter answers by itself. TRACE lets a `secretfs run --emulate` further in answer instead, and
    an outer one too, which is then overruled by ERRNO.
    """
    failure = options.failure or errno.ENOSYS
    overrule = failure != errno.ENOSYS or _ask_kernel() == EMULATED
    say_plain(f"memfd_secret answers {errno.errorcode[failure]}", open_log(options.log), stats=options.stats)
    _prepare(options)
    answer = bpf.ERRNO | failure if overrule else bpf.TRACE
    become.install(bpf.without(numbers.NUMBERS["memfd_secret"][0] or 0, answer), listener=False)
    become.execute(options.command)


def _emulate(options: Options) -> int:
    backing = _backing(options.backing)
    table = dict(calls.EMULATION)
    if options.strict:
        table |= calls.STRICT
    if options.rfc2020:
        table |= calls.RFC2020
    if backing.name == "memfd":
        table |= calls.NO_IO_URING
    if os.geteuid() != 0:
        table |= calls.UNPRIVILEGED
    return _supervise(options, backing, table)


def _supervise(options: Options, backing: Backing | None, table: dict[str, calls.Treatment]) -> int:
    window = _window()
    journal = Journal(open_log(options.log), checked="memfd_secret" in table)
    sessions: list[Session] = []
    by_number = calls.by_number(table)
    names = {number: name for name in table if (number := numbers.number(name)) is not None}
    often = [numbers.number(name) for name in ("read", "write")]
    tests = {number: treatment.when for number, treatment in by_number.items()}

    def prepare() -> None:
        _prepare(options)
        if backing is not None and backing.name == "memfd":
            keep_out_of_core_dumps()

    def serve(fd: int) -> Service:
        session = Session(Listener(fd), backing, window, options.succeed, options.failure or errno.EMFILE)
        sessions.append(session)
        journal.begin(backing)
        service = Service(session, by_number, names, journal.note)
        service.start()
        return service

    def report() -> str:
        text = summary(sessions[0])
        journal.end(text)
        return text if options.stats else ""

    return launch(
        Job(
            command=options.command,
            program=bpf.notifying(tests, window, numbers.AUDIT[platform.machine()], often=often),
            prepare=prepare,
            serve=serve,
            report=report,
            keep=(*(backing.keep if backing is not None else ()), *journal.keep),
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
            f"no memfd can stand for secret memory here: {os.strerror(error.errno or 0).lower()}",
            hint="allow memfd_create and inotify in the container's seccomp profile",
        ) from error
