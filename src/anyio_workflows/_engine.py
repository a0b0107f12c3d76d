"""The run: the only task group of the library.

# Theory of operation
#
# A run is one AnyIO task group, opened by its *host*, a background task of the event loop. The host
# executes no step code: a step that shields itself, or leaves a cancel scope broken, must not take
# the host with it. Steps are executed by *workers*, child tasks in the group. A worker answers the
# ledger's calls, of whichever step comes first, and executes step after step in one task until
# there are no more calls; then it ends. Work travels from the ledger's decision to a worker through
# the memory object stream of its step.
#
#   host      wait for the decision -> cancel the workers, wait for them -> publish -> leave
#   worker    take a call -> execute the step -> route what it returned -> take the next call
#
# Rules
# =====
#
# 1. The outcome is decided once, synchronously, by `_decide`. The first cause wins (T4), where
#    the deadline counts from the moment it passed, not from when somebody noticed.
# 2. No step starts after the decision.
# 3. Whoever leaves calls behind hires: before executing a step, after an event came from outside,
#    when a worker ends. One recruit at a time is enough: it hires the next before it starts work.
# 4. The terminal event is published, and `ended` set, by `close` alone (T1, T3); before that
#    no worker is alive, except those that outlasted the cleanup timeout (T6).
# 5. Nothing that a step raises leaves its worker; the task group never sees an exception of a step.
# 6. A worker that a step has left with changed context variables ends: the next step is executed
#    in a task of its own that starts from the caller's context (O7).
"""

from __future__ import annotations

import logging
import math
import os
from contextvars import Context as ContextVars
from contextvars import copy_context
from types import TracebackType
from typing import TYPE_CHECKING, Any

import anyio
import attrs
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from ._backend import Home
from ._ledger import Ledger, Post, StepStatistics, Work
from ._stream import EventStream
from .context import Context, current_context
from .errors import WorkflowCancelledByUser, WorkflowRuntimeError, WorkflowTimeoutError
from .events import (
    Event,
    InputRequiredEvent,
    StopEvent,
    UnhandledEvent,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowTimedOutEvent,
)
from .graph import Graph, StepSpec

__all__ = ["Outcome", "Run"]

logger = logging.getLogger(__name__)
verbose_logger = logging.getLogger("anyio_workflows.verbose")

_STEPS_PER_CHECKPOINT = 32
_SECONDS_PER_CHECKPOINT = 0.0005
"""A worker whose steps never wait lets others run this often (R6)."""

Inbox = tuple[MemoryObjectSendStream[Work], MemoryObjectReceiveStream[Work]]


@attrs.frozen(eq=False)
class Outcome:
    """How a run ends.

    Attributes:
        event: The terminal event.
        error: What `await handler` raises; `None` if the run succeeded.
        summary: The end of the sentence "the run has ended: ...".
        traceback: Where the error came from; raised with it each time, so it does not grow (T5).
    """

    event: StopEvent
    error: BaseException | None
    summary: str
    traceback: TracebackType | None = None


def succeeded(event: StopEvent) -> Outcome:
    return Outcome(event, None, f"it returned {type(event).__name__}")


def cancelled(reason: str) -> Outcome:
    return Outcome(
        WorkflowCancelledEvent(), WorkflowCancelledByUser(reason), f"it was cancelled, {reason}"
    )


def timed_out(timeout: float, active_steps: list[str]) -> Outcome:
    return Outcome(
        WorkflowTimedOutEvent(timeout=timeout, active_steps=active_steps),
        WorkflowTimeoutError(timeout, active_steps),
        f"it timed out after {timeout:g} seconds",
    )


def failed(step: str, error: BaseException, attempts: int | None, elapsed: float | None) -> Outcome:
    event = WorkflowFailedEvent(
        step_name=step, exception=error, attempts=attempts, elapsed_seconds=elapsed
    )
    summary = f"step {step} failed with {type(error).__name__}"
    return Outcome(event, error, summary, error.__traceback__)


