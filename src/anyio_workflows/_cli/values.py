"""`key=value` to data for JSON, by the JSON Schema of what takes them. Whether the values fit is checked by the reader."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs

from .._messages import nearest, shortened
from .problems import CommandError

Schema = dict[str, Any]


@attrs.frozen
class Field:
    """What a field takes.

    Attributes:
        name: Its name.
        types: The types of JSON that it takes; empty for any value.
        options: The only values that it takes; empty if there are no such.
        required: Whether it has to be given.
        schema: The rest of what is said about it, such as its default and its description.
    """

    name: str
    types: frozenset[str]
    options: tuple[Any, ...]
    required: bool
    schema: Schema

    def read(self, text: str) -> Any:
        """Return the value that a text stands for: a text as it is where texts are taken, JSON otherwise.

        Raises:
            CommandError: If the field takes no texts, and this is no JSON.
        """
        if text in self.options or (self.types == {"string"} and not self.options):
            return text
        takes_text = not self.types or "string" in self.types
        try:
            value = json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError):
            if takes_text and not self.options:
                return text
            raise CommandError(
                f"{self.name}: expected {self.kind}, got {shown(text)}{self.example}"
            ) from None
        if not self.types or value in self.options or _types_of(value) & self.types:
            return value
        return text if takes_text else value  # the reader refuses it, and says why

    @property
    def kind(self) -> str:
        """What it takes, in words."""
        if self.options:
            return " or ".join(_json(option) for option in self.options)
        if self.types == {"boolean"}:
            return "true or false"
        if "format" in self.schema and self.types == {"string"}:
            return str(self.schema["format"])
        return " or ".join(sorted(self.types - {"null"})) or "anything"

    @property
    def example(self) -> str:
        """How a value that consists of others is written for a shell, in words; empty for other fields."""
        if self.options or not self.types & {"array", "object"}:
            return ""
        items = self.schema.get("items", {})
        value = '{"key": ...}' if "array" not in self.types else "[...]"
        if isinstance(items, dict) and items.get("type") == "string":
            value = '["...", "..."]'
        return f"; write JSON: {self.name}='{value}'"

    def __str__(self) -> str:
        if "default" in self.schema:
            return f"{self.name} ({self.kind}, default {_json(self.schema['default'])})"
        return f"{self.name} ({self.kind}{'' if self.required else ', optional'})"


@attrs.frozen
class Record:
    """What an event takes.

    Attributes:
        name: The name of its class.
        fields: Its fields, by name.
        is_open: Whether it takes other ones too.
    """

    name: str
    fields: dict[str, Field]
    is_open: bool

    @classmethod
    def of(cls, schema: Schema) -> Record:
        """Return what the JSON Schema of an event says."""
        definitions = schema.get("$defs", {})
        schema = _resolved(schema, definitions)
        required = schema.get("required", [])
        fields = {
            name: Field(name, *_taken(one, definitions), name in required, one)
            for name, one in schema.get("properties", {}).items()
        }
        is_open = schema.get("additionalProperties", True) is not False
        return cls(str(schema.get("title", "the event")), fields, is_open)

    def read(self, pairs: Iterable[str]) -> dict[str, Any]:
        """Return the data that `key=value` texts stand for.

        Raises:
            CommandError: If one is no such pair, is there twice, or is of no field.
        """
        data: dict[str, Any] = {}
        for pair in pairs:
            name, equals, text = pair.partition("=")
            if not (name and equals):
                raise CommandError(f"{shown(pair)} is no field=value; {self.usage}")
            if name in data:
                raise CommandError(f"{name} is given twice")
            field = self.fields.get(name)
            if field is None:
                if not self.is_open:
                    raise CommandError(
                        f"{self.name} has no field {shown(name)}, {nearest(name, self.fields)}; {self.usage}"
                    )
                field = Field(name, frozenset(), (), False, {})
            data[name] = field.read(text)
        return data

    @property
    def usage(self) -> str:
        """What there is to be given, in words."""
        if not self.fields:
            return f"{self.name} takes any fields" if self.is_open else f"{self.name} has no fields"
        return f"fields of {self.name}: {', '.join(map(str, self.fields.values()))}"


def read_input(source: str | None) -> dict[str, Any]:
    """Return the JSON object in a file, or in standard input if that is called `-`; `{}` for `None`.

    Raises:
        CommandError: If it cannot be read, or holds something else.
    """
    if source is None:
        return {}
    where = "standard input" if source == "-" else source
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text("utf-8")
        data = json.loads(text, parse_constant=_refuse)
    except OSError as error:
        raise CommandError(f"{where} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{where} is no JSON: {shortened(str(error), 200)}") from error
    if not isinstance(data, dict):
        raise CommandError(f"{where} has to be a JSON object, not {shown(json.dumps(data))}")
    return data


def shown(text: str) -> str:
    """Return a text from outside as it stands in a message."""
    return repr(shortened(text, 80))


def _taken(schema: Schema, definitions: Schema) -> tuple[frozenset[str], tuple[Any, ...]]:
    """Return the types of JSON, and the only values, that a schema admits."""
    schema = _resolved(schema, definitions)
    if "anyOf" in schema:
        parts = [_taken(part, definitions) for part in schema["anyOf"]]
        if any(not types for types, _ in parts):
            return frozenset(), ()
        told = all(options or types == {"null"} for types, options in parts)
        options = tuple(option for _, some in parts for option in some) if told else ()
        return frozenset().union(*(types for types, _ in parts)), options
    if options := tuple(schema.get("enum", [schema["const"]] if "const" in schema else [])):
        return frozenset(one for option in options for one in _types_of(option)), options
    types = schema.get("type", [])
    return frozenset([types] if isinstance(types, str) else types), ()


def _resolved(schema: Schema, definitions: Schema) -> Schema:
    """Follow a reference; what stands beside it stays."""
    seen = set()
    while (ref := schema.get("$ref")) is not None and ref not in seen:
        seen.add(ref)
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        schema = {**definitions.get(str(ref).rpartition("/")[2], {}), **rest}
    return schema


def _types_of(value: object) -> frozenset[str]:
    match value:
        case None:
            return frozenset({"null"})
        case bool():
            return frozenset({"boolean"})
        case int():
            return frozenset({"integer", "number"})
        case float():
            return frozenset({"number"})
        case str():
            return frozenset({"string"})
        case list():
            return frozenset({"array"})
        case _:
            return frozenset({"object"})


def _json(value: object) -> str:
    return shortened(json.dumps(value, ensure_ascii=False), 60)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")
