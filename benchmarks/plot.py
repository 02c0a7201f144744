"""Plots as SVG, written by hand: grouped bars and lines, with nothing to install."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

COLOURS = ("#3465a4", "#73d216", "#f57900", "#75507b", "#cc0000", "#555753")
WIDTH, HEIGHT = 900, 420
LEFT, RIGHT, TOP, BOTTOM = 60, 20, 70, 60


def bars(
    title: str, groups: Sequence[str], series: Mapping[str, Sequence[float | None]], marks: Sequence[float | None] = ()
) -> str:
    """Bars of each series side by side in each group; 1.0 is a line, and `marks` a short one per group (a floor)."""
    values = [value for row in (*series.values(), marks) for value in row if value is not None]
    top = max(1.2, *values) * 1.05
    x, step = lambda i: LEFT + (WIDTH - LEFT - RIGHT) * i / len(groups), (WIDTH - LEFT - RIGHT) / len(groups)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top

    parts = []
    width = step * 0.8 / len(series)
    for j, (name, row) in enumerate(series.items()):
        for i, value in enumerate(row):
            if value is not None:
                at = x(i) + step * 0.1 + width * j
                hint = f"<title>{escape(name)} {value:.2f}</title>"
                parts.append(
                    f'<rect x="{at:.1f}" y="{y(value):.1f}" width="{width * 0.92:.1f}" '
                    f'height="{y(0) - y(value):.1f}" fill="{COLOURS[j]}">{hint}</rect>'
                )
    for i, mark in enumerate(marks):
        if mark is not None:
            parts.append(_line(x(i) + step * 0.04, y(mark), x(i) + step * 0.96, y(mark), "#000", 2))
    parts += [_text(x(i) + step / 2, HEIGHT - BOTTOM + 18, group, "middle", 11) for i, group in enumerate(groups)]
    parts += _scale(y, top)
    parts.append(_line(LEFT, y(1), WIDTH - RIGHT, y(1), "#888", 1))
    return _page(title, parts, list(series))


def lines(title: str, xs: Sequence[float], series: Mapping[str, Sequence[float]]) -> str:
    """One line per series over xs, which are spaced by their logarithm."""
    top = max(value for row in series.values() for value in row) * 1.05
    low, high = math.log(xs[0]), math.log(xs[-1])

    def x(value: float) -> float:
        return LEFT + 20 + (WIDTH - LEFT - RIGHT - 40) * (math.log(value) - low) / (high - low)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top

    parts = _scale(y, top) + [_text(x(value), HEIGHT - BOTTOM + 18, f"{value:,}", "middle", 11) for value in xs]
    for j, row in enumerate(series.values()):
        points = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in zip(xs, row, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[j]}" stroke-width="2"/>')
    return _page(title, parts, list(series))


def _scale(y: object, top: float) -> list[str]:
    assert callable(y)
    step = 10 ** math.floor(math.log10(top))
    step = next(step * factor for factor in (0.2, 0.5, 1, 2) if top / (step * factor) <= 7)
    parts = []
    for i in range(int(top / step) + 1):
        parts.append(_line(LEFT, y(i * step), WIDTH - RIGHT, y(i * step), "#ddd", 1))
        parts.append(_text(LEFT - 6, y(i * step) + 4, f"{i * step:,g}", "end", 11))
    return parts


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: int) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def _text(x: float, y: float, text: str, anchor: str, size: int) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'


def _page(title: str, parts: Sequence[str], names: Sequence[str]) -> str:
    legend, at = [], float(LEFT)
    for colour, name in zip(COLOURS, names, strict=False):
        legend.append(f'<rect x="{at:.0f}" y="36" width="12" height="12" fill="{colour}"/>')
        legend.append(_text(at + 17, 46, name, "start", 12))
        at += 34 + 7 * len(name)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">'
    ground = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
    return "\n".join([head, ground, _text(LEFT, 22, title, "start", 15), *legend, *parts, "</svg>\n"])
