"""The open waits of a run, found by the event that answers them. Pure, like the ledger."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Iterator
from typing import Any

from ._work import Wait
from .events import Event

__all__ = ["Waits"]

_ANY = object()
"""Stands for the value of a wait that has no requirement to be found by."""


class Waits:
    """Open waits, indexed by event type and by the value of their first requirement.

    Ten thousand people can be waited for: an answer finds its wait without looking at the others.
    """

    def __init__(self) -> None:
        self._order = itertools.count()
        self._places: dict[Wait, int] = {}
        self._index: dict[type[Event], dict[str | None, dict[Any, dict[Wait, None]]]] = {}

    def __contains__(self, wait: object) -> bool:
        return wait in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Wait]:
        return iter(self._places)

    def add(self, wait: Wait) -> None:
        """Add an open wait."""
        self._places[wait] = next(self._order)
        name, value = _key(wait)
        by_value = self._index.setdefault(wait.event_type, {}).setdefault(name, {})
        by_value.setdefault(value, {})[wait] = None

    def discard(self, wait: Wait) -> None:
        """Remove a wait, if it is there."""
        if self._places.pop(wait, None) is None:
            return
        name, value = _key(wait)
        by_name = self._index[wait.event_type]
        del by_name[name][value][wait]
        if not by_name[name][value]:
            del by_name[name][value]

    def matching(self, event: Event) -> list[Wait]:
        """Return the waits that an event answers, in the order in which they began."""
        found = [wait for wait in self._candidates(event) if wait.matches(event)]
        return sorted(found, key=self._places.__getitem__)

    def _candidates(self, event: Event) -> Iterator[Wait]:
        for cls in type(event).__mro__:
            for name, by_value in self._index.get(cls, {}).items():
                value = _ANY if name is None else _read(event, name)
                try:
                    buckets: Iterable[dict[Wait, None]] = (by_value.get(value, {}),)
                except TypeError:  # not hashable, but may be equal to something that is
                    buckets = by_value.values()
                for bucket in buckets:
                    yield from bucket


def _key(wait: Wait) -> tuple[str | None, Any]:
    for name, value in wait.requirements.items():
        if isinstance(value, Hashable):
            try:
                hash(value)
            except TypeError:  # a tuple with a list in it
                continue
            return name, value
    return None, _ANY


def _read(event: Event, name: str) -> Any:
    try:
        return getattr(event, name, _ANY)
    except Exception:  # a property that fails has no value
        return _ANY
