"""What `secretfs run` costs a program: ordinary system calls, an emulated area from creation to close, the start.

One client process for each way to run it, all alive at once and told in turn what to time next, so that what else the
machine does disturbs all of them alike. Of ordinary calls the quickest round counts: whatever is added to that was not
the filter. An emulated call waits for another process: there the distribution is shown, its 10th percentile judged.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from systems import HERE, Missing

RUN = (sys.executable, "-I", "-m", "secretfs", "run")
USER = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups") if os.geteuid() == 0 else ()
WAYS: dict[str, tuple[Sequence[str], str]] = {
    "native": ((), "plain"),
    "allow-all filter": ((), "allow-all"),
    "one-argument filter": ((), "one-argument"),
    "run": ((*RUN, "--emulate", "--"), "plain"),
    "run --strict": ((*RUN, "--emulate", "--strict", "--"), "plain"),
    "run, one receiver": (("env", "SECRETFS_RUN_RECEIVERS=1", *RUN, "--emulate", "--"), "plain"),
    "run, memfd": ((*RUN, "--emulate", "--backing", "memfd", "--"), "plain"),
    "run, user": ((*USER, *RUN, "--emulate", "--"), "plain"),
}
"""What the client is started under, and its word."""
FLOOR, LEAST, JUDGED = "allow-all filter", "one-argument filter", "run"
ORDINARY = {"getpid": 100_000, "read": 50_000, "write": 50_000, "mmap": 5_000, "open": 5_000, "fork": 100}
"""Ordinary calls, and how many are timed in one round."""
JUDGED_CALLS = ("getpid", "read", "write")
"""Those that are short enough for 20 ns to show above what the rest of such a call varies by."""
EMULATED = {"create": 200, "cycle": 200}
TITLES = {
    "getpid": "getpid", "read": "read of 1 byte", "write": "write of 1 byte", "mmap": "mmap + munmap of a file",
    "open": "open + close", "fork": "fork + exit + wait", "create": "memfd_secret + close",
    "cycle": "create, size, map, touch, unmap, close",
}  # fmt: skip
MOST_ADDED, MOST_START = 20.0, 150.0
"""Nanoseconds for an ordinary call, milliseconds for the start."""
MOST_CYCLE = {"run": 300.0, "run, one receiver": 250.0, "run, memfd": 300.0, "run, user": 300.0}
"""Microseconds for a cycle."""


def measure(folder: Path, *, rounds: int, scale: float, progress: Callable[[str], None]) -> dict[str, Any]:
    """Everything; what cannot be measured here is in "missing", with the reason."""
    folder.chmod(0o755)  # another user starts it
    client = _build(folder)
    result: dict[str, Any] = {"missing": {}}
    with ExitStack() as stack:
        clients = {}
        for way, (before, word) in WAYS.items():
            try:
                clients[way] = stack.enter_context(Client([*before, str(client), word]))
            except Missing as error:
                result["missing"][way] = str(error)
        taken = _rounds(clients, rounds * 5, scale, progress)
    result["ordinary"] = {call: {way: min(found) for way, found in taken[call].items()} for call in ORDINARY}
    result["emulated"] = {
        call: {way: [round(median(cell) / 1000, 1) for cell in zip(*found, strict=True)] for way, found in row.items()}
        for call, row in taken.items() if call in EMULATED
    }  # fmt: skip
    result["start"] = _starts(client, rounds * 2, result["missing"])
    progress("run: starts")
    return result


class Client:
    """A client that has been started and waits for its first line.

    Raises:
        Missing: it does not answer, with what it said.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            self.time("cycle", 1)
        except (ValueError, OSError):
            said = self._process.communicate()[1].strip().splitlines()
            raise Missing(said[-1] if said else "the client gave no answer") from None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def time(self, name: str, count: int) -> list[float]:
        """The numbers that it prints."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{name} {count}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise ValueError(name)
        return [float(word) for word in line.split()]


def _build(folder: Path) -> Path:
    command = [
        "gcc",
        "-std=gnu11",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-o",
        folder / "runclient",
        HERE / "runclient.c",
    ]
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError:
        raise Missing("gcc is not installed: apt-get install gcc libc6-dev") from None
    return folder / "runclient"


def _rounds(
    clients: dict[str, Client], number: int, scale: float, progress: Callable[[str], None]
) -> dict[str, dict[str, list[Any]]]:
    """For each call and way: nanoseconds of each round, or the percentiles of each round."""
    taken: dict[str, dict[str, list[Any]]] = {}
    names = list(clients)
    for at in range(number):
        for call, count in {**ORDINARY, **EMULATED}.items():
            turn = at % len(names)
            for way in (*names[turn:], *names[:turn]):
                found = clients[way].time(call, max(10, int(count * scale)))
                taken.setdefault(call, {}).setdefault(way, []).append(found if call in EMULATED else found[0])
        if at % 5 == 4:
            progress(f"run: round {at // 5 + 1} of {number // 5}")
    return taken


def _starts(client: Path, number: int, missing: dict[str, str]) -> dict[str, float]:
    """Milliseconds from the start of the command to the first instruction of the program's main()."""
    found: dict[str, list[float]] = {}
    for _ in range(number):
        for way, (before, _word) in WAYS.items():
            if way not in missing and "filter" not in way:
                began = time.monotonic_ns()
                done = subprocess.run([*before, client, "started"], check=True, stdout=subprocess.PIPE)
                found.setdefault(way, []).append((int(done.stdout) - began) / 1e6)
    return {way: round(median(times), 1) for way, times in found.items()}


