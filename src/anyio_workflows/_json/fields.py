"""The fields of records (events, attrs classes, ...), and the types that JSON data may name."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from types import UnionType
from typing import Any

import attrs

from .._annotations import Unresolved, is_enum, is_record, resolve_field, strip
from .._messages import namesakes
from .._pydantic import holds_enum_values, is_model, key_of, model_fields, takes_extras
from ..errors import ContextSerdeError
from ..events import Event, StopEvent
from .formats import Encoding, encoding_of

NO_TYPE = "is not an event class, attrs class, dataclass, pydantic model or enum"


@attrs.frozen
class Field:
    """A field of a record.

    Attributes:
        name: Its name as an attribute.
        key: Its name in JSON, which is its keyword in the constructor.
        encoding: How its values are written.
        init: Whether the constructor takes it.
        required: Whether the constructor requires it.
        undeclared: Whether it is the `result` of a stop event with fields of its own, which nobody declared (E2).
    """

    name: str
    key: str
    encoding: Encoding
    init: bool
    required: bool
    undeclared: bool = False


def is_open(cls: type) -> bool:
    """Return whether `cls` takes any key: an event without fields (E2), or a model that says so."""
    return (issubclass(cls, Event) and cls._open) or takes_extras(cls)


def takes_key(cls: type, key: object) -> bool:
    """Return whether data of `cls` may have a key that is none of its fields."""
    taken = key == "_extra" and issubclass(cls, Event)
    return type(key) is str and not taken and is_open(cls)


def fields_of(cls: Any) -> Iterator[Field]:
    """Return the fields of a record, in the order of their declaration."""
    if attrs.has(cls):
        for field in attrs.fields(cls):
            if field.name != "_extra" or not issubclass(cls, Event):
                # A converter may take values of other types than the annotation names.
                encoding = encoding_of(Any if field.converter else _annotation_of(cls, field))
                required = field.init and field.default is attrs.NOTHING
                key = field.alias or field.name
                undeclared = _is_undeclared(cls, field.name)
                yield Field(field.name, key, encoding, field.init, required, undeclared)
    elif is_model(cls):
        for name, info in model_fields(cls).items():
            annotation = info.annotation
            if holds_enum_values(cls) and any(map(is_enum, _mentioned(annotation))):
                annotation = Any
            encoding = encoding_of(annotation)
            yield Field(name, key_of(cls, name), encoding, True, bool(info.is_required()))
    else:
        for plain in dataclasses.fields(cls):
            encoding = encoding_of(_annotation_of(cls, plain))
            no_default = plain.default is plain.default_factory is dataclasses.MISSING
            yield Field(plain.name, plain.name, encoding, plain.init, plain.init and no_default)


def _is_undeclared(cls: type, name: str) -> bool:
    if name != "result" or not issubclass(cls, StopEvent) or cls._open:
        return False
    declaring = (base for base in cls.__mro__ if name in inspect.get_annotations(base))
    return next(declaring) is StopEvent


def _annotation_of(cls: type, field: Any) -> Any:
    if field.type is None:
        return Any
    annotation = resolve_field(cls, field.name, field.type)
    # A name that exists only for type checkers is not a fault of the class. An event shows such a field as
    # unchecked (E3); here it takes any value that can be written.
    return Any if isinstance(annotation, Unresolved) else annotation


def _mentioned(annotation: Any) -> Iterator[type]:
    """Yield the records, enums and foreign classes in an annotation."""
    seen, ahead = set(), [annotation]
    while ahead:
        one = strip(ahead.pop())
        if isinstance(one, Enum):  # `Literal[Color.RED]`
            yield type(one)
        candidates: tuple[Any, ...] = (one, typing.get_origin(one))
        for cls in candidates:
            if is_record(cls) or (is_enum(cls) and cls.__members__) or is_foreign(cls):
                yield cls
        if id(one) not in seen:  # an alias may contain itself
            seen.add(id(one))
            ahead += one if isinstance(one, list) else typing.get_args(one)


def is_foreign(cls: object) -> bool:
    """Return whether only the hooks of a converter know how to write the values of a class (P7)."""
    return isinstance(cls, type) and cls is not UnionType and encoding_of(cls).foreign is not None


def tag_of(cls: type) -> str:
    """Return the tag that names a type in JSON."""
    return f"{cls.__module__}:{cls.__qualname__}"


class Registry:
    """The types that JSON data may name, with those that their annotations mention.

    Args:
        given: Types that have to be known.
        more: Types that are known unless `given` has one with the same tag: code may still refer to an
            older version of a class.
        on_wire: Whether it is for data of other programs, in which fields that no constructor takes are
            absent (E7): a cache, say. Snapshots have them.

    Attributes:
        types: Tag -> type.
        foreign: Those of them whose values only the hooks of a converter know how to write.
        given_foreign: Those of them that were given.
        fields: Return the fields of a record by their keys. It need not be one of the types.

    Raises:
        ContextSerdeError: If `given` has something that is none of these, or two types with the same tag.
    """

    def __init__(
        self, given: Iterable[type] = (), more: Iterable[type] = (), *, on_wire: bool = False
    ) -> None:
        self.types: dict[str, type] = {}
        # The cache belongs to the registry: a global one would keep classes that a function defines alive.
        self.fields: Callable[[Any], Mapping[str, Field]]
        self.fields = functools.cache(
            lambda cls: {field.key: field for field in fields_of(cls) if field.init or not on_wire}
        )
        self.given_foreign: list[type] = []
        mentioned: list[type] = []
        for cls in given:
            if is_foreign(cls):
                self.given_foreign.append(cls)
            elif not is_record(cls) and not is_enum(cls):
                raise ContextSerdeError("$", f"{cls!r} {NO_TYPE}")
            for one in self._with_mentioned(cls):
                if cls is not one and is_foreign(one):
                    mentioned.append(one)
                else:
                    self._add(tag_of(one), one)
        # Most of these are not meant for snapshots: they take no tag away from others.
        for one in itertools.chain(*map(self._with_mentioned, more), mentioned):
            self.types.setdefault(tag_of(one), one)
        self.foreign = set(filter(is_foreign, self.types.values()))

    def _with_mentioned(self, cls: type) -> list[type]:
        """Return a type, and those that the annotations of its fields mention, at any depth."""
        found = {cls: None}
        ahead = [cls]
        while ahead:
            one = ahead.pop()
            for field in self.fields(one).values() if is_record(one) else ():
                mentioned = _mentioned(field.encoding.annotation)
                fresh = [other for other in mentioned if other not in found]
                found |= dict.fromkeys(fresh)
                ahead += fresh
        return list(found)

    @classmethod
    def joined(cls, registries: Iterable[Registry]) -> Registry:
        """Return a registry of the types of several, which shares what they know about fields.

        Raises:
            ContextSerdeError: If two of them know different types with the same tag.
        """
        joined = cls(on_wire=True)  # only the wire reads one of several types
        fields, sources = joined.fields, {}
        for registry in registries:
            for tag, one in registry.types.items():
                if one in registry.foreign:
                    joined.types.setdefault(tag, one)
                else:
                    joined._add(tag, one)
                sources[one] = registry.fields
            joined.foreign |= registry.foreign
        joined.fields = lambda one: sources.get(one, fields)(one)
        return joined

    def _add(self, tag: str, cls: type) -> None:
        if self.types.setdefault(tag, cls) is not cls:
            remark = namesakes([cls], [self.types[tag]])
            problem = f"the data cannot tell two types {tag!r} apart; {remark}"
            raise ContextSerdeError("$", problem)

    def __contains__(self, cls: type) -> bool:
        return self.types.get(tag_of(cls)) is cls
