"""What a step may do."""

from __future__ import annotations

import math
import reprlib
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar, cast

import anyio
import anyio.from_thread
import attrs
from anyio.lowlevel import checkpoint

from ._backend import Home
from ._ledger import Ledger
from ._retries import RetryInfo
from ._work import Wait, Work
from .errors import WorkflowRuntimeError
from .events import Event, StopEvent
from .steps import is_positive_number

__all__ = ["Attempt", "Context", "Relayable", "RunPort", "check_event", "current_context"]

T = TypeVar("T")
EventT = TypeVar("EventT", bound=Event)
ResultT_co = TypeVar("ResultT_co", covariant=True)


class RunPort(Protocol):
    """A run, as far as its steps can see it."""

    home: Home
    ledger: Ledger
    parent: RunPort | None
    ended: bool

    @property
    def is_running(self) -> bool:
        """Whether the outcome is still open."""
        ...

    def notice_cancellation(self) -> None:
        """Settle the outcome if the run is being cancelled and nobody has noticed."""
        ...

    def write(self, event: Event) -> None:
        """Write to the public stream."""
        ...

    def send(self, event: Event, step: str | None, sender: Work | None) -> None:
        """Route an event."""
        ...

    def check_open(self, what: str) -> None:
        """Raise if the outcome is decided."""
        ...

    def note_wait(self, wait: Wait) -> None:
        """Take note that an execution waits."""
        ...

    def adopt(self, child: RunPort) -> None:
        """Take charge of a run that one of the steps starts."""
        ...


class Relayable(Protocol[ResultT_co]):
    """The handler of a run whose events can be relayed."""

    @property
    def ctx(self) -> Context:
        """The context of the run."""
        ...

    def stream_events(self) -> AsyncIterator[Event]:
        """Return an iterator over the events of the run."""
        ...

    def __await__(self) -> Generator[Any, Any, ResultT_co]:
        """Wait for the result of the run."""
        ...


@attrs.define(eq=False, repr=False)
class Attempt:
    """The clock of an attempt that is bounded by a timeout (R8).

    Attributes:
        scope: The scope that bounds it.
        current_time: The clock.
    """

    scope: anyio.CancelScope
    current_time: Callable[[], float]
    _suspensions: int = 0
    _remaining: float = math.inf

    @contextmanager
    def suspended(self) -> Generator[None]:
        """Stop the clock while the step waits for an event, unless it has run out."""
        if not self._suspensions:
            self._remaining = self.scope.deadline - self.current_time()
        if self._remaining <= 0:
            yield
            return
        self.scope.deadline = math.inf
        self._suspensions += 1
        try:
            yield
        finally:
            self._suspensions -= 1
            if not self._suspensions:
                self.scope.deadline = self.current_time() + self._remaining