# Judgement and tables


def judged(result: dict[str, Any]) -> Iterator[tuple[str, str, str, bool]]:
    """What is judged, what it is, what it should be, whether it is."""
    for call in JUDGED_CALLS:
        cells = result.get("ordinary", {}).get(call, {})
        if FLOOR in cells and JUDGED in cells:
            added = cells[JUDGED] - cells[FLOOR]
            what = f"{TITLES[call]}: added to an allow-all filter"
            yield what, f"{added:+.0f} ns", f"at most {MOST_ADDED:+.0f} ns", added <= MOST_ADDED
            if LEAST in cells:
                added = cells[JUDGED] - cells[LEAST]
                what = f"{TITLES[call]}: added to the least filter that looks at an argument"
                yield what, f"{added:+.0f} ns", f"at most {MOST_ADDED:+.0f} ns", added <= MOST_ADDED
    for way, most in MOST_CYCLE.items():
        if found := result.get("emulated", {}).get("cycle", {}).get(way):
            yield f"{TITLES['cycle']}: {way}, p10", f"{found[0]:.0f} µs", f"at most {most:.0f} µs", found[0] <= most
    if start := result.get("start", {}).get(JUDGED):
        yield "start of `secretfs run`", f"{start:.0f} ms", f"at most {MOST_START:.0f} ms", start <= MOST_START


def below_floor(result: dict[str, Any]) -> list[str]:
    """What is worse than it may be, in words."""
    return [f"{what}: {is_}, not {wanted}" for what, is_, wanted, good in judged(result) if not good]


def rows(result: dict[str, Any]) -> Iterator[tuple[str, list[list[str]]]]:
    """Titles, and tables as rows of cells, the first of which is the head."""
    ways = list(next(iter(result["ordinary"].values())))
    yield (
        "Ordinary system calls, nanoseconds, the quickest round",
        [
            ["ns", *ways],
            *([TITLES[call], *(f"{row[way]:,.0f}" for way in ways)] for call, row in result["ordinary"].items()),
        ],
    )
    yield "Emulated calls, microseconds: p10 / p50 / p90, median of the rounds", [
        ["µs", *ways],
        *([TITLES[call], *(" / ".join(f"{cell:.0f}" for cell in row[way]) for way in ways)]
          for call, row in result["emulated"].items()),
    ]  # fmt: skip
    yield "Start: from the command to the program's main(), milliseconds, median", [
        ["ms", *result["start"]], ["start", *(f"{found:.1f}" for found in result["start"].values())]
    ]  # fmt: skip
    yield (
        "What it may cost at most",
        [
            ["", "is", "at most", ""],
            *([what, is_, wanted, "ok" if good else "not reached"] for what, is_, wanted, good in judged(result)),
        ],
    )
