"""The guests that the tests ask, and that docs/lab.md tells of: which kernel, how it is booted, what runs there."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lab

__all__ = ["AUDITED", "BOOTS", "CLEARING", "EMULATED", "LOCKED_DOWN", "SECRET", "SWAPPED", "Answer", "Boot", "Boots"]

HERE = Path(__file__).resolve().parent
PATIENCE = 900.0
"""Seconds for one guest; half a minute is usual."""


@dataclass(frozen=True)
class Boot:
    """A kernel of image.KERNELS with words on its command line, and a script of this folder with its arguments."""

    kernel: str
    append: tuple[str, ...]
    script: str
    arguments: tuple[str, ...] = ()
    probe: bool = False
    """Whether /lab/probe is wanted: the program that observes memfd_secret(2)."""
    files: tuple[Path, ...] = ()
    more: tuple[str, ...] = ()
    """Distributions that its script needs beside the project's."""
    disk: int = 0
    """MiB of a disk on /var/tmp, where a swap file can be."""

    def run(self) -> Answer:
        """Boot it, and return what the script has printed as JSON.

        Raises:
            RuntimeError: the script failed.
            image.NotRun: the kernel cannot be downloaded.
        """
        with tempfile.TemporaryDirectory(prefix="secretfs-probe-") as folder:
            result = lab.boot(
                self.kernel, HERE / self.script, *self.arguments, append=self.append,
                files=[*self.files, *([_probe(Path(folder))] if self.probe else [])], more=self.more, disk=self.disk,
                timeout=PATIENCE,
            )  # fmt: skip
        if result.code != 0:
            raise RuntimeError(f"{self.script} ended with {result.code} on {result.package}:\n{result.console}")
        return Answer(json.loads(result.output), result)


def _probe(folder: Path) -> Path:
    sources = sorted((HERE.parent / "secretprobe").glob("*.c"))
    subprocess.run(["gcc", "-static", "-O1", "-o", folder / "probe", *sources, "-pthread"], check=True)
    return folder / "probe"


@dataclass(frozen=True)
class Answer:
    """What a guest has told."""

    told: Any
    result: lab.Result


_AUDIT, _SWAP = "guest_audit.py", "guest_swap.py"
_DISK = 128
_TRACING = ("uprobe", "bpf-probe-read-user", "perf-stack", "kcore")
_PYTEST = ("pytest", "pluggy", "iniconfig", "packaging", "pygments")
_BACKENDS = ("guest_backends.py", (), False, (HERE.parent / "test_t1_backends.py",), _PYTEST)
_MEMORY, _ENABLE, _CLEAR = "guest_memory.py", "secretmem.enable=1", "init_on_free=1"
BOOTS = {
    "6.1-backends": Boot("6.1", (), *_BACKENDS),
    "6.1-secretmem-backends": Boot("6.1", (_ENABLE,), *_BACKENDS),
    "6.12-backends": Boot("6.12", (), *_BACKENDS),
    "6.1-fallback": Boot("6.1", (), "guest_stock.py"),
    "6.1": Boot("6.1", (), _MEMORY, ("emulator",)),
    "6.1-secretmem": Boot("6.1", (_ENABLE,), _MEMORY, ("kernel",)),
    "6.1-secretmem-init_on_free": Boot("6.1", (_ENABLE, _CLEAR), _MEMORY, ("kernel",)),
    "6.1-probe": Boot("6.1", (), "guest_run.py", ("run",), probe=True),
    "6.12": Boot("6.12", (), _MEMORY, ("kernel",)),
    "6.12-probe": Boot("6.12", (), "guest_run.py", ("native",), probe=True),
    "6.12-init_on_free": Boot("6.12", (_CLEAR,), _MEMORY, ("kernel",)),
    "6.1-audit": Boot("6.1", (), _AUDIT, disk=_DISK),
    "6.1-secretmem-audit": Boot("6.1", (_ENABLE,), _AUDIT, disk=_DISK),
    "6.12-audit": Boot("6.12", (), _AUDIT, disk=_DISK),
    "6.12-lockdown": Boot("6.12", ("lockdown=confidentiality",), _AUDIT, _TRACING),
    "6.1-swap": Boot("6.1", (), _SWAP, disk=_DISK),
    "6.1-secretmem-swap": Boot("6.1", (_ENABLE,), _SWAP, disk=_DISK),
    "6.12-swap": Boot("6.12", (), _SWAP, disk=_DISK),
}
EMULATED = [name for name, boot in BOOTS.items() if boot.arguments == ("emulator",)]
SECRET = [name for name, boot in BOOTS.items() if boot.arguments == ("kernel",)]
AUDITED = [name for name, boot in BOOTS.items() if boot.script == _AUDIT and not boot.arguments]
LOCKED_DOWN = [name for name, boot in BOOTS.items() if boot.arguments == _TRACING]
SWAPPED = [name for name, boot in BOOTS.items() if boot.script == _SWAP]
CLEARING = [name for name in SECRET if _CLEAR in BOOTS[name].append]


class Boots:
    """Guests at work, as many at a time as there are processors; each emulates one."""

    def __init__(self, names: Iterable[str]) -> None:
        self._pool = ThreadPoolExecutor(os.cpu_count())
        self._answers: dict[str, Future[Answer]] = {name: self._pool.submit(BOOTS[name].run) for name in names}

    def answer(self, name: str) -> Answer:
        """What a guest has told, once it has; raises what Boot.run raises."""
        return self._answers[name].result()

    def finished(self) -> dict[str, Answer]:
        """The answers of those that ended well."""
        ended = {name: future for name, future in self._answers.items() if future.done() and not future.cancelled()}
        return {name: future.result() for name, future in ended.items() if future.exception() is None}

    def close(self) -> None:
        """Start no more; wait for those at work."""
        self._pool.shutdown(cancel_futures=True)
