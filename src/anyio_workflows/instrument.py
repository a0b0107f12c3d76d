"""Instruments: objects that are told what happens in runs (I1, I2)."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple

import attrs

from ._ledger.work import OpenWait
from ._messages import describe_type, format_seconds, short_repr
from .errors import WorkflowConfigurationError
from .events import Event, ExecutionOutcome, StepFailedEvent, StopEvent

__all__ = [
    "EventRecord",
    "ExecutionRecord",
    "ExecutionResult",
    "Instrument",
    "LoggingInstrument",
    "RunOutcome",
    "RunRecord",
    "RunResult",
    "SentRecord",
    "WaitResult",
]

RunOutcome = Literal["completed", "failed", "timed_out", "cancelled"]
"""How a run ended: with a stop event of its steps, or as `WorkflowFailedEvent` and so on say (T2)."""

_verbose_logger = logging.getLogger("anyio_workflows.verbose")


# --- What an instrument is told about --------------------------------------------------------------
#
# All times are those of `anyio.current_time()` in the event loop of the run, in seconds. The records of
# executions and events are named tuples, since they are made several times a step: in 0.25 us each, half
# of what a frozen attrs class takes. Records of runs and executions are equal only if they are the same
# object: an instrument may keep what it knows about an execution in a dict by its record.


@attrs.frozen(eq=False)
class RunRecord:
    """A run; the same object in all calls about it.

    Attributes:
        run_id: Identifies it in logs, as `handler.run_id` does.
        workflow: Name of the workflow.
        start_event: The event it was started with; `None` if it continues from a context.
        started: When `run()` was called.
        parent_run_id: The run whose step started it, if it is a child run (O5).
        parent_execution: The id of that execution in the parent run.
    """

    run_id: str
    workflow: str
    start_event: Event | None
    started: float
    parent_run_id: str | None = None
    parent_execution: int | None = None


@attrs.frozen(eq=False)
class RunResult:
    """The end of a run.

    Attributes:
        outcome: How it ended.
        event: The terminal event.
        error: What `await handler` raises; `None` exactly if the outcome is `"completed"`.
        summary: How it ended, in words: the end of the sentence "the run has ended: ...".
        time: When the terminal event was written.
    """

    outcome: RunOutcome
    event: StopEvent
    error: BaseException | None
    summary: str
    time: float


class ExecutionRecord(NamedTuple):
    """One attempt to execute a step; the same object in all calls about it.

    Attributes:
        run: The run.
        id: Identifies the execution in its run, and in runs that continue from it; the same for all
            attempts.
        attempt: Number of the attempt, from 1.
        step: Name of the step.
        event: The event that starts it; for a join the list of events, for a step with several event
            parameters a tuple with one event for each.
        sources: The ids of the executions that returned or sent these events, without duplicates, in
            order of arrival. Empty for events from outside the run, or from before a restore.
        queued: When it was queued. For what was pending already when the instrument joined the run,
            that time.
    """

    run: RunRecord
    id: int
    attempt: int
    step: str
    event: Event | Sequence[Event]
    sources: tuple[int, ...]
    queued: float

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    def __hash__(self) -> int:
        return id(self)  # events are not hashable

    @property
    def event_name(self) -> str:
        """The names of the classes of the events, separated by commas; `[]` for an empty list."""
        if isinstance(self.event, Event):
            return type(self.event).__name__
        return ", ".join(dict.fromkeys(type(event).__name__ for event in self.event)) or "[]"


class ExecutionResult(NamedTuple):
    """The end of an attempt.

    Attributes:
        outcome: How it ended: `"returned"`; `"failed"`, for good; `"retrying"`, when another attempt
            follows unless the run ends first; `"recovered"`, when a `@catch_error` step takes over; or
            `"cancelled"`, with its run or batch.
        returned: What the step returned: an event, a list of events, or `None`.
        error: What it raised, if it failed.
        started: When it began; `None` if it was cancelled while it was queued.
        time: When it ended.
        retry_at: When the next attempt is to be queued, if the outcome is `"retrying"`.
    """

    outcome: ExecutionOutcome
    returned: Event | list[Event] | None
    error: BaseException | None
    started: float | None
    time: float
    retry_at: float | None = None


class EventRecord(NamedTuple):
    """An event of the public stream.

    Attributes:
        seq: Its number in the run: 1, 2, 3, and so on. Internal events have none.
        time: When it was written.
        event: The event.
    """

    seq: int
    time: float
    event: Event


@attrs.frozen(eq=False)
class SentRecord:
    """An event that was sent to a run with `send_event()`.

    Attributes:
        event: The event.
        step: The step that it was sent to; `None` if it was sent to all that accept it.
        wait: The id of the wait that it was to answer, if it was sent to one.
        taken_by: The names of the steps that took it (R3).
        sender: The id of the execution that sent it; `None` if it came from outside the run.
        time: When it was sent.
    """

    event: Event
    step: str | None
    wait: str | None
    taken_by: tuple[str, ...]
    sender: int | None
    time: float


@attrs.frozen(eq=False)
class WaitResult:
    """The end of a wait.

    Attributes:
        outcome: `"answered"`, `"timed_out"`, or `"cancelled"` if the attempt ended or gave up waiting.
        answer: The event that answered it.
        time: When it ended.
        source: The id of the execution that returned or sent the answer; `None` if it came from outside.
    """

    outcome: Literal["answered", "timed_out", "cancelled"]
    answer: Event | None
    time: float
    source: int | None = None


# --- The port ----------------------------------------------------------------------------------------


class Instrument:
    """Base class of instruments, for `Workflow(instruments=[...])` and `run(instruments=[...])`.

    Override what you want to be told about; a method that is not overridden costs nothing. An instrument of
    a workflow is told about all runs of the instance, and may belong to any number of workflows.

    All methods are called in the event loop, in the order in which things happen. They are plain functions,
    and should be quick: the run waits for them. They cannot change the run: sending, writing, cancelling and
    snapshots are refused in them, and left to tasks. One that raises is logged, and its instrument is taken
    off. A class with an `async def` in the place of one, or a generator, is refused.

    For each run, `run_started` comes first and `run_ended` last. `execution_queued` is followed by
    `execution_ended`, once, with `execution_started` in between unless the work was cancelled before it
    began. A wait that has started ends once, before its execution.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in vars(Instrument):
            method = None if name.startswith("_") else getattr(cls, name)
            if inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method):
                fault = "is async, and nothing would await it"
            elif inspect.isgeneratorfunction(method):
                fault = "is a generator, and nothing would iterate over it"
            else:
                continue
            raise WorkflowConfigurationError(
                f"{cls.__name__}.{name}() {fault}; write a plain 'def', "
                "and put what has to be awaited into a queue"
            )

    def run_started(self, run: RunRecord, /) -> None:
        """A run was started. Called inside `Workflow.run()`, with the caller's context variables."""

    def run_ended(self, run: RunRecord, result: RunResult, /) -> None:
        """A run has ended. Called before `await handler` returns or raises."""

    def event_written(self, run: RunRecord, record: EventRecord, /) -> None:
        """An event was written to the public stream; the terminal event is the last one."""

    def event_sent(self, run: RunRecord, sent: SentRecord, /) -> None:
        """An event was sent with `send_event()`. The executions that it starts are queued before that."""

    def event_unhandled(self, run: RunRecord, event: Event, idle: bool, time: float, /) -> None:
        """No step takes an event that was returned or sent (R3).

        `idle` says that nothing else is in progress.
        """

    def execution_queued(self, execution: ExecutionRecord, /) -> None:
        """An attempt is queued. Called in the task that returned or sent the event."""

    def execution_started(self, execution: ExecutionRecord, time: float, /) -> None:
        """An attempt begins. Called in the task that executes the step, with its context variables."""

    def execution_suspended(self, execution: ExecutionRecord, time: float, /) -> None:
        """An attempt waits for an event, and has given its worker back."""

    def execution_resumed(self, execution: ExecutionRecord, time: float, /) -> None:
        """An attempt that was suspended has a worker again."""

    def execution_ended(self, execution: ExecutionRecord, result: ExecutionResult, /) -> None:
        """An attempt is over. Called before what it returned is queued.

        Called in the task that executed the step, except for attempts that the run gave up.
        """

    def wait_started(self, execution: ExecutionRecord, wait: OpenWait, time: float, /) -> None:
        """An attempt begins to wait for an event. A repeated attempt tells its waits anew."""

    def wait_ended(self, execution: ExecutionRecord, wait: OpenWait, result: WaitResult, /) -> None:
        """A wait is over."""

    def idle(self, run: RunRecord, time: float, /) -> None:
        """Nothing is in progress, and the run waits for an event from outside (T9)."""


