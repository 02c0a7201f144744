"""Tables from results, for a terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mount import FLOORS, JUDGED, TITLES


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
