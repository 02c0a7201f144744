"""mount.fuse.secretfs: what mount(8) runs for `mount -t fuse.secretfs` and for a line in /etc/fstab.

Called as `mount.fuse.secretfs SOURCE DIR [-fnrsvw] [-o OPTIONS]`; exit codes are those of mount(8). Options of
fstab that are not ours to act on are ignored; an unknown one is refused, because a misspelt `backend` must not pass.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from secretfs.errors import MountError, SecretFSError, UsageError
from secretfs.sizes import parse_count, parse_microseconds, parse_mode, parse_size

__all__ = ["HELPER", "install", "main", "options_of"]

HELPER = "/sbin/mount.fuse.secretfs"
FAILED, WRONG_CALL = 32, 1
USAGE = "usage: mount.fuse.secretfs SOURCE DIR [-fnrsvw] [-o OPTIONS]"
IGNORED = frozenset({
    "defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "nofail", "_netdev", "nosuid", "nodev",
    "dev", "suid", "norelatime", "lazytime", "nolazytime", "iversion", "noiversion", "mand", "nomand", "silent",
    "loud",
})  # fmt: skip
"""Words of fstab's that ask for nothing that we do otherwise. dev and suid are among them because mount(8) adds them:
ours are allow_dev and allow_suid."""
SWITCHES = {
    "ro": ("ro", True),
    "rw": ("ro", False),
    "noexec": ("noexec", True),
    "exec": ("noexec", False),
    "sync": ("sync", True),
    "async": ("sync", False),
    "dirsync": ("dirsync", True),
    "nosymfollow": ("nosymfollow", True),
    "symfollow": ("nosymfollow", False),
    "noatime": ("noatime", True),
    "atime": ("noatime", False),
    "nodiratime": ("nodiratime", True),
    "diratime": ("nodiratime", False),
    "strictatime": ("strictatime", True),
    "nostrictatime": ("strictatime", False),
    "relatime": ("strictatime", False),
}
"""Words of fstab's that turn a flag of the mount on or off; the last one counts."""
VALUES: dict[str, Callable[[str], Any]] = {
    "backend": str,
    "size": parse_size,
    "max_files": parse_count,
    "mode": parse_mode,
    "spin": parse_microseconds,
}
FLAGS = frozenset({"allow_other", "allow_dev", "allow_suid", "cached", "force", "guard"})


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
    words: list[str] = []
    fake = False
    while arguments:
        word = arguments.pop(0)
        if word in ("-o", "-t", "-N"):
            if not arguments:
                raise UsageError(f"{word} needs a value", hint=USAGE)
            value = arguments.pop(0)
            words += [value] if word == "-o" else []
        elif word.startswith("-") and set(word[1:]) <= set("fnsvrw"):
            fake |= "f" in word
            words += [flag for letter, flag in (("r", "ro"), ("w", "rw")) if letter in word]
        else:
            positional.append(word)
    if len(positional) != 2 or "" in positional:
        raise UsageError("a source and a directory are needed", hint=USAGE)
    options = options_of(",".join(words))
    options["source"], path = positional  # `mount -a` knows by the source that a line is mounted already
    return path, options, fake


def options_of(text: str) -> dict[str, Any]:
    """The keyword arguments of MountOptions that a list of mount options stands for.

    Raises:
        UsageError: naming the unknown option, or the value that cannot be read.
    """
    found: dict[str, Any] = {}
    flags: dict[str, bool] = {}
    for word in filter(None, text.split(",")):
        name, given, value = word.partition("=")
        name = name.replace("-", "_")
        if name in VALUES and given:
            found[name] = _value(name, value, word)
        elif name in FLAGS and not given:
            found[name] = True
        elif word in SWITCHES:
            flag, on = SWITCHES[word]
            flags[flag] = on
        elif not (word in IGNORED or word.startswith(("x-", "X-", "comment=", "user="))):
            raise _unknown(word)
    if flags:
        found["flags"] = tuple(flag for flag, on in flags.items() if on)
    return found


def _value(name: str, value: str, word: str) -> Any:
    try:
        return VALUES[name](value)
    except ValueError as error:
        raise UsageError(
            f"the value of the mount option {word!r} cannot be read: {error}", hint="see `secretfs mount --help`"
        ) from error


def _unknown(word: str) -> UsageError:
    if word == "remount":
        return UsageError(
            "a secretfs cannot be changed while it is mounted",
            hint="umount and mount it again; ro and noexec alone: mount -i -o remount,ro DIR",
        )
    known = ", ".join(sorted((*VALUES, *FLAGS, *SWITCHES)))
    return UsageError(f"unknown mount option {word!r}", hint=f"known are {known}, and what fstab itself knows")


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
