"""How values are written under an annotation, and what is said about those that do not fit it."""

from __future__ import annotations

import base64
import inspect
import math
import re
import types
import typing
from collections import abc
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any
from uuid import UUID

import attrs

from .._annotations import strip
from .._messages import short_repr, shortened
from ..errors import ContextSerdeError
from .fields import is_enum, is_record

# --- Text forms: dates, identifiers, paths, bytes, to be read back exactly -------------------------


@attrs.frozen
class Text:
    """A text form.

    Attributes:
        tag: Its name.
        made_type: The exact type of the values.
        write: Makes the text of a value, or raises a `ValueError`.
        read: Makes the value of a text, or raises.
        longest: How long a text can be; `None` where nothing bounds it, and reading takes linear
            time.
    """

    tag: str
    made_type: type
    write: Callable[[Any], str]
    read: Callable[[str], Any]
    longest: int | None = 100


def _write_base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _read_base64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


_DURATION = re.compile(
    r"(?P<sign>-?)P(?:(?P<weeks>\d+)W)?(?:(?P<days>\d+)D)?"
    r"(?:T(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?"
    r"(?:(?P<seconds>\d+)(?:\.(?P<micros>\d{1,6}))?S)?)?",
    re.ASCII,
)
"""ISO 8601, with a fraction in the seconds only."""


def _write_duration(value: timedelta) -> str:
    size = abs(value)
    fraction = f".{size.microseconds:06}" if size.microseconds else ""
    return f"{'-' if value < timedelta() else ''}P{size.days}DT{size.seconds}{fraction}S"


def _read_duration(text: str) -> timedelta:
    found = _DURATION.fullmatch(text)
    if found is None or text[-1] in "PT":
        raise ValueError("no ISO 8601 duration like 'P1DT30.5S'")
    parts = {name: int(found[name] or 0) for name in ("weeks", "days", "hours", "minutes")}
    micros = int((found["micros"] or "").ljust(6, "0"))
    size = timedelta(**parts, seconds=int(found["seconds"] or 0), microseconds=micros)
    return -size if found["sign"] else size


def _write_time(value: time) -> str:
    if value.tzinfo is not None and value.utcoffset() is None:
        raise ValueError("the offset of its time zone depends on the date")
    return value.isoformat()


_FORMS = (
    Text("bytes", bytes, _write_base64, _read_base64, None),
    Text("bytearray", bytearray, _write_base64, lambda text: bytearray(_read_base64(text)), None),
    Text("complex", complex, str, complex),
    Text("datetime", datetime, datetime.isoformat, datetime.fromisoformat),
    Text("date", date, date.isoformat, date.fromisoformat),
    Text("time", time, _write_time, time.fromisoformat),
    Text("timedelta", timedelta, _write_duration, _read_duration),
    Text("Decimal", Decimal, str, Decimal, None),
    Text("UUID", UUID, str, UUID),
    Text("Path", type(Path()), str, Path, None),
    Text("PurePosixPath", PurePosixPath, str, PurePosixPath, None),
    Text("PureWindowsPath", PureWindowsPath, str, PureWindowsPath, None),
)

TEXTS: dict[Any, Text] = {form.made_type: form for form in _FORMS}
"""Type, as an annotation has it, -> its text form."""

TEXTS[Path] = TEXTS[type(Path())]
TEXTS[PurePath] = TEXTS[type(PurePath())]


# --- What is written under an annotation -----------------------------------------------------------

MAX_DEPTH = 100
"""How deeply JSON may be nested."""

_MOST_PARTS = 1000

ATOMS = frozenset({types.NoneType, bool, int, float, str})
LISTS = (list, abc.Sequence, abc.MutableSequence, abc.Collection, abc.Iterable)
SETS = {set: set, abc.Set: set, abc.MutableSet: set, frozenset: frozenset}
MAPPINGS = (dict, abc.Mapping, abc.MutableMapping)


@attrs.frozen
class Plan:
    """How values are written under an annotation.

    Attributes:
        raw: The types whose values stand for themselves.
        bare: The type whose values are written without their tag.
        item: The annotation of the items.
    """

    raw: frozenset[Any] = frozenset()
    bare: Any = None
    item: Any = Any


_ANYTHING = Plan(ATOMS | {list, dict})


