"""The workers of a run, which execute its steps, and what becomes of results and errors."""

from __future__ import annotations

import inspect
import logging
import math
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextvars import Context as ContextVars
from contextvars import copy_context
from datetime import UTC, datetime
from typing import Any, Protocol
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
from ..context import AttemptClock, StepContext, advice, current_context, current_run, enter_run
from ..errors import WorkflowRuntimeError, WorkflowStalledError
from ..events import Event, ExecutionOutcome, InputRequiredEvent, StepFailedEvent, StopEvent
from ..graph import StepSpec
from .outcome import Outcome
from .reporting import Reporter, describe_failure, describe_last_results, describe_result
from .resources import ResourceManager
from .stream import EventStream

logger = logging.getLogger(__name__)

_STEPS_PER_CHECKPOINT = 64
_SECONDS_PER_CHECKPOINT = 0.0005
"""A worker whose steps never wait lets others run this often (R6); each time takes 5 us."""

_UNSET = object()
"""What a context variable has that has no value."""

Inbox = tuple[MemoryObjectSendStream[Work], MemoryObjectReceiveStream[Work]]


class Desk(Protocol):
    """Where the workers hand over what their steps did, once for each execution."""

    def settle_result(self, work: Work, result: Any, now: float) -> None:
        """Take what a step returned."""
        ...

    def settle_error(self, work: Work, error: BaseException, now: float) -> None:
        """Take what a step raised."""
        ...

    def fail(self, work: Work, error: BaseException, now: float) -> None:
        """Take an error that fails the run."""
        ...

    def settle_cancellation(self, work: Work) -> None:
        """Take note that an execution was cancelled, with the run or with its batch."""
        ...

    def end_delays(self) -> None:
        """Deliver the work whose retry delay is over."""
        ...


class Employer(RunPort, Protocol):
    """A run, as far as its workers can see it."""

    workflow: object
    deadline: float
    outcome: Outcome | None
    reporter: Reporter
    resources: ResourceManager | None

    @property
    def dispatch(self) -> Desk:
        """Where the workers hand over what their steps did."""
        ...

    def is_being_cancelled(self) -> bool:
        """Tell whether a cancellation in one of the run's tasks comes from outside the step."""
        ...

    def wake_host(self) -> None:
        """Have the host look whether all that is owed has a worker."""
        ...

    def decide_cancellation(self) -> None:
        """Settle the outcome, if that is open, of a run that is being cancelled or out of time."""
        ...


