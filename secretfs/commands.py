"""What each command does, given arguments that cli.py has read. A command returns its exit code or raises."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from typing import TYPE_CHECKING, Any

from secretfs import registry
from secretfs.console import note, warn
from secretfs.errors import MountError, MountpointError, NotMounted, SecretFSError, UsageError
from secretfs.quoting import one_line, printable
from secretfs.sizes import human_size

if TYPE_CHECKING:
    from secretfs.status import Unmounted

__all__ = [
    "audit",
    "backends",
    "completion",
    "install_mount_helper",
    "mount",
    "mount_and_warn",
    "status",
    "umount",
    "version",
]


def native() -> dict[str, bool | str]:
    """Native parts: True, or why they are missing and what brings them in."""
    from secretfs import preload
    from secretfs.native import shim_state  # 3 MiB: a cgroup that a mount has filled has few left

    return {"shim": shim_state(), "preload": preload.state()}


def mount(arguments: argparse.Namespace) -> int:
    """secretfs mount."""
    words = {name: value for name, value in vars(arguments).items() if name not in ("command", "run", "foreground")}
    if not arguments.foreground:
        mount_and_warn(**words)
        return 0
    from secretfs.mount import mount_foreground

    return mount_foreground(_options(words), _tell)


def mount_and_warn(**words: Any) -> None:
    """Mount in the background; say what is not guaranteed."""
    from secretfs.mount import mount_detached

    _tell(mount_detached(_options(words)))


def _options(words: dict[str, Any]) -> Any:
    import os

    from secretfs.daemon import MountOptions

    if os.geteuid() != 0 and (words.get("allow_dev") or words.get("allow_suid")):
        raise UsageError("only root may use --allow-dev and --allow-suid", hint="leave them out, or mount as root")
    try:
        path = os.path.abspath(words.pop("path"))
    except OSError as error:
        raise MountpointError(
            "the working directory does not exist any more", hint="cd elsewhere, or name the mountpoint from / on"
        ) from error
    return MountOptions(path, **words)


def _tell(summary: dict[str, Any]) -> None:
    for message, hint in summary["warnings"]:
        warn(message, hint)
    note(f"mounted on {summary['mountpoint']} ({summary['backend']}); all in it is gone at umount and reboot")


def umount(arguments: argparse.Namespace) -> int:
    """secretfs umount."""
    from secretfs.status import unmount

    done = unmount(arguments.path, lazy=arguments.lazy)
    print(f"secretfs: {_unmounted_text(done)}", file=sys.stderr)
    return 0


def _unmounted_text(done: Unmounted) -> str:
    if done.daemon_was_dead:
        return "cleared a mount whose daemon was dead; its files were gone already"
    if done.files is None:
        return (
            "unmounted, but its daemon does not answer: its files will be destroyed when that ends (kill it:"
            " `pgrep -af secretfs` lists it)"
        )
    files, them = (f"{done.files} files", "them") if done.files != 1 else ("1 file", "it")
    return f"{files} {'destroyed' if done.wiped else f'will be destroyed when what uses {them} is closed'}"


def status(arguments: argparse.Namespace) -> int:
    """secretfs status: one mount, or all of the caller's."""
    from secretfs import mountinfo
    from secretfs.status import status_of, visible_mounts

    if arguments.path is None:
        chosen = visible_mounts()
    else:
        found = mountinfo.find(arguments.path)
        if found is None:
            raise NotMounted(
                f"no secretfs is mounted on {arguments.path!r}", hint="`secretfs status` lists what is mounted"
            )
        chosen = [found]
    answers, code = [], 0
    for one in chosen:
        try:
            answers.append(status_of(one))
        except MountError as error:
            if arguments.path is not None:
                raise
            warn(str(error), error.hint)
            code = 1
    if arguments.json:
        print(json.dumps({"version": 1, "mounts": answers}))
    else:
        text = "\n\n".join(_status_text(answer) for answer in answers)
        if text or not chosen:
            print(text or "no secretfs is mounted")
    return code


