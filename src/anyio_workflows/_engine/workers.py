"""The workers of a run, which execute its steps, and what becomes of results and errors."""

from __future__ import annotations

import inspect
import logging
import math
import weakref
from collections.abc import Callable, Coroutine, Mapping
from contextvars import Context as ContextVars
from contextvars import copy_context
from datetime import UTC, datetime
from typing import Any, Literal
from weakref import ref

import anyio
import attrs
from anyio.abc import TaskGroup
from anyio.lowlevel import cancel_shielded_checkpoint, checkpoint
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from .._annotations import is_positive_number
from .._backend import is_cancellation
from .._ledger.fanin import NO_RECOVERIES, Branch, Recoveries
from .._ledger.ledger import Ledger
from .._ledger.pending import RunPort
from .._ledger.work import StepQueue, Work
from .._messages import add_note
from .._suspension import AttemptClock
from ..context import _advice, _current_context, _current_run, _enter_run, _StepContext
from ..errors import WorkflowRuntimeError, WorkflowStalledError
from ..events import Event, ExecutionOutcome, InputRequiredEvent, StepFailedEvent, StopEvent
from ..graph import StepSpec
from .blocking import excuse_step, look_at, overdue, watched
from .describing import (
    describe_failure,
    describe_last_results,
    describe_result,
    describe_unhandled,
)
from .faults import name_stop_iteration, policy_error, scope_left_open, stray_cancellation
from .instruments import Instruments
from .outcome import Decision, Outcome
from .resources import ResourceManager, SharedValues

logger = logging.getLogger(__name__)

_STEPS_PER_CHECKPOINT = 64
_SECONDS_PER_CHECKPOINT = 0.0005
"""A worker whose steps never wait lets others run this often (R6); each time takes 5 us."""

Ends = tuple[MemoryObjectSendStream[Work], MemoryObjectReceiveStream[Work]]

Duty = Literal["steps", "delays"]
"""What a task of the pool does: execute steps, or watch the retry delays."""

_OWN = (_current_context, _current_run)
"""The context variables that the library itself sets."""

_UNSET = object()
"""What a context variable has that has no value."""


@attrs.define(eq=False, repr=False)
class Inboxes:
    """The memory object streams that carry work to its steps, made when a step gets some and has none.

    Attributes:
        ends: Both ends of each; workers take work from the second one, once they have a slot for it.
    """

    ends: dict[StepQueue, Ends] = attrs.field(factory=dict)

    def deliver(self, work: list[Work]) -> None:
        """Put work into the inboxes of its steps; to be followed by `WorkerPool.spawn_worker()`."""
        for item in work:
            ends = self.ends.get(item.queue)
            if ends is None:
                ends = anyio.create_memory_object_stream[Work](math.inf)
                self.ends[item.queue] = ends
            ends[0].send_nowait(item)

    def close(self) -> None:
        """Close the streams, and throw away the work in them, which no worker will take any more."""
        for send, receive in self.ends.values():
            send.close()
            receive.close()
        self.ends.clear()


