"""Rates and latencies of one client on every system: interleaved rounds, medians, ratios to the C reference.

In every round, for every placement and operation, each system is measured once, beginning with another one each time; a
ratio compares a system with the reference in the same round only, so that what else the machine does falls out.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from systems import System

REFERENCE = "c-st"
PLACEMENTS = ("same", "split", "free")
OPERATIONS = {
    "w4096": 4000, "r4096": 4000, "w131072": 1000, "r131072": 1000, "w1048576": 200, "r1048576": 200,
    "orc": 1500, "cwcu": 800,
}  # fmt: skip
"""What is measured, and how often in one round."""
TITLES = {
    "w4096": "write 4 KiB", "r4096": "read 4 KiB", "w131072": "write 128 KiB", "r131072": "read 128 KiB",
    "w1048576": "write 1 MiB", "r1048576": "read 1 MiB", "orc": "open+read+close", "cwcu": "create+write+close+unlink",
}  # fmt: skip
SHORT = {
    "w4096": "write 4K", "r4096": "read 4K", "w131072": "write 128K", "r131072": "read 128K",
    "w1048576": "write 1M", "r1048576": "read 1M", "orc": "open..close", "cwcu": "create..unlink",
}  # fmt: skip
FLOORS = {
    "same": dict.fromkeys(OPERATIONS, 0.65) | {"orc": 0.6, "cwcu": 0.5},
    "split": {
        "w4096": 2.5, "r4096": 2.5, "w131072": 1.1, "r131072": 1.1, "w1048576": 0.75, "r1048576": 0.75,
        "orc": 2.2, "cwcu": 1.4,
    },
}  # fmt: skip
"""What the kernel backend must reach, as a ratio to the reference."""
JUDGED = "kernel"


def cpus_for(placement: str) -> tuple[set[int], set[int]] | None:
    """CPUs for the client and for the daemon; None where the machine has too few."""
    every = sorted(os.sched_getaffinity(0))
    if placement == "free":
        return set(every), set(every)
    if placement == "same":
        return {every[0]}, {every[0]}
    return ({every[0]}, {every[1]}) if len(every) > 1 else None


def run_client(client: Path, system: System, operations: Sequence[str], cpus: set[int]) -> dict[str, Any]:
    """Run the client once; operations are words like w4096:1000."""
    result = subprocess.run(
        [client, *system.client, system.mountpoint, *operations],
        stdout=subprocess.PIPE, check=True, preexec_fn=lambda: os.sched_setaffinity(0, cpus),
    )  # fmt: skip
    return dict(json.loads(result.stdout))


def measure(
    client: Path,
    systems: Sequence[System],
    *,
    rounds: int,
    placements: Sequence[str],
    operations: Sequence[str],
    scale: float,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Measure and return samples[placement][operation][system] = lists over rounds of rate, p50, p99."""
    samples: dict[str, Any] = {}
    for number in range(rounds):
        for placement in placements:
            cpus = cpus_for(placement)
            if cpus is None:
                continue
            for system in systems:
                system.pin(cpus[1])
            for step, operation in enumerate(operations):
                count = max(20, int(OPERATIONS[operation] * scale))
                turn = (number + step) % len(systems)
                for system in (*systems[turn:], *systems[:turn]):
                    found = run_client(client, system, [f"{operation}:{count}"], cpus[0])[operation]
                    cell = samples.setdefault(placement, {}).setdefault(operation, {}).setdefault(system.name, {})
                    for key in ("rate", "p50", "p99"):
                        cell.setdefault(key, []).append(found[key])
            progress(f"round {number + 1} of {rounds}, {placement}: {_glance(samples[placement])}")
    return samples


def _glance(placement: dict[str, Any]) -> str:
    """The last round's ratios of the system that is judged."""
    return " ".join(
        f"{operation} {cells[JUDGED]['rate'][-1] / cells[REFERENCE]['rate'][-1]:.2f}"
        for operation, cells in placement.items()
        if JUDGED in cells and REFERENCE in cells
    )


def summarise(samples: dict[str, Any]) -> dict[str, Any]:
    """summary[placement][operation][system]: median rate, its range, median latencies, the median of the ratios."""
    summary: dict[str, Any] = {}
    for placement, by_operation in samples.items():
        for operation, by_system in by_operation.items():
            reference = by_system.get(REFERENCE)
            for system, cell in by_system.items():
                row = {
                    "rate": median(cell["rate"]), "low": min(cell["rate"]), "high": max(cell["rate"]),
                    "p50": median(cell["p50"]), "p99": median(cell["p99"]), "ratio": None,
                }  # fmt: skip
                if reference is not None:
                    ratios = [one / other for one, other in zip(cell["rate"], reference["rate"], strict=True)]
                    row |= {"ratio": median(ratios), "ratio_low": min(ratios), "ratio_high": max(ratios)}
                row = {key: round(value, 3) if value is not None else None for key, value in row.items()}
                summary.setdefault(placement, {}).setdefault(operation, {})[system] = row
    return summary


def below_floor(summary: dict[str, Any]) -> list[str]:
    """What the judged system does not reach, in words."""
    return [
        f"{placement} {operation}: {row['ratio']:.2f} < {FLOORS[placement][operation]}"
        for placement, by_operation in summary.items()
        for operation, by_system in by_operation.items()
        if placement in FLOORS and (row := by_system.get(JUDGED)) and row["ratio"] is not None
        and row["ratio"] < FLOORS[placement][operation]
    ]  # fmt: skip
