"""The usual text form of dates, identifiers, paths, bytes and numbers, to be read back exactly."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any
from uuid import UUID

import attrs

__all__ = ["TEXTS", "Text"]


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