@attrs.define(eq=False, repr=False)
class WorkerPool:
    """The worker tasks of one run.

    Attributes:
        size: Number of its tasks that have been created and have not ended; the run ends at 0, or
            without those that outlast the cleanup timeout (T6).
    """

    _run: RunPort
    _workflow: object
    _name: str
    _decision: Decision
    _dispatch: Dispatch
    _inboxes: Inboxes
    _slow_step_warning: float | None
    size: int = attrs.field(default=0, init=False)

    _context: ContextVars = attrs.field(factory=copy_context, init=False)
    """The caller's context variables; each task starts from a copy of them (O7)."""

    _group: TaskGroup | None = attrs.field(default=None, init=False)
    """The run's task group; `None` before it is open, and then no task starts."""

    _resources: ResourceManager | None = attrs.field(default=None, init=False)
    """Supplies steps with resources; `None` exactly if no step of the graph asks for any."""

    _cancels_branches: bool = attrs.field(init=False)
    """Whether a step may have to be cancelled with its batch, and so needs a scope of its own (F4)."""

    _starting: dict[Duty, Coroutine[Any, Any, None]] = attrs.field(factory=dict, init=False)
    """The tasks that have been created and have not begun: one of each duty at most."""

    _delays_changed: anyio.Event | None = attrs.field(default=None, init=False)
    """Set to have the task that watches the retry delays look again; `None` if there is none."""

    _gone: anyio.Event | None = attrs.field(default=None, init=False)
    """Set when the last task has ended, once the host waits for that."""

    def __attrs_post_init__(self) -> None:
        self._cancels_branches = self._run.ledger.graph.cancels_branches

    def open(
        self, group: TaskGroup, shared: SharedValues | None, above: ResourceManager | None
    ) -> ResourceManager | None:
        """Begin work, in the run's task group; returns what opens and closes the resources."""
        self._group = group
        if self._run.ledger.graph.uses_resources:
            variables = self._variables()
            variables.run(_enter_run, self._run)
            self._resources = ResourceManager(
                self._run,
                self._run.loop,
                group,
                variables,
                f"{self._name} resources",
                shared,
                above,
            )
        self.ensure_workers()
        return self._resources

    def ensure_workers(self) -> None:
        """Ensure that all pending work has a worker, and retry delays are watched."""
        self.spawn_worker()
        if self._run.ledger.queues.next_due < math.inf:
            self.watch_delays()

    def _variables(self) -> ContextVars:
        """Return the caller's context variables, for a task of the run (O7)."""
        return self._context.copy()

    def spawn_worker(self) -> None:
        """Start a worker for the granted slots, if there are any and none is about to begin."""
        if self._run.ledger.queues.first_granted is not None and "steps" not in self._starting:
            self._spawn("steps")

    async def _wait_for_slot(self) -> bool:
        """Let a worker that has nothing to do wait for a slot; returns whether it did, or is to end."""
        return False

    def watch_delays(self) -> None:
        """Ensure that work whose retry delay is over is delivered."""
        if self._delays_changed is not None:
            self._delays_changed.set()
        elif "delays" not in self._starting:
            self._spawn("delays")

    def _spawn(self, duty: Duty) -> None:
        """Start a task, unless the run is ending.

        Called in a callback of asyncio's loop, it has the host do so: AnyIO may refuse to start tasks
        there, since it sees no current task.
        """
        decision = self._decision
        if self._group is None or decision.outcome is not None or decision.is_being_cancelled():
            return
        task = self._starting[duty] = self._run_task(duty)
        self.size += 1
        try:
            self._group.create_task(task, name=self._name, context=self._variables())
        except BaseException as exc:
            task.close()
            del self._starting[duty]
            self.size -= 1
            if not isinstance(exc, anyio.NoEventLoopError):
                raise
            decision.wake_host()

    async def wait_until_gone(self) -> None:
        """Wait until no task is alive, when the run's task group has been cancelled."""
        for _ in range(2):  # trio runs the tasks of one batch in any order
            await cancel_shielded_checkpoint()
        for task in self._starting.values():
            # It would have begun by now: asyncio threw its task away, cancelled before the start.
            task.close()
            self.size -= 1
        self._starting.clear()
        if self.size:
            self._gone = anyio.Event()
            await self._gone.wait()

    async def _run_task(self, duty: Duty) -> None:
        del self._starting[duty]
        try:
            if duty == "delays":
                await self._watch_delays()
            else:
                await watched(self._execute_steps(), self._run.loop, self._slow_step_warning)
        except anyio.get_cancelled_exc_class():  # between two steps
            if self._decision.is_being_cancelled():
                self._decision.decide_cancellation()
                raise
            await self._run.loop.uncancel_current_task()
        finally:
            self.size -= 1
            if self._gone is not None and not self.size:
                self._gone.set()
            self.spawn_worker()  # a step may have ended this worker while slots are granted

    async def _watch_delays(self) -> None:
        queues, loop = self._run.ledger.queues, self._run.loop
        self.spawn_worker()  # a worker spawns none while a task is about to begin: this one was
        try:
            while self._decision.outcome is None and queues.next_due < math.inf:
                self._delays_changed = anyio.Event()
                with anyio.CancelScope(deadline=queues.next_due):
                    await self._delays_changed.wait()
                self._inboxes.deliver(queues.end_delays(loop.current_time()))
                self.spawn_worker()
        finally:
            self._delays_changed = None
            if queues.next_due < math.inf:  # this very task was cancelled, by a step
                self._spawn("delays")

    async def _execute_steps(self) -> None:
        run, queues, loop = self._run, self._run.ledger.queues, self._run.loop
        decision, instruments = self._decision, self._dispatch.instruments
        _enter_run(run)
        given = [(var, value) for var, value in copy_context().items() if var not in _OWN]
        number = len(given) + len(_OWN)
        native_cancellations = loop.cancellation_counter()
        current_time, inboxes = loop.current_time, self._inboxes.ends
        now = rested = current_time()
        steps = 0
        context: _StepContext | None = None
        while decision.outcome is None:
            if queues.first_granted is None:
                context = None  # the step that is over has none any more, wherever it is asked for
                if not await self._wait_for_slot():
                    return
                now = rested = current_time()
                continue
            # The deadline has passed, and the host has not been told yet: no step starts any more.
            if now >= decision.deadline:
                decision.decide_cancellation()
                return
            inbox = inboxes[queues.take_slot()][1]
            work = inbox.receive_nowait()
            # What was dropped with its batch has given its slot to the next in line (F4).
            while work.dropped:
                work = inbox.receive_nowait()
            work.started = now
            # The next worker begins while this step waits. It spawns the one after it.
            if queues.first_granted is not None and not self._starting:
                self.spawn_worker()
            context = _StepContext(run, work)
            _current_context.set(ref(context))  # `context` keeps it alive until the next step
            try:
                if instruments.active:
                    instruments.execution_started(work, now)
                spec = work.queue.spec
                # Most steps are just awaited; the others need a thread, a timeout, resources, or a
                # scope by which their batch can cancel them.
                if spec.is_simple and (work.branch is None or not self._cancels_branches):
                    result = await spec.invoke(self._workflow, context, work.payload)
                else:
                    result = await self._call_bounded(work, context)
            except BaseException as exc:
                now = current_time()
                self._settle_exception(work, exc, now)
            else:
                now = current_time()
                self._settle_result(work, result, now)
                if type(result) is list:  # to queue a long one takes a while
                    now = current_time()
            if instruments.active:  # and so do they
                now = current_time()
            # A native cancellation that the step swallowed or requested must not hit the next one.
            if native_cancellations() and not decision.is_being_cancelled():
                await loop.uncancel_current_task()
            # The step has changed context variables: this worker ends (O7). By identity: equal values
            # may be different objects, and `==` may raise. It stands here since a call would make it
            # 0.3 us instead of 0.15.
            if len(copy_context()) != number:
                return
            for var, value in given:
                if var.get(_UNSET) is not value:
                    return
            # Steps that never wait must not starve other tasks, or the reader (R6).
            steps += 1
            if steps % _STEPS_PER_CHECKPOINT == 0 or now - rested > _SECONDS_PER_CHECKPOINT:
                await checkpoint()
                now = rested = current_time()

    def _settle_result(self, work: Work, result: Any, now: float) -> None:
        if now >= self._decision.deadline:
            # While the ledger still knows that the step was active: the error of the timeout names it.
            self._decision.decide_cancellation()
        assert work.started is not None
        if now - work.started > _SECONDS_PER_CHECKPOINT:
            look_at(self._run.loop, now, self._slow_step_warning)
            if self._scope_left_open(result):
                self._dispatch.fail(work, scope_left_open(work), now)
                return
        self._dispatch.settle_result(work, result, now)

    def _settle_exception(self, work: Work, exc: BaseException, now: float) -> None:
        decision, dispatch = self._decision, self._dispatch
        look_at(self._run.loop, now, self._slow_step_warning)
        if now >= decision.deadline:
            decision.decide_cancellation()
        if not is_cancellation(exc):
            dispatch.settle_error(work, name_stop_iteration(exc), now)
        elif work.dropped or decision.is_being_cancelled():
            dispatch.settle_cancellation(work, now)
        else:
            dispatch.settle_error(work, stray_cancellation(work, exc), now)
        if work.due is not None:  # it is retried after a delay
            self.watch_delays()

    def _scope_left_open(self, result: object) -> bool:
        """Tell whether the step just executed left its worker in a cancel scope of its own.

        It would bound or shield the steps after it. Sees scopes that have a deadline or a shield;
        asked only after steps that took some time.
        """
        if isinstance(result, StopEvent):
            return False
        deadline = anyio.current_effective_deadline()
        return deadline != self._decision.deadline and not self._decision.is_being_cancelled()

    async def _call_bounded(self, work: Work, context: _StepContext) -> Any:
        """Call a step that is not simple, or may be dropped with its batch (F4)."""
        spec, loop = work.queue.spec, self._run.loop
        timeout = math.inf if spec.config.timeout is None else spec.config.timeout
        result = None
        with anyio.CancelScope(deadline=loop.current_time() + timeout) as scope:
            context._clock = AttemptClock(scope, loop)
            work.cancel = scope.cancel
            try:
                if spec.dependencies:
                    assert self._resources is not None
                    async with self._resources.supply(spec.dependencies) as resources:
                        await self._check_undecided()
                        result = await self._call_function(work, context, resources)
                else:
                    result = await self._call_function(work, context, {})
            finally:
                work.cancel = context._clock = None
                if scope.cancel_called:
                    context._give_up()
        if work.dropped:
            return None
        if scope.cancelled_caught or loop.current_time() >= scope.deadline:
            raise overdue(spec.name, timeout, scope.deadline, self._run)
        return result

    async def _check_undecided(self) -> None:
        """Begin no step if the run was decided, or its deadline passed, while resources were opened."""
        if self._run.loop.current_time() >= self._decision.deadline:
            self._decision.decide_cancellation()
        if self._decision.outcome is not None:
            await anyio.sleep_forever()  # the host is about to cancel it

    async def _call_function(
        self, work: Work, context: _StepContext, resources: Mapping[str, Any]
    ) -> Any:
        """Call the step function; a sync one in a thread of its own.

        The ledger bounds the number of threads, and one that is abandoned holds no slot.
        """
        spec, workflow = work.queue.spec, self._workflow

        def call() -> Any:
            if resources or spec.opener_param is not None:
                return spec.call(workflow, context, work.payload, work.opener, resources)
            return spec.invoke(workflow, context, work.payload)

        if spec.is_async:
            return await call()
        # In a tuple, since trio does not take a coroutine from a thread.
        try:
            (result,) = await anyio.to_thread.run_sync(
                lambda: (call(),),
                abandon_on_cancel=True,
                limiter=anyio.CapacityLimiter(1),
            )
        except anyio.get_cancelled_exc_class():
            context._give_up()  # the thread may still run
            raise
        return result


