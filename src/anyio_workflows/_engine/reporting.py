"""What is told about a run: lines for `verbose=True`, internal events (S4), words for messages."""

from __future__ import annotations

import logging
import reprlib
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import attrs

from .._ledger.ledger import Ledger
from .._ledger.work import StepQueue, Wait, Work
from .._messages import format_seconds, namesakes, short_repr, text_of
from ..events import (
    Event,
    ExecutionOutcome,
    StepState,
    StepStateChanged,
    UnhandledEvent,
    WorkflowIdleEvent,
)
from ..graph import StepSpec
from .stream import EventStream

logger = logging.getLogger(__name__)
verbose_logger = logging.getLogger("anyio_workflows.verbose")


@attrs.define(eq=False, repr=False)
class Reporter:
    """Reports what happens in one run: in words, and in internal events.

    Attributes:
        run: The run, to be named in logs.
        stream: Where the internal events go.
        ledger: The ledger of the run.
        verbose: Whether to report in words.
        is_active: Whether anything listens. The caller looks at it before it reports on a step: a run
            to which nothing listens pays one attribute.
        on_change: Called when something has happened that a snapshot would show.
    """

    run: object
    stream: EventStream
    ledger: Ledger
    verbose: bool
    is_active: bool = attrs.field(init=False)
    on_change: Callable[[], None] | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self.is_active = self.verbose

    def listen(self) -> None:
        """Report in internal events from now on, beginning with the states of this moment (S4, I3)."""
        if self.stream.internal_wanted:
            return
        self.is_active = self.stream.internal_wanted = True
        self.ledger.queues.on_change = self._state
        for work, state in self._in_progress():
            self._state(work, state)

    def watch(self, on_change: Callable[[], None]) -> None:
        """Call a function whenever something has happened that a snapshot would show."""
        self.is_active, self.on_change = True, on_change
        self.ledger.queues.on_change = self._state

    def changed(self) -> None:
        """Report that something has happened."""
        if self.on_change is not None:
            self.on_change()

    def end_states(self) -> None:
        """Report that what is still in progress ends with the run."""
        if self.stream.internal_wanted:
            for work, _ in self._in_progress():
                self._state(work, StepState.NOT_RUNNING)
            # A step that outlasted the cleanup may still end, and the terminal event is the last one.
            self.stream.internal_wanted = False
        self.ledger.queues.on_change = None

    def _in_progress(self) -> Iterator[tuple[Work, StepState]]:
        """Yield the work that is queued or being executed, with its state."""
        for work in self.ledger.pending.values():
            if work.started is not None:
                yield work, StepState.WAITING if work.suspended else StepState.RUNNING
            elif work.due is None:
                yield work, StepState.PREPARING

    def step_started(self, work: Work) -> None:
        """Report that an execution begins."""
        again = f", attempt {work.attempt}" if work.attempt > 1 else ""
        self.log("Running step %s%s", work.step, again)
        self._state(work, StepState.RUNNING)

    def step_ended(self, work: Work, outcome: ExecutionOutcome, result: Any) -> None:
        """Report that an execution is over.

        Args:
            work: What was executed.
            outcome: How it ended.
            result: What it returned or raised; `None` if it was cancelled.
        """
        result_type = None if outcome == "cancelled" else type(result)
        self.log("Step %s %s", work.step, describe_result(result_type, work.queue.spec))
        self._state(work, StepState.NOT_RUNNING, outcome, result)

    def step_retried(self, work: Work, error: Exception, delay: float) -> None:
        """Report that an attempt failed and another follows."""
        self.log(
            "Step %s %s; attempt %d in %s",
            work.step,
            describe_result(type(error), work.queue.spec),
            work.attempt + 1,
            format_seconds(delay),
        )
        self._state(work, StepState.NOT_RUNNING, "retrying", error)

    def step_recovered(self, work: Work, error: Exception, error_handler: str) -> None:
        """Report that a step failed for good, and which error handler takes over."""
        name = work.step
        logger.info(
            "%s: step %s failed; %s takes over", self.run, name, error_handler, exc_info=error
        )
        self.log("Step %s takes over from %s", error_handler, name)

    def step_waiting(self, wait: Wait) -> None:
        """Report that an execution waits for an event."""
        self.log("Step %s waits for %s", wait.work.step, wait.event_type.__name__)

    def unhandled(self, event: Event, *, idle: bool) -> None:
        """Report that no step takes an event (R3)."""
        cls = type(event)
        remark = namesakes([cls], self.ledger.wanted()) or "it is dropped"
        waits = (one for one in self.ledger.waits.open if isinstance(event, one.event_type))
        if wait := next(waits, None):  # what would fit it has been its answer
            wanted = short_repr(dict(wait.requirements))
            remark = f"step {wait.work.step} waits for one with {wanted}; {remark}"
        logger.warning("%s: no step accepts %s; %s", self.run, cls.__name__, remark)
        if self.stream.internal_wanted:
            name = f"{cls.__module__}.{cls.__qualname__}"
            self.stream.write(
                UnhandledEvent(event_type=cls.__name__, qualified_name=name, idle=idle)
            )

    def idle(self) -> None:
        """Report that the run waits for an event from outside."""
        if self.stream.internal_wanted:
            self.stream.write(WorkflowIdleEvent())

    def log(self, message: str, *args: object) -> None:
        """Report something in words, if that was asked for."""
        if not self.verbose:
            return
        if verbose_logger.isEnabledFor(logging.INFO):
            verbose_logger.info(message, *args)
        else:
            with suppress(OSError, ValueError):  # a closed standard output ends no run
                print(message % args)

    def _state(
        self,
        work: Work,
        state: StepState,
        outcome: ExecutionOutcome = "cancelled",
        result: Any = None,
    ) -> None:
        self.changed()
        if self.stream.internal_wanted:
            over = state is StepState.NOT_RUNNING
            self.stream.write(
                StepStateChanged(
                    name=work.step,
                    step_state=state,
                    worker_id=str(work.id),
                    input_event_name=work.event_name,
                    output_event_name=_name_of(result),
                    attempt=work.attempt,
                    outcome=outcome if over else None,
                    error=_error(result) if isinstance(result, BaseException) else None,
                )
            )


