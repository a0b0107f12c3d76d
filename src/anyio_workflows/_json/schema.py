"""JSON Schema (draft 2020-12) of the data that the reader takes (E7), untagged except for mappings."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import inspect
import re
import types
import typing
import uuid
from collections.abc import Callable, Iterator, Mapping
from enum import Flag
from typing import Any

import attrs

from .._annotations import is_enum
from .._foreign import DESCRIPTIVE
from .._pydantic import is_model, is_root_model, key_of, model_fields
from ..errors import ContextSerdeError
from ..events import Event, _default_of
from .codec import Writer
from .fields import Field, Registry, is_open
from .formats import ANYTHING, ATOMS, Encoding, enum_text, is_marked

Schema = dict[str, Any]

_FACTORY: Any = attrs.Factory

_ATOMS: Mapping[Any, str] = {
    types.NoneType: "null",
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
}

_TEXTS: Mapping[Any, Schema] = {
    datetime.datetime: {"format": "date-time"},
    datetime.date: {"format": "date"},
    datetime.time: {"format": "time"},
    datetime.timedelta: {"format": "duration"},
    uuid.UUID: {"format": "uuid"},
    bytes: {"contentEncoding": "base64"},
    bytearray: {"contentEncoding": "base64"},
}


@attrs.define
class Definition:
    """The schema of a class, or of an alias, that others may refer to.

    Attributes:
        name: Its name, unlike those of all others.
        of: The class or the alias.
        schema: What it looks like.
        used: Whether something refers to it.
    """

    name: str
    of: Any
    schema: Schema = attrs.field(factory=dict)
    used: bool = False


class Definitions:
    """The definitions of records, enums and aliases, with those that they mention.

    Args:
        registry: Knows the fields of the records.
        link: Return the text of a reference to a definition.
    """

    def __init__(self, registry: Registry, link: Callable[[Definition], str]) -> None:
        self._registry = registry
        self._link = link
        self._of: dict[int, Definition] = {}  # by identity: an alias may have no hash

    def __iter__(self) -> Iterator[Definition]:
        return iter(self._of.values())

    def of_class(self, cls: Any) -> Definition:
        """Return the definition of a record or enum."""
        return self._define(cls, self._enum if is_enum(cls) else self._record, cls)

    def _define(self, key: Any, describe: Callable[[Any], Schema], of: Any) -> Definition:
        found = self._of.get(id(key))
        if found is None:
            # Before it is described, as it may refer to itself.
            found = self._of[id(key)] = Definition(self._new_name(key), key)
            found.schema = describe(of)
        return found

    def _new_name(self, key: Any) -> str:
        taken = {each.name for each in self}
        short = getattr(key, "__name__", type(key).__name__)
        full = f"{getattr(key, '__module__', '')}.{getattr(key, '__qualname__', short)}"
        names = [re.sub(r"[^A-Za-z0-9._-]+", "_", name) for name in (short, full)]
        names += (f"{names[1]}_{n}" for n in range(2, len(taken) + 3))
        return next(name for name in names if name not in taken)

    def _refer_to(self, definition: Definition) -> Schema:
        definition.used = True
        return {"$ref": self._link(definition)}

    # --- Values -----------------------------------------------------------------------------------

    def _part(self, annotation: Any, encoding: Encoding) -> Schema:
        """Describe the values under an annotation that is inside another one."""
        if hasattr(annotation, "__value__"):  # only an alias can make an annotation contain itself
            return self._refer_to(self._define(annotation, self._value, encoding))
        return self._value(encoding)

    def _value(self, encoding: Encoding) -> Schema:
        """Describe the values under an annotation; `{}` if there is nothing to say."""
        match encoding.form:
            case "atom":
                return {"type": _ATOMS[encoding.cls]}
            case "text" if encoding.cls is complex:
                return {"type": ["number", "string"]}
            case "text":
                return {"type": "string", **_TEXTS.get(encoding.cls, {})}
            case "enum" | "record":
                return self._refer_to(self.of_class(encoding.cls))
            case "list" | "tuple" | "set":
                return self._array(encoding)
            case "fixed tuple":
                parts = self._parts(encoding)
                count = {"minItems": len(parts), "maxItems": len(parts)}
                return {"type": "array", "prefixItems": parts, **count}
            case "mapping":
                return self._mapping(encoding)
            case "literal":
                options = [
                    one for one in typing.get_args(encoding.annotation) if type(one) in ATOMS
                ]
                return (
                    {}
                    if not options
                    else {"const": options[0]}
                    if len(options) == 1
                    else {"enum": options}
                )
            case "union":
                members = [*self._parts(encoding), *[{"type": "null"}] * encoding.optional]
                return {"anyOf": members} if len(members) > 1 else members[0]
            case _:  # a dict in a `TypedDict` is not looked at any closer
                return {"type": "object"} if encoding.check is dict else {}

    def _parts(self, encoding: Encoding) -> list[Schema]:
        return [*map(self._part, encoding.part_types, encoding.parts)]

    def _array(self, encoding: Encoding) -> Schema:
        schema: Schema = {"type": "array"}
        if item := self._part(encoding.item_type, encoding.item):
            schema["items"] = item
        if encoding.form == "set":
            schema["uniqueItems"] = True
        return schema

    def _mapping(self, encoding: Encoding) -> Schema:
        schema: Schema = {"type": "object"}
        key, value = self._parts(encoding)
        if value:
            schema["additionalProperties"] = value
        if dict in encoding.raw:
            return schema
        # What is written has the keys as values, in pairs; an object may have them if they can be read from texts.
        key_encoding, value_encoding = encoding.parts
        if not _takes_text(key_encoding):
            schema = {"type": "object", "maxProperties": 0}
        elif key:
            schema["propertyNames"] = key
        return {"anyOf": [schema, _pairs(key_encoding, value_encoding)]}

    # --- Classes ----------------------------------------------------------------------------------

    def _enum(self, cls: Any) -> Schema:
        if issubclass(cls, Flag):  # several together are a number, too
            return {**_head(cls), "type": "integer"}
        return {**_head(cls), "enum": [enum_text(member) for member in cls]}

    def _record(self, cls: type) -> Schema:
        if is_root_model(cls):
            return {**_head(cls), **self._value(self._registry.fields(cls)["root"].encoding)}
        remarks = dict(_remarks(cls))
        properties = {}
        required = []
        for key, field in self._registry.fields(cls).items():
            properties[key] = self._value(field.encoding)
            default, remark = remarks.get(key, (attrs.NOTHING, {}))
            # In this draft, a reference may have neighbours.
            properties[key] |= self._default(default, field) | self._described(remark, field)
            if field.required:
                required.append(key)
        schema = {**_head(cls), "type": "object", "properties": properties}
        if required:
            schema["required"] = required
        return {**schema, "additionalProperties": is_open(cls)}

    def _default(self, value: Any, field: Field) -> Schema:
        if value is attrs.NOTHING or not isinstance(value, field.encoding.check):
            return {}
        written = self._written(value, field.encoding)
        return {"default": written[0]} if written else {}

    def _described(self, remark: Mapping[str, Any], field: Field) -> Schema:
        """Return what the metadata of a field say about it (E6)."""
        schema: Schema = {
            key: remark[key] for key in ("title", "description") if isinstance(remark.get(key), str)
        }
        if isinstance(examples := remark.get("examples"), list | tuple):
            encoding = field.encoding
            schema["examples"] = [
                data
                for value in examples  # of values, or of data
                for data in self._written(
                    value, encoding if isinstance(value, encoding.check) else ANYTHING
                )
            ]
        if remark.get("deprecated"):  # a text says why
            schema["deprecated"] = True
        extra = remark.get("json_schema_extra")
        return schema | (copy.deepcopy(extra) if isinstance(extra, dict) else {})

    def _written(self, value: Any, encoding: Encoding) -> list[Any]:
        """Return the data of a value, in a list; none if it has to be tagged."""
        try:
            data = Writer(self._registry).write(value, encoding)
        except ContextSerdeError:
            return []
        return [] if type(data) is dict and is_marked(data) else [data]


def _takes_text(encoding: Encoding) -> bool:
    """Return whether some value under an annotation is read from a text."""
    match encoding.form:
        case "atom":
            return str in encoding.raw
        case "enum":
            return any(type(enum_text(member)) is str for member in encoding.cls)
        case "literal":
            return any(type(option) is str for option in typing.get_args(encoding.annotation))
        case "union":
            return any(map(_takes_text, encoding.parts))
        case "record":
            return is_root_model(encoding.cls)
        case form:
            return form in ("anything", "text", "foreign")


def _pairs(*encodings: Encoding) -> Schema:
    """Describe a tagged mapping. Nothing in it is written as the annotation says, except JSON's own values."""
    parts = [{"type": _ATOMS[one.cls]} if one.form == "atom" else {} for one in encodings]
    pair = {"type": "array", "prefixItems": parts, "minItems": 2, "maxItems": 2}
    return {
        "type": "object",
        "properties": {"$": {"const": "dict"}, "value": {"type": "array", "items": pair}},
        "required": ["$", "value"],
        "additionalProperties": False,
    }


