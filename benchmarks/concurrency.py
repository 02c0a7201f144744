"""Many clients at once: what they reach together, and whether one that floods keeps others from being served.

Nothing is pinned: clients go where the scheduler puts them.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from mount import REFERENCE
from systems import System

CLIENTS = (1, 2, 4, 8)
OPERATIONS = {"w4096": 3000, "r4096": 3000}
FLOOD = 4
STATUS = "user.secretfs.status"


def measure(
    client: Path, systems: Sequence[System], *, rounds: int, scale: float, progress: Callable[[str], None]
) -> dict[str, Any]:
    """summary[operation][clients][system]: total rate, ratio to the reference, p50 and the worst client's p99."""
    samples: dict[str, Any] = {}
    for number in range(rounds):
        for operation, count in OPERATIONS.items():
            for clients in CLIENTS:
                turn = number % len(systems)
                for system in (*systems[turn:], *systems[:turn]):
                    found = together(client, system, f"{operation}:{int(count * scale)}", clients)
                    by_clients = samples.setdefault(operation, {}).setdefault(str(clients), {})
                    by_clients.setdefault(system.name, []).append(found)
        progress(f"many clients: round {number + 1} of {rounds}")
    return {
        operation: {clients: _summary(by_system) for clients, by_system in by_clients.items()}
        for operation, by_clients in samples.items()
    }


def _summary(by_system: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    reference = by_system.get(REFERENCE)
    result = {}
    for system, found in by_system.items():
        row: dict[str, float | None] = {key: round(median(one[key] for one in found), 2) for key in found[0]}
        row["ratio"] = reference and round(
            median(one["rate"] / other["rate"] for one, other in zip(found, reference, strict=True)), 3
        )
        result[system] = row
    return result


def together(client: Path, system: System, operation: str, clients: int) -> dict[str, float]:
    """Run several clients that begin at the same moment."""
    with contextlib.ExitStack() as stack:
        running = []
        for _ in range(clients):
            command = [client, *system.client, "-w", system.mountpoint, operation]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            running.append(stack.enter_context(process))
        for process in running:
            assert process.stdout is not None
            process.stdout.readline()
        for process in running:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        found = [next(iter(json.loads(process.communicate()[0]).values())) for process in running]
    seconds = (max(one["end"] for one in found) - min(one["start"] for one in found)) / 1e9
    return {
        "rate": sum(one["count"] for one in found) / seconds,
        "p50": median(one["p50"] for one in found),
        "p99": max(one["p99"] for one in found),
    }


@contextlib.contextmanager
def _flood(client: Path, system: System) -> Iterator[None]:
    """Clients that write and read without a pause."""
    operations = ["w4096:100000000", "r4096:100000000"]
    command = [client, *system.client, "-m", "60000", system.mountpoint]
    running = [
        subprocess.Popen([*command, operations[i % 2]], stdout=subprocess.DEVNULL, start_new_session=False)
        for i in range(FLOOD)
    ]
    time.sleep(0.5)
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()
        for left in system.mountpoint.iterdir():
            left.unlink()


def starvation(client: Path, system: System, *, scale: float) -> dict[str, dict[str, float]]:
    """Latencies in milliseconds, idle and while FLOOD clients flood: of `secretfs status`, and of its bare request."""
    result = {"idle": _latencies(client, system, scale)}
    with _flood(client, system):
        result["flooded"] = _latencies(client, system, scale)
    return result


def _latencies(client: Path, system: System, scale: float) -> dict[str, float]:
    program = Path(sys.executable).with_name("secretfs")
    command = [program, "status", "--json", system.mountpoint]
    status = _times(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL), max(5, int(20 * scale)))
    request = _times(lambda: os.getxattr(system.mountpoint, STATUS), max(50, int(400 * scale)))
    other = together(client, system, f"orc:{max(50, int(400 * scale))}", 1)
    return {
        "status_p50": _share(status, 0.5), "status_max": max(status),
        "request_p50": _share(request, 0.5), "request_p99": _share(request, 0.99), "request_max": max(request),
        "orc_p50": round(other["p50"] / 1000, 3), "orc_p99": round(other["p99"] / 1000, 3),
    }  # fmt: skip


def _times(action: Callable[[], object], count: int) -> list[float]:
    times = []
    for _ in range(count):
        start = time.monotonic_ns()
        action()
        times.append(round((time.monotonic_ns() - start) / 1e6, 3))
    return times


def _share(times: list[float], share: float) -> float:
    return sorted(times)[int(len(times) * share)]
