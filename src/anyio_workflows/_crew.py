"""The workers of a run: the tasks that execute its steps.

# Theory of operation
#
# Work travels from the ledger's decision to a worker through the memory object stream of its step,
# its inbox. A *worker* is a child task of the run's task group. It answers the ledger's calls, of
# whichever step comes first, and executes step after step in the same task, until there are no more
# calls; then it ends. A task per event would cost ten times as much.
#
# Retries wait in the ledger. While there are any, one more task of the crew watches the clock for
# them, and hands them over when their time has come.
#
# Rules
# =====
#
# 1. Whoever leaves calls behind hires: before executing a step, after an event came from outside,
#    when a worker ends. One recruit at a time is enough: it hires the next before it starts work.
# 2. No step starts after the run's outcome is decided, or its deadline has passed.
# 3. Nothing that a step raises leaves its worker; the task group never sees an exception of a step.
# 4. A worker that a step has left with changed context variables ends: the next step is executed
#    in a task of its own that starts from the caller's context (O7).
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextvars import Context as ContextVars
from contextvars import copy_context
from typing import Any, Protocol
from weakref import ref

import anyio
import attrs
from anyio.abc import TaskGroup
from anyio.lowlevel import cancel_shielded_checkpoint, checkpoint
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from ._backend import is_cancellation
from ._keeper import Keeper
from ._ledger.pending import RunPort
from ._ledger.work import Post, Work
from ._narrator import Narrator
from ._outcome import Outcome
from ._suspension import AttemptClock
from .context import StepContext, current_context, current_run, enter_run
from .errors import WorkflowRuntimeError
from .events import StopEvent

__all__ = ["Crew", "Desk", "Employer"]

_STEPS_PER_CHECKPOINT = 64
_SECONDS_PER_CHECKPOINT = 0.0005
"""A worker whose steps never wait lets others run this often (R6); each time takes 5 us."""

_UNSET = object()
"""What a context variable has that has no value."""

Inbox = tuple[MemoryObjectSendStream[Work], MemoryObjectReceiveStream[Work]]


class Desk(Protocol):
    """Where the workers hand over what their steps did, once for each execution."""

    def take_result(self, work: Work, result: Any, now: float) -> None:
        """Take what a step returned."""
        ...

    def take_error(self, work: Work, error: BaseException, now: float) -> None:
        """Take what a step raised."""
        ...

    def take_fault(self, work: Work, error: BaseException, now: float) -> None:
        """Take an error that fails the run."""
        ...

    def take_interruption(self, work: Work) -> None:
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
    narrator: Narrator
    keeper: Keeper | None

    @property
    def dispatch(self) -> Desk:
        """Where the workers hand over what their steps did."""
        ...

    def being_cancelled(self) -> bool:
        """Tell whether a cancellation in one of the run's tasks comes from outside the step."""
        ...

    def wake_host(self) -> None:
        """Have the host look whether all that is owed has a worker."""
        ...

    def take_cancellation(self) -> None:
        """Settle the outcome, if that is open, of a run that is being cancelled or out of time."""
        ...


