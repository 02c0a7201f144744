#!/usr/bin/env python3
"""Measure secretfs against a plain C file system, libsodium and others. `make bench` runs it; docs/benchmarks.md tells.

Progress goes to standard error, tables to standard output.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import concurrency
import growth
import mount
import preloading
import report
import runcosts
import smallsecrets
from systems import Missing, System, all_systems, build, prioritise, running

PARTS = ("mount", "concurrency", "growth", "secrets", "preload", "run")


def words(allowed: tuple[str, ...]) -> Any:
    """A type for argparse: words of a list, separated by commas."""

    def parse(text: str) -> list[str]:
        for word in (found := text.split(",")):
            if word not in allowed:
                raise argparse.ArgumentTypeError(f"'{word}' is none of {', '.join(allowed)}")
        return found

    return parse


def arguments() -> argparse.Namespace:
    """The command line."""
    names = tuple(all_systems({}))
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, help="how many (default 9, with --quick 3)")
    parser.add_argument("--pairs", type=int, help=f"of part preload (default {preloading.PAIRS}, with --quick 6)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, a quarter of the operations")
    parser.add_argument("--parts", type=words(PARTS), default=list(PARTS), metavar="LIST", help=", ".join(PARTS))
    parser.add_argument("--systems", type=words(names), default=list(names), metavar="LIST", help=", ".join(names))
    parser.add_argument(
        "--placements", type=words(mount.PLACEMENTS), default=list(mount.PLACEMENTS), metavar="LIST",
        help="of client and daemon: same (one CPU), split (two), free (not pinned)",
    )  # fmt: skip
    parser.add_argument(
        "--ops", type=words(tuple(mount.OPERATIONS)), default=list(mount.OPERATIONS), metavar="LIST",
        help=", ".join(mount.OPERATIONS),
    )  # fmt: skip
    parser.add_argument("--nice", type=int, default=0, help="priority of all that is measured, for a machine in use")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument(
        "--markdown",
        type=Path,
        metavar="FILE",
        help="renew the results in this file (docs/benchmarks.md), and its plots",
    )
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="take results written with --json, measure nothing"
    )
    parser.add_argument("--keep", type=Path, metavar="FILE", help="take from there what is not measured this time")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a floor is not reached")
    return parser.parse_args()


def say(line: str) -> None:
    """Progress."""
    print(line, file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """What was measured on."""
    model = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())  # fmt: skip
    return {
        "cpu": model, "cpus": len(os.sched_getaffinity(0)), "kernel": platform.release(),
        "python": platform.python_version(), "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip


@contextlib.contextmanager
def started(wanted: dict[str, System], folder: Path, nice: int) -> Iterator[tuple[list[System], dict[str, str]]]:
    """Start all systems that can run, and say why others cannot."""
    missing: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        up = []
        for name, system in wanted.items():
            try:
                up.append(stack.enter_context(running(system, folder)))
                if nice:
                    system.prioritise(nice)
            except Missing as error:
                missing[name] = str(error)
                say(f"{name} is not measured: {error}")
        yield up, missing


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run what was asked for."""
    rounds = options.rounds or (3 if options.quick else 9)
    results: dict[str, Any] = {"version": 1, "machine": machine(), "rounds": rounds}
    scale = 0.25 if options.quick else 1
    if "secrets" in options.parts:
        results["secrets"] = smallsecrets.measure(rounds=rounds, scale=scale, progress=say)
    if "run" in options.parts:
        results["run"] = runcosts.measure(folder, rounds=rounds, scale=scale, progress=say)
    if "preload" in options.parts:
        pairs = options.pairs or (6 if options.quick else preloading.PAIRS)
        results["preload"] = preloading.measure(pairs=pairs, scale=scale, progress=say)
    if {"mount", "concurrency", "growth"} & set(options.parts):
        results.update(measure_mounts(options, folder, rounds))
    return results


def measure_mounts(options: argparse.Namespace, folder: Path, rounds: int) -> dict[str, Any]:
    """What is measured through mounts."""
    results: dict[str, Any] = {}
    built = build(folder)
    wanted = {name: system for name, system in all_systems(built).items() if name in options.systems}
    if "mount" in options.parts:
        with started(wanted, folder, options.nice) as (up, results["missing"]):
            samples = mount.measure(
                built["client"], up, rounds=rounds, placements=options.placements, operations=options.ops,
                scale=0.25 if options.quick else 1, progress=say,
            )  # fmt: skip
        results["mount"] = mount.summarise(samples)
    few, scale = max(1, rounds // 2), 0.25 if options.quick else 1
    if "concurrency" in options.parts:
        with started(_only(wanted, "c-st", "kernel", "mfusepy"), folder, options.nice) as (up, _):
            results["concurrency"] = concurrency.measure(built["client"], up, rounds=few, scale=scale, progress=say)
            for system in up:
                if system.name == "kernel":
                    results["starvation"] = concurrency.starvation(built["client"], system, scale=scale)
    if "growth" in options.parts and os.geteuid() == 0:
        results["growth_machine"] = {**machine(), "nice": options.nice}
        sizes = growth.SIZES[: 3 if options.quick else 4]
        with started(_only(wanted, "c-st", "kernel"), folder, options.nice) as (up, _):
            results["growth"] = growth.measure(built["client"], up, rounds=min(3, few), sizes=sizes, progress=say)
        for name in ("kernel", "emulator"):
            for operation in ("create", "fill"):
                with started(_only(wanted, name), folder, options.nice) as (up, _):
                    for system in up:
                        found = growth.memory(built["client"], system, operation, files=sizes[-1])
                        results.setdefault("memory", {}).setdefault(name, {})[operation] = found
                        say(f"memory: {name}, {operation}")
    return results


def _only(wanted: dict[str, System], *names: str) -> dict[str, System]:
    return {name: system for name, system in wanted.items() if name in names}


def fresh_results(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="secretfs-bench-") as folder:
        return measure(options, Path(folder))


def main() -> int:
    """Measure, print, write."""
    options = arguments()
    if options.nice:
        prioritise(os.getpid(), options.nice)
    if options.results:
        results = json.loads(options.results.read_text())
    else:
        try:
            results = fresh_results(options)
        except Missing as error:
            say(f"run.py: {error}")
            return 1
    if options.keep:
        results = report.merged(json.loads(options.keep.read_text()), results)
    print("\n".join(report.everything(results, markdown=False)))
    if "secrets" in results:
        print("\n".join(report.everything_secret(results["secrets"], markdown=False)))
    if "run" in results:
        print("\n".join(report.everything_run(results["run"], markdown=False)))
    if "preload" in results:
        print("\n".join(report.everything_preload(results["preload"], markdown=False)))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.markdown:
        report.write_markdown(results, options.markdown)
    below = [
        *mount.below_floor(results.get("mount", {})),
        *smallsecrets.below_floor(results.get("secrets", {})),
        *preloading.below_floor(results.get("preload", {})),
        *runcosts.below_floor(results.get("run", {})),
    ]
    for line in below:
        say(f"below its floor: {line}")
    return 1 if options.check and below else 0


if __name__ == "__main__":
    sys.exit(main())