@attrs.define(eq=False, repr=False)
class Context:
    """The way from a step to its run. Each execution of a step gets one of its own.

    Annotate a parameter of the step with it: `async def ask(self, ctx: Context, ev: StartEvent)`.
    In a plain `def` step, which runs in a worker thread, the synchronous methods are called
    directly and the async ones with `anyio.from_thread.run(ctx.wait_for_event, ...)`.
    """

    _run: RunPort
    _work: Work | None = None
    _number: int = 1
    """The number of the attempt that it was made for."""

    attempt: Attempt | None = None
    """The clock of that attempt, if it has a timeout."""

    given_up: bool = False
    """Whether the execution was cancelled and has ended, though its thread may go on."""

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

    @property
    def run(self) -> RunPort:
        """The run that the context belongs to."""
        return self._run

    def belongs_to(self, run: RunPort) -> bool:
        """Return whether this is the context of a step of `run`, or of a run started in one."""
        mine: RunPort | None = self._run
        while mine is not None and mine is not run:
            mine = mine.parent
        return mine is run

    @property
    def is_running(self) -> bool:
        """Whether the run is still undecided: no stop event, failure, timeout or cancellation."""
        return self._run.is_running

    def write_event_to_stream(self, ev: Event | None) -> None:
        """Append an event to the run's public stream; never waits. `None` is ignored.

        Raises:
            WorkflowRuntimeError: If `ev` is no event or a stop event, or if the run has ended.
        """
        if ev is not None:
            _check_writable(ev)
            self._in_loop(self._run.write, ev)

    def send_event(self, ev: Event, step: str | None = None) -> None:
        """Give an event to every step that accepts it, or to the one called `step`, at once.

        A stop event ends the run, as returning it does. Once the end of the run is decided the
        event is dropped, with a line in the log.

        Raises:
            WorkflowRuntimeError: If `ev` is no event, `step` does not exist or does not accept it,
                or if the run has ended.
        """
        self._in_loop(self._run.send, ev, step, self._work)

    async def running_steps(self) -> list[str]:
        """Return the sorted names of the steps that have an execution in progress.

        It may also be waiting for an event, or for its next attempt.
        """
        return self._run.ledger.posts.active_steps()

    def retry_info(self) -> RetryInfo:
        """Return what there is to know about the attempts before this one.

        Raises:
            WorkflowRuntimeError: Outside a step.
        """
        work = self._own_work("ask for its attempts")
        past = work.history
        if past is None or past.first_started is None or work.started is None:
            return RetryInfo()
        return RetryInfo(
            retry_number=work.attempt - 1,
            elapsed_seconds=work.started - past.first_started,
            last_exception=past.last_error,
            last_failed_at=past.last_failed_at,
        )

    def collect_events(
        self, ev: Event, expected: Sequence[type[Event]], buffer_id: str | None = None
    ) -> list[Event] | None:
        """Keep an event until one of each expected type is there.

        A step that is tried again is given the same answers as before.

        Args:
            ev: The event to keep.
            expected: The types to wait for; a type may be there more than once.
            buffer_id: Tells several buffers of one step apart.

        Returns:
            `None` until all are there, then one event per expected type, in that order. What is
            left over stays for the next round. `[]` at once if nothing is expected.

        Raises:
            WorkflowRuntimeError: Outside a step, if `ev` is no event, or if the end of the run is
                decided.
        """
        check_event(ev, "collected")
        work = self._own_work("collect events")
        return self._in_loop(self._collect, work, ev, list(expected), buffer_id)

    def _collect(
        self, work: Work, event: Event, expected: list[type[Event]], buffer_id: str | None
    ) -> list[Event] | None:
        self._run.check_open(f"{type(event).__name__} cannot be collected")
        return self._run.ledger.collect(work, buffer_id, event, expected)

    async def wait_for_event(
        self,
        event_type: type[EventT],
        waiter_event: Event | None = None,
        waiter_id: str | None = None,
        requirements: Mapping[str, Any] | None = None,
        timeout: float | None = 2000,
    ) -> EventT:
        """Suspend the step until an event comes, and return that event.

        The code before the call is not run again. While the step waits, its worker executes others.
        A step that is tried again is given the answers it had, in order, and asks nobody twice.

        Args:
            event_type: The type to wait for; subclasses too, if the step says
                `accept_event_subclasses=True`.
            waiter_event: Written to the stream once, when the wait begins; the question, as it were.
            waiter_id: Names the wait. Needed where one execution waits for equal things at once.
            requirements: Attributes that the event must have, with their values.
            timeout: Seconds to wait; `None` for no limit.

        Raises:
            TimeoutError: If no such event came in time.
            WorkflowRuntimeError: Outside a step, if an equal wait is open in this execution, or if
                the end of the run is decided.
        """
        work = self._own_work("wait for an event")
        if not self._run.home.is_here():
            raise _elsewhere()
        self._check_alive()
        if not (isinstance(event_type, type) and issubclass(event_type, Event)):
            raise WorkflowRuntimeError(f"a step waits for an event class, not for {event_type!r}")
        if timeout is not None and not is_positive_number(timeout, or_zero=True):
            raise WorkflowRuntimeError(
                f"timeout must be a number of seconds, or None, not {timeout!r}"
            )
        if waiter_event is not None:
            _check_writable(waiter_event)
        wait = Wait(work, event_type, dict(requirements or {}), waiter_id)
        with self.attempt.suspended() if self.attempt is not None else nullcontext():
            await self._wait(wait, waiter_event, timeout)
        if wait.answer is None:
            assert timeout is not None
            name = event_type.__name__
            raise TimeoutError(f"no {name} that was waited for came within {timeout:g} s")
        return cast(EventT, wait.answer)

    async def _wait(self, wait: Wait, prompt: Event | None, timeout: float | None) -> None:
        """Suspend the execution until its wait is over, and it has a place to go on (W1-W3)."""
        run = self._run
        what = f"{wait.event_type.__name__} cannot be waited for"
        run.check_open(what)
        signal = anyio.Event()
        wait.wake = signal.set
        run.ledger.waits.begin(wait)
        if wait.answer is not None:
            await checkpoint()
            return
        try:
            if prompt is not None and not wait.asked:
                run.write(prompt)
                wait.asked = True
            run.note_wait(wait)
            with anyio.move_on_after(timeout):
                await signal.wait()
            if not signal.is_set():
                run.ledger.waits.end(wait)  # without an answer; a place is wanted to go on
                await signal.wait()
        finally:
            run.notice_cancellation()  # while the ledger still knows that the step was waiting
            run.ledger.waits.abandon(wait)  # if it was cancelled; else it is over
        if wait.refused:
            run.check_open(what)
            raise WorkflowRuntimeError(f"{what}: step {wait.work.post.spec.name} has ended")

    async def relay_events(self, child: Relayable[ResultT_co]) -> ResultT_co:
        """Pass the events of a run that this step started on to the own stream.

        All but its terminal event.

        Returns:
            The result of the child run.

        Raises:
            WorkflowRuntimeError: If it is the step's own run, or one that waits for it.
            BaseException: As `await child` does.
        """
        if self.belongs_to(child.ctx.run):
            raise WorkflowRuntimeError("a step cannot relay the events of its own run to itself")
        async for event in child.stream_events():
            if not isinstance(event, StopEvent):
                self.write_event_to_stream(event)
        return await child

    def _own_work(self, what: str) -> Work:
        work = self._work
        if work is None:
            raise WorkflowRuntimeError(f"only a step can {what}, with the context it is given")
        if work.started is None or work.attempt != self._number:
            if self._run.ended:
                self._run.check_open(f"a step cannot {what}")
            name = work.post.spec.name
            raise WorkflowRuntimeError(
                f"attempt {self._number} of step {name} has ended; it can no longer {what}"
            )
        return work

    def _in_loop(self, func: Callable[..., T], *args: Any) -> T:
        """Call a function of the run, from one of its sync steps' threads if need be (R5)."""
        if self._run.home.is_here():
            self._check_alive()
            return func(*args)
        if self._run.ended:  # its loop may stand still
            self._run.check_open("the context of a step cannot be used")
        try:
            return anyio.from_thread.run_sync(self._call_here, func, *args)
        except (RuntimeError, anyio.RunFinishedError) as exc:
            raise _elsewhere() from exc

    def _call_here(self, func: Callable[..., T], *args: Any) -> T:
        if not self._run.home.is_here():
            raise RuntimeError("another event loop")
        self._check_alive()
        return func(*args)

    def _check_alive(self) -> None:
        if self.given_up:
            assert self._work is not None
            why = "with its batch" if self._work.dropped else "at its timeout"
            raise WorkflowRuntimeError(
                f"step {self._work.post.spec.name} was cancelled {why} and has ended"
            )

    def __repr__(self) -> str:
        return f"<Context of {self._run}>"


current_context: ContextVar[Context] = ContextVar("anyio_workflows.current_context")
"""The context of the step that the current task executes."""


def _elsewhere() -> WorkflowRuntimeError:
    return WorkflowRuntimeError(
        "a context is used in the event loop of its run, or in the thread of a sync step while that "
        "loop is running"
    )


def check_event(value: object, done: str) -> None:
    """Raise if something that is to be written, sent or collected is no event."""
    if not isinstance(value, Event):
        raise WorkflowRuntimeError(
            f"only events can be {done}, not {reprlib.repr(value)} ({type(value).__qualname__})"
        )


def _check_writable(event: object) -> None:
    check_event(event, "written to the stream")
    if isinstance(event, StopEvent):
        raise WorkflowRuntimeError(
            f"{type(event).__name__} cannot be written to the stream: return it from the step, "
            "that ends the run and publishes it"
        )
