"""What a step may do."""

from __future__ import annotations

import reprlib
from contextvars import ContextVar
from typing import Protocol

import attrs

from .errors import WorkflowRuntimeError
from .events import Event, StopEvent

__all__ = ["Context", "RunPort", "current_context"]


class RunPort(Protocol):
    """A run, as far as its steps can see it."""

    @property
    def is_running(self) -> bool:
        """Whether the outcome is still open."""
        ...

    def write(self, event: Event) -> None:
        """Write to the public stream."""
        ...

    def send(self, event: Event, step: str | None) -> None:
        """Route an event."""
        ...

    def active_steps(self) -> list[str]:
        """Return the sorted names of the steps with an execution in progress."""
        ...


@attrs.define(eq=False, repr=False)
class Context:
    """The way from a step to its run. Each execution of a step gets one of its own.

    Annotate a parameter of the step with it: `async def ask(self, ctx: Context, ev: StartEvent)`.
    """

    _run: RunPort

    @staticmethod
    def get_step_context() -> Context:
        """Return the context of the step that is being executed.

        Raises:
            WorkflowRuntimeError: Outside a step.
        """
        context = current_context.get(None)
        if context is None:
            raise WorkflowRuntimeError("get_step_context() was called outside a step")
        return context

    def belongs_to(self, run: RunPort) -> bool:
        """Return whether this is the context of a step of `run`."""
        return self._run is run

    @property
    def is_running(self) -> bool:
        """Whether the run is still undecided: no stop event, failure, timeout or cancellation."""
        return self._run.is_running

    def write_event_to_stream(self, ev: Event | None) -> None:
        """Append an event to the run's public stream; never waits. `None` is ignored.

        Raises:
            WorkflowRuntimeError: If `ev` is no event or a stop event, or if the run has ended.
        """
        if ev is None:
            return
        if not isinstance(ev, Event):
            raise WorkflowRuntimeError(
                f"only events can be written to the stream, not {reprlib.repr(ev)} ({type(ev).__qualname__})"
            )
        if isinstance(ev, StopEvent):
            raise WorkflowRuntimeError(
                f"{type(ev).__name__} cannot be written to the stream: return it from the step, "
                "that ends the run and publishes it"
            )
        self._run.write(ev)

    def send_event(self, ev: Event, step: str | None = None) -> None:
        """Give an event to every step that accepts it, or to the one called `step`, at once.

        A stop event ends the run, as returning it does. Once the end of the run is decided the
        event is dropped, with a line in the log.

        Raises:
            WorkflowRuntimeError: If `ev` is no event, `step` does not exist or does not accept it,
                or if the run has ended.
        """
        self._run.send(ev, step)

    async def running_steps(self) -> list[str]:
        """Return the sorted names of the steps that have an execution in progress."""
        return self._run.active_steps()

    def __repr__(self) -> str:
        return f"<Context of {self._run}>"


current_context: ContextVar[Context] = ContextVar("anyio_workflows.current_context")
"""The context of the step that the current task executes."""
