"""How a run can end: the terminal event, the error, and the words for it (T2)."""

from __future__ import annotations

from types import TracebackType
from typing import Literal

import attrs

from ..errors import WorkflowCancelledByUser, WorkflowStalledError, WorkflowTimeoutError
from ..events import StopEvent, WorkflowCancelledEvent, WorkflowFailedEvent, WorkflowTimedOutEvent


@attrs.frozen(eq=False)
class Outcome:
    """How a run ends.

    Attributes:
        event: The terminal event.
        error: What `await handler` raises; `None` if the run succeeded.
        summary: The end of the sentence "the run has ended, ...".
        traceback: Where the error came from; it is raised with this one each time (T5).
        leaves: Whether what is owed stays owed to a run that goes on from here (`"work"`), or can be
            owed again with `ctx.retry_failed()` (`"failed work"`); else `None` (P3).
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
        """Nothing can happen any more; `last_step` is the step that ended last."""
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

        Where Ctrl-C or `sys.exit()` struck there, its work is left, as after a cancellation.
        """
        event = WorkflowFailedEvent(
            step_name=step, exception=error, attempts=attempts, elapsed_seconds=elapsed
        )
        summary = f"step {step} failed with {type(error).__name__}"
        if _ends_the_program(error):
            return cls(event, error, summary, error.__traceback__, "work")
        return cls(event, error, summary, error.__traceback__, "failed work", work)


def _ends_the_program(error: BaseException) -> bool:
    interrupts = (KeyboardInterrupt, SystemExit)
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(interrupts) is not None
    return isinstance(error, interrupts)
