"""Text forms, how values are written under an annotation, and the errors and bounds of both directions."""

from __future__ import annotations

import base64
import functools
import inspect
import itertools
import math
import re
import types
import typing
from collections import abc
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, Flag
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any
from uuid import UUID

import attrs

from .._annotations import check_for, is_enum, is_record, strip
from .._messages import short_repr, shortened
from .._pydantic import text_form, url_type
from ..errors import ContextSerdeError

# --- Text forms: dates, identifiers, paths, bytes, enum members, to be read back exactly ------------


@attrs.frozen
class Text:
    """The text form of the values of one type.

    Attributes:
        tag: The tag of such a value.
        value_type: The exact type of the values.
        write: Return the text of a value, or raise a `ValueError`.
        read: Return the value of a text, or raise any exception.
        longest: The most characters that are read. `None` is for types whose values may be of any size,
            and which are read in linear time.
    """

    tag: str
    value_type: type
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

TEXTS: dict[Any, Text] = {form.value_type: form for form in _FORMS}
"""Type, as an annotation names it, -> its text form."""

TEXTS[Path] = TEXTS[type(Path())]
TEXTS[PurePath] = TEXTS[type(PurePath())]


def text_for(cls: Any) -> Text | None:
    """Return the text form of the values of a type, as an annotation names it."""
    if cls in TEXTS:
        return TEXTS[cls]
    if not isinstance(cls, type) or (form := text_form(cls)) is None:
        return None
    return Text(f"pydantic.{cls.__name__}", cls, *form, longest=None)


_MOST_FLAGS = 2048
"""In bits. `Flag` takes a number apart in quadratic time."""


def enum_text(member: Enum) -> Any:
    """Return the value of a member, or its name if not all values of the enum are texts or ints."""
    return member.value if _by_value(type(member)) else member.name


def enum_member(cls: type[Enum], text: object) -> Enum | None:
    """Return the member that `enum_text()` writes as `text`."""
    if issubclass(cls, Flag) and type(text) is int:
        if text.bit_length() > _MOST_FLAGS:
            return None
        try:
            return cls(text)  # several flags together are not in `__members__`
        except ValueError:
            return None
    if type(text) not in (int, str):
        return None
    if not _by_value(cls):
        return cls.__members__.get(str(text))  # an alias may be the name that a member once had
    return {member.value: member for member in cls.__members__.values()}.get(text)


def _by_value(cls: type[Enum]) -> bool:
    return issubclass(cls, Flag) or all(
        type(member.value) in (int, str) for member in cls.__members__.values()
    )


# --- How values are written under an annotation ---------------------------------------------------

MAX_DEPTH = 100
"""How deeply JSON may be nested. Reading recurses: this leaves most of the stack to the caller."""

LONG_INT = 2048
"""In bits. JSON has decimal integers, of which Python refuses to read very long ones; these are tagged."""

ATOMS = frozenset({types.NoneType, bool, int, float, str})
LISTS = (list, abc.Sequence, abc.MutableSequence, abc.Collection, abc.Iterable)
SETS = {set: set, abc.Set: set, abc.MutableSet: set, frozenset: frozenset}
MAPPINGS = (dict, abc.Mapping, abc.MutableMapping)

Form = typing.Literal[
    "anything",
    "atom",
    "text",
    "enum",
    "record",
    "list",
    "set",
    "tuple",
    "fixed tuple",
    "mapping",
    "literal",
    "union",
    "foreign",
]


