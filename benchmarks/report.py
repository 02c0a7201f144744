"""Tables and plots from results, for a terminal and for docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import plot
import preloading
import runcosts
import smallsecrets
from mount import FLOORS, JUDGED, REFERENCE, SHORT, TITLES

STARVATION = {
    "status_p50": "`secretfs status`, p50", "status_max": "`secretfs status`, worst",
    "request_p50": "its request alone, p50", "request_p99": "its request alone, p99",
    "request_max": "its request alone, worst",
    "orc_p50": "open+read+close by another client, p50", "orc_p99": "open+read+close by another client, p99",
}  # fmt: skip
KINDS = {"create": "empty", "fill": "of 64 bytes"}
STATES = {"there": "there", "unlinked": "kept after unlink"}
MEMORY_PRELOAD = ("plain", "preloaded", "locked", "used")
MEMORY = {"ordinary": "ordinary memory", "VmRSS": "resident", "locked_bytes": "areas"}


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
        text = table(rows, markdown=markdown)
        if markdown:
            text = f"![{TITLES[operation]}, many clients](benchmarks-clients-{operation}.svg)\n\n{text}"
        yield f"{TITLES[operation]}, many clients, not pinned: op/s in all (p50/p99 µs)", text
    if found := results.get("starvation"):
        rows = [["milliseconds", *found]]
        rows += [[label, *(f"{found[state][key]:.2f}" for state in found)] for key, label in STARVATION.items()]
        yield "Latency of others while four clients flood the mount", table(rows, markdown=markdown)
    yield from costs(results, markdown=markdown)


def costs(results: dict[str, Any], *, markdown: bool) -> Iterator[tuple[str, str]]:
    """Titles and tables of what a file costs where there are many."""
    if growth := results.get("growth"):
        files = list(next(iter(next(iter(growth.values())).values())))
        rows = [["µs per file", *(f"{int(number):,}" for number in files), "last / first"]]
        for system, by_operation in growth.items():
            for operation, cells in by_operation.items():
                ratio = f"{cells[files[-1]] / cells[files[0]]:.2f}"
                rows.append([f"{operation}, {system}", *(f"{cells[number]:.1f}" for number in files), ratio])
        text = table(rows, markdown=markdown)
        if markdown:
            text = f"{_measured(results['growth_machine'])}\n![growth](benchmarks-growth.svg)\n\n{text}"
        yield "Cost of a file by the number of files in its directory", text
    if memory := results.get("memory"):
        rows = [["bytes per file", *MEMORY.values()]]
        for system, by_kind in memory.items():
            for kind, by_state in by_kind.items():
                for state, found in by_state.items():
                    rows.append([f"{KINDS[kind]}, {STATES[state]}, {system}", *(f"{found[key]:,}" for key in MEMORY)])
        text = table(rows, markdown=markdown)
        if markdown:
            text = f"![memory](benchmarks-memory.svg)\n\n{text}"
        yield "Memory of the daemon", text


def secrets(result: dict[str, Any], *, markdown: bool) -> Iterator[tuple[str, str]]:
    """Titles and tables of what small secrets cost."""
    times = result["times"]
    systems = list(dict.fromkeys(name for cells in times.values() for name in cells))
    rows = [["µs", *systems]]
    for operation, cells in times.items():
        rows.append([smallsecrets.TITLES[operation], *(_cost(cells.get(name)) for name in systems)])
    yield "Time for one small secret, and as a multiple of the reference (1.00)", table(rows, markdown=markdown)
    judged = [
        [what, found, wanted, "ok" if good else "not reached"]
        for what, found, wanted, good in smallsecrets.judged(result)
    ]
    yield "What is asked for, kernel backend", table([["", "is", "should be", ""], *judged], markdown=markdown)
    rows = [["", "secrets"]]
    rows += [[name, f"{found:,}" if isinstance(found, int) else found] for name, found in result["fit"].items()]
    yield "Secrets of 64 bytes within a lock limit of 8 MiB, as an ordinary user", table(rows, markdown=markdown)
    numbers = max(result["number"].values(), key=len, default={})
    rows = [["µs per secret", *(f"{int(number):,}" for number in numbers)]]
    for name, row in result["number"].items():
        rows.append([name, *(f"{row[number]:.1f}" if number in row else "" for number in numbers)])
    yield "By the number that is alive", table(rows, markdown=markdown)


def _cost(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    return f"{cell['us']:.1f}" if cell["ratio"] is None else f"{cell['us']:.1f} ({cell['ratio']:.2f})"


def preload(result: dict[str, Any], *, markdown: bool) -> Iterator[tuple[str, str]]:
    """Titles and tables of what the preload library costs."""
    rows = [["µs of CPU time for one", "with", "plain", "preloaded", "ratio", "95% interval", "", "wall"]]
    for title, count, cell in preloading.judged(result):
        rows.append([
            title, count, f"{cell['plain']:,.2f}", f"{cell['preloaded']:,.2f}", f"{cell['ratio']:.3f}",
            f"{cell['low']:.3f} - {cell['high']:.3f}", preloading.verdict(cell), f"{cell['wall']:.2f}",
        ])  # fmt: skip
    title = f"plain / preloaded, median of {result['pairs']} pairs; floor {preloading.FLOOR}"
    yield f"CPU time: {title}", table(rows, markdown=markdown)
    rows = [["ns for one freed and one had: CPU (wall)", *(f"{count} threads" for count in preloading.THREADS)]]
    for name, by_count in result["allocators"].items():
        cells = (f"{cell['cpu']:,.0f} ({cell['wall']:,.0f})" for cell in by_count.values())
        rows.append([preloading.ALLOCATORS[name], *cells])
    yield "Allocators: pieces of 1 to 2048 bytes, 64 alive per thread", table(rows, markdown=markdown)
    rows = [["", "ms of CPU time"], *([name, f"{found:.1f}"] for name, found in result["start"].items())]
    yield "A process from start to end", table(rows, markdown=markdown)
    memory = result["memory"]
    rows = [["", "MiB"], *([name, f"{memory[name] / (1 << 20):.1f}"] for name in MEMORY_PRELOAD)]
    yield f"Memory of a process with both ends of {memory['connections']} connections", table(rows, markdown=markdown)


BEGIN, END = "<!-- results: written by benchmarks/run.py --markdown -->", "<!-- end of results -->"
BEGIN_SECRETS = "<!-- secrets: written by benchmarks/run.py --parts secrets --markdown -->"
END_SECRETS = "<!-- end of secrets -->"
BEGIN_RUN = "<!-- run: written by benchmarks/run.py --parts run --markdown -->"
END_RUN = "<!-- end of run -->"
BEGIN_PRELOAD = "<!-- preload: written by benchmarks/run.py --parts preload --markdown -->"
END_PRELOAD = "<!-- end of preload -->"
WHERE = {"same": "Client and daemon on one CPU", "split": "Client and daemon on two CPUs", "free": "Not pinned"}


def everything(results: dict[str, Any], *, markdown: bool) -> Iterator[str]:
    """All tables with their titles."""
    mark = "### " if markdown else ""
    for placement in results.get("mount", {}):
        rounds = results["rounds"]
        yield f"{mark}{WHERE[placement]} ({placement}): ratio to the C reference, median of {rounds} rounds\n"
        if markdown:
            yield f"![{WHERE[placement]}](benchmarks-{placement}.svg)\n"
        yield ratios(results["mount"], placement, markdown=markdown)
        yield rates(results["mount"], placement, markdown=markdown)
    for title, text in others(results, markdown=markdown):
        yield f"{mark}{title}\n"
        yield text


def everything_secret(result: dict[str, Any], *, markdown: bool) -> Iterator[str]:
    """All tables about small secrets, with their titles."""
    if markdown:
        yield "![Small secrets](benchmarks-secrets.svg)\n"
    for title, text in secrets(result, markdown=markdown):
        yield f"{'### ' if markdown else ''}{title}\n"
        yield text


def everything_run(result: dict[str, Any], *, markdown: bool) -> Iterator[str]:
    """All tables about `secretfs run`, with their titles."""
    for title, rows in runcosts.rows(result):
        yield f"{'### ' if markdown else ''}{title}\n"
        yield table(rows, markdown=markdown)


def everything_preload(result: dict[str, Any], *, markdown: bool) -> Iterator[str]:
    """All tables about the preload library, with their titles."""
    if "operations" not in result:
        return
    if markdown:
        yield "![Preloaded programs](benchmarks-preload.svg)\n"
    for title, text in preload(result, markdown=markdown):
        yield f"{'### ' if markdown else ''}{title}\n"
        yield text


def write_markdown(results: dict[str, Any], path: Path) -> None:
    """Put the tables between the marks of a Markdown file, and the plots beside it: of those parts that are there."""
    if {"mount", "concurrency", "growth"} & set(results):
        tables = everything(results, markdown=True)
        _renew(path, BEGIN, END, [*_intro(results, results.get("missing", {})), *tables])
    if found := results.get("secrets"):
        tables = everything_secret(found, markdown=True)
        _renew(path, BEGIN_SECRETS, END_SECRETS, [*_intro(results, found["missing"]), *tables])
    if found := results.get("run"):
        tables = everything_run(found, markdown=True)
        _renew(path, BEGIN_RUN, END_RUN, [*_intro(results, found["missing"]), *tables])
    if found := results.get("preload"):
        tables = everything_preload(found, markdown=True)
        _renew(path, BEGIN_PRELOAD, END_PRELOAD, [*_intro(results, found["missing"]), *tables])
    for name, text in plots(results):
        path.with_name(f"{path.stem}-{name}.svg").write_text(text)


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The new results, and of the old ones what was not measured again."""
    about_mount = () if "mount" in new else ("machine", "rounds", "missing")
    return {**new, **old, **{name: found for name, found in new.items() if name not in about_mount}}


