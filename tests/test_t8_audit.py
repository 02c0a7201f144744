"""`secretfs audit`: what gets through, what it tells, as whom, and what it leaves behind."""

from __future__ import annotations

import errno
import json
import os
import re
import select
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from audits import PATIENCE, leftovers, results, some
from mounts import SECRETFS, clean_environment, needs_root, needs_secretmem, public_directory, secretfs

from secretfs.audit import inside
from secretfs.audit.holders import Emulated
from secretfs.audit.model import GROUPS, HELD, KINDS, LEAKED, NOT_TRIED, SOURCES, SUBJECTS
from secretfs.audit.needle import LENGTH, Needle
from secretfs.audit.table import TABLE
from secretfs.interface import Guarantees, MappedRegion

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * PATIENCE)]

ATTACKS = [attack.name for attack in TABLE]
PINNING = ("proc-mem", "process-vm-readv", "ptrace-peek")
SECRET = ("kernel", "secret-open", "secret-closed")


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """A default run, with everything: its JSON and its page."""
    page = tmp_path_factory.mktemp("audit") / "report.html"
    before = leftovers()
    done = subprocess.run(
        [SECRETFS, "audit", "--json", "--html", page], env=clean_environment(), capture_output=True, text=True,
        stdin=subprocess.DEVNULL, timeout=PATIENCE + 60, check=False,
    )  # fmt: skip
    assert done.stderr == "", done.stderr
    assert done.returncode == 0, json.loads(done.stdout)["claims_broken"]
    assert leftovers() <= before
    return json.loads(done.stdout), page.read_text(encoding="utf-8")


def test_json_is_as_promised(audit) -> None:
    """The object has the promised keys and words, and no others."""
    told, _ = audit
    assert list(told) == ["version", "kernel", "attacks", "claims_broken"]
    assert told["version"] == 1
    assert told["kernel"] == os.uname().release
    for attack in told["attacks"]:
        assert list(attack) == ["name", "title", "group", "kind", "from", "results", "why"]
        assert attack["group"] in GROUPS
        assert attack["kind"] in KINDS
        assert attack["from"] in SOURCES
        assert tuple(attack["results"]) == SUBJECTS
        assert set(attack["results"].values()) <= {HELD, LEAKED, NOT_TRIED}
        assert set(attack["why"]) >= {s for s, result in attack["results"].items() if result == NOT_TRIED}
    assert [attack["name"] for attack in told["attacks"]] == ATTACKS


def test_what_held_was_shown_to_work(audit) -> None:
    """An attack that anything withstood got through to ordinary memory, by itself or by the row that shows it."""
    found = results(audit[0])
    for attack in TABLE:
        if HELD in found[attack.name].values():
            assert found[attack.shown_by or attack.name]["ordinary"] == LEAKED, attack.name


@needs_root
def test_attacks_work_on_ordinary_memory(audit) -> None:
    """Each attack gets through to ordinary memory, but for those by another user and those that need --machine."""
    needs_tools = {"gdb", "gcore", "uprobe", "bpf-probe-read-user", "perf-stack", "io-uring", "o-direct"}
    needs_tools.add("proc-mem-inject")
    found = results(audit[0])
    if Path("/proc/sys/kernel/yama/ptrace_scope").exists():  # where it is set, it is meant to stop these
        needs_tools |= {attack.name for attack in TABLE if attack.source == "same-user"}
    late = {one["name"] for one in audit[0]["attacks"] if "time was up" in one["why"].get("ordinary", "")}
    for attack in TABLE:
        if attack.source != "other-user" and attack.group != "machine" and attack.name not in needs_tools | late:
            assert found[attack.name]["ordinary"] == LEAKED, (attack.name, audit[0]["attacks"])
    assert len(late) < len(TABLE) // 2


@needs_root
@needs_secretmem
def test_secret_memory_is_not_read(audit) -> None:
    """What reads by pinning or by page tables does not get secret memory, and gets the emulator's."""
    found = results(audit[0])
    for name in PINNING:
        assert {found[name][subject] for subject in SECRET} == {HELD}, name
        assert found[name]["emulator"] == LEAKED, name
    for attack in audit[0]["attacks"]:
        if attack["kind"] == "read":
            assert LEAKED not in {attack["results"][subject] for subject in SECRET}, attack["name"]


@needs_root
@needs_secretmem
def test_what_runs_in_the_owner_reads_it(audit) -> None:
    """Injected code and a write(2) by the owner get secret memory while it can be read, and not a closed Secret."""
    found = results(audit[0])
    for name in ("ptrace-inject", "write"):
        if found[name]["ordinary"] == LEAKED:  # else time was up
            assert found[name]["kernel"] == found[name]["secret-open"] == LEAKED
            assert found[name]["secret-closed"] == HELD


def test_another_user_gets_nothing(audit) -> None:
    """No attack by another user gets through to anything."""
    for attack in audit[0]["attacks"]:
        if attack["from"] == "other-user":
            assert LEAKED not in attack["results"].values()


