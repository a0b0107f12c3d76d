"""The records of the ledger: what is owed, what is waited for, and how much of it is where."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Protocol

import attrs

from ._fanin import NO_RECOVERIES, Branch, Recoveries
from ._specs import StepSpec
from .events import Event

__all__ = ["Collected", "History", "Post", "StepStatistics", "Wait", "Work"]


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


class Clock(Protocol):
    """The clock of an attempt that is bounded by a timeout."""

    def suspended(self) -> AbstractContextManager[None]:
        """Stop it, while the step waits for an event."""
        ...


@attrs.define(eq=False, repr=False)
class Work:
    """What is owed to one step: an event, the events of a batch, or a set of events.

    Attributes:
        id: Number of this work in its run; rises in the order of arrival.
        post: The step's entry in the ledger.
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
        stop: Cancels the execution, while there is one that can be cancelled on its own.
        clock: Bounds the attempt in progress, if it has a timeout.
    """

    id: int
    post: Post
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
    stop: Callable[[], None] | None = None
    clock: Clock | None = None

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
    """

    first_started: float | None = None
    last_error: Exception | None = None
    last_failed_at: datetime | None = None
    waits: list[Wait] = attrs.field(factory=list)
    collected: list[Collected] = attrs.field(factory=list)
    earlier_waits: list[Wait] = attrs.field(factory=list)
    earlier_collected: list[Collected] = attrs.field(factory=list)

    def start_over(self) -> None:
        """Begin another attempt. What timed out is waited for anew."""
        waits = self.waits + self.earlier_waits
        self.earlier_waits = [wait for wait in waits if not wait.timed_out]
        self.earlier_collected = self.collected + self.earlier_collected
        self.waits, self.collected = [], []

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


@attrs.define(eq=False, repr=False)
class Wait:
    """An execution's wait for one event.

    Attributes:
        work: The work that is being executed.
        event_type: The type waited for.
        requirements: Attributes that the event must have, with their values.
        waiter_id: The name that the step gave to the wait.
        wake: Called when the execution may go on.
        answer: The event, once it has come.
        asked: Whether the question has been written to the stream.
        timed_out: Whether the step was told that no event came.
        refused: Whether the execution ended while a task of it was still waiting.
    """

    work: Work
    event_type: type[Event]
    requirements: Mapping[str, Any]
    waiter_id: str | None
    wake: Callable[[], None] = attrs.field(default=lambda: None)
    answer: Event | None = None
    asked: bool = False
    timed_out: bool = False
    refused: bool = False

    @property
    def over(self) -> bool:
        """Whether it has its answer, or the step was told that there is none."""
        return self.answer is not None or self.timed_out

    def equals(self, other: Wait) -> bool:
        """Return whether two waits of an execution ask for the same thing (W4)."""
        if self.waiter_id is not None or other.waiter_id is not None:
            return self.waiter_id == other.waiter_id
        return (self.event_type, self.requirements) == (other.event_type, other.requirements)

    def matches(self, event: Event) -> bool:
        """Return whether the event is the one waited for (W2)."""
        spec = self.work.post.spec
        if spec.config.accept_event_subclasses:
            fits = isinstance(event, self.event_type)
        else:
            fits = type(event) is self.event_type
        try:
            return fits and all(
                hasattr(event, name) and getattr(event, name) == value
                for name, value in self.requirements.items()
            )
        except Exception:  # values that cannot be compared are not equal
            return False


@attrs.define(eq=False, repr=False)
class Post:
    """One step's entry in the ledger: how much of its work is where."""

    spec: StepSpec
    limit: int
    queued: int = 0
    calls: int = 0
    running: int = 0
    waiting: int = 0
    delayed: int = 0
    done: int = 0
    failed: int = 0
    retried: int = 0
    returning: deque[Work] | None = None
    """The executions that want their place back; made when the first one does."""
    last: type | None = None
    """The type of what its last execution returned or raised; `None` if it was cancelled."""
