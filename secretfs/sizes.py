"""Sizes and modes as people write them."""

from __future__ import annotations

import re

__all__ = ["human_size", "parse_mode", "parse_size"]

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def parse_size(text: str) -> int:
    """Bytes, or a number with K, M or G (of 1024).

    Raises:
        ValueError: saying what was expected.
    """
    match = re.fullmatch(r"(\d{1,15})([KMG]?)", text.strip().upper())
    size = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 0 < size < 1 << 62:
        raise ValueError(f"{text!r} is not a size: give bytes, or a number with K, M or G")
    return size


def parse_mode(text: str) -> int:
    """Permission bits in octal.

    Raises:
        ValueError: saying what was expected.
    """
    if not re.fullmatch(r"[0-7]{3,5}", text) or int(text, 8) > 0o7777:
        raise ValueError(f"{text!r} is not a mode: give octal digits such as 0700")
    return int(text, 8)


def human_size(size: int) -> str:
    """A size for people: 16 MiB, 512 KiB, 100 bytes."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f}".removesuffix(".0") + f" {name}"
    return f"{size} bytes"