def test_guarantees_are_named_right() -> None:
    """Rows name fields of Guarantees; what runs in the owner's context or is injected breaks none."""
    assert len(set(ATTACKS)) == len(ATTACKS)
    for attack in TABLE:
        assert attack.guarantee is None or attack.guarantee in Guarantees.names()
        assert attack.kind not in ("in-context", "inject") or attack.guarantee is None
        assert (attack.inside is None) != (attack.outside is None)
        assert re.fullmatch(r"[A-Z/].*\.", attack.about), attack.about


class _Outline(HTMLParser):
    """What of a page matters to people who do not see it, and to those without a network."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "td":
            self.cells.append("")
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open:
            self.cells[-1] += data


def test_page_stands_alone(audit) -> None:
    """The page is well formed, loads nothing, runs nothing, and links only to itself."""
    outline = _Outline(audit[1])
    assert outline.open == []
    assert {"script", "link", "img", "iframe"}.isdisjoint(tag for tag, _ in outline.tags)
    for _, attributes in outline.tags:
        assert not {"src", "onclick", "style"} & set(attributes)
        assert (attributes.get("href") or "#").startswith("#")
    assert "url(" not in audit[1]
    ids = {attributes["id"] for _, attributes in outline.tags if "id" in attributes}
    assert ids == {(attributes["href"] or "")[1:] for _, attributes in outline.tags if "href" in attributes}


def test_page_is_for_everybody(audit) -> None:
    """Every heading of the table has a scope, the table a caption, and each result is a word."""
    outline = _Outline(audit[1])
    assert all(attributes.get("scope") for tag, attributes in outline.tags if tag == "th")
    assert sum(tag == "caption" for tag, _ in outline.tags) == 1
    words = [cell.split(maxsplit=1)[-1] for cell in outline.cells if cell.split(maxsplit=1)[-1] in _RESULTS]
    expected = [result for attack in audit[0]["attacks"] for result in attack["results"].values()]
    assert words == expected
    assert dict(outline.tags)["html"] == {"lang": "en"}


_RESULTS = (HELD, LEAKED, NOT_TRIED)


@needs_root
def test_as_an_ordinary_user() -> None:
    """An ordinary user's audit tries what that user can, a mount of theirs included, and says what needs root."""
    subjects = ["emulator", "kernel", "mount"]
    code, told = some(
        "proc-mem", "proc-mem-user", "file-other", "vmsplice", "fork", subjects=subjects, box={"user": "nobody"}
    )
    found = results(told)
    assert code == 0
    assert set(found["proc-mem"].values()) == {NOT_TRIED}
    assert told["attacks"][0]["why"]["kernel"] == "needs root"
    assert found["proc-mem-user"]["emulator"] == LEAKED
    assert found["proc-mem-user"]["mount"] == HELD
    assert found["fork"]["emulator"] == HELD


@needs_root
def test_without_memfd_secret() -> None:
    """Where the kernel has no secret memory, the emulator keeps what it claims, and the kernel's column says why."""
    subjects = ["emulator", "kernel", "secret-open", "mount"]
    names = (*PINNING, "fork", "exec", "after-unlink", "file-as-owner")
    code, told = some(*names, subjects=subjects, box={"without": "ENOSYS"})
    found = results(told)
    assert code == 0
    assert told["claims_broken"] == []
    assert {found[name]["kernel"] for name in found} == {NOT_TRIED}
    assert "memfd_secret" in told["attacks"][0]["why"]["kernel"]
    for name in PINNING:
        assert found[name]["emulator"] == LEAKED
    assert found["proc-mem"]["secret-open"] == found["proc-mem"]["mount"] == LEAKED
    assert found["after-unlink"]["mount"] == HELD


BOASTFUL = """
from dataclasses import replace
from secretfs_emulator import Backend as Emulator
class Backend(Emulator):
    name = "boastful"
    guarantees = replace(Emulator.guarantees, refuses_pinning=True)
    def map(self, size, *, shared=False):
        region = super().map(size, shared=shared)
        region.guarantees = self.guarantees
        return region
"""


@needs_root
def test_a_claim_that_does_not_hold() -> None:
    """A backend that claims too much makes the audit end with 1 and name the subject, the guarantee and the attack."""
    with public_directory() as folder:
        metadata = folder / "boastful-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: boastful\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text("[secretfs.backends]\nboastful = boastful:Backend\n")
        (folder / "boastful.py").write_text(BOASTFUL)
        code, told = some(
            "process-vm-readv",
            subjects=["secret-open"],
            env={"PYTHONPATH": str(folder), "SECRETFS_BACKEND": "boastful"},
        )
    assert code == 1
    broken = {"subject": "secret-open", "guarantee": "refuses_pinning", "attack": "process-vm-readv"}
    assert told["claims_broken"] == [broken]