def plan_of(annotation: Any) -> Plan:
    """Return how values are written under `annotation`, which the reading of them has to match."""
    if annotation is Any:
        return _ANYTHING
    annotation = strip(annotation)
    args, cls = typing.get_args(annotation), class_of(annotation)
    item = args[0] if args else Any
    if is_union(annotation):
        plans = [plan_of(arg) for arg in args if arg is not types.NoneType]
        if len(plans) == 1:
            return attrs.evolve(plans[0], raw=plans[0].raw | {types.NoneType})
        # Nobody could tell which of several annotations a list or a text is meant for.
        return Plan(ATOMS.intersection(*[frozenset().union(*(plan_of(arg).raw for arg in args))]))
    if cls is typing.Literal:
        return Plan(ATOMS)
    if cls in MAPPINGS:
        by_text = strip(item) in (str, Any)
        return Plan(frozenset({dict}), item=args[1] if args else Any) if by_text else Plan()
    if cls in LISTS:
        return Plan(frozenset({list}), item=item)
    if cls in SETS:
        return Plan(bare=SETS[cls], item=item)
    if cls is tuple:
        return Plan(bare=tuple, item=item if args[1:] == (Ellipsis,) else Any)
    if cls in ATOMS:
        return Plan(frozenset({cls, int} if cls is float else {cls}))
    if cls in TEXTS:
        raw = frozenset({int, float}) if cls is complex else frozenset()
        return Plan(raw, bare=TEXTS[cls].made_type)
    if is_record(cls) or is_enum(cls):
        return Plan(bare=cls)
    return _ANYTHING


def class_of(annotation: Any) -> Any:
    """Return the class in an annotation, without the arguments that it may have."""
    cls = typing.get_origin(annotation) or annotation
    return types.NoneType if cls is None else cls


def is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def is_leaf(cls: Any) -> bool:
    return cls is None or cls in ATOMS or cls in TEXTS or is_enum(cls)


# --- Faults -----------------------------------------------------------------------------------


def inside(part: str, act: Callable[..., Any], *args: Any) -> Any:
    """Call `act`; faults that it finds are in this part of something."""
    try:
        return act(*args)
    except ContextSerdeError as error:
        error.path = shortened(part + error.path, 300)
        error.args = (error.path, error.problem)
        raise


def part_of(key: object) -> str:
    is_name = isinstance(key, str) and len(key) <= 100 and key.isidentifier()
    return f".{key}" if is_name else f"[{short_repr(key)}]"


def fault(problem: str) -> ContextSerdeError:
    return ContextSerdeError("", problem)


def unexpected(annotation: Any, got: object) -> ContextSerdeError:
    expected = inspect.formatannotation(annotation)
    return fault(f"expected {expected}, got {short_repr(got)} ({type(got).__qualname__})")


def check_depth(data: Any, most: int = MAX_DEPTH) -> None:
    """Refuse data that is nested too deeply."""
    level = [data]
    for _ in range(most + 1):
        level = [part for item in level for part in _parts_of(item)]
        if not level:
            return
    raise fault(f"nested more than {most} levels deep")


def _parts_of(data: Any) -> Iterable[Any]:
    if type(data) is dict:
        return data.values()
    return data if type(data) is list else ()


def check_hashes(items: list[Any], data: list[Any]) -> None:
    """Refuse items of a set, or keys of a dict, that would take quadratic time to tell apart.

    Python compares items whose hashes are equal, and crafted numbers can make them equal.
    Honest data has few such items (`hash(-1) == hash(-2)`), and small ones: so what all items of one
    hash are made of is bounded.

    Args:
        items: The items.
        data: What stands for each of them in JSON.
    """
    first: dict[int, int] = {}
    clashing: dict[int, list[Any]] = {}
    for n, item in enumerate(items):
        other = first.setdefault(hash(item), n)
        if other != n:
            clashing.setdefault(hash(item), [data[other]]).append(data[n])
    for group in clashing.values():
        if _is_large(group):
            raise fault(f"too much that has the same hash: {len(group)} of {len(items)} items")


def _is_large(data: Any) -> bool:
    """Return whether some JSON data is made of more than a thousand parts."""
    ahead, size = [data], 0
    while ahead and size <= _MOST_PARTS:
        part = ahead.pop()
        if type(part) is int:
            size += part.bit_length() // 256
        elif type(part) is dict and part.get("$") == "int":
            size += len(part["value"]) // 64
        size += 1
        ahead += _parts_of(part)
    return size > _MOST_PARTS


def is_finite(value: Any) -> bool:
    return type(value) is not float or math.isfinite(value)
