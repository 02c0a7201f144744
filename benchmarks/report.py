"""Tables from results, for a terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mount import FLOORS, JUDGED, REFERENCE, TITLES

STARVATION = {
    "status_p50": "`secretfs status`, p50", "status_max": "`secretfs status`, worst",
    "request_p50": "its request alone, p50", "request_p99": "its request alone, p99",
    "request_max": "its request alone, worst",
    "orc_p50": "open+read+close by another client, p50", "orc_p99": "open+read+close by another client, p99",
}  # fmt: skip
KINDS = {"create": "empty", "fill": "of 64 bytes"}
STATES = {"there": "there", "unlinked": "kept after unlink"}
MEMORY = {"RssAnon": "ordinary memory", "VmRSS": "resident", "locked_bytes": "areas"}


def table(rows: Sequence[Sequence[str]], *, markdown: bool) -> str:
    """Lay out rows, the first of which is the head; the first column is text, the others numbers."""
    if markdown:
        head = [f"| {' | '.join(rows[0])} |", f"|---|{'--:|' * (len(rows[0]) - 1)}"]
        return "\n".join(head + [f"| {' | '.join(row)} |" for row in rows[1:]]) + "\n"
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def ratios(summary: dict[str, Any], placement: str, *, markdown: bool) -> str:
    """Ratios to the reference, with the floors beside the system that is judged."""
    by_operation = summary[placement]
    systems = list(dict.fromkeys(name for cells in by_operation.values() for name in cells))
    floors = FLOORS.get(placement)
    head = ["operation", *systems] + (["floor", ""] if floors else [])
    rows = [head]
    for operation, cells in by_operation.items():
        row = [TITLES[operation], *(_ratio(cells.get(name)) for name in systems)]
        if floors:
            judged = cells.get(JUDGED, {}).get("ratio")
            floor = floors[operation]
            row += [f"{floor:.2f}", "" if judged is None else "ok" if judged >= floor else "below"]
        rows.append(row)
    return table(rows, markdown=markdown)


def _ratio(cell: dict[str, Any] | None) -> str:
    return "" if cell is None or cell["ratio"] is None else f"{cell['ratio']:.2f}"


def rates(summary: dict[str, Any], placement: str, *, markdown: bool) -> str:
    """Operations per second (median), and below them the median latency and the 99th percentile in microseconds."""
    by_operation = summary[placement]
    systems = list(dict.fromkeys(name for cells in by_operation.values() for name in cells))
    rows = [["op/s (p50/p99 µs)", *systems]]
    for operation, cells in by_operation.items():
        rows.append([TITLES[operation], *(_rate(cells.get(name)) for name in systems)])
    return table(rows, markdown=markdown)


def _rate(cell: dict[str, Any] | None) -> str:
    return "" if cell is None else f"{cell['rate']:,.0f} ({cell['p50']:.0f}/{cell['p99']:.0f})"


def others(results: dict[str, Any], *, markdown: bool) -> Iterator[tuple[str, str]]:
    """Titles and tables of all that is not one client's rate."""
    for operation, by_clients in results.get("concurrency", {}).items():
        systems = list(next(iter(by_clients.values())))
        rows = [["clients", *systems, *(f"{name} / {REFERENCE}" for name in systems if name != REFERENCE)]]
        for clients, cells in by_clients.items():
            rates = [_rate(cells[name]) for name in systems]
            rows.append([clients, *rates, *(_ratio(cells[name]) for name in systems if name != REFERENCE)])
        yield f"{TITLES[operation]}, many clients, not pinned: op/s in all (p50/p99 µs)", table(rows, markdown=markdown)
    if found := results.get("starvation"):
        rows = [["milliseconds", *found]]
        rows += [[label, *(f"{found[state][key]:.2f}" for state in found)] for key, label in STARVATION.items()]
        yield "Latency of others while four clients flood the mount", table(rows, markdown=markdown)
    if growth := results.get("growth"):
        files = list(next(iter(next(iter(growth.values())).values())))
        rows = [["µs per file", *(f"{int(number):,}" for number in files)]]
        for system, by_operation in growth.items():
            for operation, cells in by_operation.items():
                rows.append([f"{operation}, {system}", *(f"{cells[number]:.1f}" for number in files)])
        yield "Cost of a file by the number of files in its directory", table(rows, markdown=markdown)
    if memory := results.get("memory"):
        rows = [["bytes per file", *MEMORY.values()]]
        for system, by_kind in memory.items():
            for kind, by_state in by_kind.items():
                for state, found in by_state.items():
                    rows.append([f"{KINDS[kind]}, {STATES[state]}, {system}", *(f"{found[key]:,}" for key in MEMORY)])
        yield "Memory of the daemon", table(rows, markdown=markdown)
