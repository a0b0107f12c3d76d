"""What is known about the fields of events, attrs classes and dataclasses, and about enums."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Iterable, Iterator
from enum import Enum, Flag
from typing import Any

import attrs

from .._annotations import Unresolved, check_for, resolve_field, strip
from .._messages import namesakes
from ..errors import ContextSerdeError
from ..events import Event


@attrs.frozen
class Field:
    """A field of a record.

    Attributes:
        name: The attribute.
        key: Its name in JSON, which is the keyword of the constructor.
        annotation: Its type; `Any` where nothing can be said.
        kind: What `isinstance` takes for it.
        init: Whether the constructor takes it.
        required: Whether the constructor needs it.
    """

    name: str
    key: str
    annotation: Any
    kind: Any
    init: bool
    required: bool


def is_record(cls: object) -> bool:
    """Return whether `cls` is an event, attrs class or dataclass."""
    return isinstance(cls, type) and (attrs.has(cls) or dataclasses.is_dataclass(cls))


def is_enum(cls: object) -> bool:
    """Return whether `cls` is an enum."""
    return isinstance(cls, type) and issubclass(cls, Enum)


def is_open(cls: type) -> bool:
    """Return whether `cls` is an event that takes any keyword (E2)."""
    return issubclass(cls, Event) and cls._open


def _fields_of(cls: Any) -> Iterator[Field]:
    """Return the fields of a record, in the order of their declaration."""
    if attrs.has(cls):
        for field in attrs.fields(cls):
            if field.name != "_extra" or not issubclass(cls, Event):
                # What a converter takes is not what the annotation says.
                annotation = Any if field.converter else _annotation_of(cls, field)
                required = field.init and field.default is attrs.NOTHING
                key = field.alias or field.name
                kind = safe_kind(annotation)
                yield Field(field.name, key, annotation, kind, field.init, required)
    else:
        for plain in dataclasses.fields(cls):
            annotation = _annotation_of(cls, plain)
            no_default = plain.default is plain.default_factory is dataclasses.MISSING
            required = plain.init and no_default
            kind = safe_kind(annotation)
            yield Field(plain.name, plain.name, annotation, kind, plain.init, required)


def _annotation_of(cls: type, field: Any) -> Any:
    if field.type is None:
        return Any
    annotation = resolve_field(cls, field.name, field.type)
    if isinstance(annotation, Unresolved):  # a name that only type checkers see: not checked
        return Any
    try:
        hash(annotation)  # what is looked up by its annotation needs one
    except Exception:
        return Any
    return annotation


def safe_kind(annotation: Any) -> Any:
    """Return what `isinstance` takes for `annotation`; `object` where it can't be checked."""
    try:
        return check_for(annotation)
    except Exception:
        return object


def _mentioned(annotation: Any) -> Iterator[type]:
    """Return the records and enums in an annotation."""
    seen, ahead = set(), [annotation]
    while ahead:
        one = strip(ahead.pop())
        for cls in (one, typing.get_origin(one), type(one)):
            if is_record(cls) or (is_enum(cls) and cls.__members__):
                yield cls
        if id(one) not in seen:  # an alias may contain itself
            seen.add(id(one))
            ahead += one if isinstance(one, list) else typing.get_args(one)


_MOST_FLAGS = 2048


def enum_text(member: Enum) -> Any:
    """Return the value of a member, or its name if not all values of the enum are texts or ints."""
    return member.value if _by_value(type(member)) else member.name


def enum_member(cls: type[Enum], text: object) -> Enum | None:
    """Return the member that `enum_text()` writes as `text`."""
    if issubclass(cls, Flag) and type(text) is int:
        if text.bit_length() > _MOST_FLAGS:  # taking them apart costs quadratic time
            return None
        try:
            return cls(text)  # several flags together have no entry of their own
        except ValueError:
            return None
    texts = {enum_text(member): member for member in cls.__members__.values()}
    return texts.get(text) if type(text) in (int, str) else None


def _by_value(cls: type[Enum]) -> bool:
    return issubclass(cls, Flag) or all(
        type(member.value) in (int, str) for member in cls.__members__.values()
    )


def tag_of(cls: type) -> str:
    """Return the name of a type in JSON."""
    return f"{cls.__module__}:{cls.__qualname__}"


class Registry:
    """The types that JSON data may name, with those that their annotations mention.

    Args:
        given: Types that have to be known.
        in_sight: Types that are known unless another one of the same name is: an older version of
            a class may still be in sight somewhere.

    Attributes:
        types: The types by their names.
        fields: Returns the fields of a record, whether it is among the types or not.

    Raises:
        ContextSerdeError: If one of `given` is no record and no enum, or two have the same name.
    """

    def __init__(self, given: Iterable[type], in_sight: Iterable[type] = ()) -> None:
        self.types: dict[str, type] = {}
        self.fields: Callable[[Any], tuple[Field, ...]]
        self.fields = functools.cache(lambda cls: tuple(_fields_of(cls)))
        for cls in given:
            if not is_record(cls) and not is_enum(cls):
                problem = f"{cls!r} is no event class, attrs class, dataclass or enum"
                raise ContextSerdeError("$", problem)
            for one in self._with_mentioned(cls):
                if self.types.setdefault(tag_of(one), one) is not one:
                    remark = namesakes([one], [self.types[tag_of(one)]])
                    problem = f"the data cannot tell two types {tag_of(one)!r} apart; {remark}"
                    raise ContextSerdeError("$", problem)
        for cls in in_sight:
            for one in self._with_mentioned(cls):
                self.types.setdefault(tag_of(one), one)

    def _with_mentioned(self, cls: type) -> list[type]:
        """Return a type, and those that the annotations of its fields mention, at any depth."""
        found = {cls: None}
        ahead = [cls]
        while ahead:
            one = ahead.pop()
            for field in self.fields(one) if is_record(one) else ():
                fresh = [other for other in _mentioned(field.annotation) if other not in found]
                found |= dict.fromkeys(fresh)
                ahead += fresh
        return list(found)

    def __contains__(self, cls: type) -> bool:
        return self.types.get(tag_of(cls)) is cls
