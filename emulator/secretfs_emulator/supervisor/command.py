"""The command `run`: reads its words (entry point group "secretfs.commands")."""

from __future__ import annotations

import argparse
import errno
import re
from typing import NoReturn

from secretfs.errors import UsageError
from secretfs_emulator.supervisor.failure import RunError, not_started
from secretfs_emulator.supervisor.options import Options

__all__ = ["command_line", "main"]

SUMMARY = "start a program with memfd_secret(2) emulated where the kernel has none, or taken away"

EXAMPLES = """\
examples:
  secretfs run -- ./server                          memfd_secret(2) works, whatever the kernel
  secretfs run --emulate --strict -- make check     emulated even where the kernel has it
  secretfs run --without -- make check              as on a kernel that lacks it
  secretfs run --fail-after 3 --errno EMFILE -- ./server
  secretfs run --limit-memlock 64K -- ./server      over that limit mmap fails with EAGAIN

exit codes: CMD's own, 128+N if signal N ended it; 125 it was not started, 126 it cannot be executed,
127 it does not exist. docs/run.md says what is emulated and what is not.
"""
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def main(words: list[str]) -> int:
    """secretfs run. Returns the exit code to end with."""
    from secretfs_emulator.supervisor.plan import carry_out

    try:
        return carry_out(read(words))
    except UsageError as error:
        raise RunError(str(error), hint=error.hint) from error
    except (OSError, MemoryError, RuntimeError) as error:
        raise not_started(error) from error


def read(words: list[str]) -> Options:
    """The options that the words mean.

    Raises:
        UsageError: they mean nothing.
    """
    asked = command_line().parse_args(words)
    command = asked.command[1:] if asked.command[:1] == ["--"] else asked.command
    if not command:
        raise UsageError("which command is to be started?", hint="secretfs run -- CMD…")
    succeed = asked.fail_after
    if succeed is None and asked.failure is not None and not asked.without:
        succeed = 0
    _contradictions(asked)
    return Options(
        tuple(command), asked.emulate, asked.without, asked.strict, asked.rfc2020, asked.backing,
        asked.memlock, succeed, asked.failure, asked.log, asked.stats,
    )  # fmt: skip


def _contradictions(asked: argparse.Namespace) -> None:
    emulation = [f"--{name}" for name in ("emulate", "strict", "rfc2020", "backing") if getattr(asked, name)]
    if asked.without and (emulation or asked.fail_after is not None):
        other = emulation[0] if emulation else "--fail-after"
        raise UsageError(f"--without and {other} contradict each other", hint="leave out one of them")


class _Parser(argparse.ArgumentParser):
    """Wrong words are an error of ours like any other: 125, since 2 may be CMD's."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint="secretfs run --help")


def command_line(*, add_help: bool = True) -> argparse.ArgumentParser:
    """The parser of its words."""
    parser = _Parser(
        "secretfs run", add_help=add_help, formatter_class=argparse.RawDescriptionHelpFormatter, epilog=EXAMPLES,
        description=f"{SUMMARY[0].upper()}{SUMMARY[1:]}.", allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--emulate", action="store_true", help="emulate also where the kernel has the call")
    parser.add_argument(
        "--without", action="store_true", help="as on a kernel that lacks the call: it fails with ENOSYS"
    )
    parser.add_argument(
        "--strict", action="store_true", help="also refuse secrets through /proc/PID/mem (each open takes 15 us longer)"
    )
    parser.add_argument("--rfc2020", action="store_true", help="also the interface of 2020: memfd_create(MFD_SECRET)")
    parser.add_argument(
        "--backing",
        choices=("tmpfs", "memfd"),
        help="what stands for secret memory; default: tmpfs for root, else memfd",
    )
    parser.add_argument("--limit-memlock", dest="memlock", type=_size, metavar="SIZE", help="RLIMIT_MEMLOCK of CMD")
    parser.add_argument(
        "--fail-after", type=_count, metavar="N", help="the first N calls of memfd_secret succeed, the others fail"
    )
    parser.add_argument(
        "--errno", dest="failure", type=_errno, metavar="NAME",
        help="with what they fail (default EMFILE); alone: all fail; with --without: instead of ENOSYS",
    )  # fmt: skip
    parser.add_argument("--log", metavar="FILE", help="write what is emulated, and each call that was answered")
    parser.add_argument("--stats", action="store_true", help="say on stderr at the end what was done")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="CMD…", help="the program and its arguments")
    return parser


def _size(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,18})([KMG]?)", text.strip().upper())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: give bytes, or a number with K, M or G")
    return int(match[1]) * _UNITS[match[2]]


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of calls from 0 to 999999999")
    return int(text)


def _errno(text: str) -> int:
    codes = {name: code for code, name in errno.errorcode.items()}
    if text.upper() not in codes:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not the name of an errno: give one such as EPERM, ENOSYS, EMFILE"
        )
    return codes[text.upper()]