def _name_of(result: object) -> str | None:
    """Name what a step returned; `None` if it was no event, and no list of them."""
    if isinstance(result, list):
        names = dict.fromkeys(type(event).__name__ for event in result)
        return f"list[{' | '.join(names)}]" if result else "[]"
    return type(result).__name__ if isinstance(result, Event) else None


def _error(error: BaseException) -> str:
    """Return the last line of the traceback of an exception."""
    text = text_of(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# --- In words, for messages and logs ---------------------------------------------------------------

_brief = reprlib.Repr()
_brief.maxother = 120


def describe_result(result_type: type | None, spec: StepSpec) -> str:
    """Describe the end of an execution, from the type of what it returned or raised."""
    if result_type is None:
        return "was cancelled"
    if issubclass(result_type, BaseException):
        return f"failed with {result_type.__name__}"
    if result_type is types.NoneType:
        if spec.returns_none:
            return "returned None"
        return f"returned None, though it declares {spec.declared}"
    return (
        "returned a list of events" if result_type is list else f"returned {result_type.__name__}"
    )


def describe_failure(work: Work, elapsed: float) -> str:
    """Describe which step failed on what; a note of its exception."""
    return (
        f"step {work.step} failed on {_brief.repr(work.payload)}, in attempt "
        f"{work.attempt}, {format_seconds(elapsed)} after its first start"
    )


def describe_last_results(ledger: Ledger) -> dict[str, str]:
    """Describe the last result of each step."""
    queues = {name: ledger.queues.by_step.get(name) for name in ledger.graph.steps}
    return {
        name: describe_result(queue.last_result_type, queue.spec)
        if queue is not None and queue.done
        else "has not run"
        for name, queue in queues.items()
    }


def describe_activities(ledger: Ledger, now: float) -> Mapping[str, str]:
    """Describe what each step with pending work is doing."""
    pending: dict[str, list[Work]] = {}
    for work in ledger.pending.values():
        pending.setdefault(work.step, []).append(work)
    return {
        name: ", ".join(_describe_activities(work[0].queue, work, now))
        for name, work in sorted(pending.items())
    }


def count_executions(ledger: Ledger) -> dict[str, int]:
    """Count the executions of each step that have ended, those that are to be retried included."""
    return {
        name: number
        for name, queue in sorted(ledger.queues.by_step.items())
        if (number := queue.done + queue.retried)
    }


def busy_steps(ledger: Ledger) -> list[str]:
    """Return the sorted names of the steps that are being executed in the event loop."""
    return sorted(
        {
            work.step
            for work in ledger.pending.values()
            if work.started is not None and not work.suspended and work.queue.spec.is_async
        }
    )


def _describe_activities(queue: StepQueue, pending: list[Work], now: float) -> Iterator[str]:
    running = [
        now - work.started for work in pending if work.started is not None and not work.suspended
    ]
    if running:
        yield f"running for {format_seconds(max(running))}{_times(len(running))}"
    waits = [wait for work in pending for wait in work.waits]
    if waits:
        wanted = ", ".join(dict.fromkeys(wait.event_type.__name__ for wait in waits))
        yield f"waiting for {wanted}{_times(len(waits))}"
    if queue.resuming:
        yield f"waiting for a slot to continue{_times(len(queue.resuming))}"
    delayed = [work for work in pending if work.due is not None]
    if delayed:
        first = min(delayed, key=lambda work: work.due or 0)
        assert first.due is not None
        when = f"in {format_seconds(first.due - now)}" if first.due > now else "now"
        yield f"in a retry delay{_times(len(delayed))}, attempt {first.attempt} is due {when}"
    if queue.queued:
        yield f"{queue.queued} queued"


def _times(number: int) -> str:
    return "" if number == 1 else f" ({number} times)"
