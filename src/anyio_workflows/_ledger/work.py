"""The records of work and waits, and the queues of the steps, which grant the slots."""

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

QUEUED, RUNNING = StepState.PREPARING, StepState.RUNNING
WAITING, OVER = StepState.WAITING, StepState.NOT_RUNNING
"""The states as they are told to `StepQueues.on_change`; to look up a member of an enum takes 0.12 us."""


def utc_now() -> datetime:
    """Return the wall clock's time, which is for information only (R9)."""
    return datetime.now(UTC)


@attrs.frozen
class StepStatistics:
    """Counts of the work of one step in one run.

    Attributes:
        queued: Events that wait for a worker.
        running: Executions in progress.
        waiting: Executions that wait for an event, or for a worker to continue.
        delayed: Failed executions that wait for their next attempt.
        done: Executions that ended, those that failed for good or were cancelled included.
        failed: Executions that failed for good.
        cancelled: Executions that were cancelled, with the run or with their batch.
        retried: Attempts that failed and were followed, or are to be followed, by another.
        seconds: How long the attempts that have ended took in all, waits included; not compared by `==`.
    """

    queued: int = 0
    running: int = 0
    waiting: int = 0
    delayed: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    retried: int = 0
    seconds: float = attrs.field(default=0.0, eq=False)

    def counts(self) -> dict[str, int]:
        """Return the counts that are not 0, by name."""
        named = attrs.asdict(self, filter=lambda field, value: field.name != "seconds")
        return {name: count for name, count in named.items() if count}


def counts_text(steps: Mapping[str, StepStatistics]) -> str:
    """Return the counts of steps, as they end a `repr`: those that are not 0."""
    texts = {
        name: ", ".join(f"{count} {what}" for what, count in step.counts().items())
        for name, step in steps.items()
    }
    return "".join(f"; {name}: {text}" for name, text in texts.items() if text)


@attrs.define(eq=False, repr=False)
class Work:
    """One step's pending work: an event, the list of a join, or one event for each parameter.

    While it is pending it is in exactly one state, and counted there in its queue: queued, running,
    waiting or delayed.

    Attributes:
        id: Below `Ledger.next_id`; rises in the order of arrival, and stays the same in later runs.
        queue: The queue of its step, in which it is counted.
        payload: An event if the step is plain, a list if it is a join, else a tuple with an event for
            each parameter.
        branch: The branch of a batch that it belongs to, in whose `work` it is while it is pending;
            `None` outside of batches.
        recoveries: Those of the events in the payload, and of the events that it collected last.
        opener: The event that opened the batch which it joins, the same in each attempt (X3); `None` if
            the step did not take that when it was queued.
        attempt: The number of the attempt in progress, else of the next one; counts from 1.
        started: When the attempt in progress began; `None` exactly while none is.
        due: When the retry delay is over; `None` exactly while it is in none (until it is dropped).
        history: `None` until it first waits, collects or fails, as most work never does.
        waits: The open waits of tasks of the attempt in progress; each is in `Waits.open`.
        answered: The wait that ended last, exactly while the execution requests a slot to continue.
            `waits` is empty then.
        dropped: Whether its batch was cancelled; never reset. It is not pending any more, unless an
            attempt is in progress: then until that has ended.
        cancel: Cancels the attempt in progress; `None` unless that runs in a scope of its own.
        sources: The ids of the executions whose events are in the payload, as far as they were known when
            it was queued: instruments are told, the run itself has no use for them.
    """

    id: int
    queue: StepQueue
    payload: Any
    branch: Branch | None = None
    recoveries: Recoveries = NO_RECOVERIES
    opener: Event | None = None
    attempt: int = 1
    started: float | None = None
    due: float | None = None
    history: History | None = None
    waits: tuple[Wait, ...] = ()
    answered: tuple[Wait, ...] = ()
    dropped: bool = False
    cancel: Callable[[], None] | None = None
    sources: tuple[int, ...] = ()

    @property
    def spec(self) -> StepSpec:
        """The step."""
        return self.queue.spec

    @property
    def step(self) -> str:
        """The name of the step."""
        return self.queue.spec.name

    @property
    def suspended(self) -> bool:
        """Whether the execution waits for an event, or for a slot to continue: it holds no slot."""
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