@needs_root
def test_nothing_is_left_after_kill() -> None:
    """An audit that is killed in the midst of it leaves no process, mount or folder."""
    before = leftovers()
    process = subprocess.Popen(
        [SECRETFS, "audit", "--json"], env=clean_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    _wait_until(lambda: any("/mount" in one for one in leftovers() - before))
    process.kill()
    process.communicate()
    _wait_until(lambda: leftovers() <= before)


def _wait_until(condition) -> None:
    """Processes of others end and mounts come and go; there is nothing to wait on but their traces."""
    reader, writer = os.pipe()
    for _ in range(600):
        if condition():
            break
        select.select([reader], [], [], 0.1)
    os.close(reader)
    os.close(writer)
    assert condition()


@pytest.mark.parametrize("attack", [inside.over_read, inside.under_read])
def test_only_guard_pages_end_an_over_read(emulator, monkeypatch: pytest.MonkeyPatch, attack) -> None:
    """Reading past either end of an area gets the neighbour's secret where there are no guard pages, and none else."""

    def tried() -> bool:
        holder = Emulated(Needle.fresh(), "")
        try:
            return attack(holder)
        finally:
            holder.release()

    with pytest.raises(OSError, match=os.strerror(errno.EFAULT)):
        tried()
    monkeypatch.setattr(MappedRegion, "enclose", lambda region: None)
    assert tried()


def test_report_that_cannot_be_written(tmp_path: Path) -> None:
    """A report that cannot be written is one sentence, before anything is attacked."""
    done = secretfs("audit", "--html", tmp_path / "no" / "report.html")
    assert done.returncode == 1
    assert re.match(r"secretfs: error: the report cannot be written to .*\nsecretfs: hint: ", done.stderr)


def test_needle_is_found_and_wiped() -> None:
    """A needle is found whole and in pieces, wherever it is cut, and the buffer that was searched is empty."""
    needle = Needle.fresh()
    text = bytearray(LENGTH)
    needle.uncover_into(memoryview(text))
    assert needle.masked not in text
    assert needle.in_buffer(bytearray(b"xyz") + text)
    assert not needle.in_buffer(bytearray(b"xyz") + text[:-1])
    assert needle.in_buffer(bytearray(b"xyz") + text[:-1], pieces=True)
    searched = bytearray(text)
    needle.in_buffer(searched)
    assert searched == bytes(LENGTH)


def test_needle_is_found_across_blocks(tmp_path: Path) -> None:
    """A needle that lies across the blocks in which a file is read is found."""
    needle = Needle.fresh()
    text = bytearray(LENGTH)
    needle.uncover_into(memoryview(text))
    (tmp_path / "file").write_bytes(bytes((1 << 20) - 7) + text)
    assert needle.in_path(str(tmp_path / "file"))
    assert not Needle.fresh().in_path(str(tmp_path / "file"))


DOCS = Path(__file__).parents[1] / "docs"
COLUMNS = ("emulator", "kernel", "secret-open", "secret-closed", "mount", "preload")


def rows(document: str, begin: str, end: str) -> list[list[str]]:
    """The cells of the tables between two marks of a document, headings left out."""
    text = (DOCS / document).read_text(encoding="utf-8").partition(begin)[2].partition(end)[0]
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_document_lists_the_attacks() -> None:
    """docs/audit.md has each attack once, in order, with what it does and what it would break."""
    expected = [
        [f"`{one.name}`", one.source, one.kind, one.about, f"`{one.guarantee}`" if one.guarantee else "-"]
        for one in TABLE
    ]
    assert rows("audit.md", "<!-- attacks:", "<!-- end of attacks") == expected


def test_threat_model_has_a_row_for_each_attack() -> None:
    """docs/threat-model.md has each attack once, in order, with who tries it and what stops it."""
    found = rows("threat-model.md", "<!-- results:", "<!-- end of results")
    assert [row[:2] for row in found] == [[f"`{one.name}`", one.source] for one in TABLE]
    assert all(len(row) == len(COLUMNS) + 3 and row[-1] for row in found)


@needs_root
@needs_secretmem
def test_threat_model_says_what_the_audit_shows(audit) -> None:
    """What docs/threat-model.md says held is held here, and what it says leaked leaks, where it was tried."""
    documented = {
        row[0].strip("`"): dict(zip(COLUMNS, row[2:-1], strict=True))
        for row in rows("threat-model.md", "<!-- results:", "<!-- end of results")
    }
    found = results(audit[0])
    wrong = [
        (name, subject, documented[name][subject], found[name][subject])
        for name in ATTACKS
        for subject in COLUMNS
        if found[name][subject] != NOT_TRIED and documented[name][subject] != "by luck"
        if documented[name][subject].strip("*") != found[name][subject]
    ]
    assert wrong == []


def test_threat_model_lists_the_rows_of_each_guarantee() -> None:
    """The table by guarantee names the rows of the attack table."""
    found = {row[0].strip("`"): row[1] for row in rows("threat-model.md", "## By guarantee", "## Not claimed")}
    for name in {one.guarantee for one in TABLE if one.guarantee}:
        plain = [one for one in TABLE if one.guarantee == name and one.source not in ("same-user", "other-user")]
        assert found[name] == ", ".join(f"`{one.name}`" for one in plain)