def _head(cls: type) -> Schema:
    """Return the name of a class, and what it says about itself."""
    doc = vars(cls).get("__doc__")
    written = dataclasses.is_dataclass(cls) and str(doc).startswith(f"{cls.__name__}(")
    if not isinstance(doc, str) or written:  # by `@dataclass`, not by a person
        return {"title": cls.__name__}
    return {"title": cls.__name__, "description": inspect.cleandoc(doc)}


def _remarks(cls: Any) -> Iterator[tuple[str, tuple[Any, Mapping[str, Any]]]]:
    """Yield the key of each field with its default, or `NOTHING`, and what describes it."""
    if attrs.has(cls):
        for field in attrs.fields(cls):
            default = _default_of(field) if issubclass(cls, Event) else field.default
            if isinstance(default, _FACTORY):
                default = attrs.NOTHING
            yield field.alias or field.name, (default, field.metadata)
    elif is_model(cls):
        for name, info in model_fields(cls).items():
            no_default = info.is_required() or info.default_factory is not None
            default = attrs.NOTHING if no_default else info.default
            remark = {key: getattr(info, key, None) for key in DESCRIPTIVE}
            yield key_of(cls, name), (default, remark)
    else:
        for plain in dataclasses.fields(cls):
            default = attrs.NOTHING if plain.default is dataclasses.MISSING else plain.default
            yield plain.name, (default, plain.metadata)