@attrs.define(eq=False, init=False)
class Run:
    """One run of a workflow, from its start event to its terminal event.

    Attributes:
        workflow: The workflow instance whose steps are executed.
        name: Name of the workflow, for messages.
        home: The event loop the run lives in.
        run_id: Identifies the run in logs.
        stream: The public event stream.
        ledger: Who is owed what.
        outcome: How the run ends, once that is decided.
        ended: Whether the terminal event has been published.
        observed: Whether somebody has seen the outcome.
    """

    workflow: object
    name: str
    home: Home
    run_id: str
    stream: EventStream
    ledger: Ledger
    outcome: Outcome | None
    ended: bool
    observed: bool
    _timeout: float | None
    _cleanup_timeout: float
    _verbose: bool
    _deadline: float
    _caller: ContextVars
    _group: TaskGroup | None
    _inboxes: dict[Post, Inbox]
    _workers: int
    _recruiting: bool
    _handler_gone: bool
    _decided: anyio.Event | None
    _quiet: anyio.Event | None
    _done: anyio.Event | None

    def __init__(
        self,
        workflow: object,
        graph: Graph,
        start_event: Event,
        home: Home,
        *,
        name: str,
        run_id: str | None = None,
        timeout: float | None,
        cleanup_timeout: float,
        verbose: bool,
    ) -> None:
        self.workflow = workflow
        self.name = name
        self.home = home
        self.run_id = os.urandom(16).hex() if run_id is None else run_id
        self.stream = EventStream(home)
        self.ledger = Ledger(graph)
        self.outcome = None
        self.ended = self.observed = False
        self._timeout = timeout
        self._cleanup_timeout = cleanup_timeout
        self._verbose = verbose
        self._deadline = math.inf
        self._caller = copy_context()
        self._group = None
        self._inboxes = {}
        self._workers = 0
        self._recruiting = self._handler_gone = False
        self._decided = self._quiet = self._done = None
        self._emit(start_event)

    def start(self) -> None:
        """Start the host in the background. No step begins inside this call (O1)."""
        self.home.start(self._host, self.close)

    # --- What steps and the handler do ------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """Whether the outcome is still open."""
        return self.outcome is None

    def active_steps(self) -> list[str]:
        """Return the sorted names of the steps with an execution in progress."""
        return self.ledger.active_steps()

    def statistics(self) -> dict[str, StepStatistics]:
        """Return the counts of every step."""
        return self.ledger.statistics()

    def write(self, event: Event) -> None:
        """Write to the public stream, also while steps are cleaning up (T7)."""
        self._refuse_if_ended(f"{type(event).__name__} cannot be written to the stream")
        self.stream.write(event)

    def send(self, event: Event, step: str | None = None) -> None:
        """Route an event that a step or somebody outside sends (R3)."""
        if not isinstance(event, Event):
            raise WorkflowRuntimeError(
                f"only events can be sent, not {event!r} ({type(event).__qualname__})"
            )
        self._refuse_if_ended(f"{type(event).__name__} cannot be sent")
        target = self.ledger.check_target(event, step)
        if self.outcome is not None:
            logger.info("%s: %s was sent too late and dropped", self, type(event).__name__)
            return
        self._emit(event, target)
        self._hire()

    def cancel(self, reason: str) -> None:
        """Decide that the run is cancelled, unless its outcome is decided already (T10)."""
        if self.outcome is None:
            self._decide(cancelled(reason))

    async def wait_until_ended(self) -> None:
        """Wait until the terminal event has been published."""
        if not self.ended:
            if self._done is None:
                self._done = anyio.Event()
            await self._done.wait()

    def handler_gone(self) -> None:
        """Note that nobody can ask for the outcome any more (O6)."""
        self._handler_gone = True
        self._report_if_unseen()

    def _refuse_if_ended(self, what: str) -> None:
        if self.ended:
            assert self.outcome is not None
            raise WorkflowRuntimeError(f"{what}: the run has ended, {self.outcome.summary}")

    # --- Routing and the decision -----------------------------------------------------------

    def _emit(self, event: Event, target: StepSpec | None = None) -> None:
        """Give an event to the steps that take it, or let it end the run."""
        if isinstance(event, StopEvent):
            self._decide(succeeded(event))
            return
        asks = isinstance(event, InputRequiredEvent)
        if asks:
            self.stream.write(event)
        work = self.ledger.route(event, target)
        for item in work:
            inbox = self._inboxes.get(item.post)
            if inbox is None:
                inbox = anyio.create_memory_object_stream[Work](math.inf)
                self._inboxes[item.post] = inbox
            inbox[0].send_nowait(item)
        if not work and not asks:
            self._note_unhandled(event)

    def _note_unhandled(self, event: Event) -> None:
        cls = type(event)
        logger.warning("%s: no step accepts %s; it is dropped", self, cls.__name__)
        if self.stream.internal_wanted:
            qualified_name = f"{cls.__module__}.{cls.__qualname__}"
            self.stream.write(
                UnhandledEvent(
                    event_type=cls.__name__, qualified_name=qualified_name, idle=self.ledger.idle
                )
            )

    def _decide(self, outcome: Outcome) -> None:
        """Settle the outcome; the first cause wins (rule 1)."""
        if self.outcome is None and self.home.current_time() >= self._deadline:
            assert self._timeout is not None
            self.outcome = timed_out(self._timeout, self.active_steps())
        elif self.outcome is None:
            self.outcome = outcome
        if self.outcome is not outcome:
            error = outcome.error
            if not isinstance(error, WorkflowCancelledByUser):
                level = logging.INFO if error is None else logging.WARNING
                message = "%s: changes nothing any more: %s"
                logger.log(level, message, self, outcome.summary, exc_info=error)
        if self._decided is not None:
            self._decided.set()

    def _being_cancelled(self) -> bool:
        """Whether a cancellation in one of the run's tasks comes from its deadline or its loop."""
        assert self._group is not None
        return self._group.cancel_scope.cancel_called or self.home.host_cancelled()

    def _decide_why_cancelled(self) -> None:
        """Settle the outcome of a run whose tasks are being cancelled, not by a decision."""
        if self.home.host_cancelled() or self.home.current_time() >= self._deadline:
            self.cancel("its event loop ended")  # or its deadline passed: `_decide` looks
        else:
            step = self.ledger.last_finished or "?"
            error = WorkflowRuntimeError(
                f"a step, probably {step}, left a cancel scope or task group open, which broke the "
                "run's task group; leave them where you entered them, with 'with'"
            )
            self._decide(failed(step, error, None, None))

    # --- The host ---------------------------------------------------------------------------

    async def _host(self) -> None:
        try:
            await checkpoint()  # an eager task factory is still inside `Workflow.run()`
            async with anyio.create_task_group() as group:
                self._open(group)
                await self._wait_until_decided()
                await self._wait_until_quiet(group)
                self.close()
        except BaseException as exc:
            if not _is_cancellation(exc):
                logger.error("%s: its task group broke", self, exc_info=exc)

    def _open(self, group: TaskGroup) -> None:
        self._group = group
        if self._timeout is not None:
            self._deadline = self.home.current_time() + self._timeout
            group.cancel_scope.deadline = self._deadline
        self._hire()

    async def _wait_until_decided(self) -> None:
        if self.outcome is None:
            self._decided = anyio.Event()
            try:
                await self._decided.wait()
            except anyio.get_cancelled_exc_class():
                self._decide_why_cancelled()

    async def _wait_until_quiet(self, group: TaskGroup) -> None:
        """Cancel the workers and wait for them, for `cleanup_timeout` seconds at most (T6)."""
        if not self._workers:
            return
        group.cancel_scope.cancel()
        self._quiet = anyio.Event()
        with anyio.move_on_after(self._cleanup_timeout, shield=True) as patience:
            while self._workers and not patience.cancel_called:
                try:
                    await self._quiet.wait()
                except anyio.get_cancelled_exc_class():
                    pass  # impatient, or natively cancelled at the loop's end: the loop tells
        if self._workers:
            logger.warning(
                "%s: gave up waiting for steps that go on %g seconds after being cancelled: %s",
                self,
                self._cleanup_timeout,
                ", ".join(self.active_steps()),
            )

    def close(self) -> None:
        """Publish the terminal event and end the run (rule 4)."""
        if self.ended:
            return
        self.cancel("its event loop ended")
        assert self.outcome is not None
        self.ended = True
        self.stream.close(self.outcome.event)
        for send, receive in self._inboxes.values():
            send.close()
            receive.close()
        self._inboxes.clear()
        self._say(f"Run ended: {self.outcome.summary}")
        if self._done is not None:
            self._done.set()
        self._report_if_unseen()

    def _report_if_unseen(self) -> None:
        """Log a failure that nobody can see any more, once (O6)."""
        if not (self.ended and self._handler_gone) or self.observed or self.stream.consumed:
            return
        assert self.outcome is not None
        error = self.outcome.error
        if error is not None and not isinstance(error, WorkflowCancelledByUser):
            self.observed = True
            logger.error("%s: nobody saw its failure", self, exc_info=error)

    # --- The workers ------------------------------------------------------------------------

    def _hire(self) -> None:
        """See to it that a worker comes for the calls, if there are any (rule 3)."""
        if self._recruiting or self._group is None or not self.ledger.calls:
            return
        if self.outcome is None and not self._being_cancelled():
            self._recruiting = True
            self._workers += 1
            self._group.create_task(self._work(), name=self.name, context=self._caller)

    async def _work(self) -> None:
        self._recruiting = False
        try:
            await self._answer_calls()
        finally:
            self._workers -= 1
            if self._quiet is not None and not self._workers:
                self._quiet.set()
            self._hire()

    async def _answer_calls(self) -> None:
        ledger, home = self.ledger, self.home
        untouched = copy_context()
        native_cancellations = home.cancellation_counter()
        now = rested = home.current_time()
        steps = 0
        while ledger.calls and self.outcome is None:
            if now >= self._deadline:
                self._decide_why_cancelled()
                return
            work: Work = self._inboxes[ledger.answer()][1].receive_nowait()
            if ledger.calls:
                self._hire()
            await self._execute(work, now)
            if native_cancellations() and not self._being_cancelled():
                await home.shed_cancellation()
            if _differ(copy_context(), untouched):
                return
            steps += 1
            now = home.current_time()
            if steps % _STEPS_PER_CHECKPOINT == 0 or now - rested > _SECONDS_PER_CHECKPOINT:
                await checkpoint()
                now = rested = home.current_time()

    async def _execute(self, work: Work, started: float) -> None:
        spec = work.post.spec
        if self._verbose:
            self._say("Running step %s", spec.name)
        context = Context(self)
        token = current_context.set(context)
        try:
            result = await spec.call(self.workflow, context, work.event)
        except BaseException as exc:
            self._take_error(work, exc, started)
        else:
            self._take_result(work, result, started)
        finally:
            current_context.reset(token)
            self.ledger.finish(work)

    def _take_result(self, work: Work, result: Any, started: float) -> None:
        spec = work.post.spec
        if result is None and spec.returns_none:
            self._say("Step %s produced no event", spec.name)
        elif result is None or not isinstance(result, spec.returns):
            self._fail(work, WorkflowRuntimeError(_wrong_result(spec, result)), started)
        elif self.outcome is not None and not isinstance(result, StopEvent):
            logger.info("%s: step %s returned %s too late", self, spec.name, type(result).__name__)
        else:
            if self._verbose:
                self._say("Step %s produced event %s", spec.name, type(result).__name__)
            self._emit(result)

    def _take_error(self, work: Work, exc: BaseException, started: float) -> None:
        if not _is_cancellation(exc):
            self._fail(work, _unwrap(exc), started)
        elif self.outcome is None and self._being_cancelled():
            self._decide_why_cancelled()
        elif self.outcome is None:
            stray = WorkflowRuntimeError(
                f"step {work.post.spec.name} raised a cancellation, but nobody had cancelled it; "
                "a cancel scope, task or timeout inside the step leaks its own"
            )
            stray.__cause__ = exc
            self._fail(work, stray, started)

    def _fail(self, work: Work, error: BaseException, started: float) -> None:
        name = work.post.spec.name
        self._say("Step %s failed with %s", name, type(error).__name__)
        self._decide(failed(name, error, work.attempt, self.home.current_time() - started))

    def _say(self, message: str, *args: object) -> None:
        """Tell what happens, for `verbose=True`."""
        if self._verbose:
            if verbose_logger.isEnabledFor(logging.INFO):
                verbose_logger.info(message, *args)
            else:
                print(message % args)

    def __str__(self) -> str:
        return f"run {self.run_id} of {self.name}"


