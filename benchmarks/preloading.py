"""What `secretfs preload` costs: the same program with and without the library, in turn, many times.

Judged is CPU time (user and system) for one operation: handshakes and others of OpenSSL by threads (crypto.c), and
openssl-speed(1) by processes. A ratio is plain / preloaded within one pair, so 0.97 means 3% more CPU time; its
interval is a bootstrap of the median. What starting and forking costs is measured for itself, and taken off.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import random
import re
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from systems import HERE, WARNINGS, Missing

from secretfs.preload import LIBRARY, state

FLOOR = 0.97
PAIRS = 20
THREADS = (1, 8, 64)
RESAMPLES = 4000
OPERATIONS = {
    "rsa2048": ("TLS 1.3 handshake, RSA 2048", 300),
    "ecdsap256": ("TLS 1.3 handshake, ECDSA P-256", 400),
    "sign-rsa2048": ("RSA 2048 signature", 800),
    "sign-ecdsap256": ("ECDSA P-256 signature", 10_000),
    "aes-gcm": ("AES-128-GCM of 1 KiB", 250_000),
}
"""Titles, and how many operations all threads together do in one sample: at least 0.15 seconds of CPU time."""
SPEED = {
    "rsa2048": ("rsa2048",), "ecdsap256": ("ecdsap256",), "aes-gcm": ("-evp", "aes-128-gcm", "-bytes", "1024"),
}  # fmt: skip
ALLOCATORS = {"malloc": "glibc malloc", "openssl": "preloaded", "secure": "OpenSSL's secure heap"}
PIECES = {"malloc": 1_000_000, "openssl": 1_000_000, "secure": 100_000}
LONG, SHORT = 300_000, 10_000
"""Microseconds that each of openssl-speed's measurements lasts; the short one is what starting and forking costs."""
HELD = 200
_PR_SET_CHILD_SUBREAPER = 36


class Programs(NamedTuple):
    """What is measured, compiled."""

    crypto: str
    alarm: str


class Run(NamedTuple):
    """One run: nanoseconds of CPU and wall time, and how many operations of each kind."""

    cpu: float
    wall: float
    operations: tuple[float, ...]


