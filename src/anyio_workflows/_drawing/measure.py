"""How much room text takes, and how text that is too long is shortened."""

from __future__ import annotations

from math import ceil
from unicodedata import category, combining, east_asian_width

_CELL = 0.605
"""Width of a character by its size: that of the usual monospace fonts, and enough for most others."""

_WIDE = 1.7
"""Characters that a wide one counts for: it is as wide as the font is high."""


def columns(text: str) -> float:
    """Return how many characters of usual width are as wide as the text."""
    wide = 0
    narrow = 0
    for char in text:
        if east_asian_width(char) in "WF":
            wide += 1
        elif not combining(char) and category(char) not in ("Mn", "Me", "Cf"):
            narrow += 1
    return narrow + wide * _WIDE


def text_width(text: str, size: int) -> int:
    """Return about how wide the text is, in pixels; rounded up to an even number.

    Args:
        text: A single line.
        size: The size of the font, in pixels.
    """
    return 2 * ceil(columns(text) * size * _CELL / 2)


def prose_width(text: str, size: int) -> int:
    """Return about how wide the text is in a font whose letters differ in width, in pixels.

    Args:
        text: A single line of words.
        size: The size of the font, in pixels.
    """
    tenths = 0
    for char in text:
        if char in _NARROW:
            tenths += 4
        elif char in "mwMW" or east_asian_width(char) in "WF":
            tenths += 10
        else:
            tenths += 6
    return ceil(tenths * size / 10)


_NARROW = frozenset("fijlrtI:;,.!'|()[] ")


def shorten(text: str, most: int) -> str:
    """Return the text as one line of at most `most` columns, with an ellipsis for what is omitted.

    The beginning and the end stay: names that begin alike often differ at the end.
    """
    text = " ".join(text[: 100 * most].split())
    if columns(text) <= most:
        return text
    tail = _fitting(text[::-1], most // 3)[::-1]
    return _fitting(text, most - 1 - most // 3) + "…" + tail


def _fitting(text: str, most: int) -> str:
    """Return as much of the beginning as fits."""
    end = most
    while columns(text[:end]) > most:
        end -= 1
    return text[:end]


def shorten_list(texts: tuple[str, ...], most: int, width: int) -> tuple[str, ...]:
    """Return at most `most` shortened lines; the last one counts those that are omitted."""
    if len(texts) > most:
        texts = (*texts[: most - 1], f"and {len(texts) - most + 1} more")
    return tuple(shorten(text, width) for text in texts)