def _is_cancellation(exc: BaseException) -> bool:
    cancelled_class = anyio.get_cancelled_exc_class()
    if isinstance(exc, BaseExceptionGroup):
        return exc.split(cancelled_class)[1] is None
    return isinstance(exc, cancelled_class)


def _unwrap(exc: BaseException) -> BaseException:
    """Name a `StopIteration`, which Python turns into a `RuntimeError` on its own (T5)."""
    if type(exc) is RuntimeError and isinstance(exc.__cause__, StopIteration):
        error = WorkflowRuntimeError("the step raised StopIteration")
        error.__cause__ = exc.__cause__
        return error
    return exc


def _differ(one: ContextVars, other: ContextVars) -> bool:
    try:
        return one != other
    except Exception:  # a value that can't be compared
        return True


def _wrong_result(spec: StepSpec, result: object) -> str:
    declared = [t.__name__ for t in spec.returns] + ["None"] * spec.returns_none
    got = "None" if result is None else f"{result!r} ({type(result).__qualname__})"
    remedy = "is a 'return' missing?" if result is None else "return one of those"
    return (
        f"step {spec.name} returned {got}, but declares {' | '.join(declared) or 'no return'}; "
        f"{remedy}"
    )


if TYPE_CHECKING:
    from .context import RunPort

    def _is_run_port(run: Run) -> RunPort:
        return run
