"""How a run can end (T2), and the decision how it does (T4)."""

from __future__ import annotations

import logging
import math
from types import TracebackType
from typing import Any, Literal

import anyio
import attrs
from anyio.abc import TaskGroup

from .._backend import Signal
from .._ledger.pending import RunPort
from .._messages import add_note, held_by, text_of
from ..errors import (
    _NOTICEABLE,
    WorkflowCancelledByUser,
    WorkflowStalledError,
    WorkflowTimeoutError,
)
from ..events import (
    Event,
    StopEvent,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowTimedOutEvent,
)
from ..instrument import RunOutcome
from .blocking import holds_of
from .describing import busy_steps, count_executions, describe_activities
from .faults import group_broken

logger = logging.getLogger(__name__)


_KINDS: dict[type[Event], RunOutcome] = {
    WorkflowCancelledEvent: "cancelled",
    WorkflowTimedOutEvent: "timed_out",
    WorkflowFailedEvent: "failed",
}


@attrs.frozen(eq=False)
class Outcome:
    """How a run ends.

    Attributes:
        event: The terminal event.
        error: What `await handler` raises; `None` exactly if the run succeeded.
        summary: The end of the sentence "the run has ended, ...".
        traceback: Where the error came from; it is raised with this one each time (T5).
        leaves: What the next run can continue with (P3): the pending work (`"work"`), or that as
            `ctx.retry_failed()` makes it pending again (`"failed work"`); else `None`.
        failed_work: The number of the work whose execution failed.
        interrupted: The steps that were active when the event loop ended, if that ended the run.
    """

    event: StopEvent
    error: BaseException | None
    summary: str
    traceback: TracebackType | None = None
    leaves: Literal["work", "failed work"] | None = None
    failed_work: int | None = None
    interrupted: list[str] | None = None

    @property
    def is_cancellation(self) -> bool:
        """Whether the run was cancelled, or a run that its step started."""
        return isinstance(self.error, WorkflowCancelledByUser)

    @property
    def kind(self) -> RunOutcome:
        """How it ended, in a word."""
        if self.error is None:
            return "completed"
        return _KINDS[type(self.event)]

    @property
    def value(self) -> Any:
        """What `await handler` returns, if it does."""
        return self.event.result if type(self.event) is StopEvent else self.event

    def raise_failure(self) -> None:
        """Raise what `await handler` raises, with the same traceback each time (T5)."""
        if self.error is not None:
            try:
                raise self.error.with_traceback(self.traceback)
            finally:
                del self  # the traceback refers to this frame

    @classmethod
    def stopped(cls, event: StopEvent) -> Outcome:
        """A step returned or sent a stop event."""
        return cls(event, None, f"it returned {type(event).__name__}")

    @classmethod
    def cancelled(cls, reason: str) -> Outcome:
        """The run was cancelled."""
        error = WorkflowCancelledByUser(reason)
        summary = f"it was cancelled, {reason}"
        event = WorkflowCancelledEvent()
        return cls(event, error, summary, leaves="work")

    @classmethod
    def loop_ended(cls, active_steps: list[str]) -> Outcome:
        """The run was cancelled with its event loop."""
        return attrs.evolve(cls.cancelled("its event loop ended"), interrupted=active_steps)

    @classmethod
    def timed_out(cls, error: WorkflowTimeoutError) -> Outcome:
        """The deadline passed."""
        event = WorkflowTimedOutEvent(timeout=error.timeout, active_steps=error.active_steps)
        return cls(event, error, f"it timed out after {error.timeout:g} s", leaves="work")

    @classmethod
    def stalled(cls, last_step: str | None, error: WorkflowStalledError) -> Outcome:
        """The run has stalled; `last_step` is the step that ended last."""
        event = WorkflowFailedEvent(step_name=last_step or "?", exception=error)
        return cls(event, error, "nothing could happen any more")

    @classmethod
    def not_closed(cls, resource: str, error: BaseException) -> Outcome:
        """All went well, but a resource failed to close (P5)."""
        event = WorkflowFailedEvent(step_name=resource, exception=error)
        summary = f"resource {resource} failed with {type(error).__name__}"
        return cls(event, error, summary, error.__traceback__)

    @classmethod
    def failed(
        cls,
        step: str,
        error: BaseException,
        attempts: int | None = None,
        elapsed: float | None = None,
        work: int | None = None,
    ) -> Outcome:
        """A step failed for good; `work` is the number of its work, unless that is over.

        After Ctrl-C or `sys.exit()` in the step, its work is left as after a cancellation.
        """
        event = WorkflowFailedEvent(
            step_name=step, exception=error, attempts=attempts, elapsed_seconds=elapsed
        )
        summary = f"step {step} failed with {type(error).__name__}"
        if _ends_the_program(error):
            return cls(event, error, summary, error.__traceback__, "work")
        return cls(event, error, summary, error.__traceback__, "failed work", work)


