"""Resolve annotations, one way for all, and check values against them.

Steps, resources, events and JSON all ask `resolve()` what an annotation means. Where it means nothing (a
misspelt name, one that exists for type checkers only), they get an `Unresolved`, and each of them decides
what that is: a fault, or a field that is not checked.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping
from enum import Enum
from typing import Any

import attrs

from ._messages import nearest
from ._pydantic import is_model, value_type


@attrs.frozen(repr=False)
class Unresolved:
    """Stands for the type of an annotation that could not be resolved.

    Attributes:
        annotation: The annotation as it is written.
        name: The name in it that is not defined, or not yet; `None` if something else is wrong.
        reason: What is wrong, in words.
    """

    annotation: object
    name: str | None
    reason: str

    def __repr__(self) -> str:
        """What `inspect.signature()` and `help()` show for a field of an event (E3)."""
        return f"{self.annotation!r} (unchecked: {self.reason})"


def resolve(annotation: object, owner: Any, names: Mapping[str, Any] | None = None) -> Any:
    """Return the type that an annotation means where it is written.

    Text is evaluated with the names that Python would find there: those of `owner`, if that is a class,
    of the functions around it, and of its module.

    Args:
        annotation: The annotation, as text or not.
        owner: The class or function that it belongs to.
        names: More names, which take precedence.

    Returns:
        The type, or an `Unresolved`; nothing is raised.
    """
    module = getattr(owner, "__module__", None) or "builtins"
    # As in Python, the innermost names win: those of the class over those of the functions around it.
    known = local_names(annotation, module, owner.__qualname__)
    if isinstance(owner, type):
        # What an event class kept when it was defined; `vars`, as a base may be from elsewhere.
        known |= vars(owner).get("_local_names", {})
        known |= classes_of(owner)
    known |= names or {}
    # `get_type_hints` reads a holder with this annotation alone, so that one fault hides no other field.
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    globalns = vars(sys.modules[module]) if module in sys.modules else {}
    try:
        return typing.get_type_hints(holder, globalns, known, include_extras=True)["it"]
    except NameError as exc:
        return Unresolved(annotation, exc.name, str(exc))
    except Exception as exc:  # an annotation is any code
        return Unresolved(annotation, None, f"it is not a type: {exc}")


def resolve_field(cls: type, name: str, annotation: object) -> Any:
    """Return the type of a field of a class, `Unresolved` included.

    The annotation means what it does in the class that declares the field, which may be a base.
    """
    owners = (base for base in cls.__mro__ if name in inspect.get_annotations(base))
    return resolve(annotation, next(owners, cls))


def classes_of(cls: type) -> dict[str, type]:
    """Return the classes that are defined in the body of a class."""
    return {name: value for name, value in vars(cls).items() if isinstance(value, type)}


def local_names(annotation: object, module: str, qualname: str) -> dict[str, Any]:
    """Return the names in `annotation` that are local to a function enclosing `qualname`.

    Only functions that are being executed have frames, so event classes ask when they are defined and
    keep what is found in `_local_names`. Only the values of those names are kept, never a frame.
    """
    found: dict[str, Any] = {}
    if not isinstance(annotation, str) or ".<locals>." not in qualname:
        return found
    try:
        wanted = set(compile(annotation, "<annotation>", "eval").co_names)
    except SyntaxError:
        return found
    # From the inside out: `| found` lets the names of inner functions hide those of outer ones.
    outer = qualname
    while ".<locals>." in outer:
        outer = outer.rpartition(".<locals>.")[0]
        frame = inspect.currentframe()  # a function that has returned has no frame any more
        while frame is not None and (frame.f_code.co_qualname, frame.f_globals["__name__"]) != (
            outer,
            module,
        ):
            frame = frame.f_back
        if frame is not None:
            names = frame.f_locals
            found = {name: names[name] for name in wanted if name in names} | found
    return found


def strip(annotation: Any) -> Any:
    """Take `Annotated`, `Final`, `NewType` and type aliases off an annotation.

    What pydantic has for annotations only, such as `EmailStr`, becomes the type of its values.
    """
    while True:
        if typing.get_origin(annotation) in (typing.Annotated, typing.Final):
            annotation = typing.get_args(annotation)[0]
        elif isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        elif hasattr(annotation, "__value__"):  # `type X = ...`, Python 3.12
            annotation = annotation.__value__
        else:
            plain = value_type(annotation)
            return annotation if plain is None else plain


def is_record(cls: object) -> bool:
    """Return whether `cls` has annotated fields: an event, attrs class, dataclass or pydantic model."""
    return isinstance(cls, type) and (
        attrs.has(cls) or dataclasses.is_dataclass(cls) or is_model(cls)
    )


def is_enum(cls: object) -> bool:
    """Return whether `cls` is an enum."""
    return isinstance(cls, type) and issubclass(cls, Enum)


# --- Run-time checks (E3) -------------------------------------------------------------------------
#
# The check for an annotation is the second argument of `isinstance(value, check)`: a class, a tuple of
# checks, or an object with an `__instancecheck__`. Most are classes, and `isinstance` is the fastest
# check that there is.


ANYTHING = (object,)
"""The check for `Any`; compared by identity, to tell it from `object`, which stands for "unchecked"."""


class _Check:
    """A check for an annotation that is not a class."""

    def __instancecheck__(self, value: object) -> bool:
        raise NotImplementedError


@attrs.frozen
class _OneOf(_Check):
    """`Literal[...]`."""

    options: tuple[Any, ...]

    def __instancecheck__(self, value: object) -> bool:
        return any(type(value) is type(option) and value == option for option in self.options)


@attrs.frozen
class _Items(_Check):
    """A container and the check for its items: `list[str]`, `tuple[int, ...]`, `set[X]`."""

    container: Any
    item: Any

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, self.container) and all(isinstance(v, self.item) for v in value)


@attrs.frozen
class _Pairs(_Check):
    """A mapping and the checks for its keys and values."""

    container: Any
    key: Any
    value: Any

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, self.container) and all(
            isinstance(k, self.key) and isinstance(v, self.value) for k, v in value.items()
        )


@attrs.frozen
class _Tuple(_Check):
    """`tuple[A, B]`."""

    items: tuple[Any, ...]

    def __instancecheck__(self, value: Any) -> bool:
        return (
            isinstance(value, tuple)
            and len(value) == len(self.items)
            and all(isinstance(v, check) for v, check in zip(value, self.items, strict=True))
        )


_WIDER: Mapping[Any, Any] = {float: (float, int), complex: (complex, float, int)}
"""The numeric tower as type checkers have it."""


@attrs.define(eq=False)
class _Whole(_Check):
    """Stands for an alias inside itself, `type Tree = dict[str, Tree] | int`: the check of the whole."""

    check: Any = object

    def __instancecheck__(self, value: object) -> bool:
        return isinstance(value, self.check)


def check_for(annotation: Any, around: Mapping[int, _Whole] | None = None) -> Any:
    """Return the run-time check for an annotation; `object` where it cannot be checked.

    Args:
        annotation: The annotation, resolved.
        around: The annotations that it stands in, by their identity.
    """
    annotation, around = strip(annotation), around or {}
    if id(annotation) in around:
        return around[id(annotation)]
    whole = _Whole()
    part_check = functools.partial(check_for, around={**around, id(annotation): whole})
    whole.check = _check_for(annotation, part_check)
    return whole.check


def _check_for(annotation: Any, part_check: Callable[[Any], Any]) -> Any:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return tuple(part_check(arg) for arg in args)
    if origin is typing.Literal:
        return _OneOf(args)
    if annotation is None:
        return types.NoneType
    if typing.is_typeddict(origin or annotation):
        return dict
    if origin is tuple and args[-1:] != (Ellipsis,):
        return _Tuple(tuple(part_check(arg) for arg in args))
    if annotation is Any:
        return ANYTHING  # before `isinstance` is asked, which accepts `Any` since Python 3.11
    container = origin or _WIDER.get(annotation, annotation)
    try:
        isinstance(None, container)
    except TypeError:  # a protocol, a type variable, `Any` before Python 3.11, ...
        return object
    if args and getattr(container, "__module__", "") in ("builtins", "collections.abc"):
        return _container_check(container, args, part_check)
    return container


def _container_check(
    container: type, args: tuple[Any, ...], part_check: Callable[[Any], Any]
) -> Any:
    if issubclass(container, Mapping) and len(args) == 2:
        return _Pairs(container, part_check(args[0]), part_check(args[1]))
    if issubclass(container, Collection) and (len(args) == 1 or args[-1] is Ellipsis):
        item = part_check(args[0])
        return container if item in (object, ANYTHING) else _Items(container, item)
    return container


def classes_in(annotation: Any) -> list[type]:
    """Return the classes that an annotation is made of, for messages."""
    found, seen, ahead = [], set(), [annotation]
    while ahead:
        one = strip(ahead.pop(0))
        if isinstance(one, type) and not typing.get_args(one):
            found.append(one)
        elif id(one) not in seen:  # an alias may contain itself
            seen.add(id(one))
            ahead += typing.get_args(one)
    return found


# --- Checks of arguments --------------------------------------------------------------------------


def is_positive_number(value: object, *, or_zero: bool = False) -> bool:
    """Return whether a value can be a time in seconds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return float(value) > 0 or (or_zero and value == 0)
    except OverflowError:
        return False


def read_names(
    argument: str, names: Collection[str] | None, literal: Any
) -> tuple[frozenset[str], list[str]]:
    """Return the names that an argument lists, and a fault for each that a `Literal` lacks."""
    known = typing.get_args(literal)
    if names is None:
        return frozenset(), []
    # A single name is a mistake for a list of it; iterating over its letters would hide that.
    given = names if isinstance(names, Collection) and not isinstance(names, str) else [names]
    faults = [
        f"{argument} has no {name!r}, {nearest(str(name), known)}"
        for name in given
        if name not in known
    ]
    return frozenset(() if faults else given), faults
