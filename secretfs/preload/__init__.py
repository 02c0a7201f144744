"""The preload library and its launcher: `secretfs preload`.

The library does the work (config.c and its neighbours say how); this finds it, says what cannot work before anything is
started, sets the environment that it reads, and becomes the command.
"""

from __future__ import annotations

import argparse
import mmap
import os
import shlex
import shutil
import signal
import stat
import struct
import sys
from typing import NoReturn

from secretfs import libc
from secretfs.errors import SecretFSError, UsageError

__all__ = ["LIBRARY", "TOOLKITS", "command_line", "main", "state"]

FOLDER = os.path.dirname(__file__)
LIBRARY = os.path.join(FOLDER, "libsecretfs-preload.so")
TOOLKITS = ("all", "openssl", "libsodium", "gcrypt", "gnutls")
BACKENDS = ("auto", "kernel", "emulator")
FAILED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127
NOT_BUILT = "not built: apt-get install gcc libc6-dev, then install memfd-secretfs again"
_PT_INTERP = 3

EXAMPLES = """\
examples:
  secretfs preload -- nginx -g 'daemon off;'
  secretfs preload --backend kernel --report -- /usr/sbin/sshd -D
  LD_PRELOAD=$(secretfs preload --print-library) nginx      the same without this command

The library reads SECRETFS_BACKEND, SECRETFS_PRELOAD_TOOLKIT, SECRETFS_PRELOAD_EXHAUSTED=abort|fallback,
SECRETFS_PRELOAD_REPORT=FILE and SECRETFS_PRELOAD_CHILDREN=0|1. docs/preload.md says what each does.

exit codes: CMD's own; 125 it could not be started protected, 126 it cannot be executed, 127 it does not exist
"""


class PreloadError(SecretFSError):
    """CMD cannot be started with the library; the exit code says which way."""

    def __init__(self, message: str, *, hint: str = "", exit_code: int = FAILED) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


def state() -> bool | str:
    """True if the library is there, or why not."""
    return True if os.path.exists(LIBRARY) else NOT_BUILT


def main(words: list[str]) -> int:
    """secretfs preload. Returns only if there is nothing to start, or it cannot be started."""
    asked = command_line().parse_args(words)
    if asked.print_library or asked.print_pkgconfig:
        _require_library()
        print(LIBRARY if asked.print_library else _pkgconfig())
        return 0
    command = asked.command[1:] if asked.command[:1] == ["--"] else asked.command
    if not command:
        raise UsageError("which command is to be started?", hint="secretfs preload -- CMD…")
    _require_library()
    try:
        program = _find(command[0])
        _inspect(program)
        _become(program, command, _environment(asked))
    except (OSError, MemoryError) as error:
        what = (getattr(error, "strerror", None) or "out of memory").lower()
        raise PreloadError(f"{command[0]!r} could not be started: {what}") from error


