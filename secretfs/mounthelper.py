"""mount.fuse.secretfs: what mount(8) runs for `mount -t fuse.secretfs` and for a line in /etc/fstab.

Called as `mount.fuse.secretfs SOURCE DIR [-fnsvr] [-o OPTIONS]`; exit codes are those of mount(8). Options of
fstab that are not ours to act on are ignored; an unknown one is refused, because a misspelt `backend` must not pass.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from secretfs.errors import MountError, SecretFSError, UsageError
from secretfs.sizes import parse_mode, parse_size

__all__ = ["HELPER", "install", "main", "options_of"]

HELPER = "/sbin/mount.fuse.secretfs"
FAILED, WRONG_CALL = 32, 1
IGNORED = frozenset(
    [
        "defaults",
        "rw",
        "auto",
        "noauto",
        "user",
        "nouser",
        "users",
        "owner",
        "group",
        "nofail",
        "_netdev",
        "nosuid",
        "nodev",
        "dev",
        "suid",
        "exec",
        "async",
        "relatime",
        "atime",
        "diratime",
    ]
)
"""fstab's own words. dev and suid are among them because mount(8) adds them: ours are allow_dev and allow_suid."""
VALUES: dict[str, Callable[[str], Any]] = {
    "backend": str,
    "size": parse_size,
    "max_files": int,
    "mode": parse_mode,
}
FLAGS = frozenset({"allow_other", "allow_dev", "allow_suid", "cached", "force"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Mount as mount(8) asks, and return its exit code."""
    from secretfs.commands import mount_and_warn
    from secretfs.console import complain, open_streams

    open_streams()
    try:
        path, options, fake = _parsed(list(sys.argv[1:] if arguments is None else arguments))
        if not fake:
            mount_and_warn(path=path, **options)
    except UsageError as error:
        complain(error, name="mount.fuse.secretfs")
        return WRONG_CALL
    except SecretFSError as error:
        complain(error, name="mount.fuse.secretfs")
        return FAILED
    except OSError as error:
        complain(MountError((error.strerror or type(error).__name__).lower()), name="mount.fuse.secretfs")
        return FAILED
    return 0


def _parsed(arguments: list[str]) -> tuple[str, dict[str, Any], bool]:
    positional: list[str] = []
    options: dict[str, Any] = {}
    fake = False
    while arguments:
        word = arguments.pop(0)
        if word in ("-o", "-t", "-N"):
            if not arguments:
                raise UsageError(f"{word} needs a value")
            value = arguments.pop(0)
            options |= options_of(value) if word == "-o" else {}
        elif word.startswith("-") and set(word[1:]) <= set("fnsvrw"):
            fake |= "f" in word
        else:
            positional.append(word)
    if len(positional) != 2:
        raise UsageError("usage: mount.fuse.secretfs SOURCE DIR [-o OPTIONS]")
    return positional[1], options, fake


def options_of(text: str) -> dict[str, Any]:
    """The keyword arguments of MountOptions that a list of mount options stands for.

    Raises:
        UsageError: naming the unknown option, or the value that cannot be read.
    """
    found: dict[str, Any] = {}
    for word in filter(None, text.split(",")):
        name, given, value = word.partition("=")
        name = name.replace("-", "_")
        if name in VALUES and given:
            try:
                found[name] = VALUES[name](value)
            except ValueError as error:
                raise UsageError(f"the value of the mount option {word!r} cannot be read: {error}") from error
        elif name in FLAGS and not given:
            found[name] = True
        elif not (word in IGNORED or word.startswith(("x-", "X-", "comment=", "user="))):
            known = ", ".join(sorted((*VALUES, *FLAGS)))
            raise UsageError(f"unknown mount option {word!r}", hint=f"known are {known}")
    return found


def install(target: str = HELPER) -> str:
    """Write the helper that mount(8) looks for, and return its path. It names this Python by its absolute path.

    Raises:
        MountError: it cannot be written.
    """
    script = (
        f"#!{sys.executable} -I\n"
        '"""Mount a secretfs for mount(8). Written by `secretfs install-mount-helper`."""\n'
        "import sys\n\nfrom secretfs.mounthelper import main\n\nsys.exit(main())\n"
    )
    fresh = f"{target}.new"
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o755)
        with open(fd, "w", encoding="utf-8") as file:
            os.fchmod(fd, 0o755)
            file.write(script)
        os.replace(fresh, target)
    except OSError as error:
        raise MountError(
            f"{target!r} cannot be written: {os.strerror(error.errno or 0).lower()}",
            hint="run as root: sudo secretfs install-mount-helper",
        ) from error
    return target
