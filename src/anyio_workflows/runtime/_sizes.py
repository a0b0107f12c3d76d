"""How much memory an event takes, about."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain, islice
from sys import getsizeof
from types import MemberDescriptorType, MethodDescriptorType
from typing import Any

from ..events import Event

_MOST_VALUES = 1000
"""At most so many values are looked at. The rest counts as much as these do on average."""

_EVENT_SIZE = 200
"""The event itself, the dict of its values, and its place in a log."""

_UNKNOWN_SIZE = 1000
"""What an event counts that cannot be looked into, as when a thread changes a list in it meanwhile."""

_FLAT = frozenset({str, int, float, bool, type(None), bytes})
"""The most frequent types of values that contain no others."""

_MARKS = ("__attrs_attrs__", "__dataclass_fields__", "__pydantic_fields__")
"""What classes of records have: these are data, while other objects may lead to anything."""

_attribute_of = object.__getattribute__


def estimate_size(event: Event) -> int:
    """Return about how many bytes of memory an event takes, with the values in its fields.

    It takes 1 us for a small event, and less than a millisecond for any. No code of the values is called. What
    occurs several times counts each time, and of an object that is neither a record nor a container
    nothing inside.
    """
    try:
        return _EVENT_SIZE + _size_of_all(list(_attribute_of(event, "__dict__").values()))
    except Exception:
        return _UNKNOWN_SIZE


def _size_of_all(values: list[Any]) -> int:
    """Return the size of these values and of what is inside them, which the list grows by."""
    total = left_out = 0
    for value in values:
        cls = type(value)
        if cls in _FLAT:
            total += getsizeof(value)
            continue
        has_own_idea = type(cls.__sizeof__) is not MethodDescriptorType  # that of a class in Python
        total += object.__sizeof__(value) if has_own_idea else getsizeof(value)
        inside, number = _inside(value, cls)
        if number:
            room = max(_MOST_VALUES - len(values), 0)
            if number > room:
                left_out += number - room
                inside = islice(inside, room)
            values.extend(inside)
    return total + left_out * total // max(len(values), 1)


def _inside(value: Any, cls: type) -> tuple[Iterable[Any], int]:
    """Return the values inside a value, and their number."""
    if issubclass(cls, dict):
        return chain(dict.values(value), dict.keys(value)), 2 * dict.__len__(value)
    if issubclass(cls, list):
        return list.__iter__(value), list.__len__(value)
    if issubclass(cls, tuple):
        return tuple.__iter__(value), tuple.__len__(value)
    if issubclass(cls, set):
        return set.__iter__(value), set.__len__(value)
    if issubclass(cls, frozenset):
        return frozenset.__iter__(value), frozenset.__len__(value)
    if issubclass(cls, deque):
        return deque.__iter__(value), deque.__len__(value)
    attributes = _attributes(value, cls)
    return attributes, len(attributes)


def _attributes(value: object, cls: type) -> list[Any]:
    """Return the attributes of a record, those in slots included; none of any other object."""
    namespaces = [vars(base) for base in cls.__mro__]
    if not any(mark in namespace for namespace in namespaces for mark in _MARKS):
        return []
    found: list[Any] = []
    with suppress(AttributeError):  # it has slots only
        found.extend(_attribute_of(value, "__dict__").values())
    for namespace in namespaces:
        for member in namespace.values():
            if type(member) is MemberDescriptorType:
                with suppress(AttributeError):  # it has never been set
                    found.append(member.__get__(value))
    return found