@attrs.define(eq=False, init=False, repr=False)
class WorkerPool:
    """The workers of one run, and the inboxes that they take their work from.

    Attributes:
        size: Number of its tasks that are alive.
    """

    size: int
    _run: Employer
    _name: str
    _drops_work: bool
    _context: ContextVars
    _group: TaskGroup | None
    _inboxes: dict[StepQueue, Inbox]
    _recruits: dict[Callable[[], Awaitable[None]], Coroutine[Any, Any, None]]
    _clock_changed: anyio.Event | None
    _gone: anyio.Event | None

    def __init__(self, run: Employer, name: str) -> None:
        self.size = 0
        self._run = run
        self._name = name
        self._drops_work = run.ledger.graph.cancels_branches
        self._context = copy_context()
        self._group = None
        self._inboxes = {}
        self._recruits = {}
        self._clock_changed = None
        self._gone = None

    def deliver(self, work: list[Work]) -> None:
        """Put work into the inboxes of its steps; to be followed by `spawn_worker()`."""
        for item in work:
            inbox = self._inboxes.get(item.queue)
            if inbox is None:
                inbox = anyio.create_memory_object_stream(math.inf)
                self._inboxes[item.queue] = inbox
            inbox[0].send_nowait(item)

    def open(self, group: TaskGroup) -> None:
        """Begin work, in the run's task group."""
        self._group = group
        self.ensure_workers()

    def ensure_workers(self) -> None:
        """See to it that all that is owed has a worker."""
        self.spawn_worker()
        if self._run.ledger.queues.next_due < math.inf:
            self.watch_delays()

    def variables(self) -> ContextVars:
        """Return the caller's context variables, for a task of the run (O7)."""
        return self._context.copy()

    def spawn_worker(self) -> None:
        """See to it that a worker comes for the calls, if there are any (rule 1)."""
        if self._run.ledger.queues.granted and self._execute_steps not in self._recruits:
            self._spawn(self._execute_steps)

    def watch_delays(self) -> None:
        """See to it that work whose retry delay is over is delivered."""
        if self._clock_changed is not None:
            self._clock_changed.set()
        elif self._watch_delays not in self._recruits:
            self._spawn(self._watch_delays)

    def _spawn(self, duty: Callable[[], Awaitable[None]]) -> None:
        """Start a task of the pool, unless the run is ending.

        Called in a callback of asyncio's loop, it has the host do so: AnyIO may refuse to start tasks
        there, since it sees no current task.
        """
        run = self._run
        if self._group is None or run.outcome is not None or run.is_being_cancelled():
            return
        recruit = self._recruits[duty] = self._run_task(duty)
        self.size += 1
        try:
            self._group.create_task(recruit, name=self._name, context=self.variables())
        except BaseException as exc:
            recruit.close()
            del self._recruits[duty]
            self.size -= 1
            if not isinstance(exc, anyio.NoEventLoopError):
                raise
            run.wake_host()

    async def wait_until_gone(self) -> None:
        """Wait until no worker is alive, when the run's task group has been cancelled."""
        for _ in range(2):  # trio runs the tasks of one batch in any order
            await cancel_shielded_checkpoint()
        for recruit in self._recruits.values():
            # It would have begun by now: asyncio threw its task away, cancelled before the start.
            recruit.close()
            self.size -= 1
        self._recruits.clear()
        if self.size:
            self._gone = anyio.Event()
            await self._gone.wait()

    def close(self) -> None:
        """Throw away the work that no worker will take any more."""
        for send, receive in self._inboxes.values():
            send.close()
            receive.close()
        self._inboxes.clear()

    async def _run_task(self, duty: Callable[[], Awaitable[None]]) -> None:
        del self._recruits[duty]
        try:
            await duty()
        except anyio.get_cancelled_exc_class():  # between two steps
            if self._run.is_being_cancelled():
                self._run.decide_cancellation()
                raise
            await self._run.loop.uncancel_current_task()
        finally:
            self.size -= 1
            if self._gone is not None and not self.size:
                self._gone.set()
            self.spawn_worker()

    async def _watch_delays(self) -> None:
        run, queues = self._run, self._run.ledger.queues
        self.spawn_worker()  # the others left it to this recruit
        try:
            while run.outcome is None and queues.next_due < math.inf:
                self._clock_changed = anyio.Event()
                with anyio.CancelScope(deadline=queues.next_due):
                    await self._clock_changed.wait()
                run.dispatch.end_delays()
                self.spawn_worker()
        finally:
            self._clock_changed = None
            if queues.next_due < math.inf:  # somebody cancelled this very task
                self._spawn(self._watch_delays)

    async def _execute_steps(self) -> None:
        run, queues, loop = self._run, self._run.ledger.queues, self._run.loop
        enter_run(run)
        own = (current_context, current_run)
        given = [(var, value) for var, value in copy_context().items() if var not in own]
        number = len(given) + len(own)
        native_cancellations = loop.cancellation_counter()
        current_time, inboxes = loop.current_time, self._inboxes
        now = rested = current_time()
        steps = 0
        while queues.granted and run.outcome is None:
            if now >= run.deadline:
                run.decide_cancellation()
                return
            _, inbox = inboxes[queues.take_slot()]
            work = inbox.receive_nowait()
            while work.dropped:
                work = inbox.receive_nowait()
            work.started = now
            if queues.granted and not self._recruits:
                self.spawn_worker()
            context = StepContext(run, work)
            current_context.set(ref(context))  # `context` keeps it alive until the next step
            try:
                if run.reporter.is_active:
                    run.reporter.step_started(work)
                spec = work.queue.spec
                if spec.is_simple and (work.branch is None or not self._drops_work):
                    result = await spec.invoke(run.workflow, context, work.payload)
                else:
                    result = await self._call_bounded(work, context)
            except BaseException as exc:
                now = current_time()
                self._hand_over_exception(work, exc, now)
            else:
                now = current_time()
                self._hand_over_result(work, result, now)
            if native_cancellations() and not run.is_being_cancelled():
                await loop.uncancel_current_task()
            # Rule 4. By identity: equal values may be different objects, and `==` may raise. It
            # stands here since a call would make it 0.3 us instead of 0.15.
            if len(copy_context()) != number:
                return
            for var, value in given:
                if var.get(_UNSET) is not value:
                    return
            steps += 1
            if steps % _STEPS_PER_CHECKPOINT == 0 or now - rested > _SECONDS_PER_CHECKPOINT:
                await checkpoint()
                now = rested = current_time()

    def _hand_over_result(self, work: Work, result: Any, now: float) -> None:
        run, desk = self._run, self._run.dispatch
        if now >= run.deadline:
            run.decide_cancellation()  # while the ledger still knows that the step was active
        assert work.started is not None
        if now - work.started > _SECONDS_PER_CHECKPOINT and self._scope_left_open(result):
            desk.fail(work, _scope_error(work), now)
        else:
            desk.settle_result(work, result, now)

    def _hand_over_exception(self, work: Work, exc: BaseException, now: float) -> None:
        run, desk = self._run, self._run.dispatch
        if now >= run.deadline:
            run.decide_cancellation()
        if not is_cancellation(exc):
            desk.settle_error(work, _name_stop_iteration(exc), now)
        elif work.dropped or run.is_being_cancelled():
            desk.settle_cancellation(work)
        else:
            desk.settle_error(work, _stray_cancellation(work, exc), now)

    def _scope_left_open(self, result: object) -> bool:
        """Tell whether the step just executed left its worker in a cancel scope of its own.

        It would bound or shield the steps after it. Sees scopes that have a deadline or a shield;
        asked only after steps that took some time.
        """
        run = self._run
        if isinstance(result, StopEvent):
            return False
        return anyio.current_effective_deadline() != run.deadline and not run.is_being_cancelled()

    async def _call_bounded(self, work: Work, context: StepContext) -> Any:
        """Call a step that is not simple, or may be dropped with its batch (F4)."""
        run = self._run
        spec = work.queue.spec
        timeout = math.inf if spec.config.timeout is None else spec.config.timeout
        result = None
        with anyio.CancelScope(deadline=run.loop.current_time() + timeout) as scope:
            work.clock = AttemptClock(scope, run.loop.current_time)
            work.stop = scope.cancel
            try:
                if spec.dependencies:
                    assert run.resources is not None
                    async with run.resources.supply(spec.dependencies) as resources:
                        await self._check_undecided()
                        result = await self._call_function(work, context, resources)
                else:
                    result = await self._call_function(work, context, {})
            finally:
                work.stop = work.clock = None
                if scope.cancel_called:
                    context._give_up()
        if work.dropped:
            return None
        if scope.cancelled_caught or run.loop.current_time() >= scope.deadline:
            raise TimeoutError(f"step {spec.name} took longer than {timeout:g} s")
        return result

    async def _check_undecided(self) -> None:
        """Begin no step if the run was decided, or its deadline passed, since `take_start()`."""
        if self._run.loop.current_time() >= self._run.deadline:
            self._run.decide_cancellation()
        if self._run.outcome is not None:
            await anyio.sleep_forever()  # the host is about to cancel it

    async def _call_function(
        self, work: Work, context: StepContext, resources: Mapping[str, Any]
    ) -> Any:
        """Call the step function; a sync one in a thread of its own.

        The ledger bounds the number of threads, and one that is abandoned holds no place.
        """
        spec, workflow = work.queue.spec, self._run.workflow

        def call() -> Any:
            if resources:
                return spec.call(workflow, context, work.payload, resources)
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
            context._give_up()  # the thread may go on
            raise
        return result


