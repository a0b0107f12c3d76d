"""The handle of a running workflow: await, stream, cancel, inspect."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self

import anyio
import attrs
from anyio.lowlevel import checkpoint

from ._engine.outcome import Outcome
from ._engine.run import Run
from ._engine.stream import EventIterator, EventStream
from ._ledger.work import OpenWait, StepStatistics, counts_text
from ._messages import closest
from .context import Context, _context_of, _current_step
from .errors import WorkflowCancelledByUser, WorkflowRuntimeError
from .events import Event, InputRequiredEvent, StopEvent, WorkflowCancelledEvent

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from ._drawing.picture import RunFacts  # only pictures need it

    ResultT = TypeVar("ResultT", default=Any)
else:
    from typing import TypeVar

    ResultT = TypeVar("ResultT")

__all__ = ["OpenWait", "ResultT", "RunStatistics", "WorkflowHandler"]

_STREAM = "iterate over handler.stream_events() with 'async for'"
_ELSEWHERE = {
    **dict.fromkeys(
        ("cancel", "stop", "abort", "close", "aclose"), "use await handler.cancel_run()"
    ),
    **dict.fromkeys(("events", "stream", "iter_events", "astream"), _STREAM),
    "is_finished": "use handler.is_done()",
    **dict.fromkeys(
        ("add_done_callback", "remove_done_callback"),
        "'await handler' where the result is needed; anyio.create_task_group() waits for several runs",
    ),
    **dict.fromkeys(("send", "emit"), "use await handler.send_event(ev)"),
    **dict.fromkeys(("context", "store", "state"), "use handler.ctx, and its store"),
    **dict.fromkeys(("to_dict", "snapshot"), "use handler.ctx.to_dict()"),
}
"""Attribute of handlers, tasks and streams of other libraries -> what to use here."""


@attrs.frozen
class RunStatistics:
    """Counts of one run.

    Attributes:
        state: `"running"`, `"ending"` (decided, steps are cleaning up) or `"ended"`.
        steps: Counts per step.
        unread_events: Events in the public stream that have not been read.
        reader_waiting: Whether a reader of the stream waits for the next event.
    """

    state: str
    steps: Mapping[str, StepStatistics]
    unread_events: int
    reader_waiting: bool


@attrs.define(eq=False)
class _WatchedIterator(EventIterator):
    """Reports that a question was read or acknowledged, because a snapshot says which were (W4)."""

    _on_change: Callable[[], None] = attrs.field(alias="on_change", kw_only=True)
    _has_question: bool = attrs.field(default=False, init=False)

    async def __anext__(self) -> Event:
        event = await super().__anext__()
        if isinstance(event, InputRequiredEvent):
            self._has_question = True
            self._on_change()
        return event

    def acknowledge(self) -> None:
        super().acknowledge()
        if self._has_question:
            self._has_question = False
            self._on_change()


class WorkflowHandler(Generic[ResultT]):
    """The handle of a run: await it for the result, iterate over `stream_events()` for its events.

    `Workflow.run()` returns it. Use it in the event loop and thread where the run was started; a run
    that has ended can be read anywhere. With `async with workflow.run() as handler:` the run does not
    outlive the block.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._context = _context_of(run.saved)
        self._cancelled_by_owner = self._failure_raised = False
        self._on_change: Callable[[], None] | None = None

    @property
    def _stream(self) -> EventStream:
        """The stream of the run. One whose events are in a log has another handle."""
        stream = self._run.stream
        assert isinstance(stream, EventStream)
        return stream

    @property
    def run_id(self) -> str:
        """Identifies the run in logs."""
        return self._run.run_id

    @property
    def ctx(self) -> Context[Any]:
        """The context of the run, as seen from outside its steps: its state, and snapshots."""
        return self._context

    def is_done(self) -> bool:
        """Return whether the run has ended: its terminal event is in the stream."""
        return self._run.ended

    def done(self) -> bool:
        """Return whether the run has ended, as `is_done()` does."""
        return self._run.ended

    def cancelled(self) -> bool:
        """Return whether the run has ended because it was cancelled."""
        outcome = self._run.outcome if self._run.ended else None
        return (
            outcome is not None
            and outcome.error is not None
            and isinstance(outcome.event, WorkflowCancelledEvent)
        )

    def result(self) -> ResultT:
        """Return the result of a run that has ended, without waiting.

        Raises:
            WorkflowRuntimeError: If the run has not ended.
            BaseException: As `await handler` does.
        """
        outcome = self._outcome("result")
        self._raise_failure()
        result: ResultT = outcome.value
        return result

    def exception(self) -> BaseException | None:
        """Return the exception with which the run has failed; `None` if it has a result.

        It counts as retrieved then, for the log.

        Raises:
            WorkflowRuntimeError: If the run has not ended.
            WorkflowCancelledByUser: If the run was cancelled.
        """
        outcome = self._outcome("exception")
        if self.cancelled():
            self._raise_failure()
        self._run.observed = True
        return outcome.error

    def __await__(self) -> Generator[Any, Any, ResultT]:
        """Wait for the end of the run.

        Any number of tasks may wait, any number of times; cancelling a wait does not affect the run.

        Returns:
            The result of the `StopEvent`, or the event itself if it is of a subclass.

        Raises:
            WorkflowTimeoutError: If the run did not end before its deadline.
            WorkflowCancelledByUser: If it was cancelled.
            WorkflowRuntimeError: In one of the run's own steps, or in another event loop.
            BaseException: The exception of the failing step; always the same object.
        """
        return self._result().__await__()

    async def _result(self) -> Any:
        return (await self._wait()).value

    async def stop_event_result(self) -> StopEvent:
        """Wait for the end of the run and return its stop event.

        Raises:
            BaseException: As `await handler` does.
        """
        return (await self._wait()).event

    async def _wait(self) -> Outcome:
        run = self._run
        if not run.ended:
            self._check_loop("waited for")
            self._check_not_own_step()
        await run.wait_until_ended()
        self._raise_failure()
        assert run.outcome is not None
        return run.outcome

    def _raise_failure(self) -> None:
        self._run.observed = True
        assert self._run.outcome is not None
        self._failure_raised = self._failure_raised or self._run.outcome.error is not None
        self._run.outcome.raise_failure()

    def get_stop_event(self) -> StopEvent | None:
        """Return the terminal event, of any kind; `None` until the run has ended."""
        if not self._run.ended:
            return None
        assert self._run.outcome is not None
        self._run.observed = True
        return self._run.outcome.event

    def stream_events(self, expose_internal: bool = False) -> EventIterator:
        """Return an async iterator over the events that have not been read yet.

        It ends after the terminal event. A run has one stream with one cursor: after a `break` or a
        cancelled read, a new iteration continues with the next event.

        Args:
            expose_internal: Also yield the events about the run itself, from now on.
        """
        if expose_internal:
            self._run.listen()
        if self._on_change is not None:
            on_change = self._on_change
            return _WatchedIterator(self._stream, expose_internal, self, on_change=on_change)
        return EventIterator(self._stream, expose_internal, self)

    def open_waits(self) -> list[OpenWait]:
        """Return the waits that can be answered now, in the order in which they began.

        After a timeout or a cancellation, those with which `run(ctx=handler.ctx)` would continue.
        """
        if self._context._saved.run is not self._run:  # another run has continued from there
            return []
        return self._context.open_waits()

    async def send_event(
        self, event: Event, step: str | None = None, wait: str | None = None
    ) -> tuple[str, ...]:
        """Send an event to every step that accepts it, or only to `step`.

        Args:
            event: The event.
            step: The only step to send it to.
            wait: The id of an open wait, from `open_waits()`. The event then answers only this wait.

        Returns:
            The names of the steps that took it, as from `ctx.send_event()`; `()` if none did.

        Raises:
            WorkflowRuntimeError: If `event` is not an event, `step` does not exist or does not accept
                it, or the run has ended or is in another event loop. With `wait` also if there is no such
                open wait, it belongs to another step, it does not accept the event, or the outcome of
                the run is decided; the wait then stays open.
        """
        self._check_loop("sent events")
        await checkpoint()
        return self._run.send(event, step) if wait is None else self._run.answer(event, wait, step)

    async def cancel_run(self, timeout: float | None = None) -> None:
        """Cancel the run and wait until it has ended. A decided outcome does not change.

        If a step of the run calls it, the step is cancelled at this call.

        Args:
            timeout: Seconds to wait at most; `None` for no limit. The run ends in any case.
        """
        if self._run.ended:
            return
        self._check_loop("cancelled")
        self._cancelled_by_owner = True
        self._run.cancel("cancel_run() was called")
        with anyio.move_on_after(timeout):
            await self._run.wait_until_ended()

    def statistics(self) -> RunStatistics:
        """Return counts of the executions of each step, and of the events in the stream."""
        run = self._run
        state = "ended" if run.ended else "running" if run.is_running else "ending"
        return RunStatistics(
            state=state,
            steps=run.ledger.statistics(),
            unread_events=self._stream.unread,
            reader_waiting=self._stream.reader_waiting,
        )

    def _facts(self) -> RunFacts:
        """Return what a picture shows of the run. Its failure does not count as retrieved (O6)."""
        from ._drawing.picture import RunFacts

        run, counts, graph = self._run, self.statistics(), self._context._saved.graph
        end = run.outcome.event if run.ended and run.outcome is not None else None
        return RunFacts(graph, counts.state, counts.steps, self.open_waits(), end)

    def _summary(self, facts: RunFacts) -> list[tuple[str, str]]:
        """Say in pairs of heading and text what a picture does not. Nothing counts as read or retrieved."""
        from ._drawing.summary import error_rows, result_row, wait_rows

        run, outcome = self._run, self._run.outcome
        ending = "" if outcome is None else f", {outcome.summary}"
        rows = [("Run", run.run_id), ("State", f"{facts.state}{ending}")]
        if run.ended and outcome is not None:
            if outcome.error is None:
                rows.append(result_row(outcome.value))
            else:
                rows += error_rows(outcome.error)
        rows.append(("Unread events", str(self._stream.unread)))
        return [*rows, *wait_rows(facts.open_waits)]

    def _repr_html_(self) -> str | None:
        """Show the run on its graph, and how it stands, in notebooks."""
        with suppress(Exception):  # they show the plain repr instead
            from ._drawing.page import notebook_part
            from ._drawing.picture import picture_of
            from ._drawing.svg import svg

            facts = self._facts()
            return notebook_part(svg(picture_of(facts.graph, facts)), self._summary(facts))
        return None

    async def __aenter__(self) -> Self:
        """Bind the run to the block.

        Raises:
            WorkflowRuntimeError: In one of the run's own steps, or in another event loop.
        """
        self._check_loop("entered")
        self._check_not_own_step()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for the run and raise its failure; cancel it if the block raises.

        A failure that `await handler` has already raised, and a cancellation that the block requested
        with `cancel_run()`, are not raised again.
        """
        run = self._run
        try:
            if exc_type is None:
                await run.wait_until_ended()
        finally:
            if not run.ended:
                run.cancel("the block that owned it was left")
                with anyio.CancelScope(shield=True):
                    await run.wait_until_ended()
        assert run.outcome is not None
        wanted = self._cancelled_by_owner and isinstance(run.outcome.error, WorkflowCancelledByUser)
        if exc_type is None and not self._failure_raised and not wanted:
            self._raise_failure()

    def _check_loop(self, done: str) -> None:
        if not self._run.ended and not self._run.loop.is_here():
            raise WorkflowRuntimeError(
                f"a run can only be {done} in the event loop and thread where it was started"
            )

    def _outcome(self, what: str) -> Outcome:
        if not self._run.ended:
            raise WorkflowRuntimeError(
                f"the run has not ended and has no {what} yet; 'await handler' waits for its end"
            )
        assert self._run.outcome is not None
        return self._run.outcome

    def _check_not_own_step(self) -> None:
        context = _current_step()
        if not self._run.ended and context is not None and context._belongs_to(self._run):
            raise WorkflowRuntimeError(
                "a step cannot wait for the end of its own run; return an event instead"
            )

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            what = f"{type(self).__name__!r} object has no attribute {name!r}"
            public = [known for known in dir(type(self)) if known[0] != "_"]
            remedy = _ELSEWHERE.get(name) or closest(name, public)
            remedy = remedy or "await it for the result of the run"
            raise AttributeError(f"{what}; {remedy}", name=name, obj=self)

        def __aiter__(self) -> Any:
            raise TypeError(
                "a handler is not a stream; use 'async for ev in handler.stream_events()'"
            )

        def __reduce_ex__(self, protocol: object) -> Any:
            raise TypeError(
                "a handler can be neither pickled nor copied; handler.ctx.to_dict() returns a snapshot of "
                "the run, and Context.from_dict() restores a context from it for workflow.run(ctx=...)"
            )

    def __del__(self) -> None:
        if run := self.__dict__.get("_run"):
            run.handler_gone()

    def __repr__(self) -> str:
        found = self.statistics()
        steps = counts_text(found.steps)
        unread = f"{found.unread_events} unread events"
        # asyncio.create_task(handler) fails with this repr and no other hint.
        hint = "" if self._run.ended else "; await it for the result, no task is needed"
        return f"<WorkflowHandler of {self._run}: {found.state}, {unread}{steps}{hint}>"
