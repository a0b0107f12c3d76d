"""The records of work and waits, and the queues of the steps, which say who has a slot."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import attrs

from ..events import Event, StepState
from ..graph import StepSpec
from .fanin import NO_RECOVERIES, Branch, Recoveries


def utc_now() -> datetime:
    """Return the wall clock's time, which is for information only (R9)."""
    return datetime.now(UTC)


@attrs.frozen
class StepStatistics:
    """Counts of the work of one step in one run.

    Attributes:
        queued: Events that wait for a worker.
        running: Executions in progress.
        waiting: Executions that wait for an event, or for a worker to go on.
        delayed: Failed executions that wait for their next attempt.
        done: Executions that ended, those that failed for good included.
        failed: Executions that failed for good.
        retried: Attempts that failed and were followed, or are to be followed, by another.
    """

    queued: int = 0
    running: int = 0
    waiting: int = 0
    delayed: int = 0
    done: int = 0
    failed: int = 0
    retried: int = 0


@attrs.define(eq=False, repr=False)
class Work:
    """What is owed to one step: an event, the events of a batch, or a set of events.

    Attributes:
        id: Number of this work in its run; rises in the order of arrival.
        queue: The step's entry in the ledger.
        payload: The event that starts the step, or the list or tuple of them.
        branch: The branch of a batch that it belongs to.
        recoveries: How often `@catch_error` steps have recovered its ancestors.
        attempt: The attempt that comes next or is in progress, from 1.
        started: When the attempt in progress began; `None` before and between attempts.
        due: When the next attempt is to be queued, during a retry delay.
        history: What it has been through, once there is something to tell.
        waits: The events that the execution waits for.
        answered: The waits that are over, while the execution wants its place back.
        dropped: Whether it was taken back, with its branch.
        cancel: Cancels the execution, while there is one that can be cancelled on its own.
    """

    id: int
    queue: StepQueue
    payload: Any
    branch: Branch | None = None
    recoveries: Recoveries = NO_RECOVERIES
    attempt: int = 1
    started: float | None = None
    due: float | None = None
    history: History | None = None
    waits: tuple[Wait, ...] = ()
    answered: tuple[Wait, ...] = ()
    dropped: bool = False
    cancel: Callable[[], None] | None = None

    @property
    def suspended(self) -> bool:
        """Whether the execution waits, for an event or for its place, and so holds no place."""
        return bool(self.waits or self.answered)

    @property
    def past(self) -> History:
        """Its history, which begins now if there was none."""
        if self.history is None:
            self.history = History()
        return self.history

    @property
    def first_started(self) -> float | None:
        """When its first attempt began."""
        if self.history is not None and self.history.first_started is not None:
            return self.history.first_started
        return self.started

    @property
    def event_name(self) -> str:
        """The name of the event type that starts the step, for people."""
        if isinstance(self.payload, Event):
            return type(self.payload).__name__
        return ", ".join(dict.fromkeys(type(event).__name__ for event in self.payload)) or "[]"


