"""The open waits of a run, and which of them an event answers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import islice
from typing import Any

import attrs

from .._messages import shortened
from ..errors import WorkflowRuntimeError
from ..events import Event
from ..graph import StepSpec
from .work import StepQueues, Wait, Work, wake

_MOST_NAMED = 5
"""How many open waits a message names."""

_ANY = object()
"""Stands for the value of a wait that has no hashable requirement, and of an attribute that is missing."""


@attrs.define(eq=False, repr=False)
class WaitIndex:
    """Open waits, by event type and by the value of their first hashable requirement.

    A run may wait for ten thousand people: an answer finds its wait without looking at the others.

    Attributes:
        numbers: The open waits, in the order in which they were added, each with a number that rises
            in that order. Exactly these waits are in the index.
    """

    numbers: dict[Wait, int] = attrs.field(factory=dict, init=False)
    _next: int = attrs.field(default=0, init=False)

    _index: dict[tuple[type[Event], str | None], dict[Any, dict[Wait, None]]] = attrs.field(
        factory=dict, init=False
    )
    """By event type and the name of the requirement, and then by its value."""

    def __contains__(self, wait: object) -> bool:
        return wait in self.numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Wait]:
        return iter(self.numbers)

    def types(self) -> list[type[Event]]:
        """Return the types waited for, in time that does not depend on the number of waits."""
        return list({cls: None for (cls, _), by_value in self._index.items() if by_value})

    def add(self, wait: Wait) -> None:
        """Add an open wait."""
        self.numbers[wait] = self._next
        self._next += 1
        name, value = _key(wait)
        by_value = self._index.setdefault((wait.event_type, name), {})
        by_value.setdefault(value, {})[wait] = None

    def discard(self, wait: Wait) -> None:
        """Remove a wait, if it is there."""
        if self.numbers.pop(wait, None) is None:
            return
        name, value = _key(wait)
        by_value = self._index[wait.event_type, name]
        del by_value[value][wait]
        if not by_value[value]:  # else a run that asks for ever would grow for ever
            del by_value[value]

    def matching(self, event: Event) -> list[Wait]:
        """Return the waits that an event answers, in the order in which they were added."""
        found = [wait for wait in self._candidates(event) if wait.matches(event)]
        return sorted(found, key=self.numbers.__getitem__)

    def _candidates(self, event: Event) -> Iterator[Wait]:
        for (cls, name), by_value in self._index.items():
            if not isinstance(event, cls):
                continue
            value = _ANY if name is None else _read(event, name)
            try:
                buckets: Iterable[dict[Wait, None]] = (by_value.get(value, {}),)
            except TypeError:  # an unhashable value may still equal a hashable one: look at all
                buckets = by_value.values()
            for bucket in buckets:
                yield from bucket


def _key(wait: Wait) -> tuple[str | None, Any]:
    """Return the name and value of its first hashable requirement; they never change."""
    for name, value in wait.requirements.items():
        if isinstance(value, Hashable):
            try:
                hash(value)
            except TypeError:  # a tuple with a list in it
                continue
            return name, value
    return None, _ANY


def _read(event: Event, name: str) -> Any:
    """Return the value of an attribute of an event; `_ANY` if it has none."""
    try:
        return getattr(event, name, _ANY)
    except Exception:  # a property that fails has no value
        return _ANY


@attrs.define(eq=False, repr=False)
class Waits:
    """The open waits of a run: how they begin and end.

    Attributes:
        open: The waits that an event can answer now: those of `Work.waits`, and those of
            `History.earlier_waits` that are not over, of all pending work. None of them is over.
        on_end: Called when a wait of an attempt in progress has ended, before that continues; `None`
            while nothing listens.
    """

    _queues: StepQueues
    open: WaitIndex = attrs.field(factory=WaitIndex, init=False)
    on_end: Callable[[Wait], None] | None = attrs.field(default=None, init=False)

    def begin(self, wait: Wait) -> None:
        """Begin a wait; the execution gives its slot back.

        If the same wait was over in an earlier attempt (W3), or before a snapshot (W4), it is over at
        once, in the same way, and the execution keeps its slot.

        Raises:
            WorkflowRuntimeError: If the execution has an equal wait open (W4).
        """
        work = wait.work
        if any(wait.equals(other) for other in work.waits):
            raise _already_open(wait)
        past = work.past
        earlier = past.recall_wait(wait)
        past.waits.append(wait)
        if earlier is None:
            past.number((wait,))
        else:
            # From now on an event answers this wait; the earlier one would take a second answer.
            self.open.discard(earlier)
            wait.continue_from(earlier)
            # An answer that was given before is given again, and no slot changes hands for it.
            if wait.over:
                return
        # Another task of the execution has its answer, and it requests a slot for that: as it is to
        # wait again, it needs none, and the other task continues beside this wait.
        if work.answered:
            self._queues.withdraw_request(work)
            wake(work)
        # The first of its tasks to wait gives the slot back; if others wait, it has been given back.
        elif not work.waits:
            self._queues.suspend(work)
        work.waits += (wait,)
        self.open.add(wait)

    def answer(self, event: Event, target: StepSpec | None) -> set[str]:
        """Answer all open waits that the event matches; returns the names of their steps (W2)."""
        matching = [wait for wait in self.open.matching(event) if target in (None, wait.work.spec)]
        for wait in matching:
            self.give(wait, event)
        return {wait.work.step for wait in matching}

    def give(self, wait: Wait, event: Event) -> None:
        """Answer one open wait."""
        wait.answer = event
        self.end(wait)

    def describe_open(self) -> str:
        """Name the open waits, for messages."""
        first = ", ".join(
            f"{shortened(wait.id, 100)!r} ({wait.work.step})"
            for wait in islice(self.open, _MOST_NAMED)
        )
        more = f" and {len(self.open) - _MOST_NAMED} more" if len(self.open) > _MOST_NAMED else ""
        return f"open waits: {first}{more}" if first else "no wait is open"

    def end(self, wait: Wait) -> None:
        """Note that a wait is over, answered or timed out; after the last one a slot is requested."""
        work = wait.work
        self.open.discard(wait)
        # No task waits: it was kept open for the next attempt, which will find its answer in the
        # history (W3). Or the wait ended before: a task may time out just after it was answered.
        if wait not in work.waits:
            return
        wait.timed_out = wait.answer is None
        work.waits = _without(work.waits, wait)
        if self.on_end is not None:
            self.on_end(wait)
        # Another task still waits, so the execution stays suspended: it has no slot, and this task
        # continues without one.
        if work.waits:
            wait.wake()
            return
        # No task waits any more: the whole execution wants to run, so it needs a slot first (R2).
        work.answered = (wait,)
        self._queues.request_slot(work)

    def abandon(self, wait: Wait) -> None:
        """End the wait of a task that was cancelled; does nothing if the task has been woken (R2)."""
        work = wait.work
        # It was still waiting. If no other task waits, the execution continues at once, even over
        # the limit: a cancelled task cannot be kept waiting for a slot.
        if wait in work.waits:
            self.open.discard(wait)
            work.waits = _without(work.waits, wait)
            if self.on_end is not None:
                self.on_end(wait)
            if not work.waits:
                self._queues.resume(work)
        # It was over, and waited for a slot. That is no longer possible either.
        elif wait in work.answered:
            self._queues.withdraw_request(work)
            self._queues.resume(work)

    def leave(self, work: Work) -> None:
        """End the waits of tasks that an execution leaves behind when its attempt ends."""
        # The usual case: its tasks have ended with it, or at least do not wait.
        if not work.suspended:
            return
        # A task was answered and waited for a slot, which the execution does not need any more.
        if work.answered:
            self._queues.withdraw_request(work)
        # Tasks that still wait raise, as nothing would take their answer. The next attempt waits for
        # it with a `Wait` of its own.
        for wait in work.waits:
            wait.refused = True
            self.open.discard(wait)
            if self.on_end is not None:
                self.on_end(wait)
        # All of them are woken now, and counted as running: the caller releases a slot in any case.
        work.answered += work.waits
        work.waits = ()
        self._queues.resume_to_end(work)

    def keep_open(self, work: Work) -> None:
        """Let the waits of a failed attempt be answered before the next one begins them again (W3)."""
        for wait in work.past.earlier_waits:
            # Waits that are over have nothing to be answered. One may be open since the attempt
            # before, if the one that failed now did not reach it: it keeps its position.
            if not wait.over and wait not in self.open:
                self.open.add(wait)

    def forget(self, work: Work) -> None:
        """Close the waits that `keep_open()` has kept open."""
        # There is no next attempt: an event that they took would be lost instead of unhandled.
        if work.history is not None:
            for wait in work.history.earlier_waits:
                self.open.discard(wait)

    def close(self) -> None:
        """Wake the tasks that wait, as the run has ended."""
        # In a dict, to take each execution once; `leave()` changes `open` meanwhile.
        for work in {wait.work: None for wait in self.open}:
            self.leave(work)


def _already_open(wait: Wait) -> WorkflowRuntimeError:
    if wait.waiter_id is not None:
        return WorkflowRuntimeError(
            f"the step already has an open wait with the waiter_id {wait.waiter_id!r}; give each wait "
            "its own"
        )
    return WorkflowRuntimeError(
        f"the step is already waiting for {wait.event_type.__name__} with the same requirements; give "
        "each wait a waiter_id"
    )


def _without(waits: tuple[Wait, ...], wait: Wait) -> tuple[Wait, ...]:
    return tuple(other for other in waits if other is not wait)
