"""The command `secretfs`: reads arguments, calls a command, turns an error into two lines and an exit code.

A distribution may add commands through the entry point group "secretfs.commands" (name -> main(argv) -> int).
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from secretfs import commands, preload
from secretfs.console import complain, discard_output, open_streams
from secretfs.errors import SecretFSError, UsageError
from secretfs.sizes import parse_count, parse_microseconds, parse_mode, parse_size

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["build_parser", "main"]

ENTRY_POINTS = "secretfs.commands"
_BROKEN = "the system may be out of memory or descriptors; if not, install memfd-secretfs again"
T = TypeVar("T")

DESCRIPTION = (
    "Keep secrets in memory that is out of reach: files in a mount, on memfd_secret(2) where the kernel has it."
)
EXAMPLES = """\
examples:
  secretfs mount ~/keys                       mount on the empty directory ~/keys
  openssl genpkey -algorithm ed25519 -out ~/keys/key.pem
  secretfs status                             what is mounted, and what it promises
  secretfs umount ~/keys                      destroy everything in it
  secretfs backends                           what this machine can promise, and how to get more

exit codes:
  0 done   1 failed   2 usage   3 backend unavailable   4 mountpoint unusable   5 FUSE unavailable
  6 busy   7 nothing mounted there   8 lock, cgroup or size limit
"""
MOUNT_EXAMPLES = """\
Everything in a mount is gone at umount and at reboot: keep another copy of what you cannot make again.

examples:
  secretfs mount ~/keys
  secretfs mount --backend kernel --size 64M /run/keys     fail rather than fall back to ordinary locked memory
  secretfs mount --foreground /run/keys                    for a service manager
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    open_streams()
    try:
        if words[:1] == ["preload"]:  # its words are for another program, and no parser of ours may read them
            return _preload(words[1:])
        foreign = _foreign_command(words)
        if foreign is not None:
            return _run_foreign(foreign, words[1:])
        parser = build_parser(foreign=not words or words[0] == "completion" or words[0] not in OURS)
        parsed = parser.parse_args(words)
        if parsed.run is None:
            parser.error(f"which command? there are {', '.join(OURS)}")
        code: int = parsed.run(parsed)
        sys.stdout.flush()
        return code
    except SecretFSError as error:
        complain(error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        discard_output()
        return 1
    except OSError as error:
        complain(_system_error(error))
        discard_output()
        return 1
    except ImportError as error:  # of what is imported only where it is needed
        complain(SecretFSError(f"a part of secretfs cannot be loaded: {error}", hint=_BROKEN))
        return 1
    except MemoryError:
        complain(_system_error(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))))
        return 1


def _system_error(error: OSError) -> SecretFSError:
    """What no layer below has expected: a full disk under stdout, no descriptor left, and the like."""
    what = (error.strerror or type(error).__name__).lower()
    if error.errno in (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN):
        what = f"the system is out of resources: {what}"
    return SecretFSError(f"{what}: {error.filename!r}" if error.filename else what)


def build_parser(*, foreign: bool = True) -> argparse.ArgumentParser:
    """The parser of the whole command line; `foreign`: also of the commands that come by entry points, which takes
    longer, and which main() runs itself: here they are for help and completion.
    """
    parser = _Parser(
        "secretfs", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action=_Version, help="show versions, the backend in force and native parts")
    parser.set_defaults(run=None)
    every = parser.add_subparsers(dest="command", metavar="COMMAND")  # required would come before unknown options
    _add_mount(every)
    umount = _add(every, "umount", commands.umount, "unmount, and destroy what is in it")
    _directory(umount, "the mountpoint")
    umount.add_argument(
        "--lazy", action="store_true", help="also when files are open (destroyed once closed) or the daemon is stuck"
    )
    status = _add(every, "status", commands.status, "what is mounted, and what it promises")
    _directory(status, "one mountpoint; default: all that are yours", optional=True)
    status.add_argument("--json", action="store_true", help="one JSON object for programs")
    backends = _add(every, "backends", commands.backends, "which backends work here, and what would make others work")
    backends.add_argument("--json", action="store_true", help="one JSON object for programs")
    _add(
        every,
        "install-mount-helper",
        commands.install_mount_helper,
        "make `mount -t fuse.secretfs` and fstab work (root)",
    )
    about = "start a program with its keys' memory in secret memory"
    parents: Any = [preload.command_line(add_help=False)]
    every.add_parser("preload", help=about, parents=parents)  # run by main() itself
    audit = _add(every, "audit", commands.audit, "attack secrets of its own on this machine, and show what held")
    audit.add_argument("--json", action="store_true", help="one JSON object for programs")
    audit.add_argument("--html", metavar="FILE", help="write a report for a browser, or for printing")
    audit.add_argument(
        "--machine", action="store_true", help="also a core dump, swap, /proc/kcore: changes settings for a moment"
    )
    audit.add_argument("--guard", action="store_true", help="attack a mount that was made with --guard")
    if foreign:
        _add_foreign(every)
    completion = _add(every, "completion", commands.completion, "print a completion script for a shell")
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh", "fish"), help="the shell")
    return parser