@attrs.define(eq=False, repr=False)
class History:
    """What an execution has been through. An attempt gets what the one before got (F6, W3).

    Attributes:
        first_started: When the first attempt began.
        last_error: What the last attempt raised.
        last_failed_at: When that was, in UTC.
        waits: The waits of this attempt, in the order in which they began.
        collected: What this attempt collected, in order.
        earlier_waits: Waits of the attempts before, which this one has not come to yet.
        earlier_collected: What they collected, likewise.
        numbers: For each label, the highest number of a wait.
    """

    first_started: float | None = None
    last_error: Exception | None = None
    last_failed_at: datetime | None = None
    waits: list[Wait] = attrs.field(factory=list)
    collected: list[Collected] = attrs.field(factory=list)
    earlier_waits: list[Wait] = attrs.field(factory=list)
    earlier_collected: list[Collected] = attrs.field(factory=list)
    numbers: dict[str, int] = attrs.field(factory=dict)

    def start_over(self) -> None:
        """Begin another attempt. What timed out is waited for anew."""
        waits = self.waits + self.earlier_waits
        self.earlier_waits = [wait for wait in waits if not wait.timed_out]
        self.numbers = {}
        self.number(self.earlier_waits)
        self.earlier_collected = self.collected + self.earlier_collected
        self.waits, self.collected = [], []

    def number(self, waits: Iterable[Wait]) -> None:
        """Number waits that have no number yet, each among those with its label (W5)."""
        for wait in waits:
            highest = self.numbers.get(wait.label, 0)
            wait.number = wait.number or highest + 1
            self.numbers[wait.label] = max(wait.number, highest)

    def recall_wait(self, wait: Wait) -> Wait | None:
        """Take the same wait of an earlier attempt: the first equal one that is left."""
        for position, earlier in enumerate(self.earlier_waits):
            if earlier.equals(wait) and earlier.event_type is wait.event_type:
                return self.earlier_waits.pop(position)
        return None

    def recall_collected(self, asked: Collected) -> Collected | None:
        """Take what an earlier attempt was given for the same question."""
        for position, earlier in enumerate(self.earlier_collected):
            if (earlier.buffer_id, earlier.expected) == (asked.buffer_id, asked.expected):
                return self.earlier_collected.pop(position)
        return None


@attrs.define(eq=False, repr=False)
class Collected:
    """What one call of `ctx.collect_events()` was given.

    Attributes:
        buffer_id: The buffer.
        expected: The types that were asked for.
        events: The events, in that order; `None` if they were not all there.
    """

    buffer_id: str | None
    expected: tuple[type[Event], ...]
    events: tuple[Event, ...] | None = None


@attrs.frozen
class OpenWait:
    """A wait of a step that nobody has answered yet (W5).

    Attributes:
        id: Names the wait in `handler.send_event(ev, wait=id)`. It stays the same over retries and
            restores; no other wait of the run has it.
        step: The step that waits.
        event_type: The type of the event it waits for.
        question: The `waiter_event` it published; `None` if there is none.
        requirements: Attributes that the event must have, with their values.
        waiter_id: The name that the step gave to the wait, if any.
        since: When the wait began, in UTC; for information.
    """

    id: str
    step: str
    event_type: type[Event]
    question: Event | None
    requirements: Mapping[str, Any]
    waiter_id: str | None
    since: datetime


