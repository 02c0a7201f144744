"""Every attack, a row each. To add one, write the function and its row; docs/audit.md has a row for it too.

A row's guarantee is the promise that it would break. Rows of the kinds "in-context" and "inject" have none: what runs
as the owner, or in its context, can read what the owner can read, and nothing here claims otherwise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

from secretfs.audit import borrowed, descriptors, inject, inside, machine, outside, stacks, swapping, traced
from secretfs.audit.holders import Holder
from secretfs.audit.model import Attack
from secretfs.audit.subjects import Target

__all__ = ["TABLE", "named"]

_DAEMON = "the daemon runs no code of the audit's"
_NO_CALL = {"mount": "the daemon calls nothing of the audit's; ptrace-inject shows the same"}
_NO_FILE = dict.fromkeys(("emulator", "kernel", "secret-open", "secret-closed", "preload", "run"), "it is no file")


def _root(
    name: str, title: str, kind: str, guarantee: str | None, outside: Callable[[Target], bool], about: str
) -> Attack:
    return Attack(name, title, "process", kind, "root", about, guarantee, outside=outside)


def _inside(
    name: str, title: str, kind: str, guarantee: str | None, inside: Callable[[Holder], bool], about: str
) -> Attack:
    apart = {"mount": _DAEMON}
    return Attack(name, title, "owner", kind, "owner", about, guarantee, inside=inside, apart_from=apart)


def _machine(
    name: str, title: str, kind: str, guarantee: str | None, outside: Callable[[Target], bool], about: str
) -> Attack:
    return Attack(
        name, title, "machine", kind, "root", about, guarantee, outside=outside, fresh=True, patience=120.0
    )  # fmt: skip


_PROC_MEM = _root(
    "proc-mem", "/proc/PID/mem", "read", "refuses_pinning", outside.proc_mem,
    "Opens /proc/PID/mem of the running process and reads all its memory.",
)  # fmt: skip
_PROC_MEM_BEFORE = replace(
    _root(
        "proc-mem-before", "/proc/PID/mem, opened early", "read", "refuses_pinning", outside.proc_mem_before,
        "Opens /proc/PID/mem before there is a secret, and reads when there is one.",
    ),
    fresh=True, planted=False,
)  # fmt: skip
_VM_READV = _root(
    "process-vm-readv", "process_vm_readv(2)", "read", "refuses_pinning", outside.process_vm_readv,
    "Copies the memory of the process with one system call.",
)  # fmt: skip
_PEEK = _root(
    "ptrace-peek", "ptrace peek", "read", "refuses_pinning", outside.ptrace_peek,
    "Attaches as a debugger does, and reads word by word with PTRACE_PEEKDATA.",
)  # fmt: skip
_GDB = _root(
    "gdb", "gdb", "read", "refuses_pinning", outside.gdb,
    "Attaches gdb and lets it dump the memory into a file.",
)  # fmt: skip
_GCORE = _root(
    "gcore", "gcore", "read", "undumpable", outside.gcore,
    "Lets gcore write a core of the running process, and searches the core.",
)  # fmt: skip
_PROC_FD = _root(
    "proc-fd", "/proc/PID/fd", "inherit", "no_descriptor", descriptors.proc_fd,
    "Opens every descriptor of the process again through /proc/PID/fd, and maps it.",
)  # fmt: skip
_MAP_FILES = _root(
    "map-files", "/proc/PID/map_files", "read", "no_descriptor", descriptors.map_files,
    "Opens the mapping where the secret is through /proc/PID/map_files, and maps it.",
)  # fmt: skip
_GETFD = _root(
    "pidfd-getfd", "pidfd_getfd(2)", "inherit", "no_descriptor", descriptors.pidfd_getfd,
    "Takes every descriptor of the process and maps what is behind it.",
)  # fmt: skip
_GETFD_RACE = replace(
    _root(
        "pidfd-getfd-race", "pidfd_getfd(2), racing", "inherit", None, descriptors.pidfd_race,
        "Takes the descriptor of the memory in the microseconds between its making and its closing.",
    ),
    fresh=True, planted=False,
)  # fmt: skip
_GETFD_FUSE = replace(
    _root(
        "pidfd-getfd-fuse", "the daemon's /dev/fuse", "in-context", None, descriptors.fuse_descriptor,
        "Stops the daemon, takes its /dev/fuse and reads what a client writes; ordinary memory: a pipe.",
    ),
    apart_from=dict.fromkeys(_NO_FILE, "it has no /dev/fuse"),
)  # fmt: skip
_FILE_ROOT = replace(
    _root(
        "file-as-root", "the file, as root", "in-context", None, borrowed.file_as_root,
        "Opens the file as root and reads it.",
    ),
    apart_from=_NO_FILE,
)  # fmt: skip
_FILE_OWNER = replace(
    _root(
        "file-as-owner", "the file, as its owner", "in-context", None, borrowed.file_as_owner,
        "Becomes the owner of the file, as root can, and reads it.",
    ),
    apart_from=_NO_FILE,
)  # fmt: skip
_UPROBE = replace(
    _root(
        "uprobe", "uprobe event", "in-context", None, traced.uprobe,
        "Puts a probe on a function of the C library, whose trace shows what the argument points to.",
    ),
    apart_from=_NO_CALL,
)  # fmt: skip
_BPF = replace(
    _root(
        "bpf-probe-read-user", "bpf_probe_read_user", "in-context", None, traced.bpf_probe_read_user,
        "Attaches a BPF program to a function of the C library, which copies what the argument points to.",
    ),
    apart_from=_NO_CALL,
)  # fmt: skip
_PERF_STACK = replace(
    _root(
        "perf-stack", "perf user stack", "in-context", None, stacks.perf_stack,
        "Samples a thread whose stack lies right below, as perf does, which copies past the end of the stack.",
    ),
    fresh=True, apart_from={"mount": _DAEMON},
)  # fmt: skip
_INJECT = _root(
    "ptrace-inject", "code by ptrace", "inject", None, inject.by_ptrace,
    "Attaches, and makes the process itself write its memory to a file.",
)  # fmt: skip
_INJECT_MEM = replace(
    _root(
        "proc-mem-inject", "code by /proc/PID/mem", "inject", None, inject.by_proc_mem,
        "Writes code over a function that the process is about to call.",
    ),
    fresh=True, apart_from=_NO_CALL,
)  # fmt: skip
_ENVIRON = _root(
    "environ", "environment", "residue", "no_residue", borrowed.environment,
    "Reads /proc/PID/environ of the process and of its children.",
)  # fmt: skip
_CMDLINE = _root(
    "cmdline", "arguments", "residue", "no_residue", borrowed.command_line,
    "Reads /proc/PID/cmdline of the process and of its children, as ps does.",
)  # fmt: skip
_LOG = _root(
    "log", "logs", "residue", "no_residue", borrowed.log,
    "Reads what the process has printed and logged.",
)  # fmt: skip


def _as(source: str, *attacks: Attack) -> tuple[Attack, ...]:
    """The same by somebody else."""
    suffix, who = {"same-user": ("-user", "the same user"), "other-user": ("-other", "another user")}[source]
    return tuple(
        replace(
            attack,
            name=f"{attack.name}{suffix}", title=f"{attack.title}, by {who}", source=source,
            about=f"{attack.about} The attacker is {who}.",
            shown_by=attack.name if source == "other-user" else "",
        )
        for attack in attacks
    )  # fmt: skip


_FILE = replace(_FILE_ROOT, name="file", title="the file", outside=borrowed.file_as_is, about="Opens the file.")

_PROCESS = (
    _PROC_MEM, _PROC_MEM_BEFORE, _VM_READV, _PEEK, _GDB, _GCORE, _PROC_FD, _MAP_FILES, _GETFD, _GETFD_RACE,
    _GETFD_FUSE, _FILE_ROOT, _FILE_OWNER, _UPROBE, _BPF, _PERF_STACK, _INJECT, _INJECT_MEM, _ENVIRON, _CMDLINE, _LOG,
    *_as("same-user", _PROC_MEM, _PROC_MEM_BEFORE, _VM_READV, _PEEK, _PROC_FD, _GETFD, _INJECT),
    *_as("other-user", _PROC_MEM, _VM_READV, _GETFD, _ENVIRON),
    replace(_as("other-user", _FILE)[0], shown_by="file-as-root"),
)  # fmt: skip

_OWNER = (
    _inside(
        "vmsplice", "vmsplice(2)", "read", "refuses_pinning", inside.vmsplice,
        "Gives the page to a pipe without copying it, and reads the pipe.",
    ),
    _inside(
        "io-uring", "io_uring", "read", "refuses_pinning", inside.registered_buffer,
        "Registers the page as a buffer of io_uring, and lets the kernel write from it.",
    ),
    _inside(
        "o-direct", "O_DIRECT", "read", "refuses_pinning", inside.o_direct,
        "Writes the page to a file past the page cache, as a disk's driver takes it.",
    ),
    _inside(
        "write", "write(2)", "in-context", None, inside.plain_write,
        "Passes the address to write(2), as the owner may at any time.",
    ),
    _inside(
        "over-read", "over-read", "in-context", None, inside.over_read,
        "Reads on past the end of an object that lies in front.",
    ),
    _inside(
        "under-read", "under-read", "in-context", None, inside.under_read,
        "Reads back before the start of an object that lies behind.",
    ),
    replace(
        _inside(
            "use-after-free", "use after free", "residue", None, inside.use_after_free,
            "Reads the address after the memory was given back.",
        ),
        fresh=True,
    ),
    replace(
        _inside(
            "stale-view", "stale view", "residue", None, inside.stale_view,
            "Reads a view that was kept after the memory was given back.",
        ),
        fresh=True,
    ),
    replace(
        _inside(
            "freed-heap", "freed heap", "residue", None, inside.freed_heap,
            "Gives the memory back, and searches all memory of the process for pieces.",
        ),
        fresh=True,
    ),
    _inside(
        "fork", "fork", "inherit", "unforkable", inside.by_fork,
        "Forks, and reads the memory in the child.",
    ),
    _inside(
        "exec", "exec", "inherit", "no_descriptor", inside.by_exec,
        "Executes a program, which maps every descriptor that it was left.",
    ),
    Attack(
        "after-unlink", "after unlink", "owner", "residue", "root",
        "Removes the file, or frees the memory, and searches all memory of the process that held it for pieces.",
        "no_residue", outside=outside.leftovers, fresh=True,
    ),
)  # fmt: skip

_MACHINE = (
    _machine(
        "core-dump", "core dump", "read", "undumpable", machine.core_dump,
        "Ends the process with a signal, and searches the core that the kernel has written.",
    ),
    replace(
        _machine(
            "swap", "swap", "residue", "unswappable", swapping.swap,
            "Adds a swap file, squeezes the memory cgroup of the process until it is swapped, and searches the file.",
        ),
        grouped=True,
    ),
    replace(
        _machine(
            "kcore", "/proc/kcore", "read", "off_direct_map", machine.kcore,
            "Searches all physical memory through the kernel's direct map.",
        ),
        patience=600.0,
    ),
    replace(
        _machine(
            "kill", "kill -9", "residue", "cleared_by_kernel", machine.after_kill,
            "Kills the process, and searches all physical memory for what it held.",
        ),
        patience=600.0,
    ),
    replace(
        _machine(
            "page-cache", "page cache", "residue", "off_direct_map", machine.page_cache,
            "Lets a client read the file, and asks whether the kernel keeps it in its page cache.",
        ),
        apart_from=_NO_FILE,
    ),
)  # fmt: skip

TABLE: tuple[Attack, ...] = (*_PROCESS, *_OWNER, *_MACHINE)


@functools.cache
def named(name: str) -> Attack:
    """The row of that name."""
    return next(attack for attack in TABLE if attack.name == name)
