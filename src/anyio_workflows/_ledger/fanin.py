"""Batches, parameter buffers and collect buffers: what has to be complete before it is work."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from ..events import Event
from ..graph import StepSpec

Recoveries = Mapping[str, int]
"""How often each `@catch_error` step has recovered an ancestor (X4). Shared, so never changed in place."""

NO_RECOVERIES: Recoveries = {}


def merged(one: Recoveries, other: Recoveries) -> Recoveries:
    """Return the recoveries of what descends from both: the higher count of each step."""
    if not one or one is other:
        return other
    names = one.keys() | other.keys()
    return {name: max(one.get(name, 0), other.get(name, 0)) for name in sorted(names)}


@attrs.frozen(eq=False)
class Buffered:
    """An event in a buffer, which is not pending: it becomes work together with others.

    Attributes:
        event: The event; in one buffer only, and gone from there once it is part of work.
        recoveries: Those of its ancestors when it arrived.
        source: The id of the execution that it came from, if that is known.
    """

    event: Event
    recoveries: Recoveries
    source: int | None = None


@attrs.define(eq=False, repr=False)
class Branch:
    """One element of a batch and everything that descends from it.

    Attributes:
        batch: The batch it belongs to; has it among its `branches` until it has ended.
        work: Exactly the work in it that is in `Ledger.pending`; most often one piece or none.
        batches: Exactly the batches opened in it that have not ended; `None` until the first one.
        param_buffers: The events in it that wait at steps with several event parameters; `None` until
            the first one. They do not keep the branch from ending, and are dropped with it.
    """

    batch: Batch
    work: tuple[Any, ...] = ()
    batches: set[Batch] | None = None
    param_buffers: ParamBuffers | None = None

    @property
    def ended(self) -> bool:
        """Whether no work and no open batch is left in it."""
        return not self.work and not self.batches

    def remove(self, work: Any) -> None:
        """Remove work that is over."""
        if self.work == (work,):  # nearly always
            self.work = ()
        else:
            self.work = tuple(other for other in self.work if other is not work)

    def open(self, batch: Batch) -> None:
        """Add a batch, so that the branch does not end before it."""
        if self.batches is None:
            self.batches = set()
        self.batches.add(batch)

    def close(self, batch: Batch) -> None:
        """Remove a batch that has ended."""
        if self.batches is not None:
            self.batches.discard(batch)


@attrs.define(eq=False, repr=False)
class Batch:
    """What one returned list became.

    Attributes:
        outer: The branch it was opened in, in whose `batches` it is until it has ended; `None` if it
            was opened in no branch.
        arrived: Has a key for each step that joins it, fixed when it opens, with the events that
            arrived for it, in order; `None` once it has fired. Empty once the batch has ended.
        recoveries: The highest counts of the step that opened it, of all work that ended in it, and of
            all events that arrived at its joins; they never fall.
        opener: The event that started the execution which opened it; `None` if no join took that when
            it opened, so that nothing is kept for nobody.
        sources: For each join, the ids of the executions that its events came from, as far as they are
            known; empty once the batch has ended.
        branches: The branches that have not ended, and the one being opened, in the order of the list.
        opening: True until its last element has been added, so that it does not end before.
        cancelled: Whether a join has cancelled it or a batch around it; nothing is enqueued in it then.
            True of each batch inside it too.
    """

    outer: Branch | None
    arrived: dict[StepSpec, list[Event] | None]
    recoveries: Recoveries
    opener: Event | None = None
    sources: dict[StepSpec, list[int]] = attrs.field(factory=dict)
    branches: dict[Branch, None] = attrs.field(factory=dict)
    opening: bool = True
    cancelled: bool = False

    @property
    def ended(self) -> bool:
        """Whether all elements have been added, and all of their branches have ended."""
        return not (self.branches or self.opening)

    def cancel(self) -> list[Any]:
        """Mark it and the batches in it as cancelled; returns all pending work in them."""
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
        """Add an event for a join; returns all that arrived if the join is to fire now."""
        arrived = self.arrived[join]
        if arrived is None:  # the join has fired: the event came too late (rule 5)
            return None
        arrived.append(event)
        if recoveries:
            self.recoveries = merged(self.recoveries, recoveries)
        if len(arrived) < join.batch_size:
            return None
        self.arrived[join] = None
        return arrived


@attrs.define(eq=False, repr=False)
class ParamBuffers:
    """The events that wait at steps with several event parameters, for the other parameters.

    Attributes:
        by_step: For each of these steps that has had an event, the waiting events of each parameter, in
            order of arrival. At least one of its parameters has none: a complete set is work.
    """

    by_step: dict[StepSpec, list[deque[Buffered]]] = attrs.field(factory=dict)

    def add(self, spec: StepSpec, buffered: Buffered) -> list[Buffered] | None:
        """Add an event; returns a complete set, one event per parameter, once there is one.

        What is left over stays for the next set.
        """
        queues = self.by_step.get(spec)
        if queues is None:
            queues = self.by_step[spec] = [deque() for _ in spec.event_params]
        fitting = [
            q
            for param, q in zip(spec.event_params, queues, strict=True)
            if spec.fits(param, buffered.event)
        ]
        # Several parameters may take its type: the one with the fewest events completes a set first.
        min(fitting, key=len).append(buffered)
        return [queue.popleft() for queue in queues] if all(queues) else None

    def missing(self) -> Iterator[tuple[str, str]]:
        """Yield each step with an incomplete set, and the parameters that lack an event."""
        for spec, queues in self.by_step.items():
            if any(queues):
                empty = [p.name for p, q in zip(spec.event_params, queues, strict=True) if not q]
                yield spec.name, ", ".join(empty)


@attrs.define(eq=False, repr=False)
class Buffer:
    """The events that a step has collected under one `buffer_id`, and has not been given yet.

    Attributes:
        expected: The types that the last call asked for; not empty once there has been a call.
        total: The number of events in `events`, of all types.
        events: The events by their exact type, in order of arrival; a type may have none left.
    """

    expected: Sequence[type[Event]] = ()
    total: int = 0
    events: dict[type[Event], deque[Buffered]] = attrs.field(factory=dict)

    def add(self, buffered: Buffered) -> None:
        """Add an event."""
        self.events.setdefault(type(buffered.event), deque()).append(buffered)
        self.total += 1

    def lacking(self) -> Counter[type[Event]]:
        """Return the expected types that have too few events, with the numbers missing."""
        return Counter(self.expected) - Counter({t: len(q) for t, q in self.events.items()})


@attrs.define(eq=False, repr=False)
class Buffers:
    """The buffers of `ctx.collect_events()`.

    Attributes:
        by_key: The buffers, by step name and `buffer_id`. One that has become empty stays.
    """

    by_key: dict[tuple[str, str | None], Buffer] = attrs.field(factory=dict)

    def add(
        self, step: str, buffer_id: str | None, buffered: Buffered, expected: Sequence[type[Event]]
    ) -> list[Buffered] | None:
        """Add an event; returns one event for each expected type, in that order, once all are there.

        What is left over stays for the next round. If nothing is expected, nothing is added.
        """
        if not expected:
            return []
        buffer = self.by_key.setdefault((step, buffer_id), Buffer())
        buffer.add(buffered)
        buffer.expected = expected
        if buffer.total < len(expected) or buffer.lacking():  # counting by type is the slow part
            return None
        buffer.total -= len(expected)
        return [buffer.events[cls].popleft() for cls in expected]

    def missing(self) -> Iterator[tuple[str, str]]:
        """Yield each step with an incomplete buffer, and the names of the types that it lacks."""
        for (step, _), buffer in self.by_key.items():
            if buffer.total and (lacking := buffer.lacking()):
                yield step, ", ".join(cls.__name__ for cls in lacking.elements())