def _stray_cancellation(work: Work, exc: BaseException) -> BaseException:
    """Make a failure of a cancellation that nobody asked for (T8)."""
    error = WorkflowRuntimeError(
        f"step {work.queue.spec.name} raised a cancellation, but nobody had cancelled it; a cancel "
        "scope, task or timeout inside the step leaks its own"
    )
    error.__cause__ = exc
    return error


def _scope_error(work: Work) -> BaseException:
    return WorkflowRuntimeError(
        f"step {work.queue.spec.name}, or one before it in the same task, left a cancel scope open, as "
        "an async generator does that is not exhausted; close it, with contextlib.aclosing()"
    )


def _name_stop_iteration(exc: BaseException) -> BaseException:
    """Name a `StopIteration`, which Python turns into a `RuntimeError` on its own (T5)."""
    if (
        type(exc) is RuntimeError
        and isinstance(exc.__cause__, StopIteration)
        and exc.args == ("coroutine raised StopIteration",)
    ):
        error = WorkflowRuntimeError("the step raised StopIteration")
        error.__cause__ = exc.__cause__
        return error
    return exc


# --- What steps returned or raised ----------------------------------------------------------------

_told_of_none: weakref.WeakSet[Callable[..., Any]] = weakref.WeakSet()
"""The functions of the steps that have returned `None` undeclared, in any run of this process."""


