"""Read values from JSON data, strictly.

cattrs finds the way of reading that fits an annotation. The ways are our own: those of cattrs
convert ("5" to 5, "abc" to a list) and need annotations that their module can resolve (E5).
"""

from __future__ import annotations

import builtins
import functools
import types
import typing
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any

import attrs
from cattrs import Converter

from .._annotations import strip
from .._messages import nearest, short_repr, shortened, text_of
from ..errors import ContextSerdeError
from .fields import Registry, enum_member, enum_text, is_enum, is_open, is_record, safe_kind
from .formats import (
    ATOMS,
    LISTS,
    MAPPINGS,
    SETS,
    TEXTS,
    Text,
    check_hashes,
    class_of,
    fault,
    inside,
    is_finite,
    is_leaf,
    is_union,
    part_of,
    plan_of,
    unexpected,
)

TAGGED_TYPES = {
    cls.__name__: cls for cls in (types.NoneType, bool, str, list, tuple, set, frozenset)
}
"""Tag -> what the value is read as."""

TAGGED_TEXTS = {text.tag: text for text in TEXTS.values()} | {
    "int": Text("int", int, hex, lambda text: int(text, 16), None),
    "float": Text("float", float, repr, float),
}
"""Tag -> the text form of the value."""


class RestoredError(Exception):
    """Stands for an exception whose type is not a builtin one.

    Attributes:
        type_name: Module and name of that type.
        text: What `str()` gave; it gives the first 1000 characters of it again.
    """

    def __init__(self, type_name: str, text: str) -> None:
        self.type_name = type_name
        self.text = text
        super().__init__(type_name, text)

    def __str__(self) -> str:
        return shortened(self.text, 1000)

    def __repr__(self) -> str:
        return f"<{shortened(self.type_name, 200)}: {self}>"


@attrs.frozen
class _ErrorData:
    """What stands for an exception."""

    type: str
    text: str
    args: list[Any] | None = None
    notes: list[str] = attrs.field(factory=list)


def builtin_error(name: str) -> Any:
    """Return the builtin exception type of that name, or `None`."""
    cls = vars(builtins).get(name)
    return cls if isinstance(cls, type) and issubclass(cls, BaseException) else None


def _read_text(data: Any, text: Text) -> Any:
    if type(data) is str and (text.longest is None or len(data) <= text.longest):
        with suppress(Exception):  # each type has its own way to say that it is no such text
            return text.read(data)
    raise fault(f"no {text.tag} in its usual text form: {short_repr(data)}")