@attrs.define(eq=False, repr=False)
class History:
    """The waits, collected events and errors of an execution, over all of its attempts.

    An attempt is given what the one before was given (F6, W3).

    Attributes:
        first_started: When the first attempt began; `None` until one has failed, or began in an earlier
            run.
        last_error: What the last attempt raised; `None` until one has failed.
        last_failed_at: When that was, in UTC; set together with `last_error`.
        waits: The waits of the attempt in progress, open or over, in the order in which they began.
            Empty between attempts.
        collected: The calls of `ctx.collect_events()` of the attempt in progress, in order. Empty
            between attempts.
        earlier_waits: The waits of earlier attempts that this one has not reached, in order. While
            the work is pending, each is over or in `Waits.open`.
        earlier_collected: The calls of earlier attempts that this one has not reached, in order.
        numbers: For each label, the highest number of the waits in `waits` and `earlier_waits`.
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
        """Prepare for the next attempt. Waits that timed out are not kept: it waits anew (W3)."""
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
        """Take out the same wait of an earlier attempt: the first equal one that is left."""
        for position, earlier in enumerate(self.earlier_waits):
            if earlier.equals(wait) and earlier.event_type is wait.event_type:
                return self.earlier_waits.pop(position)
        return None

    def recall_collected(self, asked: Collected) -> Collected | None:
        """Take out the first call of an earlier attempt that asked for the same events."""
        for position, earlier in enumerate(self.earlier_collected):
            if (earlier.buffer_id, earlier.expected) == (asked.buffer_id, asked.expected):
                return self.earlier_collected.pop(position)
        return None


@attrs.define(eq=False, repr=False)
class Collected:
    """What one call of `ctx.collect_events()` was given.

    Attributes:
        buffer_id: The name of the buffer.
        expected: The types that were asked for, in order.
        events: An event for each of `expected`, in that order; `None` if they were not all there.
    """

    buffer_id: str | None
    expected: tuple[type[Event], ...]
    events: tuple[Event, ...] | None = None


@attrs.frozen
class OpenWait:
    """A wait of a step that has not been answered yet (W5).

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

    def unmet(self, event: Event) -> str | None:
        """Return the name of a requirement that an event does not meet; `None` if it meets all."""
        return _unmet(self.requirements, event)


def _unmet(requirements: Mapping[str, Any], event: Event) -> str | None:
    for name, value in requirements.items():
        try:
            if hasattr(event, name) and getattr(event, name) == value:
                continue
        except Exception:  # values that cannot be compared are not equal
            pass
        return name
    return None


def wait_label(event_type: type[Event], waiter_id: str | None) -> str:
    """Return the part of a wait's id that tells people which one it is (W5)."""
    return event_type.__name__ if waiter_id is None else waiter_id