def _renew(path: Path, begin: str, end: str, lines: Sequence[str]) -> None:
    head, _, rest = path.read_text().partition(begin)
    _, _, tail = rest.partition(end)
    path.write_text("\n".join([head + begin, *lines, end + tail]))


def _intro(results: dict[str, Any], missing: dict[str, str]) -> Iterator[str]:
    yield _measured(results["machine"])
    for name, why in missing.items():
        yield f"- {name} was not measured: {why}"


def _measured(facts: dict[str, Any]) -> str:
    """When, on what, and how busy it was."""
    where = f"{facts['cpu']}, {facts['cpus']} CPUs, Linux {facts['kernel']}, Python {facts['python']}"
    load = f"with a load of {facts['load']} from other programs when it began"
    nice = f", with --nice {facts['nice']}" if facts.get("nice") else ""
    return f"Measured on {facts['date']}: {where}, {load}{nice}.\n"


def plots(results: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and SVG texts."""
    for placement, by_operation in results.get("mount", {}).items():
        names = [name for name in next(iter(by_operation.values())) if name not in (REFERENCE, "tmpfs")]
        series = {name: [cells[name]["ratio"] for cells in by_operation.values()] for name in names}
        floors = [FLOORS.get(placement, {}).get(operation) for operation in by_operation]
        title = f"{WHERE[placement]}: speed as a multiple of the C reference" + (
            " (black: floor)" if any(floors) else ""
        )
        yield placement, plot.bars(title, [SHORT[operation] for operation in by_operation], series, floors)
    for operation, by_clients in results.get("concurrency", {}).items():
        systems = next(iter(by_clients.values()))
        series = {name: [cells[name]["rate"] for cells in by_clients.values()] for name in systems}
        title = f"{TITLES[operation]}: op/s of all clients together, by their number"
        yield f"clients-{operation}", plot.lines(title, [int(clients) for clients in by_clients], series)
    if growth := results.get("growth"):
        rows = {f"{operation}, {system}": row for system, ops in growth.items() for operation, row in ops.items()}
        files = [int(number) for number in next(iter(rows.values()))]
        yield "growth", plot.lines(
            "Microseconds per file, by the number of files in the directory",
            files, {name: list(row.values()) for name, row in rows.items()},
        )  # fmt: skip
    if memory := results.get("memory"):
        series = {name: [found[kind]["there"]["ordinary"] / 1024 for kind in KINDS] for name, found in memory.items()}
        yield "memory", plot.bars("KiB of ordinary memory for each file that is there", list(KINDS.values()), series)
    if found := results.get("secrets"):
        yield "secrets", _secrets_plot(found)
    if "operations" in (found := results.get("preload", {})):
        yield "preload", _preload_plot(found)


def _secrets_plot(result: dict[str, Any]) -> str:
    times = {name: result["times"][name] for name in smallsecrets.SHORT}
    systems = [name for name in ("kernel", "alone", "uncached", "emulator", "libsodium", "OpenSSL") if name in
               {system for cells in times.values() for system in cells}]  # fmt: skip
    series = {name: [cells[name]["ratio"] if name in cells else None for cells in times.values()] for name in systems}
    marks = [smallsecrets.CEILINGS.get(name) for name in times]
    title = "Small secrets: time as a multiple of libsodium's, or of two mprotect calls (black: the most it may be)"
    return plot.bars(title, list(smallsecrets.SHORT.values()), series, marks)


def _preload_plot(result: dict[str, Any]) -> str:
    rows = {**result["operations"], **{f"speed {name}": row for name, row in result["speed"].items()}}
    series = {
        f"{count} threads or processes": [by_count[str(count)]["ratio"] for by_count in rows.values()]
        for count in preloading.THREADS
    }
    title = "Preloaded programs: speed as a multiple of plain, by CPU time (black: floor)"
    return plot.bars(title, list(rows), series, [preloading.FLOOR] * len(rows))