# --- What steps returned or raised ----------------------------------------------------------------

_warned_of_none: weakref.WeakSet[Callable[..., Any]] = weakref.WeakSet()
"""The functions of the steps that have been warned of for an undeclared `None` in this process."""


@attrs.define(eq=False, repr=False)
class Dispatch:
    """The way of events into the ledger, and of work from there to the inboxes.

    Attributes:
        run: The run.
        decision: How it ends.
        inboxes: Where work goes.
        instruments: Told what happens.
        stall_check: Whether to fail when nothing can happen any more (T9).
    """

    run: RunPort
    decision: Decision
    inboxes: Inboxes
    instruments: Instruments
    stall_check: bool
    _ledger: Ledger = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._ledger = self.run.ledger

    def emit(
        self,
        event: Event,
        target: StepSpec | None = None,
        source: Work | None = None,
        branch: Branch | None = None,
        recoveries: Recoveries = NO_RECOVERIES,
    ) -> None:
        """Give an event to the steps that take it, or let it end the run.

        Args:
            event: The event.
            target: The only step that is to have it.
            source: The work whose execution returned it, and is about to end.
            branch: The branch of a batch that it belongs to.
            recoveries: How often its ancestors have been recovered.
        """
        if isinstance(event, StopEvent):
            self.decision.decide(Outcome.stopped(event))
            return
        asks = isinstance(event, InputRequiredEvent)
        if asks:
            self._ask(event)
        work = self._ledger.route(event, target, branch, recoveries)
        if work:
            self.inboxes.deliver(work)
        elif work is None and not asks:
            self._note_unhandled(event, self._ledger.is_quiet(besides=source))

    def send(
        self, event: Event, target: StepSpec | None, recoveries: Recoveries
    ) -> tuple[str, ...]:
        """Give an event that is sent to the steps that take it, or let it end the run.

        Returns:
            The names of the steps that took it (R3).
        """
        if isinstance(event, StopEvent):
            self.decision.decide(Outcome.stopped(event))
            return ()
        asks = isinstance(event, InputRequiredEvent)
        if asks:
            self._ask(event)
        taken_by, work = self._ledger.send(event, target, recoveries)
        self.inboxes.deliver(work)
        if not taken_by and not asks:
            self._note_unhandled(event, self._ledger.is_quiet())
        return taken_by

    def _ask(self, question: Event) -> None:
        """Publish a question (S5), which is asked again after a restore if it was not read (W4)."""
        self._ledger.ask(question, self.run.ask(question), self.run.events_read)

    def _note_unhandled(self, event: Event, idle: bool) -> None:
        """Tell that no step takes an event (R3)."""
        remark = describe_unhandled(self._ledger, event)
        logger.warning("%s: no step accepts %s; %s", self.run, type(event).__name__, remark)
        if self.instruments.active:
            self.instruments.event_unhandled(event, idle)

    def _emit_list(self, events: list[Event], source: Work) -> None:
        """Open a batch with a branch for each event (F1)."""
        batch = self._ledger.open_batch(source)
        for event in events:
            branch = self._ledger.open_branch(batch)
            self.emit(event, None, source, branch, source.recoveries)
            if branch.ended:
                self.inboxes.deliver(self._ledger.seal_branch(branch))
        self.inboxes.deliver(self._ledger.seal_batch(batch))
        excuse_step(self.run.loop)  # the next one: a long list takes a while

    def check_idle(self) -> None:
        """Report that the run is idle, or fail it if nothing can happen any more (T9)."""
        if self.decision.outcome is not None or not self._ledger.is_quiet():
            return
        self.inboxes.close()  # nothing is queued: they would take 1.4 KB each for as long as it waits
        ledger = self._ledger
        if not ledger.idle or ledger.input_asked or ledger.graph.takes_outside_events:
            if self.instruments.active:
                self.instruments.idle()
        elif self.stall_check:
            error = WorkflowStalledError(describe_last_results(ledger), ledger.missing())
            self.decision.decide(Outcome.stalled(ledger.last_finished, error))

    # --- The end of an execution ----------------------------------------------------------------

    def settle_result(self, work: Work, result: Any, now: float) -> None:
        """Route what a step returned, or fail the step for it (R4)."""
        if work.dropped:
            self.settle_cancellation(work, now)
            return
        spec = work.queue.spec
        if type(result) not in spec.returns and (fault := spec.result_fault(result)):
            self._recover_or_fail(work, WorkflowRuntimeError(fault), now)
            return
        if self.instruments.active:
            self.instruments.execution_ended(work, "returned", result, now)
        if self.decision.outcome is not None and not isinstance(result, StopEvent):
            what = describe_result(type(result), spec)
            logger.info(
                "%s: ignored, because the outcome was already decided: step %s %s",
                self.run,
                spec.name,
                what,
            )
        elif isinstance(result, Event):
            self.emit(result, None, work, work.branch, work.recoveries)
        elif result is not None:
            self._emit_list(result, work)
        elif not spec.returns_none:
            self._warn_of_none(spec)
        self._finish(work, "returned", type(result), now)

    def _warn_of_none(self, spec: StepSpec) -> None:
        """Warn, once, that a step returned `None` though its annotation does not say so (R4)."""
        function = inspect.unwrap(spec.function)  # a step that a test has wrapped is no other
        if function not in _warned_of_none:
            _warned_of_none.add(function)
            logger.warning(
                "%s: step %s returned None, though it declares %s; is a 'return' missing? If not, "
                "add '| None' to its annotation (logged once)",
                self.run,
                spec.name,
                spec.declared,
            )

    def settle_error(self, work: Work, error: BaseException, now: float) -> None:
        """Retry a step that raised, let an error handler take over, or fail the run."""
        if isinstance(error, Exception) and not work.dropped and self.run.is_running:
            try:
                delay = _ask_policy(work, error, now)
            except BaseException as exc:
                self.fail(work, policy_error(work, exc, error), now)
                return
            if delay is not None:
                self._retry(work, error, now, delay)
                return
        self._recover_or_fail(work, error, now)

    def fail(self, work: Work, error: BaseException, now: float) -> None:
        """Fail the run with an error that is neither retried nor taken by an error handler."""
        name = work.step
        if work.dropped and isinstance(error, Exception):
            words = describe_result(type(error), work.queue.spec)
            logger.warning("%s: dropped step %s %s", self.run, name, words, exc_info=error)
        else:
            elapsed = _elapsed(work, now)
            _annotate(error, work, elapsed)
            self.decision.decide(Outcome.failed(name, error, work.attempt, elapsed, work.id))
        if self.instruments.active:
            self.instruments.execution_ended(work, "failed", error, now)
        self._finish(work, "failed", type(error), now)

    def settle_cancellation(self, work: Work, now: float) -> None:
        """End an execution that was cancelled, with the run or with its batch."""
        if not work.dropped:
            self.decision.decide_cancellation()
        if self.instruments.active:
            self.instruments.execution_ended(work, "cancelled", None, now)
        self._finish(work, "cancelled", None, now)

    def _retry(self, work: Work, error: Exception, now: float, delay: float) -> None:
        past = work.past
        past.first_started = work.first_started
        past.last_error, past.last_failed_at = error, datetime.now(UTC)
        if self.instruments.active:
            self.instruments.execution_ended(work, "retrying", error, now, now + delay)
        assert work.started is not None
        self._ledger.delay(work, now + delay, now - work.started)

    def _recover_or_fail(self, work: Work, error: BaseException, now: float) -> None:
        """Let a `@catch_error` step take over, if there is one with recoveries left (X4)."""
        error_handler = self._ledger.graph.error_handler_of(work.queue.spec)
        recoverable = isinstance(error, Exception) and not work.dropped and self.run.is_running
        if (
            error_handler is None
            or not recoverable
            or not _has_recoveries_left(error_handler, work)
        ):
            self.fail(work, error, now)
            return
        assert isinstance(error, Exception)
        elapsed = _elapsed(work, now)
        _annotate(error, work, elapsed)
        failure = StepFailedEvent(
            step_name=work.step,
            input_event=work.payload,
            exception=error,
            attempts=work.attempt,
            elapsed_seconds=elapsed,
            failed_at=datetime.now(UTC),
        )
        recoveries = {
            **work.recoveries,
            error_handler.name: work.recoveries.get(error_handler.name, 0) + 1,
        }
        logger.info(
            "%s: step %s failed; %s takes over",
            self.run,
            work.step,
            error_handler.name,
            exc_info=error,
        )
        if self.instruments.active:
            self.instruments.execution_ended(work, "recovered", error, now)
        self.emit(failure, target=error_handler, branch=work.branch, recoveries=recoveries)
        self._finish(work, "recovered", type(error), now)

    def _finish(
        self, work: Work, outcome: ExecutionOutcome, result_type: type | None, now: float
    ) -> None:
        """Finish work whose execution returned or raised something of a type, or was cancelled."""
        failed = outcome != "returned" and outcome != "cancelled"
        assert work.started is not None
        if joins := self._ledger.finish(work, result_type, failed, now - work.started):
            self.inboxes.deliver(joins)
        if self._ledger.queues.first_granted is None:
            self.check_idle()


