"""The audit's page in a browser: Chromium, without a window. `make test-browser` has what it needs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from secretfs.audit.html import page
from secretfs.audit.model import HELD, LEAKED, NOT_TRIED, SUBJECTS, Audit, Cell
from secretfs.audit.table import TABLE

CHROMIUM = shutil.which("chromium") or ""
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not CHROMIUM, reason="browser: chromium is not installed"),
]

WIDTH = 1280
PROBE = """
<script>
const shown = [...document.querySelectorAll("td, th")].map(cell => {
  const style = getComputedStyle(cell), behind = getComputedStyle(document.body);
  const own = style.backgroundColor == "rgba(0, 0, 0, 0)" ? behind.backgroundColor : style.backgroundColor;
  return [cell.innerText.trim(), style.color, own];
});
const pre = document.createElement("pre");
pre.id = "probe";
pre.textContent = JSON.stringify({wide: document.documentElement.scrollWidth, shown: shown});
document.body.append(pre);
</script>
"""


def audit() -> Audit:
    """One with every kind of result, and a claim that did not hold."""
    results = (HELD, LEAKED, NOT_TRIED)
    cells = {
        (attack.name, subject): Cell(results[(row + column) % 3], "refused: EIO <&>")
        for row, attack in enumerate(TABLE)
        for column, subject in enumerate(SUBJECTS)
    }
    return Audit("6.1.0", list(TABLE), cells, {"kernel": {"refuses_pinning": True}}, {"kernel": "Linux 6.1.0"})


def chromium(folder: Path, *words: str) -> str:
    """What it prints."""
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile",
        f"--window-size={WIDTH},2000", *words, f"file://{folder}/report.html",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True, cwd=folder)
    return done.stdout


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_everything_can_be_read(tmp_path: Path, dark: bool) -> None:
    """The page fits a window of 1280 pixels, shows each result as a word, and has enough contrast, also on dark."""
    (tmp_path / "report.html").write_text(page(audit()).replace("</body>", PROBE + "</body>"), encoding="utf-8")
    dom = chromium(tmp_path, f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--dump-dom")
    found: dict[str, Any] = json.loads(re.findall(r'<pre id="probe">(.*?)</pre>', dom, re.DOTALL)[0])
    assert found["wide"] <= WIDTH
    words = [text.split(maxsplit=1)[-1] for text, _, _ in found["shown"] if text]
    assert len([word for word in words if word in (HELD, LEAKED, NOT_TRIED)]) == len(TABLE) * len(SUBJECTS)
    backgrounds = {background for _, _, background in found["shown"]}
    assert len(backgrounds) == 4, "three colours of cells, and that of the page"
    for text, colour, background in found["shown"]:
        assert contrast(colour, background) >= 4.5, (text, colour, background)


def test_it_can_be_printed(tmp_path: Path) -> None:
    """It prints to a PDF of a few pages."""
    (tmp_path / "report.html").write_text(page(audit()), encoding="utf-8")
    chromium(tmp_path, f"--print-to-pdf={tmp_path}/report.pdf")
    content = (tmp_path / "report.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", content)) <= 12


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2 between two colours as CSS gives them."""
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    """The relative luminance of WCAG 2."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