class _Parser(argparse.ArgumentParser):
    """Wrong words are an error of ours like any other: 125, since 2 may be CMD's."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint="secretfs preload --help")


def command_line(*, add_help: bool = True) -> argparse.ArgumentParser:
    """The parser of its arguments."""
    parser = _Parser(
        "secretfs preload", add_help=add_help, formatter_class=argparse.RawDescriptionHelpFormatter, epilog=EXAMPLES,
        description="Start a program with its cryptographic libraries' memory in secret memory.",
    )  # fmt: skip
    parser.add_argument("--backend", choices=BACKENDS, help="auto (default), kernel (never without), or emulator")
    parser.add_argument("--toolkit", metavar="LIST", help="all (default), or of openssl,libsodium,gcrypt,gnutls")
    parser.add_argument("--report", action="store_true", help="say on stderr at the end what was protected")
    parser.add_argument("--print-library", action="store_true", help="print the path of the library, for LD_PRELOAD")
    parser.add_argument("--print-pkgconfig", action="store_true", help="print the folder for PKG_CONFIG_PATH (C API)")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="CMD…", help="the program and its arguments")
    return parser


def _require_library() -> None:
    found = state()
    if found is not True:
        raise PreloadError(f"the preload library is {found}")


def _environment(asked: argparse.Namespace) -> dict[str, str]:
    environment = {os.fsdecode(name): os.fsdecode(value) for name, value in libc.original_environment().items()}
    if asked.backend is not None:
        tightened = asked.backend == "auto" and environment.get("SECRETFS_BACKEND") == "kernel"
        environment["SECRETFS_BACKEND"] = "kernel" if tightened else asked.backend
    if asked.toolkit is not None:
        unknown = [word for word in asked.toolkit.split(",") if word not in TOOLKITS]
        if unknown:
            raise UsageError(f"there is no toolkit {unknown[0]!r}", hint=f"use some of: {', '.join(TOOLKITS)}")
        environment["SECRETFS_PRELOAD_TOOLKIT"] = asked.toolkit
    if asked.report:
        environment["SECRETFS_PRELOAD_REPORT"] = "/dev/stderr"
    others = [path for path in environment.get("LD_PRELOAD", "").split(":") if path and path != LIBRARY]
    environment["LD_PRELOAD"] = ":".join([LIBRARY, *others])
    return environment


def _find(name: str) -> str:
    """The path of a program, as execvp(3) would find it."""
    found = name if "/" in name else shutil.which(name, mode=os.F_OK)
    if found is None or not os.path.exists(found):
        raise PreloadError(f"there is no program {name!r}", exit_code=NOT_FOUND)
    if os.path.isdir(found) or not os.access(found, os.X_OK):
        raise PreloadError(
            f"{name!r} cannot be executed", hint=f"chmod +x {shlex.quote(found)}", exit_code=NOT_EXECUTABLE
        )
    return found


def _inspect(program: str) -> None:
    """Refuse what nothing can be preloaded for; say where only a part can be reached."""
    about = os.stat(program)
    changes_user = about.st_mode & stat.S_ISUID and about.st_uid != os.geteuid()
    if os.geteuid() != 0 and (changes_user or about.st_mode & stat.S_ISGID):
        raise PreloadError(
            f"{program!r} is set-user-ID or set-group-ID: the dynamic linker preloads nothing into it",
            hint="start it as the user that it becomes, or run it without `secretfs preload`",
        )
    if _is_static(program):
        raise PreloadError(
            f"{program!r} is statically linked: nothing can be preloaded into it",
            hint="use a dynamically linked build, or keep its keys in a mount (`secretfs mount`)",
        )


def _is_static(program: str) -> bool:
    """Whether it is an ELF file without a dynamic linker; a script is not, and what counts is its interpreter."""
    try:
        with open(program, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as image:
            return image[:4] == b"\x7fELF" and not _has_interpreter(image)
    except (OSError, ValueError, struct.error):
        return False  # not to be read, or empty, or cut off: execve(2) says what is wrong


def _has_interpreter(image: mmap.mmap) -> bool:
    """Whether an ELF file asks for a dynamic linker (elf(5), PT_INTERP)."""
    wide = image[4] == 2  # ELFCLASS64
    offset, size, count = (
        (*struct.unpack_from("<Q", image, 32), *struct.unpack_from("<HH", image, 54))
        if wide
        else (*struct.unpack_from("<I", image, 28), *struct.unpack_from("<HH", image, 42))
    )
    return any(struct.unpack_from("<I", image, offset + n * size)[0] == _PT_INTERP for n in range(count))


def _pkgconfig() -> str:
    """The folder with secretfs.pc, which says where header and library are, wherever this is installed."""
    path = os.path.join(FOLDER, "secretfs.pc")
    if not os.path.exists(path):
        raise PreloadError(f"{path!r} is missing", hint="install memfd-secretfs again")
    return FOLDER


def _become(program: str, command: list[str], environment: dict[str, str]) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored_by_python, signal.SIG_DFL)
    try:
        os.execve(program, command, environment)  # noqa: S606 - becoming the command is what this is for
    except OSError as error:
        what = (error.strerror or "it failed").lower()
        raise PreloadError(f"{program!r} cannot be executed: {what}", exit_code=NOT_EXECUTABLE) from error
