#!/usr/bin/env python3
"""Boots a packaged kernel in QEMU, without KVM, with this project inside, and runs one script there.

    lab.py [--kernel 6.1] [--append secretmem.enable=1] [--file FILE] [--memory 384] [--disk 0] [--timeout 300]
           -- SCRIPT [ARG...]

SCRIPT is a file with a `#!` line: sh and Python are there, the command secretfs, and what this folder's C programs do.
What it prints is printed here, its exit code is the exit code here; its standard error and the kernel's messages come
on standard error. Run it with the Python that has the project (make lab shows how): its wheel is what is tested.
Exit codes of its own: 124 the time was over, 125 the guest ended by itself, 77 not run, because something cannot be
downloaded.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import image

__all__ = ["Result", "boot", "main"]

QEMU = "qemu-system-x86_64"
CPU = "qemu64,-cx16"
"""QEMU 7.2's cmpxchg16b loses the flags now and then, and 6.12 dies of it in one boot of five."""
WORDS = ("console=ttyS0", "quiet", "oops=panic", "panic=-1")
ENDED_BY_ITSELF, TIME_OVER, NOT_RUN = 125, 124, 77


@dataclass(frozen=True)
class Result:
    """How a script ended in its guest. `code` may be 124 or 125 as well, see above."""

    code: int
    output: str
    console: str
    """The kernel's messages, and the script's standard error."""
    package: str
    """The kernel's package."""
    booted: float
    """Seconds until the script began."""
    took: float
    """Seconds until QEMU had ended."""


def boot(
    kernel: str,
    script: Path,
    *arguments: str,
    append: Sequence[str] = (),
    files: Sequence[Path] = (),
    more: Sequence[str] = (),
    memory: int = 384,
    disk: int = 0,
    timeout: float = 300.0,
) -> Result:
    """Run `script` in a guest.

    Args:
        kernel: a name in image.KERNELS.
        script: an executable text; it becomes /lab/script.
        arguments: the script's.
        append: more words for the kernel's command line.
        files: more files for the guest, into /lab.
        more: distributions of this Python's environment that the guest has, too.
        memory: the guest's, in MiB.
        disk: that of a disk for the guest's /var/tmp, in MiB, if it is to have one.
        timeout: seconds.

    Raises:
        image.NotRun: the kernel, or what else the guest consists of, cannot be downloaded.
    """
    chosen, base = image.kernel(kernel), image.base()
    token = secrets.token_hex(8)
    with tempfile.TemporaryDirectory(prefix="secretfs-lab-") as name:
        folder = Path(name)
        overlay = image.overlay(folder, script, arguments, files, chosen.modules, token, more)
        with (folder / "initrd").open("wb") as initrd:
            for part in (base, overlay):
                with part.open("rb") as archive:
                    shutil.copyfileobj(archive, initrd, 1 << 20)
        command = [
            QEMU, "-accel", "tcg", "-cpu", CPU, "-m", str(memory), "-nodefaults", "-no-user-config", "-no-reboot",
            "-display", "none", "-serial", f"file:{folder}/console", "-serial", "stdio", "-kernel", str(chosen.image),
            "-initrd", str(folder / "initrd"), "-append", " ".join((*WORDS, *append)),
        ]  # fmt: skip
        if disk:
            (folder / "disk").touch()
            os.truncate(folder / "disk", disk << 20)
            command += ["-drive", f"file={folder}/disk,if=virtio,format=raw,cache=unsafe"]
        output, booted, took, in_time = _converse(command, token, timeout)
        console = (folder / "console").read_text(encoding="utf-8", errors="replace")
    text, found, end = output.rpartition(f"{token} exit ")
    code = int(end) if found else ENDED_BY_ITSELF if in_time else TIME_OVER
    return Result(code, text if found else output, console, chosen.package, booted, took)


def _converse(command: list[str], token: str, timeout: float) -> tuple[str, float, float, bool]:
    """Run QEMU: what came on the second serial line, seconds until its first line, seconds in all, whether in time."""
    began = time.monotonic()
    booted, lines, killed = 0.0, [], threading.Event()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:

        def kill() -> None:
            killed.set()
            process.kill()

        watchdog = threading.Timer(timeout, kill)
        watchdog.start()
        assert process.stdout is not None
        for line in process.stdout:
            if not booted and line.decode("utf-8", "replace") == f"{token} up\n":
                booted = time.monotonic() - began
            else:
                lines.append(line)
        process.wait()
        watchdog.cancel()
    return b"".join(lines).decode("utf-8", "replace"), booted, time.monotonic() - began, not killed.is_set()


def main(words: Sequence[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser("lab.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kernel", choices=list(image.KERNELS), default="6.1")
    parser.add_argument("--append", action="append", default=[], metavar="WORD", help="for the kernel's command line")
    parser.add_argument("--file", action="append", default=[], type=Path, metavar="FILE", help="put it into /lab")
    parser.add_argument("--memory", type=int, default=384, metavar="MIB")
    parser.add_argument("--disk", type=int, default=0, metavar="MIB", help="a disk of that size, on /var/tmp")
    parser.add_argument("--timeout", type=float, default=300.0, metavar="SECONDS")
    parser.add_argument("script", type=Path)
    parser.add_argument("arguments", nargs="*")
    asked = parser.parse_args(words)
    try:
        result = boot(
            asked.kernel, asked.script, *asked.arguments, append=asked.append, files=asked.file, memory=asked.memory,
            disk=asked.disk, timeout=asked.timeout,
        )  # fmt: skip
    except image.NotRun as error:
        print(f"lab.py: not run: {error}", file=sys.stderr)
        return NOT_RUN
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        print(f"lab.py: {error}", file=sys.stderr)
        return 1
    sys.stderr.write(result.console)
    print(f"lab.py: {result.package}: booted in {result.booted:.1f} s, {result.took:.1f} s in all", file=sys.stderr)
    sys.stdout.write(result.output)
    return result.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