def _ask_policy(work: Work, error: Exception, now: float) -> float | None:
    """Return the seconds until the next attempt; `None` if there is to be none (X1).

    Raises:
        WorkflowRuntimeError: If the policy answers something else.
        BaseException: What the policy raises.
    """
    policy = work.queue.spec.config.retry_policy
    if policy is None:
        return None
    delay = policy.next(_elapsed(work, now), work.attempt, error)
    if delay is not None and not is_positive_number(delay, or_zero=True):
        raise WorkflowRuntimeError(
            f"the retry policy of step {work.step} returned {delay!r}; it must return a "
            "number of seconds, 0 or more, or None"
        )
    return delay


def _elapsed(work: Work, now: float) -> float:
    """Return the seconds since the first attempt began."""
    return now - (now if work.first_started is None else work.first_started)


def _has_recoveries_left(error_handler: StepSpec, work: Work) -> bool:
    catch = error_handler.config.catch
    assert catch is not None
    return work.recoveries.get(error_handler.name, 0) < catch.max_recoveries


def _annotate(error: BaseException, work: Work, elapsed: float) -> None:
    """Add to an error which step failed on what, and what to do about it if that is known."""
    add_note(error, describe_failure(work, elapsed))
    if hint := _advice(error):
        add_note(error, hint)