@attrs.frozen(eq=False, slots=False)  # the cached properties need a `__dict__`
class Encoding:
    """How values are written under one annotation, and so how they are read.

    Attributes:
        annotation: The annotation, without `Annotated`, `NewType` and the like.
        cls: Its class, without type arguments.
        form: What untagged values look like, which decides how they are read.
        raw: The types whose values stand for themselves.
        bare: The type whose values are written without their tag.
        item_type: The annotation of the items, or of the values of a mapping.
        part_types: The annotations of the key and the value of a mapping, of each item of a tuple of
            fixed length, or of the members of a union except `None`.
        optional: Whether it is a union with `None`.
        foreign: The class, if only the hooks of a converter know how to write its values; it may also be
            a protocol or an ABC, whose values are of other classes.
    """

    annotation: Any
    cls: Any
    form: Form
    raw: frozenset[Any] = frozenset()
    bare: Any = None
    item_type: Any = Any
    part_types: tuple[Any, ...] = ()
    optional: bool = False
    foreign: Any = None

    # An alias may contain itself (`type Tree = list[Tree]`). So what is inside an annotation is encoded only when
    # a value gets there, and only once, or deep data would leave an encoding for each of its levels.
    #
    # They are told apart by the identity of their annotations, which are kept alive with them. Equality would not
    # do: `date | datetime` equals `datetime | date`, but the first member that fits is taken. And some
    # annotations have no hash.
    _inside: dict[int, tuple[Any, Encoding]] = attrs.field(factory=dict, repr=False)

    @functools.cached_property
    def item(self) -> Encoding:
        return self._encoding_inside(self.item_type)

    @functools.cached_property
    def parts(self) -> tuple[Encoding, ...]:
        return tuple(map(self._encoding_inside, self.part_types))

    def _encoding_inside(self, annotation: Any) -> Encoding:
        if annotation is Any:
            return ANYTHING
        if id(annotation) not in self._inside:
            found = attrs.evolve(encoding_of(annotation), inside=self._inside)
            self._inside[id(annotation)] = annotation, found
        return self._inside[id(annotation)][1]

    @functools.cached_property
    def check(self) -> Any:
        """The run-time check for the annotation; `object` where it cannot be checked."""
        try:
            return check_for(self.annotation)
        except Exception:  # an alias that contains itself, no hash, or a foreign metaclass
            return object


def encoding_of(annotation: Any) -> Encoding:
    """Return how values are written under `annotation`."""
    annotation = strip(annotation)
    args, cls = typing.get_args(annotation), _class_of(annotation)
    item = args[0] if args else Any
    if cls in (typing.Union, types.UnionType):
        return _union_encoding(annotation, cls, args)
    if cls is typing.Literal:
        return Encoding(annotation, cls, "literal", raw=ATOMS)
    if not isinstance(cls, type):  # a type variable, or whatever else passes for a type
        return Encoding(annotation, cls, "anything", raw=ATOMS | {list, dict})
    if cls in MAPPINGS:
        key, value = args or (Any, Any)
        raw = frozenset[Any]({dict} if strip(key) in (str, Any) else ())
        return Encoding(
            annotation, cls, "mapping", raw=raw, item_type=value, part_types=(key, value)
        )
    if cls in LISTS:
        return Encoding(annotation, cls, "list", raw=frozenset({list}), item_type=item)
    if cls in SETS:
        return Encoding(annotation, cls, "set", bare=SETS[cls], item_type=item)
    if cls is tuple and args and args[1:] != (Ellipsis,):
        return Encoding(annotation, cls, "fixed tuple", bare=tuple, part_types=args)
    if cls is tuple:
        return Encoding(annotation, cls, "tuple", bare=tuple, item_type=item)
    if cls in ATOMS:
        return Encoding(
            annotation, cls, "atom", raw=frozenset({cls, int} if cls is float else {cls})
        )
    if text := text_for(cls):
        raw = frozenset[Any]({int, float} if cls is complex else ())
        return Encoding(annotation, cls, "text", raw=raw, bare=text.value_type)
    if is_enum(cls):
        return Encoding(annotation, cls, "enum", bare=cls)
    if is_record(cls):
        return Encoding(annotation, cls, "record", bare=cls)
    raw = ATOMS | {list, dict}
    if cls in (object, Any) or issubclass(cls, type | BaseException) or typing.is_typeddict(cls):
        return Encoding(annotation, cls, "anything", raw=raw)
    return Encoding(annotation, cls, "foreign", raw=raw, bare=cls, foreign=cls)


def _union_encoding(annotation: Any, cls: Any, args: tuple[Any, ...]) -> Encoding:
    members = tuple(arg for arg in args if strip(arg) not in (None, types.NoneType))
    optional = len(members) < len(args)
    none = frozenset({types.NoneType} if optional else ())
    encodings = [encoding_of(member) for member in members]
    if len(encodings) == 1:
        (one,) = encodings
        raw, bare, item_type, foreign = one.raw, one.bare, one.item_type, one.foreign
    else:
        # It would be a guess which member a list, an object or the text of a date is meant for: these are
        # tagged. Atoms need no guess, each is of one type.
        raw = ATOMS.intersection(itertools.chain.from_iterable(one.raw for one in encodings))
        bare, item_type, foreign = None, Any, None
    return Encoding(
        annotation,
        cls,
        "union",
        raw=raw | none,
        bare=bare,
        item_type=item_type,
        part_types=members,
        optional=optional,
        foreign=foreign,
    )


