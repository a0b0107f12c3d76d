"""The run: the only task group of the library, from the start event to the terminal event."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, suppress
from typing import Any

import anyio
import attrs
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from .._backend import LoopHandle, is_cancellation
from .._ledger.fanin import NO_RECOVERIES
from .._ledger.ledger import Ledger
from .._ledger.pending import RunPort, SavedState, restore, take
from .._ledger.work import Wait, Work
from .._messages import add_note, short_repr, text_of
from ..context import check_event, enter_run
from ..errors import WorkflowRuntimeError, WorkflowTimeoutError
from ..events import Event, InputRequiredEvent
from .limiter import RunLimiter, RunSlot
from .outcome import Outcome
from .reporting import Reporter, busy_steps, count_executions, describe_activities
from .resources import ResourceManager
from .stream import EventStream
from .workers import Dispatch, WorkerPool

logger = logging.getLogger(__name__)


@attrs.frozen
class RunSettings:
    """What a workflow says about each of its runs.

    Attributes:
        name: Name of the workflow, for messages.
        timeout: Seconds that the run may take; `None` for no limit.
        cleanup_timeout: Seconds that cancelled steps have before the run ends without them.
        verbose: Whether to tell about each step.
        stall_check: Whether to fail when nothing can happen any more (T9).
    """

    name: str
    timeout: float | None = 45.0
    cleanup_timeout: float = 5.0
    verbose: bool = False
    stall_check: bool = True


@attrs.define(eq=False, init=False, repr=False)
class Run:
    """One run of a workflow, from its start event to its terminal event.

    Attributes:
        workflow: The workflow instance whose steps are executed.
        loop: The event loop the run lives in.
        stream: The public event stream.
        saved: What goes on from one run to the next.
        ledger: Who is owed what.
        outcome: How the run ends, once that is decided.
        ended: Whether the terminal event has been published.
        observed: Whether somebody has seen the outcome.
        deadline: When the run times out, on the loop's clock.
        parent: The run whose step started this one, if any (O5).
        reporter: Tells what happens, to those who asked.
        dispatch: Where events, results and failures go.
        resources: Supplies the steps with resources, if they ask for any.
    """

    workflow: object
    loop: LoopHandle
    stream: EventStream
    saved: SavedState
    ledger: Ledger
    outcome: Outcome | None
    ended: bool
    observed: bool
    deadline: float
    parent: RunPort | None
    reporter: Reporter
    dispatch: Dispatch
    resources: ResourceManager | None
    _run_id: str | None
    _settings: RunSettings
    _slot: RunSlot | None
    _children: dict[Run, None]
    _pool: WorkerPool
    _group: TaskGroup | None
    _starting: bool
    _handler_gone: bool
    _later_failures: list[str]
    _queueing: anyio.CancelScope | None
    _news: anyio.Event | None
    _done: anyio.Event | None

    def __init__(
        self,
        workflow: object,
        saved: SavedState,
        start_event: Event | None,
        loop: LoopHandle,
        settings: RunSettings,
        *,
        run_id: str | None = None,
        parent: RunPort | None = None,
        limiter: RunLimiter | None = None,
    ) -> None:
        self.workflow = workflow
        self.loop = loop
        self._run_id = run_id
        self.stream = EventStream(loop)
        self.saved = saved
        self.ledger = Ledger(saved.graph)
        restored: list[Work] = []
        if (left := saved.pending_work()) is not None:
            self.ledger, restored = restore(left, saved.graph, loop.current_time())
            for _, question in self.ledger.questions or ():
                self.stream.write(question)
        self.outcome = None
        self.ended = self.observed = False
        self.deadline = math.inf
        self.parent = parent
        self._settings = settings
        self._slot = limiter.ask(loop.token) if limiter and not self._has_kin(workflow) else None
        self._children = {}
        self.reporter = Reporter(self, self.stream, self.ledger, settings.verbose)
        self._pool = WorkerPool(self, settings.name)
        self.dispatch = Dispatch(self, self._pool, self.reporter, settings.stall_check)
        self.resources = None
        if saved.graph.uses_resources:
            self.resources = ResourceManager(
                self, self._start_keeper, loop.uncancel_current_task, loop.host_cancelled
            )
        self._group = None
        self._starting = True
        self._handler_gone = False
        self._later_failures = []
        self._queueing = self._news = self._done = None
        saved.begin(self)
        self._pool.deliver(restored)
        if start_event is not None:
            self.dispatch.emit(start_event)

    def start(self) -> None:
        """Start the host in the background. No step begins inside this call (O1)."""
        try:
            if self.parent is not None:
                self.parent.adopt(self)
            self.loop.start(self._host, self.close)
        except BaseException:
            self.close()
            raise
        finally:
            self._starting = False

    # --- What steps and the handler do ------------------------------------------------------

    @property
    def run_id(self) -> str:
        """Identifies the run in logs; made up when first asked for."""
        if self._run_id is None:
            self._run_id = os.urandom(16).hex()
        return self._run_id

    @property
    def is_running(self) -> bool:
        """Whether the outcome is still open."""
        if self.loop.is_here():  # else in the thread of a sync step
            self.notice_cancellation()
        return self.outcome is None

    @property
    def events_read(self) -> int:
        """How many events of the public stream count as read (W4)."""
        return self.stream.delivered

    async def drain(
        self, limit: int, while_allowed: Callable[[], AbstractContextManager[None]]
    ) -> None:
        """Wait until at most `limit` events of the public stream are unread (S6)."""
        await self.stream.drain(limit, while_allowed)

    def ask(self, question: Event) -> int:
        """Write a question to the public stream; returns its number there."""
        self.write(question)
        return self.stream.written

    def write(self, event: Event) -> None:
        """Write to the public stream, also while steps are cleaning up (T7)."""
        if self.ended:
            raise self._refusal(f"{type(event).__name__} cannot be written to the stream")
        if isinstance(event, InputRequiredEvent):
            self.ledger.input_asked = True
        self.stream.write(event)

    def send(
        self, event: Event, step: str | None = None, sender: Work | None = None
    ) -> tuple[str, ...]:
        """Route an event that is sent; returns the names of the steps that took it (R3)."""
        check_event(event, "sent")
        if self.ended:
            raise self._refusal(f"{type(event).__name__} cannot be sent")
        target = self.ledger.check_target(event, step)
        if not self.is_running:
            logger.info("%s: %s was sent too late and dropped", self, type(event).__name__)
            return ()
        recoveries = NO_RECOVERIES if sender is None else sender.recoveries
        taken_by = self.dispatch.send(event, target, recoveries)
        self.reporter.changed()  # an answer is no step that begins
        self._pool.spawn_worker()
        return taken_by

    def answer(self, event: Event, wait_id: str, step: str | None) -> tuple[str, ...]:
        """Answer one open wait; returns the name of the step that waits (W5)."""
        check_event(event, "sent")
        self.check_open(f"{type(event).__name__} cannot be sent")
        if not isinstance(wait_id, str):
            what = short_repr(wait_id)
            raise WorkflowRuntimeError(f"wait is the id of an open wait, a str, not {what}")
        waiting = self.ledger.answer(event, wait_id, step)
        self._pool.spawn_worker()
        self.reporter.changed()
        return (waiting,)

    def listen(self) -> None:
        """Publish the internal events as well, from now on (S4)."""
        if not self.ended:
            self.reporter.listen()

    def watch(self, on_change: Callable[[], None]) -> None:
        """Call a function whenever something has happened that a snapshot would tell (C2)."""
        if not self.ended:
            self.reporter.watch(on_change)

    def check_open(self, what: str) -> None:
        """Refuse what makes no sense once the outcome is decided."""
        if not self.is_running:
            raise self._refusal(what)

    def note_wait(self, wait: Wait) -> None:
        """Take note that an execution waits: its slot is free, and perhaps nothing goes on."""
        if self.reporter.is_active:
            self.reporter.step_waiting(wait)
        self._pool.spawn_worker()
        self.dispatch.note_if_idle()

    def adopt(self, child: RunPort) -> None:
        """Take charge of a run that one of the steps starts (O5)."""
        assert isinstance(child, Run)
        self.check_open("a step cannot start a run")
        self._children[child] = None

    def cancel(self, reason: str) -> None:
        """Decide that the run is cancelled, unless its outcome is decided already (T10)."""
        if self.outcome is None:
            self.decide(Outcome.cancelled(reason))

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

    def _refusal(self, what: str) -> WorkflowRuntimeError:
        """Say that something cannot be done, because of how the run ended (T7)."""
        assert self.outcome is not None
        state = "has ended" if self.ended else "is ending"
        return WorkflowRuntimeError(f"{what}: the run {state}, {self.outcome.summary}")

    def _has_kin(self, workflow: object) -> bool:
        """Return whether an ancestor is a run of the same workflow instance (R7)."""
        ancestor = self.parent
        while isinstance(ancestor, Run) and ancestor.workflow is not workflow:
            ancestor = ancestor.parent
        return ancestor is not None

    # --- The decision -------------------------------------------------------------------------

    def decide(self, outcome: Outcome) -> None:
        """Settle the outcome; the first cause wins (rule 1), what comes later is logged."""
        if self.outcome is None:
            self._settle(self._earlier_cause() or outcome)
        if self.outcome is not outcome and not outcome.is_cancellation:
            level = logging.WARNING if outcome.error else logging.INFO
            logger.log(level, "%s: too late: %s", self, outcome.summary, exc_info=outcome.error)
            if outcome.error is not None:
                self._later_failures.append(f"{outcome.summary}: {text_of(outcome.error)}")

    def _settle(self, outcome: Outcome) -> None:
        if outcome.leaves:
            record = take(self.ledger, self.loop.current_time(), self.stream.delivered)
            if outcome.leaves == "work":
                self.saved.pending = record
            elif record.work:
                self.saved.failed = record.repeating(outcome.failed_work)
        self.outcome = outcome
        if self._queueing is not None:
            self._queueing.cancel()
        self.wake_host()

    def wake_host(self) -> None:
        """Have the host look whether the outcome is decided, and all that is owed has a worker."""
        if self._news is not None:
            self._news.set()

    def _earlier_cause(self) -> Outcome | None:
        """Return the outcome that nobody has noticed yet, if there is one."""
        if (now := self.loop.current_time()) >= self.deadline:
            assert self._settings.timeout is not None
            error = WorkflowTimeoutError(
                self._settings.timeout,
                self.ledger.queues.active_steps(),
                describe_activities(self.ledger, self.deadline),
                count_executions(self.ledger),
                now - self.deadline,
                busy_steps(self.ledger),
            )
            return Outcome.timed_out(error)
        if self.loop.host_cancelled() and not self._group_cancelled():
            return self._loop_ended()
        return None

    def _loop_ended(self) -> Outcome:
        return Outcome.loop_ended(self.ledger.queues.active_steps())

    def _group_cancelled(self) -> bool:
        return self._group is not None and self._group.cancel_scope.cancel_called

    # --- The host ---------------------------------------------------------------------------

    async def _host(self) -> None:
        try:
            if self._starting:  # an eager task factory is still inside `Workflow.run()`
                await checkpoint()
            if self._slot is not None:
                await self._take_slot(self._slot)
            if self.outcome is None:
                async with anyio.create_task_group() as group:
                    self._open(group)
                    await self._wait_until_decided()
                    await self._wait_until_quiet(group)
                    if self.resources is not None:
                        await self._close_resources(self.resources)
                    self.close()
        except BaseException as exc:
            if not is_cancellation(exc):
                logger.error("%s: its task group broke", self, exc_info=exc)

    async def _take_slot(self, slot: RunSlot) -> None:
        """Wait for a slot among the concurrent runs of the workflow (R7)."""
        if self.outcome is None:
            with anyio.CancelScope() as self._queueing:
                await slot.wait()
            self._queueing = None

    def _open(self, group: TaskGroup) -> None:
        self._group = group
        if self._settings.timeout is not None:
            self.deadline = self.loop.current_time() + self._settings.timeout
            group.cancel_scope.deadline = self.deadline
        self._pool.open(group)
        self.dispatch.note_if_idle()  # a run that goes on from a snapshot may have nothing to do

    async def _wait_until_decided(self) -> None:
        while self.outcome is None:
            self._news = anyio.Event()
            try:
                await self._news.wait()
            except anyio.get_cancelled_exc_class():
                self.decide_cancellation()
            if self.outcome is None:
                self._pool.ensure_workers()

    async def _wait_until_quiet(self, group: TaskGroup) -> None:
        """Cancel the workers and wait for them, for `cleanup_timeout` seconds at most (T6)."""
        for child in self._children:
            child.cancel("the run that started it ended")
        if self._pool.size:
            group.cancel_scope.cancel()
            with anyio.move_on_after(self._settings.cleanup_timeout, shield=True) as patience:
                while self._pool.size:
                    # Besides impatience, a native cancellation comes here if the loop ends now.
                    with suppress(anyio.get_cancelled_exc_class()):
                        await self._pool.wait_until_gone()
                    if patience.cancel_called:
                        break
        if self._pool.size:
            logger.warning(
                "%s: gave up waiting for steps that go on %g seconds after being cancelled: %s",
                self,
                self._settings.cleanup_timeout,
                ", ".join(self.ledger.queues.active_steps()),
            )
        while self._children:  # each ends within its own cleanup timeout
            with anyio.CancelScope(shield=True), suppress(anyio.get_cancelled_exc_class()):
                await next(iter(self._children)).wait_until_ended()

    async def _close_resources(self, resources: ResourceManager) -> None:
        """Close what the steps used; what fails there fails a run that went well (P5)."""
        for name, error in await resources.close(self._settings.cleanup_timeout):
            assert self.outcome is not None
            if self.outcome.error is None:
                self.outcome = Outcome.not_closed(name, error)
            else:
                logger.warning("%s: resource %s failed to close", self, name, exc_info=error)

    def _start_keeper(self, resources: Coroutine[Any, Any, None]) -> None:
        assert self._group is not None
        variables = self._pool.variables()
        variables.run(enter_run, self)
        self._group.create_task(
            resources, name=f"{self._settings.name} resources", context=variables
        )

    def close(self) -> None:
        """Publish the terminal event and end the run (rule 2)."""
        if self.ended:
            return
        if self.outcome is None:
            self.decide(self._loop_ended())
        assert self.outcome is not None
        if self.outcome.error is not None and self._later_failures:
            add_note(self.outcome.error, "\n  ".join(["after that:", *self._later_failures]))
        self.ended = True
        self.reporter.end_states()
        self.stream.close(self.outcome.event)
        self._pool.close()
        self.ledger.close()
        self.saved.drop_dead_writers()
        if self._slot is not None:
            self._slot.leave()
        if isinstance(self.parent, Run):
            self.parent._children.pop(self, None)
        if self._done is not None:
            self._done.set()
        self.reporter.log("Run ended: %s", self.outcome.summary)
        self._report_if_forgotten(self.outcome)
        self._report_if_unseen()
        if not self._pool.size:
            # Nobody asks for these any more, and they refer to the run. Without them it is no cycle:
            # it is freed with its handler, not when the garbage collector comes round (6-11 us).
            del self.saved, self.reporter, self.dispatch, self._pool
            self.resources = None

    def _report_if_forgotten(self, outcome: Outcome) -> None:
        """Log that the event loop ended before anybody awaited the run; its parent does (O8)."""
        if outcome.interrupted is not None and self._done is None and self.parent is None:
            steps = ", ".join(outcome.interrupted) or "none"
            what = "cancelled, because its event loop ended and nobody had awaited it"
            logger.info("%s: %s; active steps: %s", self, what, steps)

    def _report_if_unseen(self) -> None:
        """Log a failure that nobody can see any more, once (O6)."""
        if not (self.ended and self._handler_gone) or self.observed or self.stream.consumed:
            return
        assert self.outcome is not None
        if self.outcome.error and not self.outcome.is_cancellation:
            self.observed = True
            logger.error("%s: nobody saw its failure", self, exc_info=self.outcome.error)

    def notice_cancellation(self) -> None:
        """Settle the outcome if the run is being cancelled and the host has not looked yet."""
        if self.outcome is None and self.is_being_cancelled():
            self.decide_cancellation()

    def decide_cancellation(self) -> None:
        """Settle the outcome, if that is open, of a run that is being cancelled or out of time."""
        if self.outcome is not None:
            return
        step = self.ledger.last_finished or "?"
        error = WorkflowRuntimeError(
            f"a step, probably {step}, left a cancel scope or task group open, which broke the run's "
            "task group; leave them where you entered them, with 'with'"
        )
        self._settle(self._earlier_cause() or Outcome.failed(step, error))

    def is_being_cancelled(self) -> bool:
        """Tell whether a cancellation in one of the run's tasks comes from outside the step."""
        return self._group_cancelled() or self.loop.host_cancelled()

    def __repr__(self) -> str:
        return f"run {self.run_id} of {self._settings.name}"
