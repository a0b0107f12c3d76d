"""What one run leaves to the next: its pending work as plain records, and the state (P2, P3).

A record refers to other things by name or number and to times by durations, so it outlives its event
loop. `_snapshot` turns it into JSON.

Work that is being executed is recorded as it was before its attempt began, with what the attempt
was given since then: the answers and collected events that it will get again (F6, W4).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

import attrs

from .._backend import LoopHandle
from ..errors import ContextStateError
from ..events import Event
from ..graph import Graph
from ..state import StateStore
from .fanin import Batch, Branch, Buffer, Buffered, ParamBuffers, Recoveries
from .ledger import Ledger
from .work import Collected, History, OpenWait, Wait, Work, utc_now, wait_label

if TYPE_CHECKING:
    from .._json.hooks import Hooks  # only snapshots need it

T = TypeVar("T")


@attrs.frozen
class QuestionRecord:
    """A question that a step returned; `number` is its number in the stream."""

    number: int
    event: Event


@attrs.frozen
class WaitRecord:
    """A wait that an execution began, with its answer if there was one.

    The question is kept as long as the wait is open. What has a default is not in version 1.
    """

    event_type: type[Event]
    requirements: dict[str, Any]
    waiter_id: str | None
    asked: bool
    timed_out: bool
    answer: Event | None
    question: Event | None = None
    question_number: int = 0
    number: int = 0
    since: datetime = attrs.field(factory=utc_now)

    @property
    def label(self) -> str:
        """As `Wait.label`."""
        return wait_label(self.event_type, self.waiter_id)


@attrs.frozen
class CollectedRecord:
    """What a call of `ctx.collect_events()` was given."""

    buffer_id: str | None
    expected: list[type[Event]]
    events: list[Event] | None


@attrs.frozen
class WorkRecord:
    """One piece of work.

    `elapsed` and `due_in` are seconds; `branch` is the id of a branch. What has a default is not in
    versions 1 and 2.
    """

    id: int
    step: str
    events: list[Event]
    branch: int | None
    recoveries: Recoveries
    attempt: int
    elapsed: float | None
    due_in: float | None
    last_error: Exception | None
    last_failed_at: datetime | None
    waits: list[WaitRecord]
    collected: list[CollectedRecord]
    opener: Event | None = None

    def begun_anew(self) -> WorkRecord:
        """Return it as it was before its first attempt, but with its answers and what it collected.

        What timed out is waited for anew, as in a retry (W3).
        """
        return attrs.evolve(
            self,
            attempt=1,
            elapsed=None,
            last_error=None,
            last_failed_at=None,
            waits=[wait for wait in self.waits if not wait.timed_out],
        )


@attrs.frozen
class KeptRecord:
    """An event in a buffer, with the recoveries of its ancestors."""

    event: Event
    recoveries: Recoveries


@attrs.frozen
class SetRecord:
    """The buffers of a step with several event parameters: a list for each of them."""

    step: str
    queues: list[list[KeptRecord]]


@attrs.frozen
class BranchRecord:
    """A branch that has not ended."""

    id: int
    sets: list[SetRecord]


@attrs.frozen
class BatchRecord:
    """A batch that has not ended.

    `outer` is the id of the branch it was opened in. What arrived for a join that has fired is `None`.
    Versions 1 and 2 lack such joins, and what has a default.
    """

    outer: int | None
    branches: list[BranchRecord]
    arrived: dict[str, list[Event] | None]
    recoveries: Recoveries
    cancelled: bool
    opener: Event | None = None


@attrs.frozen
class BufferRecord:
    """A buffer of `ctx.collect_events()`."""

    step: str
    buffer_id: str | None
    expected: list[type[Event]]
    kept: list[KeptRecord]


@attrs.frozen
class LedgerRecord:
    """All that a run has pending.

    Ids of work are below `next_id`; ids of branches are unique, and stand before they are referred to
    (outer batches come first). Questions whose number is above `events_read` have not been read: they are asked again (W4). What
    has a default is not in version 1.
    """

    next_id: int
    input_asked: bool
    last_finished: str | None
    work: list[WorkRecord]
    batches: list[BatchRecord]
    sets: list[SetRecord]
    buffers: list[BufferRecord]
    questions: list[QuestionRecord] = attrs.field(factory=list)
    events_read: int = 0

    def repeating(self, failed: int | None) -> LedgerRecord:
        """Return a record in which the execution that failed is yet to begin (X7).

        Args:
            failed: The number of its work; `None` if no execution is to blame.
        """
        work = [one.begun_anew() if one.id == failed else one for one in self.work]
        return attrs.evolve(self, work=work)

    def with_steps(self, new_name: Callable[[str], str]) -> LedgerRecord:
        """Return a record that calls each step by another name (P8).

        Args:
            new_name: Returns a different name for each name of a step.
        """

        def kept(one: KeptRecord) -> KeptRecord:
            return attrs.evolve(one, recoveries=keys(one.recoveries))

        def keys(by_step: Mapping[str, T]) -> dict[str, T]:
            return {new_name(step): value for step, value in by_step.items()}

        def sets(records: list[SetRecord]) -> list[SetRecord]:
            return [
                SetRecord(new_name(one.step), [[*map(kept, queue)] for queue in one.queues])
                for one in records
            ]

        last, evolve = self.last_finished, attrs.evolve
        return evolve(
            self,
            last_finished=None if last is None else new_name(last),
            work=[
                evolve(one, step=new_name(one.step), recoveries=keys(one.recoveries))
                for one in self.work
            ],
            batches=[
                evolve(
                    batch,
                    branches=[evolve(one, sets=sets(one.sets)) for one in batch.branches],
                    arrived=keys(batch.arrived),
                    recoveries=keys(batch.recoveries),
                )
                for batch in self.batches
            ],
            sets=sets(self.sets),
            buffers=[
                evolve(one, step=new_name(one.step), kept=[*map(kept, one.kept)])
                for one in self.buffers
            ],
        )


# --- Taking ------------------------------------------------------------------------------------


def take(ledger: Ledger, now: float, events_read: int) -> LedgerRecord:
    """Record what is pending at the time `now`, when so many events of the stream have been read."""
    pending = [work for work in ledger.pending.values() if not work.dropped]
    batches = _open_batches(ledger)
    ids = {branch: n for n, branch in enumerate(b for batch in batches for b in batch.branches)}
    return LedgerRecord(
        next_id=ledger.next_id,
        input_asked=ledger.input_asked,
        last_finished=ledger.last_finished,
        work=[_take_work(work, ids, now) for work in pending],
        batches=[_take_batch(batch, ids) for batch in batches],
        sets=_take_sets(ledger.param_buffers),
        buffers=[
            BufferRecord(
                step,
                buffer_id,
                list(buffer.expected),
                [_take_kept(kept) for events in buffer.events.values() for kept in events],
            )
            for (step, buffer_id), buffer in ledger.buffers.by_key.items()
            if buffer.total
        ],
        questions=[
            QuestionRecord(number, event)
            for number, event in ledger.questions or ()
            if number > events_read
        ],
        events_read=events_read,
    )


def _open_batches(ledger: Ledger) -> list[Batch]:
    """Return the batches that have not ended, outer ones first."""
    depths: dict[Batch, int] = {}
    for work in ledger.pending.values():
        chain: list[Batch] = []
        branch = work.branch
        while branch is not None and branch.batch not in depths:
            chain.append(branch.batch)
            branch = branch.batch.outer
        depth = 0 if branch is None else depths[branch.batch] + 1
        for n, batch in enumerate(reversed(chain)):
            depths[batch] = depth + n
    return sorted(depths, key=depths.__getitem__)


def _take_work(work: Work, ids: Mapping[Branch, int], now: float) -> WorkRecord:
    past = work.history or History()
    return WorkRecord(
        id=work.id,
        step=work.step,
        events=[work.payload] if isinstance(work.payload, Event) else list(work.payload),
        branch=None if work.branch is None else ids[work.branch],
        recoveries=work.recoveries,
        attempt=work.attempt,
        elapsed=None if work.first_started is None else now - work.first_started,
        due_in=None if work.due is None else work.due - now,
        last_error=past.last_error,
        last_failed_at=past.last_failed_at,
        waits=[take_wait(wait) for wait in past.waits + past.earlier_waits],
        collected=[take_collected(one) for one in past.collected + past.earlier_collected],
        opener=work.opener,
    )


def take_wait(wait: Wait) -> WaitRecord:
    """Record a wait."""
    return WaitRecord(
        event_type=wait.event_type,
        requirements=dict(wait.requirements),
        waiter_id=wait.waiter_id,
        asked=wait.asked,
        timed_out=wait.timed_out,
        answer=wait.answer,
        question=None if wait.over else wait.question,
        question_number=wait.question_number,
        number=wait.number,
        since=wait.since,
    )


def take_collected(collected: Collected) -> CollectedRecord:
    """Record what a call of `ctx.collect_events()` was given."""
    events = None if collected.events is None else list(collected.events)
    return CollectedRecord(collected.buffer_id, list(collected.expected), events)


def _take_batch(batch: Batch, ids: Mapping[Branch, int]) -> BatchRecord:
    return BatchRecord(
        outer=None if batch.outer is None else ids[batch.outer],
        branches=[
            BranchRecord(ids[branch], _take_sets(branch.param_buffers)) for branch in batch.branches
        ],
        arrived={
            join.name: None if events is None else list(events)
            for join, events in batch.arrived.items()
        },
        recoveries=batch.recoveries,
        cancelled=batch.cancelled,
        opener=batch.opener,
    )


def _take_sets(sets: ParamBuffers | None) -> list[SetRecord]:
    return [
        SetRecord(spec.name, [[_take_kept(kept) for kept in queue] for queue in queues])
        for spec, queues in (sets.by_step.items() if sets is not None else ())
        if any(queues)
    ]


def _take_kept(kept: Buffered) -> KeptRecord:
    return KeptRecord(kept.event, kept.recoveries)


# --- Restoring ---------------------------------------------------------------------------------


class Restored(NamedTuple):
    """What was restored: the work to be carried to its steps now, and the branches by the ids of the record."""

    queued: list[Work]
    branches: dict[int, Branch]


def restore(record: LedgerRecord, ledger: Ledger, now: float) -> Restored:
    """Make what was recorded pending in an empty ledger, at the time `now`.

    The branches are to be sealed next: what was being dropped from one is gone.
    """
    graph = ledger.graph
    ledger.next_id = record.next_id
    ledger.input_asked = record.input_asked
    ledger.last_finished = record.last_finished
    unread = [one.event for one in record.questions if one.number > record.events_read]
    ledger.questions = deque(enumerate(unread, start=1)) if unread else None
    ledger.param_buffers = _restore_sets(record.sets, graph)
    for each in record.buffers:
        buffer = ledger.buffers.by_key[each.step, each.buffer_id] = Buffer(each.expected)
        for one in each.kept:
            buffer.add(_restore_kept(one))
    branches: dict[int, Branch] = {}
    for batch in record.batches:
        _restore_batch(batch, graph, branches)
    queued: list[Work] = []
    for work in record.work:
        due = None if work.due_in is None else now + work.due_in
        restored = _restore_work(work, ledger, branches, now, record.events_read)
        queued += ledger.enqueue_again(restored, due)
    return Restored(queued, branches)


def _restore_batch(record: BatchRecord, graph: Graph, branches: dict[int, Branch]) -> None:
    outer = None if record.outer is None else branches[record.outer]
    arrived = {
        graph.steps[join]: None if events is None else list(events)
        for join, events in record.arrived.items()
    }
    batch = Batch(outer, arrived, record.recoveries, record.opener)
    batch.opening, batch.cancelled = False, record.cancelled
    if outer is not None:
        outer.open(batch)
    for each in record.branches:
        branch = branches[each.id] = Branch(batch)
        batch.branches[branch] = None
        if each.sets:
            branch.param_buffers = _restore_sets(each.sets, graph)


def _restore_sets(records: list[SetRecord], graph: Graph) -> ParamBuffers | None:
    if not records:
        return None
    sets = ParamBuffers()
    for record in records:
        spec = graph.steps[record.step]
        sets.by_step[spec] = [deque(map(_restore_kept, queue)) for queue in record.queues]
    return sets


def _restore_kept(record: KeptRecord) -> Buffered:
    return Buffered(record.event, record.recoveries)


def _restore_work(
    record: WorkRecord,
    ledger: Ledger,
    branches: Mapping[int, Branch],
    now: float,
    events_read: int,
) -> Work:
    spec = ledger.graph.steps[record.step]
    payload: Any = record.events[0] if spec.is_plain else tuple(record.events)
    work = Work(
        id=record.id,
        queue=ledger.queues.of(spec),
        payload=list(payload) if spec.is_join else payload,
        branch=None if record.branch is None else branches[record.branch],
        recoveries=record.recoveries,
        opener=record.opener,
        attempt=record.attempt,
    )
    if record.elapsed is not None or record.waits or record.collected:
        work.history = History(
            first_started=None if record.elapsed is None else now - record.elapsed,
            last_error=record.last_error,
            last_failed_at=record.last_failed_at,
        )
        work.history.earlier_waits = [
            _restore_wait(wait, work, events_read) for wait in record.waits
        ]
        work.history.number(work.history.earlier_waits)
        work.history.earlier_collected = [
            Collected(
                one.buffer_id,
                tuple(one.expected),
                None if one.events is None else tuple(one.events),
            )
            for one in record.collected
        ]
    return work


def _restore_wait(record: WaitRecord, work: Work, events_read: int) -> Wait:
    return Wait(
        work,
        record.event_type,
        record.requirements,
        record.waiter_id,
        since=record.since,
        number=record.number,
        answer=record.answer,
        question=record.question,
        asked=record.asked and record.question_number <= events_read,
        timed_out=record.timed_out,
    )


# --- From one run to the next ---------------------------------------------------------------------


class RunPort(Protocol):
    """A run, as far as its steps can see it."""

    loop: LoopHandle
    ledger: Ledger
    saved: SavedState
    parent: RunPort | None
    ended: bool

    @property
    def run_id(self) -> str:
        """Identifies the run in logs."""
        ...

    @property
    def events_read(self) -> int:
        """How many events of the public stream count as read (W4)."""
        ...

    @property
    def is_running(self) -> bool:
        """Whether the outcome is still open."""
        ...

    def check_cancellation(self) -> None:
        """Decide the outcome if the run is being cancelled and the host has not noticed yet."""
        ...

    def write(self, event: Event) -> None:
        """Write to the public stream."""
        ...

    def ask(self, question: Event) -> int:
        """Write a question to the public stream; returns its number there."""
        ...

    async def drain(
        self, limit: int, while_allowed: Callable[[], AbstractContextManager[None]]
    ) -> None:
        """Wait until at most `limit` events of the public stream are unread (S6)."""
        ...

    def send(self, event: Event, step: str | None, sender: Work | None) -> tuple[str, ...]:
        """Route an event; returns the names of the steps that took it."""
        ...

    def check_open(self, what: str) -> None:
        """Raise if the outcome is decided."""
        ...

    def check_not_telling(self, what: str) -> None:
        """Raise if an instrument is being told something."""
        ...

    def note_wait(self, wait: Wait) -> None:
        """Take note that an execution waits."""
        ...

    def adopt(self, child: RunPort) -> None:
        """Take charge of a run that one of the steps starts."""
        ...

    def cancel(self, reason: str) -> None:
        """Decide that the run is cancelled, unless its outcome is decided already."""
        ...

    async def wait_until_ended(self) -> None:
        """Wait until the terminal event has been published."""
        ...


def _record_of(run: RunPort) -> LedgerRecord:
    return take(run.ledger, run.loop.current_time(), run.events_read)


@attrs.define(eq=False, repr=False)
class SavedState:
    """What one run leaves to the next.

    Attributes:
        graph: The steps that it is for.
        types: Types that the state may hold, besides those that the workflow declares.
        hooks: The hooks of the converter of the workflow, for snapshots; `None` if it has none.
        run: The run in progress, or the last one.
        pending: The work that the last run left, with which the next one continues; `None` while a run
            is in progress, and after a stop event or a failure. Only one of the two is there.
        failed: What was pending when the last run failed, for `retry_failed()`.
    """

    graph: Graph
    types: tuple[type, ...] = ()
    hooks: Hooks | None = None
    run: RunPort | None = None
    pending: LedgerRecord | None = None
    failed: LedgerRecord | None = None
    _store: StateStore[Any] | None = None

    @property
    def store(self) -> StateStore[Any]:
        """The state."""
        if self._store is None:
            state_type = self.graph.state_type
            self._store = StateStore() if state_type is None else StateStore(state_type)
        return self._store

    def state(self) -> Any:
        """Return the state, which is not to be changed; `None` if it has not been used."""
        return None if self._store is None else self._store._snapshot()

    def drop_dead_writers(self) -> None:
        """Drop the writers of steps that were given up, or whose run has ended, and their waits."""
        if self._store is not None:
            self._store._drop_dead_writers()

    def pending_work(self) -> LedgerRecord | None:
        """Record what is pending now; `None` if nothing is left to continue with."""
        run = self.run
        if run is not None and run.is_running:
            run.check_not_telling("a snapshot cannot be taken")
            return _record_of(run)
        return self._up_to_date(self.pending)

    def failed_work(self) -> LedgerRecord | None:
        """Record what `retry_failed()` makes pending; `None` if no step failed."""
        return self._up_to_date(self.failed)

    def _up_to_date(self, record: LedgerRecord | None) -> LedgerRecord | None:
        """Add to the record of a run that was decided what has been read since then (W4)."""
        if record is None or self.run is None:
            return record
        return attrs.evolve(record, events_read=self.run.events_read)

    def open_waits(self) -> list[OpenWait]:
        """Describe the waits that are open now, in the order in which they began."""
        run = self.run
        if run is not None and run.is_running:
            ledger = run.ledger
        elif self.pending is None:
            return []
        else:
            ledger = Ledger(self.graph)
            restore(self.pending, ledger, 0.0)
        return [wait.as_open() for wait in ledger.waits.open]

    def keep(self, what: Literal["work", "failed work"], failed: int | None) -> None:
        """Keep what the run leaves, at the moment when its end is decided.

        Args:
            what: Work to continue with, or work that `retry_failed()` makes pending again.
            failed: The number of the work whose execution failed.
        """
        assert self.run is not None
        record = _record_of(self.run)
        if what == "work":
            self.pending = record
        elif record.work:
            self.failed = record.repeating(failed)

    def begin(self, run: RunPort) -> None:
        """Note that a run continues from here."""
        self.run = run
        self.pending = self.failed = None

    def discard(self) -> None:
        """Drop what the last run left to do, or to repeat.

        Raises:
            ContextStateError: If a run is in progress.
        """
        self.check_free()
        self.pending = self.failed = None

    def retry_failed(self) -> None:
        """Make pending again what was pending when the last run failed (X7).

        Raises:
            ContextStateError: If a run is in progress, or there is nothing to repeat.
        """
        self.check_free()
        if self.failed is None:
            why = "no step of its last run has failed for good"
            if self.pending is not None:
                why = "it has work left already; run(ctx=...) continues it"
            raise ContextStateError(f"this context has no failed step to repeat: {why}")
        self.pending, self.failed = self.failed, None

    def check_free(self) -> None:
        """Refuse what makes no sense while a run is in progress.

        Raises:
            ContextStateError: If one does.
        """
        if self.run is not None and not self.run.ended:
            raise ContextStateError(
                "the run of this context is still in progress; await its handler first, or use another "
                "context"
            )