@attrs.define(eq=False, repr=False)
class Wait:
    """An execution's wait for one event.

    Attributes:
        work: The work whose execution waits.
        event_type: The type waited for.
        requirements: Attributes that the event must have, with their values; a copy that never changes,
            as the index of open waits relies on it.
        waiter_id: The name that the step gave to the wait; `None` if it gave none.
        since: When it first began, in UTC; an equal wait of a later attempt keeps it.
        number: Its number among the waits of the execution with the same label, from 1; 0 until it has
            begun. Kept by an equal wait of a later attempt, so that its id stays the same.
        wake: Lets the waiting task continue; called once, or not at all. Does nothing if no task waits.
        answer: The event; `None` until the wait is answered. Never replaced.
        question: The event that was published when it began; `None` if there was none.
        asked: Whether the question has been published, and so must not be published again.
        question_number: The number of the question in the stream of this run; 0 if it was not
            published in this run.
        timed_out: Whether it ended without an answer; then `answer` stays `None`.
        refused: Whether the execution ended while the task was waiting; then its task raises.
        due: When it times out, if it is not answered; infinite without a limit, and until it has begun. An
            equal wait of a later attempt has what is left of the time.
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
    due: float = math.inf

    @property
    def over(self) -> bool:
        """Whether it has been answered or has timed out."""
        return self.answer is not None or self.timed_out

    @property
    def label(self) -> str:
        """Together with its number, distinguishes it from other waits of the execution."""
        return wait_label(self.event_type, self.waiter_id)

    @property
    def id(self) -> str:
        """Identifies it in the run, and in all runs that continue from it."""
        return f"{self.work.id}:{self.number}:{self.label}"

    def as_open(self) -> OpenWait:
        """Describe it for users, who may answer it."""
        return OpenWait(
            id=self.id,
            step=self.work.step,
            event_type=self.event_type,
            question=self.question,
            requirements=dict(self.requirements),
            waiter_id=self.waiter_id,
            since=self.since,
        )

    def continue_from(self, earlier: Wait) -> None:
        """Continue the same wait of an earlier attempt, with its answer if it has one."""
        self.since, self.number = earlier.since, earlier.number
        self.question, self.asked = earlier.question, earlier.asked
        self.question_number = earlier.question_number
        self.answer, self.timed_out = earlier.answer, earlier.timed_out
        self.due = min(self.due, earlier.due)

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
        if self.work.spec.config.accept_event_subclasses:
            return issubclass(event_type, self.event_type)
        return event_type is self.event_type

    def unmet(self, event: Event) -> str | None:
        """Return the name of a requirement that the event does not meet; `None` if it meets all."""
        return _unmet(self.requirements, event)


@attrs.define(eq=False, repr=False)
class StepQueue:
    """The slots of one step, and how much of its work is in which state.

    Its pending work is `queued + running + waiting + delayed`.

    Attributes:
        spec: The step.
        limit: The number of its slots (`num_workers`); fixed.
        queued: Pending work without a slot, granted slots included; not work in a retry delay.
        granted: Slots meant for the oldest queued work, and not yet taken; so often the queue is in
            `StepQueues.first_granted` and `more_granted`. At most `queued`.
        running: Executions that hold a slot: attempts in progress that are not suspended.
            `granted + running` is above `limit` only by those that were cancelled while they waited.
        waiting: Suspended executions, those in `resuming` included.
        delayed: Pending work in a retry delay.
        done: Executions that have ended, those that failed for good or were cancelled included; never falls.
        failed: Executions that failed for good; never falls.
        cancelled: Executions that were cancelled; never falls.
        retried: Failed attempts that another one follows; never falls.
        seconds: How long the attempts that have ended took in all; never falls.
        resuming: The suspended executions that request a slot to continue, in order; not empty only
            while no slot is free. `None` until there is the first one, as most steps never wait.
        last_result_type: The type of what the execution that ended last returned or raised; `None` if
            it was cancelled, or if none has ended.
    """

    spec: StepSpec
    limit: int
    queued: int = 0
    granted: int = 0
    running: int = 0
    waiting: int = 0
    delayed: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    retried: int = 0
    seconds: float = 0.0
    resuming: deque[Work] | None = None
    last_result_type: type | None = None


# --- The queues of the steps ---------------------------------------------------------------------


@attrs.define(eq=False, repr=False)
class StepQueues:
    """The queues and slots of all steps of a run.

    Attributes:
        first_granted: The queue of the slot that was granted first, of those that have not been taken; `None`
            if there is none.
        more_granted: The queues of the others, in the order in which they were granted; together, each queue
            is there as often as its `granted` says. It is empty if there is no first one. A deque takes 0.8 KB,
            and a run that goes step by step needs none.
        by_step: The queues of the steps that have had work or were looked up, by name.
        on_change: Called when work is queued, suspended, resumed or withdrawn; `None` while nothing
            listens. The engine itself reports when an execution starts and ends.
        _delays: A heap by due time. Has all work in a retry delay, and work that was dropped meanwhile
            until it is the first one.
    """

    first_granted: StepQueue | None = None
    more_granted: deque[StepQueue] | tuple[()] = ()
    by_step: dict[str, StepQueue] = attrs.field(factory=dict)
    on_change: Callable[[Work, StepState], None] | None = None
    _delays: list[tuple[float, int, Work]] = attrs.field(factory=list)

    def of(self, spec: StepSpec) -> StepQueue:
        """Return the queue of a step."""
        queue = self.by_step.get(spec.name)
        if queue is None:
            queue = self.by_step[spec.name] = StepQueue(spec, spec.config.num_workers)
        return queue

    def add(self, work: Work) -> None:
        """Queue work, and grant it a slot if one is free."""
        queue = work.queue
        queue.queued += 1
        if queue.granted + queue.running < queue.limit:  # then nothing is ahead of it (rule 3)
            self._add_granted(queue)
        if self.on_change is not None:
            self.on_change(work, QUEUED)

    def is_held(self, work: Work) -> bool:
        """Return whether pending work is not queued yet, and `on_change` has not been told of it."""
        return False

    def withdraw(self, work: Work) -> None:
        """Take back queued or delayed work, which holds no slot."""
        queue = work.queue
        if work.due is not None:
            queue.delayed -= 1  # it stays in the heap until it is the first one there
            return
        queue.queued -= 1
        if self.on_change is not None:
            self.on_change(work, OVER)
        # A slot was meant for it if there are more granted slots than queued work now: pass it on.
        if queue.granted > queue.queued:
            queue.granted -= 1
            if queue is self.first_granted:
                self._forget_first()
            else:
                assert self.more_granted
                self.more_granted.remove(queue)
            self._grant(queue)

    def _grant(self, queue: StepQueue) -> None:
        """Give a free slot to an execution that wants to continue, else to queued work (rule 3)."""
        if queue.granted + queue.running >= queue.limit:
            return
        if queue.resuming:
            self.resume(queue.resuming.popleft())
        elif queue.granted < queue.queued:
            self._add_granted(queue)

    def _add_granted(self, queue: StepQueue) -> None:
        """Grant a slot, behind those that have been granted."""
        queue.granted += 1
        if self.first_granted is None:
            self.first_granted = queue
        elif self.more_granted:
            self.more_granted.append(queue)
        else:
            self.more_granted = deque((queue,))

    def _forget_first(self) -> None:
        """Have the next of the granted slots be the first one."""
        self.first_granted = self.more_granted.popleft() if self.more_granted else None

    def take_slot(self) -> StepQueue:
        """Take the slot granted first; the caller starts the oldest queued work of that step."""
        queue = self.first_granted
        assert queue is not None
        self._forget_first()
        queue.granted -= 1
        queue.queued -= 1
        queue.running += 1
        return queue

    def release_slot(self, queue: StepQueue) -> None:
        """Pass the slot of an execution on."""
        queue.running -= 1
        if queue.queued > queue.granted or queue.resuming:
            self._grant(queue)

    # --- Waiting ------------------------------------------------------------------------------

    def suspend(self, work: Work) -> None:
        """Let an execution that begins to wait give its slot back."""
        work.queue.running -= 1
        work.queue.waiting += 1
        if self.on_change is not None:
            self.on_change(work, WAITING)
        self._grant(work.queue)

    def request_slot(self, work: Work) -> None:
        """Resume a suspended execution once a slot is free, ahead of queued work."""
        if work.queue.resuming is None:
            work.queue.resuming = deque()
        work.queue.resuming.append(work)
        self._grant(work.queue)

    def withdraw_request(self, work: Work) -> None:
        """Forget the request of an execution that continues or waits without a slot, or ends."""
        if work.queue.resuming is not None:
            work.queue.resuming.remove(work)

    def resume(self, work: Work) -> None:
        """Give a suspended execution a slot, and let it continue."""
        self.resume_to_end(work)
        if self.on_change is not None:
            self.on_change(work, RUNNING)

    def resume_to_end(self, work: Work) -> None:
        """Do as `resume()` for an execution that is ending, without reporting that it continues.

        The caller releases its slot next.
        """
        work.queue.waiting -= 1
        work.queue.running += 1
        wake(work)

    # --- Retry delays -------------------------------------------------------------------------

    def delay(self, work: Work, due: float) -> None:
        """Release the slot of a failed attempt, and queue its work again at the time `due`."""
        self.hold(work, due)
        self.release_slot(work.queue)

    def hold(self, work: Work, due: float) -> None:
        """Keep work without a slot, and queue it at the time `due`."""
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
        """Queue the work whose delay is over; returns it, to be delivered to its steps."""
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
        """Return the sorted names of the steps that run, wait, or are in a retry delay."""
        active = (q for q in self.by_step.values() if q.running or q.waiting or q.delayed)
        return sorted(queue.spec.name for queue in active)

    def statistics(self) -> dict[str, StepStatistics]:
        """Return the counts of the steps that have had work."""
        counts = [field.name for field in attrs.fields(StepStatistics)]
        return {
            name: StepStatistics(**{count: getattr(queue, count) for count in counts})
            for name, queue in self.by_step.items()
        }

    def busy(self) -> int:
        """Count the work that is in progress or will be without an event from outside."""
        queues = self.by_step.values()
        return sum(q.queued + q.running + q.delayed + len(q.resuming or ()) for q in queues)


def wake(work: Work) -> None:
    """Wake the tasks of an execution whose waits are over."""
    answered, work.answered = work.answered, ()
    for wait in answered:
        wait.wake()
