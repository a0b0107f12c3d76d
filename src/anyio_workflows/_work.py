"""The records of the ledger: what is owed, what is waited for, and how much of it is where."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from ._fanin import Branch
from ._signatures import StepSpec
from .events import Event

__all__ = ["Post", "StepStatistics", "Wait", "Work", "in_words"]


@attrs.frozen
class StepStatistics:
    """Counts of the work of one step in one run.

    Attributes:
        queued: Events that wait for a worker.
        running: Executions in progress.
        waiting: Executions that wait for an event, or for a worker to go on.
        done: Executions that ended, failed ones included.
    """

    queued: int = 0
    running: int = 0
    waiting: int = 0
    done: int = 0


@attrs.define(eq=False, repr=False)
class Work:
    """What is owed to one step: an event, the events of a batch, or a set of events.

    Attributes:
        id: Number of this work in its run; rises in the order of arrival.
        post: The step's entry in the ledger.
        payload: The event that starts the step, or the list or tuple of them.
        branch: The branch of a batch that it belongs to.
        attempt: The attempt that comes next or is in progress, from 1.
        waits: The events that the execution waits for.
        answered: The waits that are over, while the execution wants its place back.
        started: Whether an execution has begun.
        dropped: Whether it was taken back, with its branch.
        stop: Cancels the execution, while there is one that can be cancelled on its own.
    """

    id: int
    post: Post
    payload: Any
    branch: Branch | None = None
    attempt: int = 1
    waits: tuple[Wait, ...] = ()
    answered: tuple[Wait, ...] = ()
    started: bool = False
    dropped: bool = False
    stop: Callable[[], None] | None = None

    @property
    def suspended(self) -> bool:
        """Whether the execution waits, for an event or for its place, and so holds no place."""
        return bool(self.waits or self.answered)

    @property
    def event_name(self) -> str:
        """The name of the event type that starts the step, for people."""
        if isinstance(self.payload, Event):
            return type(self.payload).__name__
        return ", ".join(dict.fromkeys(type(event).__name__ for event in self.payload)) or "[]"


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
        refused: Whether the execution ended while a task of it was still waiting.
    """

    work: Work
    event_type: type[Event]
    requirements: Mapping[str, Any]
    waiter_id: str | None
    wake: Callable[[], None] = attrs.field(default=lambda: None)
    answer: Event | None = None
    refused: bool = False

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
    done: int = 0
    waiting: int = 0
    returning: deque[Work] = attrs.field(factory=deque)
    """The executions that want their place back."""
    last: type | None = None
    """The type of what its last execution returned or raised; `None` if it was cancelled."""


def in_words(came: type | None) -> str:
    """Say what an execution did, from the type of what it returned or raised."""
    if came is None:
        return "was cancelled"
    if issubclass(came, BaseException):
        return f"failed with {came.__name__}"
    if came is types.NoneType:
        return "returned None"
    return "returned a list of events" if came is list else f"returned {came.__name__}"