@attrs.define(eq=False, repr=False)
class Decision:
    """The decision how one run ends: made once, synchronously; the first cause wins (T4).

    The deadline counts from the moment it passed, not from when it was noticed.

    Attributes:
        run: The run.
        timeout: Seconds that the run may take; `None` for no limit.
        outcome: How the run ends, once that is decided.
        deadline: When the run times out, on the loop's clock; infinite before its task group is open.
        later_failures: What failed after the decision, in words.
        waiting_scope: The scope in which the host waits for a slot (R7); left by the decision.
    """

    run: RunPort
    timeout: float | None
    outcome: Outcome | None = None
    deadline: float = math.inf
    later_failures: list[str] = attrs.field(factory=list)
    waiting_scope: anyio.CancelScope | None = None
    _group: TaskGroup | None = None
    _host_wakeup: Signal | None = None

    _cancelled_at: float | None = None
    """When the run was cancelled, if it was."""

    @property
    def clock_started(self) -> bool:
        """Whether the run has begun: the deadline counts."""
        return self._group is not None

    def start_clock(self, group: TaskGroup) -> None:
        """Note that the task group is open; from now on the deadline counts."""
        self._group = group
        if self.timeout is not None:
            self.deadline = self.run.loop.current_time() + self.timeout
            group.cancel_scope.deadline = self.deadline

    def decide(self, outcome: Outcome) -> None:
        """Settle the outcome, unless there is an earlier cause; what comes later is logged."""
        if self.outcome is None:
            self._settle(self._earlier_cause() or outcome)
        if self.outcome is not outcome and not outcome.is_cancellation:
            level = logging.WARNING if outcome.error else logging.INFO
            text = "%s: ignored, because the outcome was already decided: %s"
            logger.log(level, text, self.run, outcome.summary, exc_info=outcome.error)
            if outcome.error is not None:
                self.later_failures.append(f"{outcome.summary}: {text_of(outcome.error)}")

    def decide_cancellation(self) -> None:
        """Settle the outcome, if that is open, of a run that is being cancelled or out of time."""
        if self.outcome is not None:
            return
        step = self.run.ledger.last_finished or "?"
        self._settle(self._earlier_cause() or Outcome.failed(step, group_broken(step)))

    def check_cancellation(self) -> None:
        """Settle the outcome if the run is being cancelled and the host has not noticed yet."""
        if self.outcome is None and self.is_being_cancelled():
            self.decide_cancellation()

    def is_being_cancelled(self) -> bool:
        """Return whether a cancellation in one of the run's tasks comes from outside the step."""
        return self._group_cancelled() or self.run.loop.host_cancelled()

    def decide_loop_ended(self) -> None:
        """Settle the outcome of a run whose host has been thrown away with its loop."""
        if self.outcome is None:
            self.decide(self._loop_ended())

    def note_delay(self, bound: float) -> None:
        """Note in the error of a cancellation which steps held the event loop, before it or until now.

        It came late then. Only those are named that held the loop for `bound` seconds (I4).
        """
        if self._cancelled_at is None or self.outcome is None or self.outcome.error is None:
            return
        loop = self.run.loop
        # What is requested while a step holds the loop arrives just after it.
        since = self._cancelled_at - _NOTICEABLE
        held = holds_of(loop).seen(since, loop.current_time(), self.run)
        if long := {step: seconds for step, seconds in held.items() if seconds >= bound}:
            add_note(self.outcome.error, f"it may have come late: {held_by(long)}")

    def wake_host(self) -> None:
        """Have the host look whether the outcome is decided, and all pending work has a worker."""
        if self._host_wakeup is not None:
            self._host_wakeup.set()

    async def wait_for_news(self) -> None:
        """Let the host wait until it is woken; a cancellation there decides the outcome."""
        self._host_wakeup = self.run.loop.new_signal()
        try:
            await self._host_wakeup.wait()
        except anyio.get_cancelled_exc_class():
            self.decide_cancellation()

    def _settle(self, outcome: Outcome) -> None:
        if outcome.leaves is not None:
            self.run.saved.keep(outcome.leaves, outcome.failed_work)
        if isinstance(outcome.event, WorkflowCancelledEvent):
            self._cancelled_at = self.run.loop.current_time()
        self.outcome = outcome
        if self.waiting_scope is not None:
            self.waiting_scope.cancel()
        self.wake_host()

    def _earlier_cause(self) -> Outcome | None:
        """Return the outcome that has not been noticed yet, if there is one."""
        loop, ledger = self.run.loop, self.run.ledger
        if (now := loop.current_time()) >= self.deadline:
            assert self.timeout is not None
            error = WorkflowTimeoutError(
                self.timeout,
                ledger.queues.active_steps(),
                describe_activities(ledger, self.deadline),
                count_executions(ledger),
                now - self.deadline,
                busy_steps(ledger),
                holds_of(loop).reasons(self.deadline, now, self.run),
            )
            return Outcome.timed_out(error)
        if loop.host_cancelled() and not self._group_cancelled():
            return self._loop_ended()
        return None

    def _loop_ended(self) -> Outcome:
        return Outcome.loop_ended(self.run.ledger.queues.active_steps())

    def _group_cancelled(self) -> bool:
        return self._group is not None and self._group.cancel_scope.cancel_called


def _ends_the_program(error: BaseException) -> bool:
    interrupts = (KeyboardInterrupt, SystemExit)
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(interrupts) is not None
    return isinstance(error, interrupts)
