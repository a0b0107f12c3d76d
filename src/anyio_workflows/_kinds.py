"""Turn annotations into something that `isinstance` takes, to check values against (E3)."""

from __future__ import annotations

import types
import typing
from collections.abc import Collection, Mapping
from typing import Any

import attrs

from ._annotations import strip

__all__ = ["ANYTHING", "classes_in", "kind_of"]

ANYTHING = (object,)
"""What `isinstance` takes for `Any`; by identity, to tell it from what cannot be checked."""


class _Kind:
    """Something that `isinstance` takes, for annotations that are no class."""

    def __instancecheck__(self, value: object) -> bool:
        raise NotImplementedError


@attrs.frozen
class _OneOf(_Kind):
    """`Literal[...]`."""

    options: tuple[Any, ...]

    def __instancecheck__(self, value: object) -> bool:
        return any(type(value) is type(option) and value == option for option in self.options)


@attrs.frozen
class _Items(_Kind):
    """A container and the kind of its items: `list[str]`, `tuple[int, ...]`, `set[X]`."""

    container: Any
    item: Any

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, self.container) and all(isinstance(v, self.item) for v in value)


@attrs.frozen
class _Pairs(_Kind):
    """A mapping with the kinds of its keys and values."""

    container: Any
    key: Any
    value: Any

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, self.container) and all(
            isinstance(k, self.key) and isinstance(v, self.value) for k, v in value.items()
        )


@attrs.frozen
class _Tuple(_Kind):
    """`tuple[A, B]`."""

    items: tuple[Any, ...]

    def __instancecheck__(self, value: Any) -> bool:
        return (
            isinstance(value, tuple)
            and len(value) == len(self.items)
            and all(isinstance(v, kind) for v, kind in zip(value, self.items, strict=True))
        )


_WIDER: Mapping[Any, Any] = {float: (float, int), complex: (complex, float, int)}
"""The numeric tower as type checkers have it."""


def kind_of(annotation: Any) -> Any:
    """Return what `isinstance` takes for `annotation`; `object` where it can't be checked."""
    annotation = strip(annotation)
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return tuple(kind_of(arg) for arg in args)
    if origin is typing.Literal:
        return _OneOf(args)
    if annotation is None:
        return types.NoneType
    if typing.is_typeddict(origin or annotation):
        return dict
    if origin is tuple and args[-1:] != (Ellipsis,):
        return _Tuple(tuple(kind_of(arg) for arg in args))
    if annotation is Any:
        return ANYTHING
    container = origin or _WIDER.get(annotation, annotation)
    try:
        isinstance(None, container)
    except TypeError:  # a protocol, a type variable, `Any` before Python 3.11, ...
        return object
    if args and getattr(container, "__module__", "") in ("builtins", "collections.abc"):
        return _container_kind(container, args)
    return container


def _container_kind(container: type, args: tuple[Any, ...]) -> Any:
    if issubclass(container, Mapping) and len(args) == 2:
        return _Pairs(container, kind_of(args[0]), kind_of(args[1]))
    if issubclass(container, Collection) and (len(args) == 1 or args[-1] is Ellipsis):
        item = kind_of(args[0])
        return container if item in (object, ANYTHING) else _Items(container, item)
    return container


def classes_in(annotation: Any) -> list[type]:
    """Return the classes that an annotation is made of, for messages."""
    annotation = strip(annotation)
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return [annotation]
    return [cls for arg in typing.get_args(annotation) for cls in classes_in(arg)]
