"""The ledger of a run: route events to steps, fire joins, finish work."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import chain
from typing import Any

import attrs

from .._messages import namesakes, nearest, short_repr, shortened
from ..errors import WorkflowRuntimeError
from ..events import Event
from ..graph import Graph, StepSpec
from .fanin import NO_RECOVERIES, Batch, Branch, Buffered, Buffers, ParamBuffers, Recoveries, merged
from .waits import Waits
from .work import Collected, StepQueue, StepQueues, StepStatistics, Wait, Work


def _make_waits(ledger: Ledger) -> Waits:
    return Waits(ledger.queues)


@attrs.define(eq=False, repr=False)
class Ledger:
    """What one run has pending, and who gets what.

    Attributes:
        graph: The steps.
        pending: All work from its routing to its end, by id, in order of arrival; nothing else says
            what is pending.
        queues: The queues of the steps, which say which execution has a slot.
        waits: The open waits, in the order in which they began.
        buffers: What `ctx.collect_events()` keeps.
        param_buffers: What is kept for steps with several event parameters, outside of any branch; `None` until
            the first event.
        next_id: The number of the work to come; never used twice, not even by runs that continue
            from this one.
        input_asked: Whether the run has asked for input, so that it may be idle for ever (T9).
        questions: The questions that steps returned and that may be unread, each with its number in
            the stream, in that order (W4); made with the first one, as it takes 0.7 KB.
        last_finished: Name of the step whose execution ended last.
        closed: Whether the run has ended, so that nothing becomes pending any more.
        source: The id of the execution that the events which are routed now come from; set only while
            instruments are told about the run. `None` for events from outside.
    """

    graph: Graph
    pending: dict[int, Work] = attrs.field(factory=dict, init=False)
    queues: StepQueues = attrs.field(factory=StepQueues, init=False)
    waits: Waits = attrs.field(init=False, default=attrs.Factory(_make_waits, takes_self=True))
    buffers: Buffers = attrs.field(factory=Buffers, init=False)
    param_buffers: ParamBuffers | None = attrs.field(default=None, init=False)
    next_id: int = attrs.field(default=1, init=False)
    input_asked: bool = attrs.field(default=False, init=False)
    questions: deque[tuple[int, Event]] | None = attrs.field(default=None, init=False)
    last_finished: str | None = attrs.field(default=None, init=False)
    closed: bool = attrs.field(default=False, init=False)
    source: int | None = attrs.field(default=None, init=False)

    _takers: dict[type[Event], tuple[StepQueue, ...]] = attrs.field(factory=dict, init=False)
    """The queues of the steps that accept a type, so that the graph is asked once for each type."""

    # --- Routing ------------------------------------------------------------------------------

    def wanted(self) -> list[type[Event]]:
        """Return the event types that steps accept or wait for."""
        accepted = (t for spec in self.graph.steps.values() for t in spec.accepts)
        return [*accepted, *(wait.event_type for wait in self.waits.open)]

    def check_target(self, event: Event, step: str | None) -> StepSpec | None:
        """Return the step that `step` names.

        Raises:
            WorkflowRuntimeError: If there is no such step, it does not accept the event (R3), or
                it joins a batch, to which nothing can be sent (F5).
        """
        if step is None:
            return None
        what = f"cannot send {type(event).__name__} to step {short_repr(step)}"
        if not isinstance(step, str):
            raise WorkflowRuntimeError(f"{what}: step is the name of a step, a str")
        spec = self.graph.steps.get(step)
        if spec is None:
            raise WorkflowRuntimeError(f"{what}: no such step, {nearest(step, self.graph.steps)}")
        if any(wait.work.queue.spec is spec for wait in self.waits.open.matching(event)):
            return spec
        if not spec.takes(type(event)):
            takes = ", ".join(accepted.__name__ for accepted in spec.accepts)
            remark = namesakes([type(event)], spec.accepts)
            raise WorkflowRuntimeError(f"{what}: {remark or f'it accepts {takes} only'}")
        if spec.is_join:
            raise WorkflowRuntimeError(f"{what}: it joins a batch; return the event from a step")
        return spec

    def route(
        self,
        event: Event,
        target: StepSpec | None = None,
        branch: Branch | None = None,
        recoveries: Recoveries = NO_RECOVERIES,
    ) -> list[Work] | None:
        """Owe an event to the step `target`, or to each step that takes it (R1), and answer waits.

        Args:
            event: The event.
            target: The only step that is to have it.
            branch: The branch of a batch that it descends from.
            recoveries: How often `@catch_error` steps have recovered its ancestors.

        Returns:
            The new work, to be carried to its steps; `None` if no step takes the event.
        """
        takers = self._takers.get(type(event))
        if takers is None:
            takers = self._find_takers(type(event))
        if len(takers) == 1 and target is None and not self.waits.open.numbers:
            return self._give(takers[0], event, branch, recoveries)  # most often that is all
        taken_by, new = self._hand_out(takers, event, target, branch, recoveries)
        return new if taken_by else None

    def send(
        self,
        event: Event,
        target: StepSpec | None = None,
        recoveries: Recoveries = NO_RECOVERIES,
    ) -> tuple[tuple[str, ...], list[Work]]:
        """Route an event that is sent, and so is in no branch (F5).

        Returns:
            The names of the steps that took it, in the order of their definition (R3), and the new
            work, to be carried to its steps.
        """
        takers = self._takers.get(type(event)) or self._find_takers(type(event))
        taken_by, new = self._hand_out(takers, event, target, None, recoveries)
        if len(taken_by) < 2:
            return tuple(taken_by), new
        return tuple(name for name in self.graph.steps if name in taken_by), new

    def _hand_out(
        self,
        takers: tuple[StepQueue, ...],
        event: Event,
        target: StepSpec | None,
        branch: Branch | None,
        recoveries: Recoveries,
    ) -> tuple[set[str], list[Work]]:
        """Answer waits, and give the event to the other takers; returns the steps that took it, and the work."""
        taken_by = self.waits.answer(event, target) if self.waits.open.numbers else set()
        if target is not None:
            takers = (self.queues.of(target),)
        new: list[Work] = []
        for queue in takers:
            if queue.spec.name not in taken_by:
                given = self._give(queue, event, branch, recoveries)
                if given is not None:
                    taken_by.add(queue.spec.name)
                    new += given
        return taken_by, new

    def _find_takers(self, event_type: type[Event]) -> tuple[StepQueue, ...]:
        takers = tuple(self.queues.of(spec) for spec in self.graph.takers(event_type))
        self._takers[event_type] = takers
        return takers

    def _give(
        self, queue: StepQueue, event: Event, branch: Branch | None, recoveries: Recoveries
    ) -> list[Work] | None:
        """Give an event to a step; `None` if that joins other batches only."""
        spec = queue.spec
        if spec.is_plain:
            return self._enqueue(queue, event, branch, recoveries)
        if spec.is_join:
            return self._join(queue, event, branch, recoveries)
        place = self if branch is None else branch
        buffers = place.param_buffers = place.param_buffers or ParamBuffers()
        full = self._add_to_set(buffers, branch, spec, Buffered(event, recoveries, self.source))
        if full is None:
            return []
        payload = tuple(buffered.event for buffered in full)
        sources = (buffered.source for buffered in full)
        return self._enqueue(
            queue, payload, branch, _merged(full), None, [one for one in sources if one is not None]
        )

    def _join(
        self, queue: StepQueue, event: Event, branch: Branch | None, recoveries: Recoveries
    ) -> list[Work] | None:
        """Bring an event to a join; what is left of the batch is dropped if that cancels it (F4)."""
        if branch is None or queue.spec not in branch.batch.arrived:
            return None
        batch = branch.batch
        if self.source is not None and batch.arrived[queue.spec] is not None:
            batch.sources.setdefault(queue.spec, []).append(self.source)
        arrived = self._add_to_join(batch, queue.spec, event, recoveries)
        if arrived is None:
            return []
        fired = self._start_join(queue, arrived, batch)
        return [*fired, *self._drop_batch(batch)] if queue.spec.cancels_batch else fired

    def _start_join(self, queue: StepQueue, arrived: list[Event], batch: Batch) -> list[Work]:
        opener = None if queue.spec.opener_param is None else batch.opener
        sources = batch.sources.pop(queue.spec, ())
        return self._enqueue(queue, arrived, batch.outer, batch.recoveries, opener, sources)

    def _enqueue(
        self,
        queue: StepQueue,
        payload: Any,
        branch: Branch | None,
        recoveries: Recoveries,
        opener: Event | None = None,
        sources: Sequence[int] = (),
    ) -> list[Work]:
        # Nothing starts in a batch that a join has cancelled (F4), or after the end (T7).
        if self.closed or (branch is not None and branch.batch.cancelled):
            return []
        work = Work(self.next_id, queue, payload, branch, recoveries, opener)
        self.next_id += 1
        if sources:
            work.sources = tuple(dict.fromkeys(sources))
        elif self.source is not None:
            work.sources = (self.source,)
        self.pending[work.id] = work
        if branch is not None:
            branch.work += (work,)
        self.queues.add(work)
        return [work]

    def enqueue_again(self, work: Work, due: float | None) -> list[Work]:
        """Make work of an earlier run pending, which has no slot yet (P3).

        Args:
            work: The work.
            due: When its retry delay is over, if it is in one.

        Returns:
            The work to be carried to its step, now.
        """
        self.pending[work.id] = work
        if work.branch is not None:
            work.branch.work += (work,)
        if work.history is not None:
            self.waits.keep_open(work)
        if due is not None:
            self.queues.hold(work, due)
            return []
        self.queues.add(work)
        return [work]

    # --- Questions and answers ------------------------------------------------------------------

    def ask(self, question: Event, number: int, events_read: int) -> None:
        """Note that a question was written to the stream, as event `number` of it.

        Args:
            question: The question.
            number: Its number.
            events_read: How many events have been read; the questions among them are forgotten.
        """
        self.input_asked = True
        if self.questions is None:
            self.questions = deque()
        while self.questions and self.questions[0][0] <= events_read:
            self.questions.popleft()
        self.questions.append((number, question))

    def answer(self, event: Event, wait_id: str, step: str | None) -> str:
        """Answer one wait, and no other, with an event (W5).

        Args:
            event: The answer.
            wait_id: The id of the wait.
            step: The step that is expected to wait, if any.

        Returns:
            The name of the step that waits.

        Raises:
            WorkflowRuntimeError: If there is no such open wait, it is of another step, or it does not
                take the event. The wait stays open.
        """
        what = f"{type(event).__name__} cannot answer wait {shortened(wait_id, 100)!r}"
        wait = self._wait_of(wait_id)
        if wait is None or wait not in self.waits.open:
            state = "no step in progress has such a wait" if wait is None else "it is over"
            if wait is not None and wait.answer is not None:
                state = "it has been answered already"
            raise WorkflowRuntimeError(f"{what}: {state}; {self.waits.describe_open()}")
        waiting = wait.work.step
        if step not in (None, waiting):
            raise WorkflowRuntimeError(f"{what}: step {waiting} waits there, not {step}")
        if not wait.takes(type(event)):
            wanted = f"step {waiting} waits for {wait.event_type.__name__}"
            remark = namesakes([type(event)], [wait.event_type])
            raise WorkflowRuntimeError(f"{what}: {remark or wanted}")
        if (name := wait.unmet(event)) is not None:
            wanted = f"{name} = {short_repr(wait.requirements[name])}"
            raise WorkflowRuntimeError(f"{what}: step {waiting} requires {wanted}")
        self.waits.give(wait, event)
        return waiting

    def _wait_of(self, wait_id: str) -> Wait | None:
        """Find a wait of pending work by its id, which begins with the number of the work."""
        number = wait_id.partition(":")[0]
        work = self.pending.get(int(number)) if number.isdecimal() and len(number) < 20 else None
        if work is None or work.history is None:
            return None
        waits = chain(
            reversed(work.history.waits), work.history.earlier_waits
        )  # open ones are last
        return next((wait for wait in waits if wait.id == wait_id), None)

    # --- Executions ----------------------------------------------------------------------------

    def finish(
        self,
        work: Work,
        result_type: type | None = None,
        failed: bool = False,
        seconds: float = 0.0,
    ) -> list[Work]:
        """Note that `work` is over, and pass its slot on.

        Args:
            work: The work whose execution ended.
            result_type: The type of what it returned or raised; `None` if it was cancelled.
            failed: Whether it failed, for good.
            seconds: How long the attempt took.

        Returns:
            New work: the joins that fire because this was the last of their batch.
        """
        del self.pending[work.id]
        queue = work.queue
        # Tasks that the step leaves behind may still wait: they are refused, before the slot is passed
        # on, since the end of their waits counts the execution as running again.
        if work.history is not None:
            self.waits.leave(work)
            self.waits.forget(work)
        work.started = None
        queue.done += 1
        queue.failed += failed
        if result_type is None:
            queue.cancelled += 1
        queue.seconds += seconds
        queue.last_result_type = result_type
        self.last_finished = queue.spec.name
        self.queues.release_slot(queue)
        return [] if work.branch is None else self._leave(work, work.branch)

    def delay(self, work: Work, due: float, seconds: float = 0.0) -> None:
        """Note that an attempt failed after `seconds`, and that the next is to be queued at the time `due`."""
        # The waits of this attempt end for its tasks, and are then kept open for the next attempt: an
        # answer that comes during the delay must not be lost (W3).
        self.waits.leave(work)
        work.past.start_over()
        self.waits.keep_open(work)
        work.attempt += 1
        work.started = None
        work.queue.retried += 1
        work.queue.seconds += seconds
        self.queues.delay(work, due)

    # --- Collecting ---------------------------------------------------------------------------

    def collect(
        self, work: Work, buffer_id: str | None, event: Event, expected: list[type[Event]]
    ) -> list[Event] | None:
        """Keep an event; returns one of each expected type once they are there.

        An earlier attempt's answer is given again, and nothing kept (F6).
        """
        asked = Collected(buffer_id, tuple(expected))
        if (earlier := work.past.recall_collected(asked)) is not None:
            asked = earlier
        else:
            kept = Buffered(event, work.recoveries)
            if found := self._add_to_buffer(work.step, buffer_id, kept, expected):
                work.recoveries = _merged(found)
            asked.events = None if found is None else tuple(one.event for one in found)
        work.past.collected.append(asked)
        return None if asked.events is None else list(asked.events)

    def close(self) -> None:
        """End all open waits, with the run; nothing becomes pending any more."""
        self.closed = True
        self.waits.close()

    # --- Batches ------------------------------------------------------------------------------

    def open_batch(self, work: Work) -> Batch:
        """Open a batch for the list that the execution of `work` returned (F1)."""
        joins = self.graph.joins_of(work.queue.spec)
        batch = Batch(work.branch, {join: [] for join in joins}, work.recoveries)
        if any(join.opener_param is not None for join in joins):
            batch.opener = work.payload  # one event: else the graph has a fault (V1)
        if work.branch is not None:
            work.branch.open(batch)
            batch.cancelled = work.branch.batch.cancelled
        return batch

    def open_branch(self, batch: Batch) -> Branch:
        """Begin a branch, for one element of the list; to be followed by `seal_branch()`."""
        branch = Branch(batch)
        batch.branches[branch] = None
        return branch

    def seal_branch(self, branch: Branch) -> list[Work]:
        """Note that the first event of the branch has been routed; returns joins that fire."""
        return self._end_branches(branch)

    def seal_batch(self, batch: Batch) -> list[Work]:
        """Note that all elements have been added; returns joins that fire."""
        batch.opening = False
        return [*self._fire(batch), *self._end_branches(batch.outer)] if batch.ended else []

    def _leave(self, work: Work, branch: Branch) -> list[Work]:
        branch.remove(work)
        if work.recoveries:
            branch.batch.recoveries = merged(branch.batch.recoveries, work.recoveries)
        return self._end_branches(branch) if branch.ended else []

    def _end_branches(self, branch: Branch | None) -> list[Work]:
        """End a branch if nothing is left of it, and what ends with it; returns joins that fire."""
        fired: list[Work] = []
        # Upwards: the end of a branch may end its batch, whose joins fire in the outer branch. They are
        # part of that branch before it is looked at, so it does not end too early (rule 7).
        while branch is not None and branch.ended and branch in branch.batch.branches:
            batch = branch.batch
            self._close_branch(branch)
            if not batch.ended:
                break
            fired += self._fire(batch)
            branch = batch.outer
        return fired

    def _fire(self, batch: Batch) -> list[Work]:
        """Start the joins of a batch that has ended, with what arrived for each: `[]` included (F2)."""
        fired: list[Work] = []
        for join, arrived in batch.arrived.items():
            if arrived is not None:
                fired += self._start_join(self.queues.of(join), arrived, batch)
        batch.arrived.clear()
        batch.sources.clear()
        if batch.outer is not None:
            batch.outer.close(batch)
        return fired

    def _drop_batch(self, batch: Batch) -> list[Work]:
        """Take back all work of a batch; returns joins that fire because of it."""
        fired: list[Work] = []
        for work in sorted(batch.cancel(), key=lambda work: work.id):
            if not work.dropped:
                fired += self._drop(work, work.branch)
        return fired

    def _drop(self, work: Work, branch: Branch) -> list[Work]:
        work.dropped = True
        # What is being executed stays pending until its task has been cancelled and settles it.
        if work.started is not None:
            if work.cancel is not None:
                work.cancel()
            return []
        # What is queued, or in a retry delay, is gone at once; workers skip it in the inbox.
        del self.pending[work.id]
        self.waits.forget(work)
        self.queues.withdraw(work)
        return self._leave(work, branch)

    # --- The records of fan-in change here, and nowhere else ------------------------------------

    def _add_to_set(
        self, buffers: ParamBuffers, branch: Branch | None, spec: StepSpec, buffered: Buffered
    ) -> list[Buffered] | None:
        return buffers.add(spec, buffered)

    def _add_to_buffer(
        self, step: str, buffer_id: str | None, buffered: Buffered, expected: list[type[Event]]
    ) -> list[Buffered] | None:
        return self.buffers.add(step, buffer_id, buffered, expected)

    def _add_to_join(
        self, batch: Batch, join: StepSpec, event: Event, recoveries: Recoveries
    ) -> list[Event] | None:
        return batch.add(join, event, recoveries)

    def _close_branch(self, branch: Branch) -> None:
        del branch.batch.branches[branch]

    # --- Queries -------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether nothing is pending."""
        return not self.pending

    def statistics(self) -> dict[str, StepStatistics]:
        """Return the counts of every step of the graph."""
        found = self.queues.statistics()
        return {name: found.get(name, StepStatistics()) for name in self.graph.steps}

    def is_quiet(self, besides: Work | None = None) -> bool:
        """Return whether nothing is in progress: all that is pending waits for events, or nothing is.

        Args:
            besides: An execution that is about to end.
        """
        return self.queues.busy() == (0 if besides is None or besides.suspended else 1)

    def missing(self) -> Iterator[tuple[str, str]]:
        """Yield each step that has buffered events, and what it lacks to start."""
        if self.param_buffers is not None:
            yield from self.param_buffers.missing()
        yield from self.buffers.missing()


def _merged(kept: list[Buffered]) -> Recoveries:
    return reduce(merged, (one.recoveries for one in kept))