@attrs.define(eq=False, repr=False)
class Wait:
    """An execution's wait for one event.

    Attributes:
        work: The work that is being executed.
        event_type: The type waited for.
        requirements: Attributes that the event must have, with their values.
        waiter_id: The name that the step gave to the wait.
        since: When it began, in UTC.
        number: Its number among the waits of the execution with the same label, from 1; 0 before it
            has one.
        wake: Called when the execution may go on.
        answer: The event, once it has come.
        question: What was written to the stream when it began.
        asked: Whether the question has been written, so that it is not to be written again.
        question_number: The number of the question in the stream of the run; 0 if it was read in an
            earlier run.
        timed_out: Whether the step was told that no event came.
        refused: Whether the execution ended while a task of it was still waiting.
    """

    work: Work
    event_type: type[Event]
    requirements: Mapping[str, Any]
    waiter_id: str | None
    since: datetime = attrs.field(factory=utc_now)
    number: int = 0
    wake: Callable[[], None] = attrs.field(default=lambda: None)
    answer: Event | None = None
    question: Event | None = None
    asked: bool = False
    question_number: int = 0
    timed_out: bool = False
    refused: bool = False

    @property
    def over(self) -> bool:
        """Whether it has its answer, or the step was told that there is none."""
        return self.answer is not None or self.timed_out

    @property
    def label(self) -> str:
        """What tells it from other waits of the execution, together with its number."""
        return self.event_type.__name__ if self.waiter_id is None else self.waiter_id

    @property
    def id(self) -> str:
        """Identifies it in the run and in all that go on from it."""
        return f"{self.work.id}:{self.number}:{self.label}"

    def as_open(self) -> OpenWait:
        """Describe it to those who may answer it."""
        return OpenWait(
            id=self.id,
            step=self.work.queue.spec.name,
            event_type=self.event_type,
            question=self.question,
            requirements=dict(self.requirements),
            waiter_id=self.waiter_id,
            since=self.since,
        )

    def take_over(self, earlier: Wait) -> None:
        """Go on with the same wait of an earlier attempt."""
        self.since, self.number = earlier.since, earlier.number
        self.question, self.asked = earlier.question, earlier.asked
        self.question_number = earlier.question_number
        self.answer, self.timed_out = earlier.answer, earlier.timed_out

    def equals(self, other: Wait) -> bool:
        """Return whether two waits of an execution ask for the same thing (W4)."""
        if self.waiter_id is not None or other.waiter_id is not None:
            return self.waiter_id == other.waiter_id
        return (self.event_type, self.requirements) == (other.event_type, other.requirements)

    def matches(self, event: Event) -> bool:
        """Return whether the event is the one waited for (W2)."""
        return self.takes(type(event)) and self.unmet(event) is None

    def takes(self, event_type: type[Event]) -> bool:
        """Return whether the type of an event is the one waited for."""
        if self.work.queue.spec.config.accept_event_subclasses:
            return issubclass(event_type, self.event_type)
        return event_type is self.event_type

    def unmet(self, event: Event) -> str | None:
        """Return the name of a requirement that the event does not meet."""
        for name, value in self.requirements.items():
            try:
                if hasattr(event, name) and getattr(event, name) == value:
                    continue
            except Exception:  # values that cannot be compared are not equal
                pass
            return name
        return None


@attrs.define(eq=False, repr=False)
class StepQueue:
    """One step's entry in the ledger: how much of its work is where."""

    spec: StepSpec
    limit: int
    queued: int = 0
    granted: int = 0
    running: int = 0
    waiting: int = 0
    delayed: int = 0
    done: int = 0
    failed: int = 0
    retried: int = 0
    resuming: deque[Work] | None = None
    """The executions that want their place back; made when the first one does."""
    last: type | None = None
    """The type of what its last execution returned or raised; `None` if it was cancelled."""


# --- The queues of the steps ---------------------------------------------------------------------


