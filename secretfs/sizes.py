"""Sizes, modes and counts as people write them, on the command line and in fstab."""

from __future__ import annotations

import re

__all__ = ["human_size", "parse_count", "parse_microseconds", "parse_mode", "parse_size"]

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_LARGEST_SIZE = 1 << 62
_LARGEST_COUNT = 1 << 48
_LONGEST_SPIN = 10_000


def parse_size(text: str) -> int:
    """Bytes, or a number with K, M or G (of 1024).

    Raises:
        ValueError: saying what was expected.
    """
    match = re.fullmatch(r"([0-9]+)([KMG]?)", text.strip().upper())
    if not match:
        raise ValueError(f"{text!r} is not a size: give bytes, or a number with K, M or G")
    digits, unit = match.groups()
    size = int(digits[:30]) * _UNITS[unit]
    if not 0 < size < _LARGEST_SIZE:
        raise ValueError(f"{text!r} is too {'large' if size else 'small'} a size: give 1 to {_LARGEST_SIZE - 1} bytes")
    return size


def parse_count(text: str) -> int:
    """A number of files.

    Raises:
        ValueError: saying what was expected.
    """
    return _number(text, "number of files", 1, _LARGEST_COUNT)


def parse_microseconds(text: str) -> int:
    """How long to poll.

    Raises:
        ValueError: saying what was expected.
    """
    return _number(text, "number of microseconds", 0, _LONGEST_SPIN)


def _number(text: str, what: str, least: int, most: int) -> int:
    if not re.fullmatch(r"[0-9]{1,30}", text) or not least <= int(text) <= most:
        raise ValueError(f"{text!r} is not a {what} from {least} to {most}")
    return int(text)


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