def _status_text(answer: dict[str, Any]) -> str:
    limit = answer["lock_limit"]
    held = [name for name, holds in answer["guarantees"].items() if holds]
    missing = [name for name, holds in answer["guarantees"].items() if not holds]
    shim = answer["native"]["shim"]
    locked, size = human_size(answer["locked_bytes"]), human_size(answer["size"])
    rows = {
        "backend": f"{answer['backend']} (policy {answer['policy']})",
        "guaranteed": ", ".join(held) or "nothing",
        "not guaranteed": ", ".join(missing) or "-",
        "lost": ", ".join(answer["lost"]) or "-",
        "files": f"{answer['files']} of {answer['files_limit']}",
        "data": f"{human_size(answer['bytes'])} of {size}",
        "locked memory": f"{locked}, limit {'none' if limit is None else human_size(limit)}",
        "owner": f"uid {answer['uid']}",
        "native shim": "yes" if shim is True else f"no: {shim}",
    }
    return "\n".join([printable(answer["mountpoint"]), *(f"  {name + ':':<16}{value}" for name, value in rows.items())])


def backends(arguments: argparse.Namespace) -> int:
    """secretfs backends."""
    try:
        chosen: str | None = registry.choose().backend.name
    except SecretFSError:
        chosen = None
    rows = [
        {
            "name": one.name,
            "usable": one.usable,
            "chosen": one.name == chosen,
            "reason": one.reason,
            "hint": one.hint,
            "guarantees": one.guarantees.as_dict(),
        }
        for one in registry.candidates()
    ]
    if arguments.json:
        print(json.dumps({"version": 1, "backends": rows, "native": native()}))
        return 0
    for row in rows:
        print(_backend_text(row))
    for part, state in native().items():
        print(f"native {part}: {'built' if state is True else state}")
    return 0


def _backend_text(row: dict[str, Any]) -> str:
    state = f"not usable: {one_line(row['reason'])}"
    if row["usable"]:
        state = "usable, chosen" if row["chosen"] else "usable"
    held = [name for name, holds in row["guarantees"].items() if holds]
    lines = [f"{row['name']}: {state}", f"  guarantees: {', '.join(held) or 'nothing'}"]
    return "\n".join(lines + ([f"  remedy: {one_line(row['hint'])}"] if row["hint"] else []))


def audit(arguments: argparse.Namespace) -> int:
    """secretfs audit."""
    from secretfs.audit.command import main

    return main(as_json=arguments.json, html=arguments.html, machine=arguments.machine, guard=arguments.guard)


def install_mount_helper(arguments: argparse.Namespace) -> int:
    """secretfs install-mount-helper."""
    from secretfs.mounthelper import install

    print(install())
    return 0


def completion(arguments: argparse.Namespace) -> int:
    """secretfs completion SHELL."""
    try:
        import shtab
    except ImportError as error:
        raise UsageError(
            "completion scripts are made by shtab, which is missing", hint=f"{sys.executable} -m pip install shtab"
        ) from error
    if arguments.shell not in shtab.SUPPORTED_SHELLS:
        raise UsageError(
            f"this version of shtab knows no {arguments.shell}", hint=f"{sys.executable} -m pip install --upgrade shtab"
        )
    from secretfs.cli import build_parser

    print(shtab.complete(build_parser(), shell=arguments.shell))
    return 0


def version() -> str:
    """The line that `secretfs --version` prints."""
    from secretfs import __version__

    try:
        backend = registry.choose().backend.name
    except SecretFSError:
        backend = "none"
    parts = ", ".join(f"{part} {'yes' if state is True else 'no'}" for part, state in native().items())
    return (
        f"secretfs {__version__} (backend {backend}; native parts: {parts}; libfuse {_libfuse()};"
        f" Python {platform.python_version()}; Linux {platform.release()})"
    )


def _libfuse() -> str:
    import ctypes

    for name in ("libfuse3.so.3", "libfuse3.so.4"):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.fuse_pkgversion.restype = ctypes.c_char_p
        found: bytes = library.fuse_pkgversion()
        return found.decode()
    return "not installed"