class _Parser(argparse.ArgumentParser):
    """argparse with our way of complaining, and of writing: what cannot be written is an error inside `main`."""

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        sys.stdout.flush()
        super().exit(status, message)

    def error(self, message: str) -> NoReturn:
        complain(UsageError(message, hint=f"{self.prog} --help"))
        raise SystemExit(UsageError.exit_code)


def _add_mount(every: Any) -> None:
    mount = _add(every, "mount", commands.mount, "mount a secretfs on an empty directory", epilog=MOUNT_EXAMPLES)
    _directory(mount, "an empty directory")
    mount.add_argument("--backend", metavar="B", help="auto (default), kernel, emulator, or the name of a plug-in")
    mount.add_argument(
        "--size", type=_read(parse_size), metavar="SIZE", help="room for file data (default 16M, or what may be locked)"
    )
    mount.add_argument("--max-files", type=_read(parse_count), metavar="N", help="how many files there may be")
    mount.add_argument(
        "--mode", type=_read(parse_mode), default=0o700, metavar="MODE", help="permissions of the root (default 0700)"
    )
    mount.add_argument("--allow-other", action="store_true", help="let other users in, as far as file modes allow")
    mount.add_argument("--allow-dev", action="store_true", help="honour device nodes (root only)")
    mount.add_argument("--allow-suid", action="store_true", help="honour set-user-ID bits (root only)")
    mount.add_argument(
        "--cached", action="store_true", help="allow shared mmap: plaintext then is in the page cache too"
    )
    mount.add_argument(
        "--spin", type=_read(parse_microseconds), metavar="US", help="how long to poll after a request (default 50)"
    )
    mount.add_argument(
        "--force", action="store_true", help="accept a mountpoint that is not empty, or not safe from others"
    )
    mount.add_argument(
        "--guard", action="store_true", help="let nobody trace the daemon, root included (no gdb, strace, py-spy)"
    )
    mount.add_argument("--foreground", action="store_true", help="stay, log to stderr, end at SIGTERM or Ctrl-C")


def _add(
    every: Any, name: str, run: Callable[[argparse.Namespace], int], summary: str, *, epilog: str | None = None
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = every.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:] + ".", epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.set_defaults(run=run)
    return parser


def _directory(parser: argparse.ArgumentParser, text: str, *, optional: bool = False) -> None:
    argument: Any = parser.add_argument(
        "path", metavar="DIR", type=_read(_directory_name), help=text, nargs="?" if optional else None
    )
    argument.complete = {
        "bash": "_shtab_compgen_dirs",
        "zsh": "_files -/",
        "tcsh": "d",
        "fish": "(__fish_complete_directories)",
    }


def _directory_name(text: str) -> str:
    if not text:
        raise ValueError("the name of a directory is needed, and this one is empty: an unset variable?")
    return text


def _read(parse: Callable[[str], T]) -> Callable[[str], T]:
    """argparse hides the message of a ValueError; this one shows it."""

    def read(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def _add_foreign(every: Any) -> None:
    """Commands by entry points. A module with such a command may have `command_line(add_help)`, its parser."""
    from importlib.metadata import entry_points

    for command in entry_points(group=ENTRY_POINTS):
        if command.name not in OURS:
            try:
                line = sys.modules[command.load().__module__].command_line(add_help=False)
                every.add_parser(command.name, help=_lowered(line.description), parents=[line])
            except (Exception, SystemExit):  # noqa: BLE001 - a broken one says so when it is run
                every.add_parser(command.name, help=f"({command.value})")


def _lowered(sentence: str) -> str:
    return f"{sentence[:1].lower()}{sentence[1:]}".rstrip(".")


class _Version(argparse.Action):
    """--version asks for the backend in force, which takes a probe: only when it is wanted."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(commands.version())
        parser.exit()


def _preload(words: list[str]) -> int:
    try:
        return preload.main(words)
    except UsageError as error:
        complain(error)
        return preload.FAILED


def _foreign_command(words: list[str]) -> EntryPoint | None:
    """The command that another distribution brings, if the first word names one and none of ours does."""
    if not words or words[0].startswith("-") or words[0] in OURS:
        return None
    from importlib.metadata import entry_points

    return next(iter(entry_points(group=ENTRY_POINTS, name=words[0])), None)


def _run_foreign(command: EntryPoint, words: list[str]) -> int:
    """Run a stranger's `main`. What it raises beside our errors and the system's becomes one sentence."""
    try:
        found: Callable[[list[str]], int] = command.load()
    except (Exception, SystemExit) as error:
        raise _broken(command, "cannot be loaded", error) from error
    try:
        return found(words)
    except (SecretFSError, OSError):
        raise
    except Exception as error:
        raise _broken(command, "failed", error) from error


def _broken(command: EntryPoint, how: str, error: BaseException) -> SecretFSError:
    owner = command.dist.name if command.dist else "the distribution"
    return SecretFSError(
        f"the command {command.name!r} ({command.value}) {how}: {type(error).__name__}: {error}",
        hint=f"repair or uninstall {owner}, which brings it",
    )


OURS = ("mount", "umount", "status", "backends", "install-mount-helper", "completion", "preload", "audit")