class Reader:
    """Reads values whose types are in `registry`."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._plan_of = functools.cache(plan_of)
        self._converter = self._make_converter()

    def _make_converter(self) -> Converter:
        converter = Converter()
        ways: list[tuple[Callable[[Any], bool], Callable[[Any, Any], Any]]] = [
            (lambda _: True, self._read_anything),  # the last of these that fits is taken
            (lambda a: is_record(class_of(a)), self._read_record),
            (lambda a: class_of(a) in MAPPINGS, self._read_mapping),
            (lambda a: class_of(a) in LISTS, self._read_list),
            (lambda a: class_of(a) in SETS, self._read_set),
            (lambda a: class_of(a) is tuple, self._read_tuple),
            (lambda a: class_of(a) is typing.Literal, self._read_literal),
            (is_union, self._read_union),
            (is_leaf, self._read_leaf),
        ]
        for fits, read in ways:
            converter.register_structure_hook_func(fits, read)
        for cls in (str, int, float, bytes, Path, Enum):  # cattrs asks no function about these
            converter.register_structure_hook(cls, self._read_leaf)
        return converter

    def _natural(self, data: Any, annotation: Any) -> Any:
        return self._converter.get_structure_hook(annotation)(data, annotation)

    def read(self, data: Any, annotation: Any) -> Any:
        """Return the value that stands under an annotation."""
        annotation = strip(annotation)
        if type(data) is not dict or "$" not in data:
            return self._natural(data, annotation)
        value = self._read_tagged(data)
        if not isinstance(value, safe_kind(annotation)):
            raise unexpected(annotation, value)
        return value

    def _read_tagged(self, data: dict[Any, Any]) -> Any:
        tag = data["$"]
        if data.keys() != {"$", "value"} or type(tag) is not str:
            got = short_repr(data)
            raise fault(f'a tagged value looks like {{"$": "tag", "value": ...}}, got {got}')
        inner = data["value"]
        if tag in TAGGED_TYPES:
            return self._natural(inner, TAGGED_TYPES[tag])
        if tag in TAGGED_TEXTS:
            return _read_text(inner, TAGGED_TEXTS[tag])
        if tag == "type" and type(inner) is str:
            return self._type_called(inner)
        if tag == "dict":
            return self._read_pairs(inner)
        if tag == "exception":
            return self._read_error(inner)
        return self._natural(inner, self._type_called(tag))

    def _type_called(self, tag: str) -> type:
        known = self._registry.types
        if tag not in known:
            hint = nearest(tag, known)
            hint = f", {hint}" if hint.startswith("did you") else ""
            raise fault(f"unknown type {short_repr(tag)}{hint}; types=[...] names more")
        return known[tag]

    def _read_anything(self, data: Any, annotation: Any) -> Any:
        cls = type(data)
        if cls is list:
            value: Any = self._read_list(data, list)
        elif cls is dict:
            value = self._read_mapping(data, dict)
        elif cls in ATOMS and is_finite(data):
            value = data
        else:
            raise fault(f"no JSON value: {short_repr(data)} ({cls.__qualname__})")
        if annotation is not Any and not isinstance(value, safe_kind(annotation)):
            raise unexpected(annotation, value)
        return value

    def _read_leaf(self, data: Any, annotation: Any) -> Any:
        cls = class_of(annotation)
        if is_enum(cls):
            member = enum_member(cls, data)
            if member is None:
                known = ", ".join(repr(enum_text(member)) for member in cls)
                raise fault(f"expected one of {known} ({cls.__name__}), got {short_repr(data)}")
            return member
        if type(data) in self._plan_of(cls).raw and is_finite(data):
            return data
        if cls in TEXTS:
            return _read_text(data, TEXTS[cls])
        if cls in ATOMS:
            raise unexpected(annotation, data)
        return self._read_anything(data, annotation)

    def _read_items(self, data: Any, annotation: Any, item: Any) -> list[Any]:
        if type(data) is not list:
            raise unexpected(annotation, data)
        return [inside(f"[{n}]", self.read, each, item) for n, each in enumerate(data)]

    def _read_list(self, data: Any, annotation: Any) -> list[Any]:
        return self._read_items(data, annotation, self._plan_of(annotation).item)

    def _read_set(self, data: Any, annotation: Any) -> Any:
        plan = self._plan_of(annotation)
        items = self._read_items(data, annotation, plan.item)
        try:
            check_hashes(items, data)
            return plan.bare(items)
        except TypeError as error:
            raise fault(f"no item of a set: {error}") from None

    def _read_tuple(self, data: Any, annotation: Any) -> tuple[Any, ...]:
        args = typing.get_args(annotation)
        if not args or args[1:] == (Ellipsis,):
            return tuple(self._read_items(data, annotation, self._plan_of(annotation).item))
        if type(data) is not list or len(data) != len(args):
            raise unexpected(annotation, data)
        each = enumerate(zip(data, args, strict=True))
        return tuple(inside(f"[{n}]", self.read, item, arg) for n, (item, arg) in each)

    def _read_mapping(self, data: Any, annotation: Any) -> dict[Any, Any]:
        if type(data) is not dict:
            raise unexpected(annotation, data)
        key_type, item = typing.get_args(annotation) or (Any, Any)
        keys, values = [], []
        for key, value in data.items():
            part = part_of(key)
            if type(key) is not str:
                raise ContextSerdeError(part, "the keys of a JSON object are texts")
            keys.append(inside(part, self.read, key, key_type))
            values.append(inside(part, self.read, value, item))
        if strip(key_type) not in (str, Any):
            check_hashes(keys, list(data))
        return dict(zip(keys, values, strict=True))

    def _read_pairs(self, data: Any) -> dict[Any, Any]:
        try:
            pairs = self._read_items(data, list[list[Any]], list[Any])
            check_hashes([key for key, _ in pairs], [key for key, _ in data])
            return dict(pairs)
        except (TypeError, ValueError) as error:
            raise fault(f"no pairs of keys and values: {error}") from None

    def _read_literal(self, data: Any, annotation: Any) -> Any:
        if not isinstance(data, safe_kind(annotation)):
            raise unexpected(annotation, data)
        return data

    def _read_union(self, data: Any, annotation: Any) -> Any:
        members = [strip(arg) for arg in typing.get_args(annotation)]
        if data is None and types.NoneType in members:
            return None
        members = [member for member in members if member is not types.NoneType]
        if len(members) > 1:
            members = [member for member in members if self._has_shape(data, member)]
            members.sort(key=lambda member: not isinstance(data, safe_kind(member)))
        if len(members) == 1 or (members and type(data) in (list, dict)):
            # Nothing nested is tried twice: the time that takes would double with each level.
            return self.read(data, members[0])
        for member in members:
            with suppress(ContextSerdeError):
                return self.read(data, member)
        raise unexpected(annotation, data)

    def _has_shape(self, data: Any, annotation: Any) -> bool:
        plan, cls = self._plan_of(annotation), class_of(annotation)
        if type(data) is list:
            return list in plan.raw or plan.bare in (set, frozenset, tuple)
        if type(data) is dict and is_record(cls):
            fields = self._registry.fields(cls)
            required = {field.key for field in fields if field.required}
            known = data.keys() if is_open(cls) else {field.key for field in fields}
            return required <= data.keys() <= known
        if type(data) is dict:
            return dict in plan.raw or cls in MAPPINGS
        return type(data) in plan.raw or is_leaf(cls)

    def _read_record(self, data: Any, annotation: Any) -> Any:
        cls = class_of(annotation)
        if type(data) is not dict:
            raise unexpected(annotation, data)
        fields = {field.key: field for field in self._registry.fields(cls)}
        values = {}
        for key, item in data.items():
            part, field = part_of(key), fields.get(key)
            if field is None and (not is_open(cls) or type(key) is not str or key == "_extra"):
                hint = nearest(key if type(key) is str else "", fields)
                raise ContextSerdeError(part, f"{cls.__name__} has no such field, {hint}")
            values[key] = inside(part, self.read, item, field.annotation if field else Any)
        for key, field in fields.items():
            if field.required and key not in values:
                raise ContextSerdeError(part_of(key), f"missing, {cls.__name__} needs it")
        late = {
            field.name: values.pop(key)
            for key, field in fields.items()
            if not field.init and key in values
        }
        try:
            record = cls(**values)
            for name, value in late.items():
                object.__setattr__(record, name, value)
        except Exception as error:  # whatever the class has against it
            raise fault(f"{cls.__name__} does not take this: {text_of(error)}") from error
        return record

    def _read_error(self, data: Any) -> BaseException:
        plain = self._natural(data, _ErrorData)
        cls = builtin_error(plain.type)
        if cls is None or plain.args is None:
            error: BaseException = RestoredError(plain.type, plain.text)
        else:
            try:
                error = cls(*plain.args)
            except Exception as problem:
                raise fault(
                    f"{plain.type} does not take these arguments: {text_of(problem)}"
                ) from None
        for note in plain.notes:
            error.add_note(note)
        return error
