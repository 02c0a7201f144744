"""What a program observes under `secretfs run --emulate`, line by line beside the real kernel.

The probe (secretprobe/) makes every call there is on a secret's descriptor and mapping, and prints what came of each.
Where the emulation differs is a table in docs/run-differences.md, and this test demands exactly that table.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from launches import open_folder
from mounts import ROOT, needs_root, needs_secretmem
from runs import PROBE, compiled, differences, finished, may_emulate, observed, under_run

DOCUMENT = Path(__file__).parents[1] / "docs" / "run-differences.md"
VARIANTS = {
    "tmpfs": (None, ("--emulate", "--backing", "tmpfs")),
    "tmpfs-strict": (None, ("--emulate", "--backing", "tmpfs", "--strict")),
    "memfd": (None, ("--emulate", "--backing", "memfd")),
    "memfd-strict": (None, ("--emulate", "--backing", "memfd", "--strict")),
    "user": ("nobody", ("--emulate",)),
    "user-strict": ("nobody", ("--emulate", "--strict")),
}
"""Who runs it, and the options."""
MOST = {"tmpfs": 31, "tmpfs-strict": 26, "memfd": 35, "memfd-strict": 30, "user": 35, "user-strict": 30}
"""How many lines may differ, those of the lock limit apart."""
LIMITS = {"tmpfs": 1, "tmpfs-strict": 1, "memfd": 5, "memfd-strict": 5, "user": 5, "user-strict": 5}
"""How many of those about the lock limit may."""

HIDDEN = ("aio.", "fstatfs", "limits.", "madvise.", "mlock", "mprotect.", "msync.", "name_to_handle_at", "vm_readv.",
          "vm_writev.", "vmsplice", "zero_copy.")  # fmt: skip
"""What depends on the caller's memory or mappings, and so is the kernel's where they cannot be looked at."""

pytestmark = [pytest.mark.slow, may_emulate]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Where the probe lies and runs; every user may write there."""
    with open_folder() as path:
        yield Path(path)


@pytest.fixture(scope="module", params=["dynamic", "static"])
def probe(folder: Path, request: pytest.FixtureRequest) -> Path:
    """The probe."""
    return compiled(folder / f"probe-{request.param}", *PROBE, static=request.param == "static")


@pytest.fixture(scope="module")
def dynamic(folder: Path) -> Path:
    """The probe, for what does not depend on how it is linked."""
    return compiled(folder / "probe", *PROBE)


@cache
def native(probe: Path, user: str | None, under: tuple[str, ...] = (), words: tuple[str, ...] = ()) -> dict[str, str]:
    """What it observes of the real kernel."""
    return observed(finished([*under, probe, *words], probe.parent, user=user))


def documented(variant: str) -> dict[str, tuple[str, str]]:
    """Name, native and emulated result of each difference in that variant."""
    found = {}
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 5:
            name, kernel, emulated, reason, where = (cell.strip("`") for cell in cells)
            assert reason, name
            assert where == "all" or set(where.split(", ")) <= set(VARIANTS), where
            if where == "all" or variant in where.split(", "):
                assert name not in found, name
                found[name] = kernel, emulated
    return found


def emulated(
    probe: Path, variant: str, *more: str, under: tuple[str, ...] = (), words: tuple[str, ...] = ()
) -> dict[str, tuple[str, str]]:
    """What of what it observes in a variant differs from the kernel: with more options, inside another command."""
    user, options = VARIANTS[variant]
    if user is None and not ROOT:
        pytest.skip("needs root: only root has the tmpfs backing")
    real = native(probe, user, under, words)
    found = observed(finished(under_run([*under, probe, *words], *options, *more), probe.parent, user=user))
    return differences(real, found)


@needs_secretmem
@pytest.mark.parametrize("variant", VARIANTS)
def test_differences(probe: Path, variant: str) -> None:
    """The lines that differ are those of the table, with the results that it names."""
    assert emulated(probe, variant) == documented(variant)


@needs_root
@needs_secretmem
@pytest.mark.parametrize(
    ("variant", "options"),
    [("tmpfs", "-pf"), ("user", "-Upf"), ("user", "-Ur")],
)
def test_in_other_namespaces(dynamic: Path, variant: str, options: str) -> None:
    """In pid and user namespaces of their own, where numbers of processes and users mean something else, no more
    differs.
    """
    proc = ["--mount-proc"] if "p" in options else []
    assert emulated(dynamic, variant, under=("unshare", options, *proc)) == documented(variant)


@needs_secretmem
def test_a_process_that_hides(dynamic: Path) -> None:
    """A process that is not dumpable hides nothing from root's supervisor: no more differs."""
    assert emulated(dynamic, "tmpfs", words=("undumpable",)) == documented("tmpfs")


@needs_root
@needs_secretmem
def test_a_process_that_hides_from_its_own_user(dynamic: Path) -> None:
    """From an ordinary user's supervisor it hides its memory and mappings; what it was given, it has all the same."""
    differing = set(emulated(dynamic, "user", words=("undumpable",))) - set(documented("user"))
    assert {name for name in differing if not name.startswith(HIDDEN)} == set()
    assert "vm_readv.secret" in differing


@needs_secretmem
def test_pass_through(dynamic: Path) -> None:
    """Without --emulate, `run` leaves it to a kernel that has it: nothing differs."""
    assert observed(finished(under_run([dynamic]), dynamic.parent)) == native(dynamic, None)


@needs_secretmem
@pytest.mark.parametrize("variant", ["tmpfs", "user"])
def test_the_older_interface_beside_it(dynamic: Path, variant: str) -> None:
    """With --rfc2020 memfd_secret(2) is what it is without."""
    assert emulated(dynamic, variant, "--rfc2020") == documented(variant)


@needs_root
@needs_secretmem
def test_the_probe_is_deterministic(dynamic: Path) -> None:
    """Twice on the same kernel it prints the same, at least 150 observations."""
    first = finished([dynamic], dynamic.parent)
    assert first == finished([dynamic], dynamic.parent)
    assert len(observed(first)) >= 150


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_number_of_differences(variant: str) -> None:
    """No more lines differ than were found when this was designed; their number is in the document."""
    names = documented(variant)
    head, counts = (line.strip("|").split("|") for line in DOCUMENT.read_text(encoding="utf-8").splitlines()
                    if line.startswith(("| variant", "| lines that differ")))  # fmt: skip
    told = dict(zip(map(str.strip, head), map(str.strip, counts), strict=True))
    assert told[variant] == str(len(names))
    of_the_limit = [name for name in names if name.startswith("limits.")]
    assert len(of_the_limit) <= LIMITS[variant]
    assert len(names) - len(of_the_limit) <= MOST[variant]