class LoggingInstrument(Instrument):
    """Logs a line for each step that runs, waits or ends, and for the end of the run.

    `Workflow(verbose=True)` has one. The lines contain no data: neither events nor messages of exceptions.

    Args:
        logger: Where to log, at level INFO. By default to `anyio_workflows.verbose` if that is enabled
            for INFO; otherwise the lines are printed.

    Raises:
        WorkflowConfigurationError: If `logger` is none.
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        if not isinstance(logger, logging.Logger | logging.LoggerAdapter | None):
            example = logger if isinstance(logger, str) else "my_program"
            raise WorkflowConfigurationError(
                f"LoggingInstrument() takes a logger, not {short_repr(logger)}; give it "
                f"logging.getLogger({short_repr(example)})"
            )
        self._logger = logger

    def run_ended(self, run: RunRecord, result: RunResult) -> None:
        """Log how the run ended."""
        self._say("Run ended: %s", result.summary)

    def execution_queued(self, execution: ExecutionRecord) -> None:
        """Log that an error handler takes over."""
        if isinstance(execution.event, StepFailedEvent):
            self._say("Step %s takes over from %s", execution.step, execution.event.step_name)

    def execution_started(self, execution: ExecutionRecord, time: float) -> None:
        """Log that a step runs."""
        again = f", attempt {execution.attempt}" if execution.attempt > 1 else ""
        self._say("Running step %s%s", execution.step, again)

    def execution_ended(self, execution: ExecutionRecord, result: ExecutionResult) -> None:
        """Log what a step did."""
        again = ""
        if result.retry_at is not None:
            delay = format_seconds(result.retry_at - result.time)
            again = f"; attempt {execution.attempt + 1} in {delay}"
        how = result.returned if result.error is None else result.error
        end = None if result.outcome == "cancelled" else type(how)
        self._say("Step %s %s%s", execution.step, describe_type(end), again)

    def wait_started(self, execution: ExecutionRecord, wait: OpenWait, time: float) -> None:
        """Log that a step waits."""
        self._say("Step %s waits for %s", execution.step, wait.event_type.__name__)

    def _say(self, message: str, *args: object) -> None:
        logger = self._logger or _verbose_logger
        if self._logger is not None or logger.isEnabledFor(logging.INFO):
            logger.info(message, *args)
        else:
            with suppress(OSError, ValueError):  # a closed standard output
                print(message % args)
