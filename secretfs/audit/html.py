"""The report as one HTML page: no script, nothing from elsewhere; for screens, paper and screen readers.

A result is a word and a sign in each cell, never a colour alone; the matrix is a table with row and column headings.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from html import escape

from secretfs.audit.advice import advice
from secretfs.audit.model import HELD, LEAKED, NOT_TRIED, SUBJECTS, Attack, Audit
from secretfs.audit.report import GROUP_TITLES, SUBJECT_TITLES, last_lines

__all__ = ["page"]

_SIGNS = {HELD: "✓", LEAKED: "✗", NOT_TRIED: "\N{EN DASH}"}
_CLASSES = {HELD: "held", LEAKED: "leaked", NOT_TRIED: "none"}
_STYLE = """
:root { color-scheme: light dark; --held: #cdebd0; --leaked: #f6c3bd; --none: #ededed; --line: #8a8a8a; --ink: #1a1a1a;
  --paper: #fff }
@media (prefers-color-scheme: dark) { :root { --held: #1d4d28; --leaked: #7a2319; --none: #333; --line: #777;
  --ink: #f0f0f0; --paper: #161616 } }
body { font: 1rem/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: var(--ink);
  background: var(--paper) }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem }
caption { text-align: left; padding-bottom: .5rem }
th, td { border: 1px solid var(--line); padding: .25rem .5rem; text-align: left; vertical-align: top }
thead th { font-weight: 600 }
tbody th[scope=row] { font-weight: 400; white-space: nowrap }
tbody th[scope=rowgroup] { font-weight: 600; background: none; border-left: 0; border-right: 0; padding-top: 1rem }
td.held { background: var(--held) } td.leaked { background: var(--leaked); font-weight: 600 }
td.none { background: var(--none) }
.matrix td { white-space: nowrap }
dl.attacks dt { font-weight: 600; margin-top: .8rem } dl.attacks dd { margin: 0 0 0 1.2rem }
.broken { border: 2px solid; padding: .5rem 1rem }
@media print { @page { size: landscape; margin: 1cm } body { margin: 0; max-width: none; font-size: 9pt }
  table { font-size: 7.5pt } th, td { padding: .1rem .25rem } thead { display: table-header-group }
  tr, dt, dd { break-inside: avoid } dt { break-after: avoid }
  td { print-color-adjust: exact; -webkit-print-color-adjust: exact } .wide { overflow: visible } }
"""


def page(audit: Audit) -> str:
    """All of it."""
    parts = [*_head(audit), *_matrix(audit), *_changes(audit), *_machine(audit), *_attacks(audit)]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            f'<head><meta charset="utf-8"><title>secretfs audit, {escape(audit.kernel)}</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{_STYLE}</style></head>",
            "<body><main>",
            *parts,
            "</main></body>",
            "</html>",
            "",
        ]
    )


def _head(audit: Audit) -> Iterator[str]:
    yield "<h1>secretfs audit</h1>"
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    yield f"<p>Linux {escape(audit.kernel)}, {when}. A secret was planted in each kind of memory and attacked.</p>"
    kind = ' class="broken"' if audit.broken() else ""
    yield f"<p{kind}>{'<br>'.join(map(escape, last_lines(audit)))}</p>"


def _matrix(audit: Audit) -> Iterator[str]:
    yield "<h2>Results</h2>"
    yield '<div class="wide"><table class="matrix">'
    yield (
        "<caption><strong>held</strong>: the attack did not get the secret. <strong>leaked</strong>: it did."
        " <strong>not tried</strong>: it could not be tried, or did not work on ordinary memory either."
        " The reasons are below, by attack.</caption>"
    )
    titles = "".join(f'<th scope="col">{escape(SUBJECT_TITLES[subject])}</th>' for subject in SUBJECTS)
    yield f'<thead><tr><th scope="col">Attack</th><th scope="col">By</th>{titles}</tr></thead>'
    for group, title in GROUP_TITLES.items():
        rows = [attack for attack in audit.attacks if attack.group == group]
        if rows:
            heading = f'<tr><th scope="rowgroup" colspan="{len(SUBJECTS) + 2}">{escape(title)}</th></tr>'
            yield f"<tbody>{heading}"
            yield from (_row(audit, attack) for attack in rows)
            yield "</tbody>"
    yield "</table></div>"


def _row(audit: Audit, attack: Attack) -> str:
    results = [audit.cells[attack.name, subject].result for subject in SUBJECTS]
    cells = "".join(
        f'<td class="{_CLASSES[each]}"><span aria-hidden="true">{_SIGNS[each]}</span> {each}</td>' for each in results
    )
    name = f'<th scope="row"><a href="#{attack.name}">{escape(attack.title)}</a></th>'
    return f"<tr>{name}<td>{escape(attack.source)}</td>{cells}</tr>"


def _changes(audit: Audit) -> Iterator[str]:
    yield "<h2>What to change for a better result</h2>"
    found = advice(audit)
    if not found:
        yield "<p>Nothing that this audit knows of.</p>"
        return
    yield "<ul>"
    yield from (f"<li><strong>{escape(one.what)}</strong>: {escape(one.why)}.</li>" for one in found)
    yield "</ul>"


def _machine(audit: Audit) -> Iterator[str]:
    yield "<h2>The machine</h2>"
    yield "<table>"
    yield "<tbody>"
    for name, value in audit.facts.items():
        yield f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
    yield "</tbody></table>"


def _attacks(audit: Audit) -> Iterator[str]:
    yield "<h2>What each attack does</h2>"
    yield '<dl class="attacks">'
    for attack in audit.attacks:
        about = f"{attack.about} {_breaks(attack)}".strip()
        yield f'<dt id="{attack.name}">{escape(attack.title)} <code>{attack.name}</code></dt><dd>{escape(about)}'
        yield from _reasons(audit, attack)
        yield "</dd>"
    yield "</dl>"


def _breaks(attack: Attack) -> str:
    return f"It would break the guarantee {attack.guarantee}." if attack.guarantee else ""


def _reasons(audit: Audit, attack: Attack) -> Iterator[str]:
    """The reasons, subjects with the same one together."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for subject in SUBJECTS:
        cell = audit.cells[attack.name, subject]
        if cell.why:
            by_reason.setdefault((cell.result, cell.why), []).append(SUBJECT_TITLES[subject])
    if by_reason:
        yield "<ul>"
        for (result, why), subjects in by_reason.items():
            yield f"<li>{escape(', '.join(subjects))}: {result}: {escape(why)}</li>"
        yield "</ul>"
