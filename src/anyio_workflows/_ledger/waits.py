"""The open waits of a run, and which of them an event answers."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Iterator
from itertools import islice
from typing import Any

import attrs

from .._messages import shortened
from ..errors import WorkflowRuntimeError
from ..events import Event
from ..graph import StepSpec
from .work import StepQueues, Wait, Work, wake

_MOST_NAMED = 5
"""So many open waits a message names."""

_ANY = object()
"""Stands for the value of a wait that has no requirement to be found by."""


class Index:
    """Open waits, by event type and by the value of their first requirement.

    Ten thousand people can be waited for: an answer finds its wait without looking at the others.

    Attributes:
        places: The open waits, in the order in which they began, each with its place in it.
    """

    def __init__(self) -> None:
        self._order = itertools.count()
        self.places: dict[Wait, int] = {}
        self._index: dict[type[Event], dict[str | None, dict[Any, dict[Wait, None]]]] = {}

    def __contains__(self, wait: object) -> bool:
        return wait in self.places

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[Wait]:
        return iter(self.places)

    def add(self, wait: Wait) -> None:
        """Add an open wait."""
        self.places[wait] = next(self._order)
        name, value = _key(wait)
        by_value = self._index.setdefault(wait.event_type, {}).setdefault(name, {})
        by_value.setdefault(value, {})[wait] = None

    def discard(self, wait: Wait) -> None:
        """Remove a wait, if it is there."""
        if self.places.pop(wait, None) is None:
            return
        name, value = _key(wait)
        by_name = self._index[wait.event_type]
        del by_name[name][value][wait]
        if not by_name[name][value]:
            del by_name[name][value]

    def matching(self, event: Event) -> list[Wait]:
        """Return the waits that an event answers, in the order in which they began."""
        found = [wait for wait in self._candidates(event) if wait.matches(event)]
        return sorted(found, key=self.places.__getitem__)

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


@attrs.define(eq=False, repr=False)
class Waits:
    """The waits of a run.

    Attributes:
        open: Those that are not over.
    """

    _queues: StepQueues
    open: Index = attrs.field(factory=Index, init=False)

    def begin(self, wait: Wait) -> None:
        """Begin a wait; the execution gives its place back.

        Unless it was over already in an earlier attempt (W3), or before a snapshot (W4): then it has
        its answer now, or has timed out.

        Raises:
            WorkflowRuntimeError: If the execution has an equal wait open (W4).
        """
        work = wait.work
        if any(wait.equals(other) for other in work.waits):
            raise _twice(wait)
        past = work.past
        earlier = past.recall_wait(wait)
        past.waits.append(wait)
        if earlier is None:
            past.number((wait,))
        else:
            self.open.discard(earlier)
            wait.take_over(earlier)
            if wait.over:
                return
        if work.answered:  # a task of it waits anew, while another is about to go on
            self._queues.withdraw_request(work)
            wake(work)
        elif not work.waits:
            self._queues.suspend(work)
        work.waits += (wait,)
        self.open.add(wait)

    def answer(self, event: Event, target: StepSpec | None) -> set[str]:
        """Answer each wait that the event matches; returns the names of their steps (W2)."""
        matching = [
            wait for wait in self.open.matching(event) if target in (None, wait.work.queue.spec)
        ]
        for wait in matching:
            self.give(wait, event)
        return {wait.work.queue.spec.name for wait in matching}

    def give(self, wait: Wait, event: Event) -> None:
        """Answer one wait."""
        wait.answer = event
        self.end(wait)

    def open_in_words(self) -> str:
        """Name the open waits, for people."""
        first = ", ".join(
            f"{shortened(wait.id, 100)!r} ({wait.work.queue.spec.name})"
            for wait in islice(self.open, _MOST_NAMED)
        )
        more = f" and {len(self.open) - _MOST_NAMED} more" if len(self.open) > _MOST_NAMED else ""
        return f"open are {first}{more}" if first else "no wait is open"

    def end(self, wait: Wait) -> None:
        """Note that a wait is over, answered or not; once none is open, the place is wanted back.

        As long as another task of the same execution waits, this one goes on without a place.
        """
        work = wait.work
        self.open.discard(wait)
        if wait not in work.waits:
            return
        wait.timed_out = wait.answer is None
        work.waits = _without(work.waits, wait)
        if work.waits:
            wait.wake()
            return
        work.answered = (wait,)
        self._queues.request_slot(work)

    def abandon(self, wait: Wait) -> None:
        """Note that a waiting task was cancelled: it goes on at once, over the limit (R2)."""
        work = wait.work
        if wait in work.waits:
            self.open.discard(wait)
            work.waits = _without(work.waits, wait)
            if not work.waits:
                self._queues.resume(work)
        elif wait in work.answered:
            self._queues.withdraw_request(work)
            self._queues.resume(work)

    def leave(self, work: Work) -> None:
        """End the waits of tasks that an execution leaves behind."""
        if not work.suspended:
            return
        if work.answered:
            self._queues.withdraw_request(work)
        for wait in work.waits:
            wait.refused = True
            self.open.discard(wait)
        work.answered += work.waits
        work.waits = ()
        self._queues.stop_waiting(work)

    def keep_open(self, work: Work) -> None:
        """Let the waits of an attempt be answered before the next one comes to them."""
        for wait in work.past.earlier_waits:
            if not wait.over and wait not in self.open:
                self.open.add(wait)

    def forget(self, work: Work) -> None:
        """Close what `keep_open()` has kept open."""
        if work.history is not None:
            for wait in work.history.earlier_waits:
                self.open.discard(wait)

    def close(self) -> None:
        """End all waits."""
        for work in {wait.work: None for wait in self.open}:
            self.leave(work)


def _twice(wait: Wait) -> WorkflowRuntimeError:
    if wait.waiter_id is not None:
        return WorkflowRuntimeError(
            f"the step has an open wait with the waiter_id {wait.waiter_id!r} already"
        )
    return WorkflowRuntimeError(
        f"the step is waiting for {wait.event_type.__name__} already, with the same "
        "requirements; give each wait a waiter_id"
    )


def _without(waits: tuple[Wait, ...], wait: Wait) -> tuple[Wait, ...]:
    return tuple(other for other in waits if other is not wait)
