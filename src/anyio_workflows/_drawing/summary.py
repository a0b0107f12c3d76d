"""How one run stands, in a few lines of text: its state, result or error, and what it waits for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .._ledger.work import OpenWait
from .._messages import last_line_of, short_repr, shortened

_LONGEST = 500
_MOST_WAITS = 10

Row = tuple[str, str]
"""A heading, and what is said under it."""


def result_row(result: object) -> Row:
    """Say what a run has returned."""
    return "Result", shortened(short_repr(result), _LONGEST)


def error_rows(error: BaseException) -> Iterator[Row]:
    """Say with what a run has failed, and its notes, which tell in what step."""
    yield "Error", shortened(last_line_of(error), _LONGEST)
    notes = getattr(error, "__notes__", None)  # anything, if a program has set it
    for note in notes[:3] if isinstance(notes, list) else ():
        yield "Note", shortened(str(note), _LONGEST)


def wait_rows(waits: Sequence[OpenWait]) -> Iterator[Row]:
    """Say which steps wait for what, and with which id an answer reaches them."""
    for wait in waits[:_MOST_WAITS]:
        asked = "" if wait.question is None else f" after {short_repr(wait.question)}"
        text = f"{wait.step} waits for {wait.event_type.__name__}{asked}, wait={wait.id!r}"
        yield "Open wait", shortened(text, _LONGEST)
    if len(waits) > _MOST_WAITS:
        yield "Open wait", f"... and {len(waits) - _MOST_WAITS} more"