@attrs.define(eq=False, repr=False)
class StepQueues:
    """The places of every step of a run.

    Attributes:
        granted: The steps with a place for their oldest queued work, in the order of the grants.
        by_step: The steps that have had work, by name.
        on_change: Told when work is queued, waits, goes on or is withdrawn, while somebody listens. The
            pool tells when it starts, the dispatch when it is over.
    """

    granted: deque[StepQueue] = attrs.field(factory=deque)
    by_step: dict[str, StepQueue] = attrs.field(factory=dict)
    on_change: Callable[[Work, StepState], None] | None = None
    _delays: list[tuple[float, int, Work]] = attrs.field(factory=list)

    def of(self, spec: StepSpec) -> StepQueue:
        """Return the places of a step."""
        queue = self.by_step.get(spec.name)
        if queue is None:
            queue = self.by_step[spec.name] = StepQueue(spec, spec.config.num_workers)
        return queue

    def add(self, work: Work) -> None:
        """Note that work waits for a place."""
        queue = work.queue
        queue.queued += 1
        if queue.granted + queue.running < queue.limit:  # then nobody is ahead of it (rule 2)
            queue.granted += 1
            self.granted.append(queue)
        if self.on_change is not None:
            self.on_change(work, StepState.PREPARING)

    def withdraw(self, work: Work) -> None:
        """Take work back that has no place yet."""
        queue = work.queue
        if work.due is not None:
            queue.delayed -= 1
            return
        queue.queued -= 1
        if self.on_change is not None:
            self.on_change(work, StepState.NOT_RUNNING)
        if queue.granted > queue.queued:
            queue.granted -= 1
            self.granted.remove(queue)
            self._grant(queue)

    def _grant(self, queue: StepQueue) -> None:
        """Give a free place to an execution that wants to go on, else to queued work (rule 2)."""
        if queue.granted + queue.running >= queue.limit:
            return
        if queue.resuming:
            self.resume(queue.resuming.popleft())
        elif queue.granted < queue.queued:
            queue.granted += 1
            self.granted.append(queue)

    def take_slot(self) -> StepQueue:
        """Take the first of `calls`; the oldest queued work of that step is to be started next."""
        queue = self.granted.popleft()
        queue.granted -= 1
        queue.queued -= 1
        queue.running += 1
        return queue

    def release_slot(self, queue: StepQueue) -> None:
        """Give the place of an execution that is over to the next one."""
        queue.running -= 1
        if queue.queued > queue.granted or queue.resuming:
            self._grant(queue)

    # --- Waiting ------------------------------------------------------------------------------

    def suspend(self, work: Work) -> None:
        """Note that an execution begins to wait, and gives its place back."""
        work.queue.running -= 1
        work.queue.waiting += 1
        if self.on_change is not None:
            self.on_change(work, StepState.WAITING)
        self._grant(work.queue)

    def request_slot(self, work: Work) -> None:
        """Note that an execution wants its place back."""
        if work.queue.resuming is None:
            work.queue.resuming = deque()
        work.queue.resuming.append(work)
        self._grant(work.queue)

    def withdraw_request(self, work: Work) -> None:
        """Note that an execution that wanted its place back has another way to go on."""
        if work.queue.resuming is not None:
            work.queue.resuming.remove(work)

    def resume(self, work: Work) -> None:
        """Let an execution go on that waited."""
        self.stop_waiting(work)
        if self.on_change is not None:
            self.on_change(work, StepState.RUNNING)

    def stop_waiting(self, work: Work) -> None:
        """Let an execution go on, or end, that waited."""
        work.queue.waiting -= 1
        work.queue.running += 1
        wake(work)

    # --- Retry delays -------------------------------------------------------------------------

    def delay(self, work: Work, due: float) -> None:
        """Note that an execution gives its place back, until it is queued again at time `due`."""
        self.hold(work, due)
        self.release_slot(work.queue)

    def hold(self, work: Work, due: float) -> None:
        """Keep work that has no place, until it is queued at time `due`."""
        work.due = due
        work.queue.delayed += 1
        heapq.heappush(self._delays, (due, work.id, work))

    @property
    def next_due(self) -> float:
        """When the next delay is over; infinite if there is none."""
        while self._delays and self._delays[0][2].dropped:
            heapq.heappop(self._delays)
        return self._delays[0][0] if self._delays else math.inf

    def end_delays(self, now: float) -> list[Work]:
        """Queue the work whose delay is over; it is to be carried to its steps."""
        over: list[Work] = []
        while self.next_due <= now:
            _, _, work = heapq.heappop(self._delays)
            work.due = None
            work.queue.delayed -= 1
            self.add(work)
            over.append(work)
        return over

    # --- Counts -------------------------------------------------------------------------------

    def active_steps(self) -> list[str]:
        """Return the sorted names of the steps that are at work, wait, or are in a retry delay."""
        active = (p for p in self.by_step.values() if p.running or p.waiting or p.delayed)
        return sorted(queue.spec.name for queue in active)

    def statistics(self) -> dict[str, StepStatistics]:
        """Return the counts of the steps that have had work."""
        counts = [field.name for field in attrs.fields(StepStatistics)]
        return {
            name: StepStatistics(**{count: getattr(queue, count) for count in counts})
            for name, queue in self.by_step.items()
        }

    def busy(self) -> int:
        """Return how many executions go on, or will without an event from outside."""
        queues = self.by_step.values()
        return sum(p.queued + p.running + p.delayed + len(p.resuming or ()) for p in queues)


def wake(work: Work) -> None:
    """Let the tasks of an execution go on whose waits are over."""
    answered, work.answered = work.answered, ()
    for wait in answered:
        wait.wake()
