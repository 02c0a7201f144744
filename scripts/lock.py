#!/usr/bin/env python3
"""Writes the lock files from pyproject.toml: requirements-{build,mount,dev}.txt, with hashes, for pip --require-hashes.

    lock.py PIP_COMPILE [--upgrade]

build  what pyfuse3 (which has no wheel) and our own wheel are built with
mount  what `make install` installs
dev    what `make test` and `make lint` need

All three agree on versions. Without --upgrade a version that still fits is kept. Run it with Python 3.11: what only
3.10 needs is added below, so that the files install on 3.10 to 3.13.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import tomllib

TOP = Path(__file__).resolve().parent.parent
BUILD_TOOLS = ["setuptools-scm>=8", "cython>=3", "tomli"]  # [build-system] of pyfuse3
ON_PYTHON_3_10 = ["exceptiongroup", "tomli", "grimp<3.19", "hypothesis<6.169"]  # two backports; newer ones need 3.11
OPTIONS = [
    "--quiet", "--generate-hashes", "--allow-unsafe", "--strip-extras", "--no-header", "--no-annotate",
    "--no-emit-index-url", "--no-emit-find-links", "--no-emit-trusted-host",
]  # fmt: skip
HEADER = """\
# Locked with hashes by `make lock` from {source}; do not edit.
# pip install --require-hashes {options}-r {name}
"""


def main(pip_compile: str, *options: str) -> None:
    """Lock dev first: the others are parts of it, or go beside it."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))
    extras: dict[str, list[str]] = project["project"]["optional-dependencies"]
    name: str = project["project"]["name"]
    build = [*project["build-system"]["requires"], *BUILD_TOOLS]
    runtime: list[str] = project["project"].get("dependencies", [])
    dev = [*runtime, *flat(extras, "dev", name), *ON_PYTHON_3_10]
    mount = [*runtime, *flat(extras, "mount", name), "exceptiongroup"]
    with tempfile.TemporaryDirectory() as folder:
        command = [pip_compile, *options]
        everything = lock(Path(folder, "everything"), [*dev, *build], command, seed=TOP / "requirements-dev.txt")
        for target, wanted in (("build", build), ("mount", mount), ("dev", dev)):
            locked = lock(Path(folder, target), wanted, [pip_compile], constraint=everything)
            write(f"requirements-{target}.txt", locked.read_text(encoding="utf-8"))


def flat(extras: dict[str, list[str]], extra: str, project: str) -> list[str]:
    """The requirements of an extra, those of the project's own extras in it put in their place."""
    found: list[str] = []
    for requirement in extras[extra]:
        own = re.fullmatch(rf"{re.escape(project)}\[([\w-]+)\]", requirement)
        found += flat(extras, own[1], project) if own else [requirement]
    return found


def lock(
    base: Path, wanted: list[str], command: list[str], *, constraint: Path | None = None, seed: Path | None = None
) -> Path:
    """Run pip-compile and return the file that it wrote. `seed`: the lock file whose versions are kept if they fit."""
    source, target = base.with_suffix(".in"), base.with_suffix(".txt")
    source.write_text("\n".join(wanted) + "\n", encoding="utf-8")
    if seed and seed.exists():
        target.write_bytes(seed.read_bytes())
    extra = ["--constraint", str(constraint)] if constraint else []
    subprocess.run([*command, *OPTIONS, *extra, "--output-file", str(target), str(source)], check=True)
    return target


def write(name: str, locked: str) -> None:
    source = "pyproject.toml and scripts/lock" if "build" in name else "pyproject.toml"
    options = "" if "build" in name else "--no-build-isolation "
    kept = re.sub(r"\n*# The following packages are considered to be unsafe.*\n", "\n", locked)
    (TOP / name).write_text(HEADER.format(source=source, options=options, name=name) + kept, encoding="utf-8")
    print(f"{name}: {kept.count('==')} packages")


if __name__ == "__main__":
    main(*sys.argv[1:])