@attrs.define(eq=False, init=False, repr=False)
class Crew:
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
    _inboxes: dict[Post, Inbox]
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
        """Put work into the inboxes of its steps; to be followed by `hire()`."""
        for item in work:
            inbox = self._inboxes.get(item.post)
            if inbox is None:
                inbox = anyio.create_memory_object_stream(math.inf)
                self._inboxes[item.post] = inbox
            inbox[0].send_nowait(item)

    def open(self, group: TaskGroup) -> None:
        """Begin work, in the run's task group."""
        self._group = group
        self.staff()

    def staff(self) -> None:
        """See to it that all that is owed has a worker."""
        self.hire()
        if self._run.ledger.posts.next_due < math.inf:
            self.tend_delays()

    def variables(self) -> ContextVars:
        """Return the caller's context variables, for a task of the run (O7)."""
        return self._context.copy()

    def hire(self) -> None:
        """See to it that a worker comes for the calls, if there are any (rule 1)."""
        if self._run.ledger.posts.calls and self._answer_calls not in self._recruits:
            self._recruit(self._answer_calls)

    def tend_delays(self) -> None:
        """See to it that work whose retry delay is over is delivered."""
        if self._clock_changed is not None:
            self._clock_changed.set()
        elif self._watch_clock not in self._recruits:
            self._recruit(self._watch_clock)

    def _recruit(self, duty: Callable[[], Awaitable[None]]) -> None:
        """Start a task of the crew, unless the run is ending.

        Called in a callback of asyncio's loop, it has the host do so: AnyIO may refuse to start tasks
        there, since it sees no current task.
        """
        run = self._run
        if self._group is None or run.outcome is not None or run.being_cancelled():
            return
        recruit = self._recruits[duty] = self._serve(duty)
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

    async def _serve(self, duty: Callable[[], Awaitable[None]]) -> None:
        del self._recruits[duty]
        try:
            await duty()
        except anyio.get_cancelled_exc_class():  # between two steps
            if self._run.being_cancelled():
                self._run.take_cancellation()
                raise
            await self._run.home.shed_cancellation()
        finally:
            self.size -= 1
            if self._gone is not None and not self.size:
                self._gone.set()
            self.hire()

    async def _watch_clock(self) -> None:
        run, posts = self._run, self._run.ledger.posts
        self.hire()  # the others left it to this recruit
        try:
            while run.outcome is None and posts.next_due < math.inf:
                self._clock_changed = anyio.Event()
                with anyio.CancelScope(deadline=posts.next_due):
                    await self._clock_changed.wait()
                run.dispatch.end_delays()
                self.hire()
        finally:
            self._clock_changed = None
            if posts.next_due < math.inf:  # somebody cancelled this very task
                self._recruit(self._watch_clock)

    async def _answer_calls(self) -> None:
        run, posts, home = self._run, self._run.ledger.posts, self._run.home
        enter_run(run)
        own = (current_context, current_run)
        given = [(var, value) for var, value in copy_context().items() if var not in own]
        number = len(given) + len(own)
        native_cancellations = home.cancellation_counter()
        current_time, inboxes = home.current_time, self._inboxes
        now = rested = current_time()
        steps = 0
        while posts.calls and run.outcome is None:
            if now >= run.deadline:
                run.take_cancellation()
                return
            _, inbox = inboxes[posts.answer()]
            work = inbox.receive_nowait()
            while work.dropped:
                work = inbox.receive_nowait()
            work.started = now
            if posts.calls and not self._recruits:
                self.hire()
            context = StepContext(run, work)
            current_context.set(ref(context))  # `context` keeps it alive until the next step
            try:
                if run.narrator.has_audience:
                    run.narrator.step_started(work)
                spec = work.post.spec
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
            if native_cancellations() and not run.being_cancelled():
                await home.shed_cancellation()
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
            run.take_cancellation()  # while the ledger still knows that the step was active
        assert work.started is not None
        if now - work.started > _SECONDS_PER_CHECKPOINT and self._scope_left_open(result):
            desk.take_fault(work, _scope_error(work), now)
        else:
            desk.take_result(work, result, now)

    def _hand_over_exception(self, work: Work, exc: BaseException, now: float) -> None:
        run, desk = self._run, self._run.dispatch
        if now >= run.deadline:
            run.take_cancellation()
        if not is_cancellation(exc):
            desk.take_error(work, _name_stop_iteration(exc), now)
        elif work.dropped or run.being_cancelled():
            desk.take_interruption(work)
        else:
            desk.take_error(work, _stray_cancellation(work, exc), now)

    def _scope_left_open(self, result: object) -> bool:
        """Tell whether the step just executed left its worker in a cancel scope of its own.

        It would bound or shield the steps after it. Sees scopes that have a deadline or a shield;
        asked only after steps that took some time.
        """
        run = self._run
        if isinstance(result, StopEvent):
            return False
        return anyio.current_effective_deadline() != run.deadline and not run.being_cancelled()

    async def _call_bounded(self, work: Work, context: StepContext) -> Any:
        """Call a step that is not simple, or may be dropped with its batch (F4)."""
        run = self._run
        spec = work.post.spec
        timeout = math.inf if spec.config.timeout is None else spec.config.timeout
        result = None
        with anyio.CancelScope(deadline=run.home.current_time() + timeout) as scope:
            work.clock = AttemptClock(scope, run.home.current_time)
            work.stop = scope.cancel
            try:
                if spec.needs:
                    assert run.keeper is not None
                    async with run.keeper.supply(spec.needs) as resources:
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
        if scope.cancelled_caught or run.home.current_time() >= scope.deadline:
            raise TimeoutError(f"step {spec.name} took longer than {timeout:g} s")
        return result

    async def _check_undecided(self) -> None:
        """Begin no step if the run was decided, or its deadline passed, since `take_start()`."""
        if self._run.home.current_time() >= self._run.deadline:
            self._run.take_cancellation()
        if self._run.outcome is not None:
            await anyio.sleep_forever()  # the host is about to cancel it

    async def _call_function(
        self, work: Work, context: StepContext, resources: Mapping[str, Any]
    ) -> Any:
        """Call the step function; a sync one in a thread of its own.

        The ledger bounds the number of threads, and one that is abandoned holds no place.
        """
        spec, workflow = work.post.spec, self._run.workflow

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
        f"step {work.post.spec.name} raised a cancellation, but nobody had cancelled it; a cancel "
        "scope, task or timeout inside the step leaks its own"
    )
    error.__cause__ = exc
    return error


def _scope_error(work: Work) -> BaseException:
    return WorkflowRuntimeError(
        f"step {work.post.spec.name}, or one before it in the same task, left a cancel scope open, as "
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
