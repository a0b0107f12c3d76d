"""Turn annotations into types, also those written as text or naming classes local to a function."""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any

import attrs


def local_names(annotation: object, module: str, qualname: str) -> dict[str, Any]:
    """Return the names in `annotation` that are local to a function enclosing `qualname`.

    Only functions that are being executed can be looked into, so this is called where the class or
    step is defined. Nothing but the values of those names is kept.
    """
    found: dict[str, Any] = {}
    if not isinstance(annotation, str) or ".<locals>." not in qualname:
        return found
    try:
        wanted = set(compile(annotation, "<annotation>", "eval").co_names)
    except SyntaxError:
        return found
    outer = qualname
    while ".<locals>." in outer:
        outer = outer.rpartition(".<locals>.")[0]
        frame = inspect.currentframe()
        while frame is not None and (frame.f_code.co_qualname, frame.f_globals["__name__"]) != (
            outer,
            module,
        ):
            frame = frame.f_back
        if frame is not None:
            names = frame.f_locals
            found = {name: names[name] for name in wanted if name in names} | found
    return found


def resolve(annotation: object, module: str, names: dict[str, Any]) -> Any:
    """Evaluate `annotation` in `module`, with `names` on top.

    Raises:
        NameError: If it names something that is not (or not yet) there.
    """
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    globalns = vars(sys.modules[module]) if module in sys.modules else {}
    return typing.get_type_hints(holder, globalns, names, include_extras=True)["it"]


def strip(annotation: Any) -> Any:
    """Take `Annotated`, `Final`, `NewType` and type aliases off an annotation."""
    while True:
        if typing.get_origin(annotation) in (typing.Annotated, typing.Final):
            annotation = typing.get_args(annotation)[0]
        elif isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        elif hasattr(annotation, "__value__"):  # `type X = ...`, Python 3.12
            annotation = annotation.__value__
        else:
            return annotation


# --- Run-time checks of annotations (E3) ----------------------------------------------------------


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
