"""How values, names and hints are written in messages."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from types import NoneType
from typing import Any


class _ShortRepr(reprlib.Repr):
    """`reprlib` for integers of any size too: `repr()` refuses very long ones."""

    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if x.bit_length() < 1000 else _long_int(x)

    def repr_instance(self, x: Any, level: int) -> str:
        return shortened(super().repr_instance(x, level), 100)


def _long_int(number: int) -> str:
    return f"<int of {number.bit_length()} bits>"


_short_repr = _ShortRepr()


def short_repr(value: object) -> str:
    """Return a short `repr()` of a value from anywhere: bounded in time and length."""
    return _short_repr.repr(value)


def shortened(text: str, longest: int) -> str:
    """Return a text of at most `longest` characters, with its beginning and its end."""
    if len(text) <= longest:
        return text
    end = longest // 3
    return f"{text[: longest - end - 3]}...{text[-end:]}"


def text_of(error: BaseException) -> str:
    """Return the message of an exception."""
    try:
        return str(error)
    except Exception:
        return "(it has no text)"


def last_line_of(error: BaseException) -> str:
    """Return the last line of the traceback of an exception: its type and its message."""
    text = text_of(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


_LONGEST_NAME = 200
_MOST_NAMES = 20


def closest_of(name: str, known: Iterable[str]) -> str | None:
    """Return the closest of `known`; `None` if none is close.

    Both may come from hostile data: texts that are too long for a name are not compared, since that
    takes quadratic time.
    """
    if len(name) > _LONGEST_NAME:
        return None
    names = sorted(each for each in known if len(each) <= _LONGEST_NAME)
    return next(iter(get_close_matches(name, names, n=1)), None)


def closest(name: str, known: Iterable[str]) -> str:
    """Return a hint that names the closest of `known`; empty if none is close."""
    close = closest_of(name, known)
    return f"did you mean {close!r}?" if close else ""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint that names the closest of `known`, or else the first ones of them."""
    known = list(known)
    if hint := closest(name, known):
        return hint
    names = sorted(each for each in known if len(each) <= _LONGEST_NAME)
    if len(names) > _MOST_NAMES:
        names[_MOST_NAMES:] = [f"... ({len(names)} in all)"]
    return f"known: {', '.join(names)}" if names else "there are none"


def await_missing(value: object, in_thread: bool = True) -> str:
    """Suggest an `await` for a value that is awaitable, and how to do that in a thread, if it may be one."""
    owner, _, method = str(getattr(value, "__qualname__", "")).rpartition(".")
    place = {"Context": "ctx", "StateStore": "ctx.store"}.get(owner)
    remark = "is an 'await' missing?"
    if place is not None and in_thread:
        remark += f" In a 'def' step: anyio.from_thread.run({place}.{method}, ...)"
    return remark


def names_of(classes: Iterable[type]) -> str:
    """Return the names of classes, in a list."""
    return ", ".join(cls.__name__ for cls in classes)


def classes_held(value: object) -> list[type]:
    """Return the class of a value, and those of its items if it is a container."""
    held: Any = value.values() if type(value) is dict else value
    inside = map(type, held) if type(value) in (dict, list, tuple, set, frozenset) else ()
    return [type(value), *dict.fromkeys(inside)]


def namesakes(given: Iterable[type], known: Iterable[type]) -> str:
    """Tell two classes with the same name apart: one that was given, and one that is known (E8).

    Returns:
        A sentence without a full stop; empty if there are no two such classes.
    """
    known = list(known)
    for cls in given:
        others = (one for one in known if one.__name__ == cls.__name__ and one is not cls)
        if (other := next(others, None)) is None:
            continue
        named = f"two classes are named {cls.__name__}"
        if (cls.__module__, cls.__qualname__) != (other.__module__, other.__qualname__):
            return f"{named}: {_full_name(cls)} and {_full_name(other)}"
        return (
            f"{named}, because it was defined again (a notebook cell that was run twice?): define the "
            "workflow again too, and make new events"
        )
    return ""


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def format_seconds(number: float) -> str:
    """Return a time in words; what is too short to matter in milliseconds."""
    if 0 < number < 0.001:
        return f"{number * 1000:.2g} ms"
    return f"{number:.3g} s" if number < 1000 else f"{number:.0f} s"


def held_by(steps: Mapping[str, float]) -> str:
    """Say which steps held the event loop, and for how many seconds."""
    first, *others = steps.items()
    text = f"step {first[0]} held the event loop for {format_seconds(first[1])}"
    return text + "".join(f", step {name} for {format_seconds(time)}" for name, time in others)


def describe_type(result_type: type | None) -> str:
    """Describe the end of an execution, from the type of what it returned or raised; `None`: cancelled."""
    if result_type is None:
        return "was cancelled"
    if issubclass(result_type, BaseException):
        return f"failed with {result_type.__name__}"
    if result_type is list:
        return "returned a list of events"
    return f"returned {'None' if result_type is NoneType else result_type.__name__}"


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an exception, once; some exceptions refuse."""
    with suppress(Exception):
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