class Decider(RunPort, Protocol):
    """A run, as far as it decides how it ends."""

    stream: EventStream
    outcome: Outcome | None

    def decide(self, outcome: Outcome) -> None:
        """Settle the outcome, unless there is an earlier cause."""
        ...

    def decide_cancellation(self) -> None:
        """Settle the outcome, if that is open, of a run that is being cancelled or out of time."""
        ...


@attrs.define(eq=False, repr=False)
class Dispatch:
    """The way of events into the ledger, and of work from there to the pool.

    Attributes:
        run: The run.
        pool: Its workers.
        reporter: Tells what happens, to those who asked.
        stall_check: Whether to fail when nothing can happen any more (T9).
    """

    run: Decider
    pool: WorkerPool
    reporter: Reporter
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
            self.run.decide(Outcome.stopped(event))
            return
        asks = isinstance(event, InputRequiredEvent)
        if asks:
            self._ask(event)
        work = self._ledger.route(event, target, branch, recoveries)
        if work:
            self.pool.deliver(work)
        elif work is None and not asks:
            self.reporter.unhandled(event, idle=self._ledger.is_quiet(besides=source))

    def send(
        self, event: Event, target: StepSpec | None, recoveries: Recoveries
    ) -> tuple[str, ...]:
        """Give an event that is sent to the steps that take it, or let it end the run.

        Returns:
            The names of the steps that took it (R3).
        """
        if isinstance(event, StopEvent):
            self.run.decide(Outcome.stopped(event))
            return ()
        asks = isinstance(event, InputRequiredEvent)
        if asks:
            self._ask(event)
        taken_by, work = self._ledger.send(event, target, recoveries)
        self.pool.deliver(work)
        if not taken_by and not asks:
            self.reporter.unhandled(event, idle=self._ledger.is_quiet())
        return taken_by

    def _ask(self, question: Event) -> None:
        """Publish a question (S5), which is asked again after a restore if nobody reads it (W4)."""
        stream = self.run.stream
        stream.write(question)
        self._ledger.ask(question, stream.written, stream.delivered)

    def _emit_list(self, events: list[Event], source: Work) -> None:
        """Open a batch with a branch for each event (F1)."""
        batch = self._ledger.open_batch(source)
        for event in events:
            branch = self._ledger.open_branch(batch)
            self.emit(event, None, source, branch, source.recoveries)
            if branch.ended:
                self.pool.deliver(self._ledger.seal_branch(branch))
        self.pool.deliver(self._ledger.seal_batch(batch))

    def end_delays(self) -> None:
        """Hand over the work whose retry delay is over."""
        self.pool.deliver(self._ledger.queues.end_delays(self.run.loop.current_time()))

    def note_if_idle(self) -> None:
        """See whether anything is going on, and if not, whether anything can (T9)."""
        if self.run.outcome is not None or not self._ledger.is_quiet():
            return
        ledger = self._ledger
        if not ledger.idle or ledger.input_asked or ledger.graph.takes_outside_events:
            self.reporter.idle()
        elif self.stall_check:
            error = WorkflowStalledError(describe_last_results(ledger), ledger.missing())
            self.run.decide(Outcome.stalled(ledger.last_finished, error))

    # --- What the pool hands over -------------------------------------------------------------

    def settle_result(self, work: Work, result: Any, now: float) -> None:
        """Take what a step returned: route it, or fail the step for it (R4)."""
        if work.dropped:
            self.settle_cancellation(work)
            return
        spec = work.queue.spec
        if type(result) not in spec.returns and (fault := spec.result_fault(result)):
            self._give_up(work, WorkflowRuntimeError(fault), now)
            return
        if self.run.outcome is not None and not isinstance(result, StopEvent):
            what = describe_result(type(result), spec)
            logger.info("%s: too late, step %s %s", self.run, spec.name, what)
        elif isinstance(result, Event):
            self.emit(result, None, work, work.branch, work.recoveries)
        elif result is not None:
            self._emit_list(result, work)
        elif not spec.returns_none:
            self._warn_of_none(spec)
        self._end(work, "returned", result)

    def _warn_of_none(self, spec: StepSpec) -> None:
        """Tell, once, that a step returns `None` though its annotation does not say so (R4)."""
        function = inspect.unwrap(spec.function)  # a step that a test has wrapped is no other
        if function not in _told_of_none:
            _told_of_none.add(function)
            logger.warning(
                "%s: step %s returned None, though it declares %s; is a 'return' missing? If not, "
                "add '| None' to its annotation (this is told once)",
                self.run,
                spec.name,
                spec.declared,
            )

    def settle_error(self, work: Work, error: BaseException, now: float) -> None:
        """Take what a step raised: try it again, or give up (rule 2)."""
        if isinstance(error, Exception) and not work.dropped and self.run.is_running:
            try:
                delay = _ask_policy(work, error, now)
            except BaseException as exc:
                self.fail(work, _policy_error(work, exc, error), now)
                return
            if delay is not None:
                self._retry(work, error, now, delay)
                return
        self._give_up(work, error, now)

    def fail(self, work: Work, error: BaseException, now: float) -> None:
        """Take an error that can neither be tried again nor be taken by a step; it fails the run."""
        name = work.queue.spec.name
        if work.dropped and isinstance(error, Exception):
            words = describe_result(type(error), work.queue.spec)
            logger.warning("%s: dropped step %s %s", self.run, name, words, exc_info=error)
        else:
            elapsed = _elapsed(work, now)
            _annotate(error, work, elapsed)
            self.run.decide(Outcome.failed(name, error, work.attempt, elapsed, work.id))
        self._end(work, "failed", error)

    def settle_cancellation(self, work: Work) -> None:
        """Take note that an execution was cancelled, with the run or with its batch."""
        if not work.dropped:
            self.run.decide_cancellation()
        self._end(work, "cancelled")

    def _retry(self, work: Work, error: Exception, now: float, delay: float) -> None:
        past = work.past
        past.first_started = work.first_started
        past.last_error, past.last_failed_at = error, datetime.now(UTC)
        if self.reporter.is_active:
            self.reporter.step_retried(work, error, delay)
        self._ledger.delay(work, now + delay)
        self.pool.watch_delays()

    def _give_up(self, work: Work, error: BaseException, now: float) -> None:
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
            step_name=work.queue.spec.name,
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
        self.emit(failure, target=error_handler, branch=work.branch, recoveries=recoveries)
        self._end(work, "recovered", error)
        self.reporter.step_recovered(work, error, error_handler.name)

    def _end(self, work: Work, outcome: ExecutionOutcome, result: Any = None) -> None:
        """Finish work whose execution returned or raised `result`, or was cancelled."""
        if self.reporter.is_active:
            self.reporter.step_ended(work, outcome, result)
        result_type = None if outcome == "cancelled" else type(result)
        failed = outcome != "returned" and outcome != "cancelled"
        if joins := self._ledger.finish(work, result_type, failed):
            self.pool.deliver(joins)
        if not self._ledger.queues.granted:
            self.note_if_idle()


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
            f"the retry policy of step {work.queue.spec.name} answered {delay!r}; it is to answer a "
            "number of seconds, 0 or more, or None"
        )
    return delay


def _policy_error(work: Work, raised: BaseException, error: Exception) -> BaseException:
    """Return what a policy raised, with the step's error as its cause."""
    if isinstance(raised, StopIteration) or is_cancellation(raised):  # would be misunderstood (T5)
        what = f"the retry policy of step {work.queue.spec.name} raised {type(raised).__name__}"
        raised = WorkflowRuntimeError(what)
    if raised is not error and raised.__cause__ is None:
        raised.__cause__ = error
    return raised


def _elapsed(work: Work, now: float) -> float:
    """Return the seconds since the first attempt began."""
    return now - (now if work.first_started is None else work.first_started)


def _has_recoveries_left(error_handler: StepSpec, work: Work) -> bool:
    catch = error_handler.config.catch
    assert catch is not None
    return work.recoveries.get(error_handler.name, 0) < catch.max_recoveries


def _annotate(error: BaseException, work: Work, elapsed: float) -> None:
    """Say with an error which step failed on what, and what to do about it if that is known."""
    add_note(error, describe_failure(work, elapsed))
    if hint := advice(error):
        add_note(error, hint)
