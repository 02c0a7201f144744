"""Every attack, a row each. To add one, write the function and its row; the documents have a row for it too."""

from __future__ import annotations

import functools

from secretfs.audit import inside, outside
from secretfs.audit.model import Attack

__all__ = ["TABLE", "named"]

_DAEMON = {"mount": "the daemon runs no code of the audit's"}

_PROCESS = (
    Attack(
        "proc-mem", "/proc/PID/mem", "process", "read", "root",
        "Opens /proc/PID/mem of the running process and reads all its memory.",
        "refuses_pinning", outside=outside.proc_mem,
    ),
    Attack(
        "proc-mem-before", "/proc/PID/mem, opened early", "process", "read", "root",
        "Opens /proc/PID/mem before there is a secret, and reads it when there is one.",
        "refuses_pinning", outside=outside.proc_mem_before, fresh=True, planted=False,
    ),
    Attack(
        "process-vm-readv", "process_vm_readv(2)", "process", "read", "root",
        "Copies the memory out with one system call.",
        "refuses_pinning", outside=outside.process_vm_readv,
    ),
    Attack(
        "ptrace-peek", "ptrace peek", "process", "read", "root",
        "Attaches as a debugger does and reads word by word with PTRACE_PEEKDATA.",
        "refuses_pinning", outside=outside.ptrace_peek,
    ),
    Attack(
        "gdb", "gdb", "process", "read", "root",
        "Attaches gdb and lets it dump the memory into a file.",
        "refuses_pinning", outside=outside.gdb,
    ),
    Attack(
        "gcore", "gcore", "process", "read", "root",
        "Lets gcore write a core of the running process and searches that.",
        "undumpable", outside=outside.gcore,
    ),
)  # fmt: skip

_OWNER = (
    Attack(
        "vmsplice", "vmsplice(2)", "owner", "read", "owner",
        "Gives the page to a pipe without copying it, and reads the pipe.",
        "refuses_pinning", inside=inside.vmsplice, apart_from=_DAEMON,
    ),
    Attack(
        "fork", "fork", "owner", "inherit", "owner",
        "Forks, and reads the memory in the child.",
        "unforkable", inside=inside.by_fork, apart_from=_DAEMON,
    ),
)  # fmt: skip

TABLE: tuple[Attack, ...] = (*_PROCESS, *_OWNER)


@functools.cache
def named(name: str) -> Attack:
    """The row of that name."""
    return next(attack for attack in TABLE if attack.name == name)
