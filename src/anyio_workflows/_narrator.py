"""Telling what a run does: lines for `verbose=True`, and the internal events (S4)."""

from __future__ import annotations

import logging
from contextlib import suppress

import attrs

from ._stream import EventStream
from ._words import in_words, seconds
from ._work import Wait, Work
from .events import Event, StepState, StepStateChanged, UnhandledEvent, WorkflowIdleEvent

__all__ = ["Narrator"]

logger = logging.getLogger(__name__)
verbose_logger = logging.getLogger("anyio_workflows.verbose")


@attrs.define(eq=False, repr=False)
class Narrator:
    """Tells what happens in one run, to those who asked.

    Attributes:
        run: The run, to be named in logs.
        stream: Where the internal events go.
        verbose: Whether to tell in words.
        has_audience: Whether anybody listens; ask before telling anything about a step.
    """

    run: object
    stream: EventStream
    verbose: bool
    has_audience: bool = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.has_audience = self.verbose

    def listen(self) -> None:
        """Tell what happens in internal events, from now on (S4)."""
        self.has_audience = self.stream.internal_wanted = True

    def steps_queued(self, work: list[Work]) -> None:
        """Tell which events wait for a worker."""
        for item in work:
            if item.post.queued > item.post.calls:
                self._state(item, StepState.PREPARING)

    def step_started(self, work: Work) -> None:
        """Tell that an execution begins."""
        again = f", attempt {work.attempt}" if work.attempt > 1 else ""
        self.say("Running step %s%s", work.post.spec.name, again)
        self._state(work, StepState.RUNNING)

    def step_ended(self, work: Work, came: type | None) -> None:
        """Tell that an execution is over.

        Args:
            work: What was executed.
            came: The type of what it returned or raised; `None` if it was cancelled.
        """
        self.say("Step %s %s", work.post.spec.name, in_words(came, work.post.spec))
        output = came.__name__ if came is not None and issubclass(came, Event) else None
        self._state(work, StepState.NOT_RUNNING, output)

    def step_retried(self, work: Work, came: type, delay: float) -> None:
        """Tell that an attempt failed with an exception of the type `came`, and is not the last."""
        self.say(
            "Step %s %s; attempt %d in %s",
            work.post.spec.name,
            in_words(came, work.post.spec),
            work.attempt + 1,
            seconds(delay),
        )
        self._state(work, StepState.NOT_RUNNING)

    def step_recovered(self, work: Work, error: Exception, catcher: str) -> None:
        """Tell that a step failed for good, and which step takes over."""
        name = work.post.spec.name
        logger.info("%s: step %s failed; %s takes over", self.run, name, catcher, exc_info=error)
        self.say("Step %s takes over from %s", catcher, name)

    def step_waiting(self, wait: Wait) -> None:
        """Tell that an execution waits for an event."""
        self.say("Step %s waits for %s", wait.work.post.spec.name, wait.event_type.__name__)

    def unhandled(self, event: Event, *, idle: bool) -> None:
        """Tell that nobody takes an event (R3)."""
        cls = type(event)
        logger.warning("%s: no step accepts %s; it is dropped", self.run, cls.__name__)
        if self.stream.internal_wanted:
            name = f"{cls.__module__}.{cls.__qualname__}"
            self.stream.write(
                UnhandledEvent(event_type=cls.__name__, qualified_name=name, idle=idle)
            )

    def idle(self) -> None:
        """Tell that the run waits for something from outside."""
        if self.stream.internal_wanted:
            self.stream.write(WorkflowIdleEvent())

    def say(self, message: str, *args: object) -> None:
        """Tell something in words."""
        if not self.verbose:
            return
        if verbose_logger.isEnabledFor(logging.INFO):
            verbose_logger.info(message, *args)
        else:
            with suppress(OSError, ValueError):  # a closed standard output ends no run
                print(message % args)

    def _state(self, work: Work, state: StepState, output: str | None = None) -> None:
        if self.stream.internal_wanted:
            self.stream.write(
                StepStateChanged(
                    name=work.post.spec.name,
                    step_state=state,
                    worker_id=str(work.id),
                    input_event_name=work.event_name,
                    output_event_name=output,
                )
            )