def _class_of(annotation: Any) -> Any:
    cls = typing.get_origin(annotation) or annotation
    return types.NoneType if cls is None else cls


ANYTHING = encoding_of(Any)


# --- Tags -----------------------------------------------------------------------------------------


def is_marked(data: dict[Any, Any]) -> bool:
    """Return whether an object of JSON stands for something else than its keys and values.

    That is a tagged value, or `{"$repr": text}`, which stands for one that could not be written (E7).
    """
    return "$" in data or "$repr" in data


_PLAIN_TYPES = (types.NoneType, bool, str, list, tuple, set, frozenset)

TAGGED_TYPES = {cls.__name__: encoding_of(cls) for cls in _PLAIN_TYPES}
"""Tag -> how the value beside it is read, without a tag of its own."""

# JSON has no NaN and no infinity, and Python reads no very long integers in decimal.
_NUMBERS = (
    Text("int", int, hex, lambda text: int(text, 16), None),
    Text("float", float, repr, float),
)

_TAGGED_TEXTS = {text.tag: text for text in (*_FORMS, *_NUMBERS)}
_TEXT_OF_TYPE = {text.value_type: text for text in (*_FORMS, *_NUMBERS)}


def text_tagged(tag: str) -> Text | None:
    """Return the text form of the values with a tag."""
    if tag.startswith("pydantic."):
        return text_for(url_type(tag.removeprefix("pydantic.")))
    return _TAGGED_TEXTS.get(tag)


def text_of_type(cls: type) -> Text | None:
    """Return the text form that values of exactly this type are tagged with."""
    return _TEXT_OF_TYPE.get(cls) or text_for(cls)


# --- Errors ---------------------------------------------------------------------------------------


def data_error(problem: str) -> ContextSerdeError:
    """Return an error about the value at hand; whatever contains it adds to the path."""
    return ContextSerdeError("", problem)


def mismatch(encoding: Encoding, got: object) -> ContextSerdeError:
    """Return the error about a value that is not of the type that an annotation names."""
    expected = inspect.formatannotation(encoding.annotation)
    return data_error(f"expected {expected}, got {short_repr(got)} ({type(got).__qualname__})")


def prepend_path(error: ContextSerdeError, path: str) -> None:
    """Put the path of a container in front of that of the error in it."""
    error.path = shortened(path + error.path, 300)
    error.args = (error.path, error.problem)


def path_step(key: object) -> str:
    """Return the part of a path that leads to a key or index: `.name`, `['a b']`, `[0]`."""
    is_name = isinstance(key, str) and len(key) <= 100 and key.isidentifier()
    return f".{key}" if is_name else f"[{short_repr(key)}]"


# --- Bounds ---------------------------------------------------------------------------------------

_MOST_PARTS = 1000
"""How many parts the items of one hash may have together; comparing them takes up to the square of that."""


def check_depth(data: Any, most: int = MAX_DEPTH) -> None:
    """Refuse data that is nested too deeply."""
    level = [data]  # level by level, since a function that recurses would run out of stack itself
    for _ in range(most + 1):
        level = [part for item in level for part in _parts_of(item)]
        if not level:
            return
    raise data_error(f"nested more than {most} levels deep")


def _parts_of(data: Any) -> Iterable[Any]:
    if type(data) is dict:
        return data.values()
    return data if type(data) is list else ()


def check_hashes(items: list[Any], data: list[Any]) -> None:
    """Refuse items of a set, or keys of a dict, that would take quadratic time to tell apart.

    Python compares items that have the same hash with each other, and crafted numbers have: `2**61 - 1`
    and all its multiples have the hash 0. Honest data has few such items (`hash(-1) == hash(-2)`), and
    small ones, so the size of all items with the same hash is bounded, whatever they consist of.

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
            raise data_error(
                f"too many values with the same hash: {len(group)} of {len(items)} items"
            )


def _is_large(data: Any) -> bool:
    """Return whether JSON data has more parts than can be compared with each other."""
    ahead, size = [data], 0
    while ahead and size <= _MOST_PARTS:
        part = ahead.pop()
        if type(part) is int:  # comparing long integers takes time, too
            size += part.bit_length() // 256
        elif type(part) is dict and part.get("$") == "int":
            size += len(part["value"]) // 64
        size += 1
        ahead += _parts_of(part)
    return size > _MOST_PARTS


def is_finite(value: Any) -> bool:
    return type(value) is not float or math.isfinite(value)