def measure(*, pairs: int, scale: float, progress: Callable[[str], None]) -> dict[str, Any]:
    """Everything; what cannot be measured here is in "missing", with the reason."""
    result: dict[str, Any] = {"pairs": pairs, "missing": {}}
    with tempfile.TemporaryDirectory(prefix="secretfs-bench-") as folder:
        try:
            programs = build(Path(folder))
        except Missing as error:
            result["missing"]["preload"] = str(error)
            return result
        result["operations"] = threads(programs, pairs, scale, progress)
        result["speed"] = speed(programs, pairs, scale, progress)
        result["allocators"] = allocators(programs, max(3, pairs // 4), scale, progress)
        result["start"] = start(pairs)
        result["memory"] = memory(programs)
    return result


def build(folder: Path) -> Programs:
    """Compile the programs.

    Raises:
        Missing: the library, a compiler or OpenSSL's headers are not there.
    """
    if state() is not True:
        raise Missing(f"the preload library is {state()}")
    if not (shutil.which("gcc") and shutil.which("openssl") and Path("/usr/include/openssl/ssl.h").exists()):
        raise Missing("apt-get install gcc openssl libssl-dev")
    crypto, alarm = folder / "crypto", folder / "alarm.so"
    subprocess.run(
        ["gcc", *WARNINGS, "-o", crypto, HERE / "crypto.c", "-lssl", "-lcrypto", "-lpthread"], check=True
    )  # fmt: skip
    subprocess.run(["gcc", *WARNINGS, "-shared", "-fPIC", "-o", alarm, HERE / "alarm.c"], check=True)
    return Programs(str(crypto), str(alarm))


def environment(*libraries: str, **more: str) -> dict[str, str]:
    """The environment of a program with these libraries and nothing else of ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SECRETFS_", "LD_PRELOAD"))}
    return {**kept, "LD_PRELOAD": ":".join(libraries), **more}


def in_turn(number: int, run: Callable[..., Run]) -> tuple[Run, Run]:
    """A run without libraries, and one with ours; every second time the other way round."""
    if number % 2:
        preloaded = run(LIBRARY)
        return run(), preloaded
    return run(), run(LIBRARY)


# Threads


def threads(programs: Programs, pairs: int, scale: float, progress: Callable[[str], None]) -> dict[str, Any]:
    """result[operation][threads]: see `summary`."""
    runs: dict[tuple[str, int], list[tuple[Run, Run]]] = {}
    for number in range(pairs):
        for operation, (_, together) in OPERATIONS.items():
            for count in THREADS:
                words = (programs.crypto, operation, str(count), str(max(20, int(together * scale) // count)))
                pair = in_turn(number, partial(crypto, words))
                runs.setdefault((operation, count), []).append(pair)
        progress(f"preload: threads, pair {number + 1} of {pairs}")
    return _by_name(runs)


def crypto(words: Sequence[str], *libraries: str) -> Run:
    """What crypto.c says of itself."""
    done = subprocess.run(words, env=environment(*libraries), check=True, capture_output=True, text=True)
    cpu, wall, operations = done.stdout.split()
    return Run(float(cpu), float(wall), (float(operations),))


# Processes


def speed(programs: Programs, pairs: int, scale: float, progress: Callable[[str], None]) -> dict[str, Any]:
    """The same for openssl-speed(1): result[algorithm][processes]."""
    runs: dict[tuple[str, int], list[tuple[Run, Run]]] = {}
    become_subreaper()
    length = int(LONG * scale)
    for number in range(pairs):
        for algorithm, words in SPEED.items():
            for count in THREADS:
                pair = in_turn(number, partial(without_start, programs, count, words, length))
                runs.setdefault((algorithm, count), []).append(pair)
        progress(f"preload: openssl speed, pair {number + 1} of {pairs}")
    return _by_name(runs)


def without_start(programs: Programs, count: int, words: Sequence[str], length: int, *libraries: str) -> Run:
    """What the operations took: of a long run what a very short one took is taken off."""
    long, short = (openssl_speed(programs, count, words, time, *libraries) for time in (length, SHORT))
    operations = tuple(more - few for more, few in zip(long.operations, short.operations, strict=True))
    return Run(long.cpu - short.cpu, long.wall - short.wall, operations)


def openssl_speed(programs: Programs, count: int, words: Sequence[str], length: int, *libraries: str) -> Run:
    """One run: the CPU time of all its processes, and the operations that they count, by kind."""
    variables = environment(*libraries, programs.alarm, ALARM=str(length))
    before, began = _children_cpu(), os.times().elapsed
    command = ["openssl", "speed", "-mr", "-seconds", "1", *(("-multi", str(count)) if count > 1 else ()), *words]
    done = subprocess.run(command, env=variables, check=True, capture_output=True, text=True)
    wall = os.times().elapsed - began
    _wait_for_all()
    found: dict[str, float] = {}
    for kind, operations in re.findall(r"^\+(R\d*):(\d+):", done.stderr, re.MULTILINE):
        found[kind] = found.get(kind, 0) + float(operations)
    return Run(1e9 * (_children_cpu() - before), 1e9 * wall, tuple(found[kind] for kind in sorted(found)))


def become_subreaper() -> None:
    """openssl-speed does not wait for its processes: they become ours, and their CPU time counts."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _wait_for_all() -> None:
    try:
        while True:
            os.wait()
    except ChildProcessError:
        pass


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# Ratios


def _by_name(runs: dict[tuple[str, int], list[tuple[Run, Run]]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for (operation, count), pairs in runs.items():
        result.setdefault(operation, {})[str(count)] = summary(pairs)
    return result


def summary(pairs: Sequence[tuple[Run, Run]]) -> dict[str, float]:
    """Median CPU and wall microseconds for one operation, the median ratio, and the 95% interval around it."""
    ratios = [_cost(plain) / _cost(preloaded) for plain, preloaded in pairs]
    low, high = interval(ratios)
    return {
        "plain": round(median(_cost(plain) for plain, _ in pairs) / 1000, 3),
        "preloaded": round(median(_cost(preloaded) for _, preloaded in pairs) / 1000, 3),
        "ratio": round(median(ratios), 4), "low": round(low, 4), "high": round(high, 4),
        "wall": round(median(_cost(plain, "wall") / _cost(preloaded, "wall") for plain, preloaded in pairs), 3),
    }  # fmt: skip


def _cost(run: Run, what: str = "cpu") -> float:
    """Nanoseconds for one operation; for kinds that come one after the other the geometric mean over them."""
    spent: float = getattr(run, what)
    return spent / math.exp(sum(math.log(number) for number in run.operations) / len(run.operations))


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """Where the median lies in 95 of 100 cases: the percentile bootstrap, with the same random numbers each time."""
    chosen = random.Random(1)  # noqa: S311 - statistics
    medians = sorted(median(chosen.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    return medians[RESAMPLES * 25 // 1000], medians[RESAMPLES * 975 // 1000]


# Others


def allocators(programs: Programs, rounds: int, scale: float, progress: Callable[[str], None]) -> dict[str, Any]:
    """result[allocator][threads]: CPU and wall nanoseconds for one piece that is freed and another that is had."""
    result: dict[str, Any] = {}
    for name in ALLOCATORS:
        libraries = (LIBRARY,) if name == "openssl" else ()
        for count in THREADS:
            words = (programs.crypto, name, str(count), str(int(PIECES[name] * scale) // count))
            found = [crypto(words, *libraries) for _ in range(rounds)]
            result.setdefault(name, {})[str(count)] = {
                what: round(median(_cost(run, what) for run in found), 1) for what in ("cpu", "wall")
            }
    progress("preload: allocators")
    return result


def start(pairs: int) -> dict[str, float]:
    """Milliseconds of CPU time from start to end, by program and whether it is preloaded."""
    result = {}
    for name, words in (("true", ("true",)), ("openssl version", ("openssl", "version"))):
        for how, libraries in (("plain", ()), ("preloaded", (LIBRARY,))):
            result[f"{name}, {how}"] = round(median(_start(words, *libraries) for _ in range(pairs)), 2)
    return result


def _start(words: Sequence[str], *libraries: str) -> float:
    before = _children_cpu()
    subprocess.run(words, env=environment(*libraries), check=True, stdout=subprocess.DEVNULL)
    return 1000 * (_children_cpu() - before)


def memory(programs: Programs) -> dict[str, Any]:
    """Bytes that a process has which holds `HELD` connections, and the library's account of them."""
    words = (programs.crypto, "held", "1", str(HELD))
    plain = subprocess.run(words, env=environment(), check=True, capture_output=True, text=True)
    reporting = environment(LIBRARY, SECRETFS_PRELOAD_REPORT="/dev/stderr")
    ours = subprocess.run(words, env=reporting, check=True, capture_output=True, text=True)
    told = json.loads(ours.stderr.splitlines()[-1])
    return {
        "connections": HELD, "plain": int(plain.stdout), "preloaded": int(ours.stdout), "locked": told["locked"],
        "used": told["used"],
    }  # fmt: skip


# Judgement


def judged(result: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, float]]]:
    """What is judged: its title, the number of threads or processes, what was found."""
    for name, by_count in result.get("operations", {}).items():
        for count, cell in by_count.items():
            yield OPERATIONS[name][0], f"{count} threads", cell
    for name, by_count in result.get("speed", {}).items():
        for count, cell in by_count.items():
            yield f"openssl speed {name}", f"{count} processes", cell


def verdict(cell: dict[str, float]) -> str:
    """Whether the interval is on one side of the floor."""
    return "ok" if cell["low"] >= FLOOR else "below" if cell["high"] < FLOOR else "open"


def below_floor(result: dict[str, Any]) -> list[str]:
    """What is below the floor for sure, in words."""
    return [
        f"{title}, {count}: {cell['ratio']:.3f} ({cell['low']:.3f} to {cell['high']:.3f}), floor {FLOOR}"
        for title, count, cell in judged(result)
        if verdict(cell) == "below"
    ]
