"""Values inside a state: shallow copies, and the dotted paths that lead to them (P1)."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping, MutableMapping, MutableSequence, Sequence
from collections.abc import Set as AbstractSet
from types import MemberDescriptorType
from typing import Any, TypeVar

import attrs

from .errors import nearest

__all__ = [
    "MISSING",
    "field_names",
    "get_path",
    "has_fields",
    "set_part",
    "set_path",
    "shallow_copy",
    "split",
]

T = TypeVar("T")

MISSING: Any = object()
"""Stands for a value that is not there."""


# --- Classes with fields ----------------------------------------------------------------------


def has_fields(cls: type) -> bool:
    """Return whether `cls` is an attrs class or a dataclass."""
    return attrs.has(cls) or dataclasses.is_dataclass(cls)


def field_names(cls: Any) -> list[str]:
    """Return the names of the fields of an attrs class or dataclass; of another class, none."""
    if attrs.has(cls):
        return [field.name for field in attrs.fields(cls)]
    return (
        [field.name for field in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []
    )


def shallow_copy(value: T) -> T:
    """Return a copy that shares with `value` whatever is in its fields.

    It has all that is stored in `value`, no more and no less: no code of the class runs, unless that
    has a `__copy__`. A third of the time of `copy.copy()`, which goes by what is pickled.
    """
    cls: Any = type(value)
    layout = _layout(cls)
    if layout is None:
        return copy.copy(value)
    slots, has_dict = layout
    twin: T = object.__new__(cls)
    for read, write in slots:
        try:
            write(twin, read(value))
        except AttributeError:  # never set, or deleted
            continue
    if has_dict:
        twin.__dict__.update(value.__dict__)
    return twin


@functools.lru_cache(maxsize=64)
def _layout(cls: Any) -> tuple[list[tuple[Callable[..., Any], Callable[..., None]]], bool] | None:
    """Return how to read and write each slot of a class, and whether there is a `__dict__` as well.

    `None` if its instances are not copied by their attributes.
    """
    if hasattr(cls, "__copy__") or cls.__new__ is not object.__new__:
        return None
    return [(slot.__get__, slot.__set__) for slot in _slots(cls)], bool(cls.__dictoffset__)


def _slots(cls: type) -> tuple[MemberDescriptorType, ...]:
    return tuple(
        found
        for base in cls.__mro__
        for found in vars(base).values()
        if isinstance(found, MemberDescriptorType)
    )


# --- Paths ------------------------------------------------------------------------------------


def split(path: str) -> list[str]:
    """Return the parts of a dotted path.

    Raises:
        ValueError: If one of them is empty.
    """
    parts = path.split(".")
    if not all(parts):
        raise ValueError(
            f"the path {path!r} has an empty part; paths look like 'user.name', and get_state() "
            "and set_state() are for the whole state"
        )
    return parts


def get_path(state: Any, parts: list[str]) -> Any:
    """Return the part of `state` that a path leads to.

    Raises:
        ValueError: If there is none.
    """
    for depth, part in enumerate(parts):
        found = _part_of(state, part)
        if found is MISSING:
            raise _no_part(parts, depth, state)
        state = found
    return state


def set_path(holder: Any, parts: list[str], value: Any, depth: int = 0) -> Any:
    """Set the part of `holder` that a path leads to.

    Mappings that are missing on the way are made. One assignment is made, to the last holder on the
    path that can be changed: a failure changes nothing.

    Returns:
        `holder`; a changed copy of it if it is a tuple, or frozen.

    Raises:
        ValueError: If the path leads to an unknown field, beyond the end of a list, or into
            something that cannot be changed.
    """
    part = parts[depth]
    _check_takes(holder, parts, depth)
    if depth + 1 < len(parts):
        below = _part_of(holder, part)
        if below is MISSING:
            for name in reversed(parts[depth + 1 :]):
                value = {name: value}
        elif (value := set_path(below, parts, value, depth + 1)) is below:
            return holder
    return set_part(holder, part, value)


def set_part(holder: Any, part: str, value: Any) -> Any:
    """Set an item or attribute of `holder`; returns that, or a changed copy as `set_path()` does."""
    if isinstance(holder, MutableMapping):
        holder[part] = value
    elif isinstance(holder, MutableSequence):
        holder[int(part)] = value
    elif isinstance(holder, tuple):
        items: list[Any] = list(holder)
        items[_index(holder, part)] = value
        return tuple.__new__(type(holder), items)
    else:
        try:
            setattr(holder, part, value)
        except (attrs.exceptions.FrozenInstanceError, dataclasses.FrozenInstanceError):
            return _evolved(holder, part, value)
    return holder


def _evolved(holder: Any, name: str, value: Any) -> Any:
    cls = type(holder)
    if not attrs.has(cls):
        return dataclasses.replace(holder, **{name: value})
    field = attrs.fields_dict(cls).get(name)
    if field is None or not field.init:
        raise ValueError(f"{name!r} of {cls.__name__}, which is frozen, is not for its constructor")
    return attrs.evolve(holder, **{field.alias or name: value})


def _part_of(holder: Any, part: str) -> Any:
    """Return an item or attribute of `holder`, or `MISSING`."""
    if isinstance(holder, Mapping):
        return holder.get(part, MISSING)
    if _has_items(holder) and part.isdecimal():
        return holder[int(part)] if int(part) < len(holder) else MISSING
    if part.startswith("__"):
        return MISSING
    return getattr(holder, part, MISSING)


def _has_items(holder: Any) -> bool:
    return isinstance(holder, Sequence) and not isinstance(holder, str | bytes | bytearray)


def _index(holder: tuple[Any, ...], part: str) -> int:
    """Return the place of an item of a tuple, which may have names for them; -1 if there is none."""
    if part.isdecimal():
        return int(part) if int(part) < len(holder) else -1
    names = getattr(holder, "_fields", ())
    return names.index(part) if part in names else -1


def _check_takes(holder: Any, parts: list[str], depth: int) -> None:
    part = parts[depth]
    if isinstance(holder, MutableMapping):
        return
    if isinstance(holder, tuple):
        known = _index(holder, part) >= 0
    elif isinstance(holder, MutableSequence):
        known = part.isdecimal() and int(part) < len(holder)
    elif isinstance(holder, Mapping | Sequence | AbstractSet) and not isinstance(
        holder, str | bytes
    ):
        raise _unchangeable(holder, parts, depth)
    else:
        known = part in _names_in(holder) or _is_class_default(type(holder), part)
    if not known:
        raise _no_part(parts, depth, holder)


def _is_class_default(cls: Any, name: str) -> bool:
    """Return whether a class has a value, or a property, that its instances may overwrite."""
    found = getattr(cls, name, MISSING)
    if found is MISSING or name.startswith("__"):
        return False
    is_value = not has_fields(cls) and not hasattr(found, "__get__")
    return is_value or hasattr(found, "__set__")


def _names_in(holder: Any) -> set[str]:
    if isinstance(holder, Mapping):
        return {name for name in holder if isinstance(name, str)}
    cls = type(holder)
    names = {slot.__name__ for slot in _slots(cls)} | set(field_names(cls))
    return names | set(getattr(holder, "__dict__", ()))


def _no_part(parts: list[str], depth: int, holder: Any) -> ValueError:
    path, part, at = ".".join(parts), parts[depth], ".".join(parts[:depth])
    where = f": {at!r} ({type(holder).__name__}) has no {part!r}" if at else ""
    if _has_items(holder):
        known = f"its length is {len(holder)}"
    else:
        known = nearest(part, {name for name in _names_in(holder) if name[:1] != "_"})
    return ValueError(f"the state has no {path!r}{where}, {known}")


def _unchangeable(holder: Any, parts: list[str], depth: int) -> ValueError:
    path, at = ".".join(parts), ".".join(parts[:depth])
    return ValueError(
        f"{path!r} cannot be set: {at!r} is a {type(holder).__name__}, which cannot be changed; set "
        f"{at!r} to another one"
    )
