"""Batches, sets of events and collect buffers: what has to be complete before it is work."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import attrs

from ..events import Event
from ..graph import StepSpec

Recoveries = Mapping[str, int]
"""How often each `@catch_error` step has recovered an ancestor (X4)."""

NO_RECOVERIES: Recoveries = {}


def merged(one: Recoveries, other: Recoveries) -> Recoveries:
    """Return the recoveries of what descends from two lines."""
    if not one or one is other:
        return other
    names = one.keys() | other.keys()
    return {name: max(one.get(name, 0), other.get(name, 0)) for name in sorted(names)}


@attrs.frozen(eq=False)
class Buffered:
    """An event that waits for company, with the recoveries of its ancestors."""

    event: Event
    recoveries: Recoveries


@attrs.define(eq=False, repr=False)
class Branch:
    """One element of a batch and everything that descends from it.

    Attributes:
        batch: The batch it belongs to.
        work: The work in it that is owed.
        batches: The batches in it that have not ended.
        sets: What waits in it at steps with several event parameters.
    """

    batch: Batch
    work: tuple[Any, ...] = ()
    batches: set[Batch] | None = None
    sets: ParamBuffers | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing is left of it."""
        return not self.work and not self.batches

    def remove(self, work: Any) -> None:
        """Note that work in it is over; there is hardly ever another."""
        if self.work == (work,):
            self.work = ()
        else:
            self.work = tuple(other for other in self.work if other is not work)

    def open(self, batch: Batch) -> None:
        """Make a batch part of it."""
        if self.batches is None:
            self.batches = set()
        self.batches.add(batch)

    def close(self, batch: Batch) -> None:
        """Note that a batch in it has ended."""
        if self.batches is not None:
            self.batches.discard(batch)


@attrs.define(eq=False, repr=False)
class Batch:
    """What one returned list became.

    Attributes:
        outer: The branch it was opened in, if any.
        joins: The steps that join it.
        arrived: For each join that has not fired, the events that arrived for it.
        recoveries: Those of the step that opened it, and of all that happened in it.
        branches: The branches that have not ended, in the order of the list.
        opening: Whether elements are still being added.
        cancelled: Whether a join has cancelled what is left of it.
    """

    outer: Branch | None
    joins: Collection[StepSpec]
    arrived: dict[StepSpec, list[Event]]
    recoveries: Recoveries
    branches: dict[Branch, None] = attrs.field(factory=dict)
    opening: bool = True
    cancelled: bool = False

    @property
    def ended(self) -> bool:
        """Whether all of its branches have ended."""
        return not (self.branches or self.opening)

    def cancel(self) -> list[Any]:
        """Mark it and the batches inside as cancelled; returns all work in them."""
        found: list[Any] = []
        batches: list[Batch] = [self]
        while batches:
            batch = batches.pop()
            batch.cancelled = True
            for branch in batch.branches:
                found.extend(branch.work)
                batches.extend(branch.batches or ())
        return found

    def add(self, join: StepSpec, event: Event, recoveries: Recoveries) -> list[Event] | None:
        """Keep an event for a join; returns what has arrived if it is to fire now."""
        arrived = self.arrived.get(join)
        if arrived is None:
            return None
        arrived.append(event)
        if recoveries:
            self.recoveries = merged(self.recoveries, recoveries)
        return self.arrived.pop(join) if len(arrived) >= join.batch_size else None


@attrs.define(eq=False, repr=False)
class ParamBuffers:
    """The events that wait at steps which take one event per parameter.

    Attributes:
        queues: For each of these steps, the events that wait for each parameter.
    """

    queues: dict[StepSpec, list[deque[Buffered]]] = attrs.field(factory=dict)

    def add(self, spec: StepSpec, event: Event, recoveries: Recoveries) -> list[Buffered] | None:
        """Keep an event; returns a full set, one event per parameter, if it completes one.

        What is left over stays for the next set.
        """
        queues = self.queues.get(spec)
        if queues is None:
            queues = self.queues[spec] = [deque() for _ in spec.event_params]
        fitting = [
            q for param, q in zip(spec.event_params, queues, strict=True) if spec.fits(param, event)
        ]
        min(fitting, key=len).append(Buffered(event, recoveries))
        return [queue.popleft() for queue in queues] if all(queues) else None

    def missing(self) -> Iterator[tuple[str, str]]:
        """Yield each step with an incomplete set, and the parameters that lack an event."""
        for spec, queues in self.queues.items():
            if any(queues):
                empty = [p.name for p, q in zip(spec.event_params, queues, strict=True) if not q]
                yield spec.name, ", ".join(empty)


@attrs.define(eq=False, repr=False)
class Buffer:
    """The events that one step keeps for later.

    Attributes:
        expected: The types that were asked for last.
        total: How many events there are.
        events: The events of each type, in order of arrival.
    """

    expected: Sequence[type[Event]] = ()
    total: int = 0
    events: dict[type[Event], deque[Buffered]] = attrs.field(factory=dict)

    def add(self, kept: Buffered) -> None:
        """Keep an event."""
        self.events.setdefault(type(kept.event), deque()).append(kept)
        self.total += 1

    def lacking(self) -> Counter[type[Event]]:
        """Return the types that are missing."""
        return Counter(self.expected) - Counter({t: len(q) for t, q in self.events.items()})


@attrs.define(eq=False, repr=False)
class Buffers:
    """The buffers of `ctx.collect_events()`.

    Attributes:
        kept: The buffers, by step and `buffer_id`.
    """

    kept: dict[tuple[str, str | None], Buffer] = attrs.field(factory=dict)

    def add(
        self, step: str, buffer_id: str | None, kept: Buffered, expected: Sequence[type[Event]]
    ) -> list[Buffered] | None:
        """Keep an event; returns one event for each expected type, in that order, once there are.

        What is left over stays for the next round.
        """
        if not expected:
            return []
        buffer = self.kept.setdefault((step, buffer_id), Buffer())
        buffer.add(kept)
        buffer.expected = expected
        if buffer.total < len(expected) or buffer.lacking():
            return None
        buffer.total -= len(expected)
        return [buffer.events[cls].popleft() for cls in expected]

    def missing(self) -> Iterator[tuple[str, str]]:
        """Yield each step with an incomplete buffer, and the names of the types that it lacks."""
        for (step, _), buffer in self.kept.items():
            if buffer.total and (lacking := buffer.lacking()):
                yield step, ", ".join(cls.__name__ for cls in lacking.elements())
