"""Values inside a state: copies of them, and the dotted paths that lead to them (P1).

What can be copied is a value. Kept by reference is what cannot be copied (a client), and what is
opened and closed (a lock, a file), because its copy would be another one.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import deque
from collections.abc import Mapping
from typing import Any, TypeVar

import attrs

from .errors import nearest

__all__ = [
    "EDIT",
    "MISSING",
    "attributes",
    "copied",
    "copy_within",
    "has_fields",
    "look_up",
    "made",
    "split",
    "with_part",
]

T = TypeVar("T")

MISSING: Any = object()
"""Stands for a value that is not there."""

EDIT = "_anyio_workflows_edit"
"""An attribute that is no part of a value: views of a state keep their edit there."""

_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes})


# --- Copies -----------------------------------------------------------------------------------


def copied(value: Any) -> Any:
    """Return a deep copy of `value` that shares with it only what is kept by reference."""
    return copy_within(value, {})


def copy_within(value: Any, memo: dict[int, Any]) -> Any:
    """Copy `value` as a part of something; `memo` is one of `copy.deepcopy`."""
    cls = type(value)
    if cls in _ATOMS:
        return value
    if (known := memo.get(id(value), MISSING)) is not MISSING:
        return known
    memo.setdefault(id(memo), []).append(value)  # keeps it alive, and with it its id
    if _is_opened(cls):
        twin = value
    elif hasattr(cls, "__deepcopy__"):
        twin = _copy_opaque(value, memo)
    elif isinstance(value, dict | list | deque):
        twin = memo[id(value)] = copy.copy(value)
        for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
            twin[key] = copy_within(item, memo)
    elif cls is set or cls is frozenset:
        twin = cls(copy_within(item, memo) for item in value)
    elif isinstance(value, tuple) and (cls is tuple or hasattr(cls, "_fields")):
        items = [copy_within(item, memo) for item in value]
        same = all(one is other for one, other in zip(items, value, strict=True))
        # One of the items may have led back to this tuple and copied it.
        twin = memo.get(id(value), value if same else tuple.__new__(cls, items))
    elif _is_plain_record(cls):
        twin = memo[id(value)] = object.__new__(value.__class__)
        for name, item in attributes(value).items():
            object.__setattr__(twin, name, copy_within(item, memo))
    else:
        twin = _copy_opaque(value, memo)
    memo[id(value)] = twin
    return twin


def _copy_opaque(value: Any, memo: dict[int, Any]) -> Any:
    mark = len(memo)
    try:
        return copy.deepcopy(value, memo)
    except RecursionError:
        raise
    except Exception:  # each class has its own way to say that it cannot be copied
        while len(memo) > mark:  # half-made copies of its parts
            memo.popitem()
        return value


def _is_opened(cls: type) -> bool:
    return hasattr(cls, "__aenter__") or hasattr(cls, "__enter__")


def has_fields(cls: type) -> bool:
    """Return whether `cls` is an attrs class or a dataclass."""
    return attrs.has(cls) or dataclasses.is_dataclass(cls)


def _is_plain_record(cls: Any) -> bool:
    return has_fields(cls) and cls.__new__ is object.__new__


def attributes(holder: object) -> dict[str, Any]:
    """Return all that an object stores, in its `__dict__` and in slots."""
    stored: Any = object.__getstate__(holder)
    if isinstance(stored, tuple):
        stored = (stored[0] or {}) | stored[1]
    return {name: value for name, value in (stored or {}).items() if name != EDIT}


def made(cls: type[T], stored: Mapping[str, Any]) -> T:
    """Make an instance that stores just that, without running any code of its class."""
    instance = object.__new__(cls)
    for name, value in stored.items():
        object.__setattr__(instance, name, value)
    return instance


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


def look_up(state: Any, parts: list[str]) -> Any:
    """Return the part of `state` that a path leads to, itself and no copy.

    Raises:
        ValueError: If there is none.
    """
    for depth, part in enumerate(parts):
        found = _part_of(state, part)
        if found is MISSING:
            raise _no_part(parts, depth, state)
        state = found
    return state


def with_part(holder: Any, parts: list[str], value: Any, depth: int = 0) -> Any:
    """Return a `holder` in which the part that a path leads to is `value`.

    Only what is on the path gets copied, without its other parts. Mappings that are missing on the
    way are made.

    Raises:
        ValueError: If the path leads to an unknown field, or beyond the end of a list.
    """
    part = parts[depth]
    if not _takes(holder, part):
        raise _no_part(parts, depth, holder)
    if depth + 1 < len(parts):
        below = _part_of(holder, part)
        value = with_part({} if below is MISSING else below, parts, value, depth + 1)
    return _replaced(holder, part, value)


def _part_of(holder: Any, part: str) -> Any:
    """Return an item or attribute of `holder`, or `MISSING`."""
    if isinstance(holder, Mapping):
        return holder.get(part, MISSING)
    if isinstance(holder, list | tuple) and part.isdecimal():
        return holder[int(part)] if int(part) < len(holder) else MISSING
    if part.startswith("__"):
        return MISSING
    return getattr(holder, part, MISSING)


def _takes(holder: Any, part: str) -> bool:
    if isinstance(holder, Mapping):
        return True
    if isinstance(holder, list | tuple):
        return part.isdecimal() and int(part) < len(holder)
    return part in _names_in(holder)


def _names_in(holder: Any) -> set[str]:
    if isinstance(holder, Mapping):
        return {name for name in holder if isinstance(name, str)}
    names, cls = set(attributes(holder)), type(holder)
    if attrs.has(cls):
        names |= {field.name for field in attrs.fields(cls)}
    elif dataclasses.is_dataclass(cls):
        names |= {field.name for field in dataclasses.fields(cls)}
    return names


def _no_part(parts: list[str], depth: int, holder: Any) -> ValueError:
    path, part, at = ".".join(parts), parts[depth], ".".join(parts[:depth])
    where = f": {at!r} ({type(holder).__name__}) has no {part!r}" if at else ""
    if isinstance(holder, list | tuple):
        known = f"its length is {len(holder)}"
    else:
        known = nearest(part, {name for name in _names_in(holder) if name[:1] != "_"})
    return ValueError(f"the state has no {path!r}{where}, {known}")


def _replaced(holder: Any, part: str, value: Any) -> Any:
    if isinstance(holder, tuple):
        items = list(holder)
        items[int(part)] = value
        return tuple.__new__(type(holder), items)
    twin = _shallow_copy(holder)
    if isinstance(holder, list):
        twin[int(part)] = value
    elif isinstance(holder, Mapping):
        twin[part] = value
    else:
        setattr(twin, part, value)
    return twin


def _shallow_copy(holder: Any) -> Any:
    cls = type(holder)
    if _is_opened(cls):
        return holder
    if isinstance(holder, dict | list) or hasattr(cls, "__copy__"):
        return copy.copy(holder)
    if _is_plain_record(cls):
        return made(cls, attributes(holder))
    return copied(holder)  # whether it can be copied shows when all of it is
