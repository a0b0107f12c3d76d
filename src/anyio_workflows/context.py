"""The `Context` passed to steps, and what outlives a run: its state, and pending work."""

from __future__ import annotations

import math
import re
import reprlib
import weakref
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import anyio
import anyio.from_thread
import attrs
from anyio.lowlevel import checkpoint

from ._annotations import is_positive_number
from ._backend import LoopHandle
from ._ledger.pending import RunPort, SavedState
from ._ledger.work import OpenWait, Wait, Work
from ._messages import Absent, namesakes
from .errors import ContextStateError, WorkflowConfigurationError, WorkflowRuntimeError
from .events import Event, StopEvent
from .graph import Graph
from .state import DictState, StateStore
from .steps import RetryInfo

__all__ = ["Context"]

if TYPE_CHECKING:
    import typing_extensions

    StateT = typing_extensions.TypeVar("StateT", default=DictState)
else:
    StateT = TypeVar("StateT")


T = TypeVar("T")
EventT = TypeVar("EventT", bound=Event)
ResultT = TypeVar("ResultT")

_SETTING = re.compile("'StepContext' object (?:has no )?attribute '([^']*)'")
"""The text of Python for an attribute that cannot be set, as the class has slots."""


class Context(Generic[StateT]):
    """The way to a run, and what outlives it: the state, and what is left to do.

    A step gets one of its own for each execution: annotate a parameter with it, as in
    `async def ask(self, ctx: Context, ev: StartEvent)`; `Context[MyState]` says of which class the
    state is. In a plain `def` step, which runs in a worker thread, the synchronous methods are
    called directly and the async ones with `anyio.from_thread.run(ctx.wait_for_event, ...)`.

    Outside, `handler.ctx` is the context of a run. `Context(workflow)` makes one before the run, to
    seed its state; `workflow.run(ctx=ctx)` goes on from a context, as often as one likes.

    Args:
        workflow: The workflow whose runs it is for.

    Raises:
        WorkflowConfigurationError: If `workflow` is no workflow.
    """

    __slots__ = ("__weakref__", "_saved")
    _saved: SavedState
    _work: Work | None = None
    _given_up: bool = False
    _clock: _AttemptClock | None = None

    def __init__(self, workflow: object) -> None:
        self._saved = SavedState(_graph_of(workflow, "Context()"))

    @staticmethod
    def get_step_context() -> Context[Any]:
        """Return the context of the step that is being executed.

        Raises:
            WorkflowRuntimeError: Outside a step.
        """
        context = _current_step()
        if context is None:
            raise WorkflowRuntimeError("get_step_context() was called outside a step")
        return context

    @classmethod
    def from_dict(
        cls, workflow: object, data: Mapping[str, Any], types: Iterable[type] = ()
    ) -> Context[Any]:
        """Make a context from what `to_dict()` gave; `workflow.run(ctx=...)` goes on from there.

        Args:
            workflow: The workflow whose run it was, or another instance of its class.
            data: The snapshot. Nothing that it names is imported.
            types: Types that the data may name, besides those that the annotations of the steps
                mention, the code of the methods names (event classes), and `Workflow.types` lists.

        Raises:
            WorkflowConfigurationError: If `workflow` is no workflow.
            ContextSerdeError: If the data is no snapshot of a run of this workflow, or of a newer
                version; with the path of the bad value, and with a text of at most 1000
                characters, whatever is in the data.
        """
        from ._snapshot import load

        graph = _graph_of(workflow, "Context.from_dict()")
        return _context_of(load(graph, data, tuple(types)))

    def to_dict(self, types: Iterable[type] = ()) -> dict[str, Any]:
        """Return a snapshot of the run, which `json.dumps` takes; at any moment (P3).

        It holds the state and all that is owed: work that is being executed as it was before it
        began, retries, waits with their answers, open batches, collected events. After a stop event
        it holds the state alone; after a failure, also what `retry_failed()` makes owed again. What
        nobody has read from the stream is not in it, but questions are (W4).

        Args:
            types: Types that it may hold, besides those that `from_dict()` knows without being
                told.

        Raises:
            ContextSerdeError: If it holds a value that cannot be written as JSON; it names the
                value. The run goes on.
        """
        from ._snapshot import dump

        saved = self._saved
        if saved.run is None or saved.run.ended:
            return dump(saved, tuple(types))
        return self._in_loop(dump, saved, tuple(types))

    @property
    def store(self) -> StateStore[StateT]:
        """The state that the steps share. It outlives the run.

        While a run goes on it is used in the event loop of that run. What an execution does with it
        after it was given up is refused.
        """
        self._check_alive()
        return self._saved.store._guarded(self._check_store)

    def _check_store(self) -> None:
        self._check_alive()
        run = self._saved.run
        if run is not None and not run.ended and not run.loop.is_here():
            raise _elsewhere()

    @property
    def has_work_left(self) -> bool:
        """Whether the last run has left work to do, with which `run(ctx=...)` goes on.

        It is false after a failure, until `retry_failed()` is called.
        """
        return self._saved.pending is not None

    def discard_work(self) -> None:
        """Drop what the last run has left to do, so that the next one starts anew with the state.

        After a failure it drops what `retry_failed()` would repeat, also from the next snapshot.

        Raises:
            ContextStateError: If a run is going on.
        """
        self._saved.discard()

    def retry_failed(self) -> None:
        """Owe again what the last run owed when it failed, the failed execution included.

        The next `run(ctx=...)` repeats that execution, with its attempts counted from 1, and goes on
        with what was queued, running, waiting or delayed beside it; finished steps do not run again.
        Answers that it had, and what it collected, are given again. It works on the restored snapshot
        of a failed run as well.

        Raises:
            ContextStateError: If a run is going on, or there is nothing to repeat: no step failed for
                good, or it was retried, discarded or followed by another run since.
        """
        self._saved.retry_failed()

    def open_waits(self) -> list[OpenWait]:
        """Return the waits that can be answered now, in the order in which they began.

        Those of the run in progress, else those with which `run(ctx=...)` would go on: of a restored
        snapshot, or left by a timeout or a cancellation.
        """
        saved = self._saved
        if saved.run is None or saved.run.ended:
            return saved.open_waits()
        return self._in_loop(saved.open_waits)

    @property
    def _run(self) -> RunPort:
        run = self._saved.run
        if run is None:
            raise ContextStateError("this context has no run yet; give it to workflow.run(ctx=...)")
        return run

    @property
    def run_id(self) -> str:
        """Identifies the run in logs, as `handler.run_id` does."""
        return self._run.run_id

    @property
    def is_running(self) -> bool:
        """Whether a run is going on, and undecided: not stopped, failed, timed out or cancelled."""
        run = self._saved.run
        return run is not None and run.is_running

    def write_event_to_stream(self, ev: Event | None) -> None:
        """Append an event to the run's public stream; never waits. `None` is ignored.

        Raises:
            WorkflowRuntimeError: If `ev` is no event or a stop event, or if the run has ended.
        """
        if ev is not None:
            if not isinstance(ev, Event) or isinstance(ev, StopEvent):
                raise _not_writable(ev)
            self._in_loop(self._run.write, ev)

    async def drain(self, limit: int = 0) -> None:
        """Wait until at most `limit` events of the public stream are unread, as long as it is read.

        So a step produces at the pace of the reader instead of filling the memory:

            async for token in provider.stream(prompt):
                ctx.write_event_to_stream(Token(text=token))
                await ctx.drain(16)

        The stream is read from the first `anext()` of an iteration until that is exhausted, closed
        with `aclose()` or dropped; one that was cancelled while it waited for an event does not
        count until it is asked again. Without a reader, and once the run has ended, this lets
        others run and returns. An iterator that is kept after a `break` is a reader that takes its
        time: close it.

        Args:
            limit: How many events may be unread, internal ones included if somebody asked for them.

        Raises:
            WorkflowRuntimeError: If `limit` is no int of 0 or more, in another event loop, or in an
                execution that has been given up.
        """
        if type(limit) is not int or limit < 0:
            raise WorkflowRuntimeError(f"limit must be an int, 0 or more, not {limit!r}")
        run = self._run
        if not run.ended and not run.loop.is_here():
            raise _elsewhere()
        self._check_alive()
        await run.drain(limit, self._until_given_up)

    def send_event(self, ev: Event, step: str | None = None) -> tuple[str, ...]:
        """Give an event to every step that accepts it, or to the one called `step`, at once.

        A stop event ends the run, as returning it does. Once the end of the run is decided the
        event is dropped, with a line in the log.

        Returns:
            The names of the steps that took it, in the order of their definition. A step takes an
            event by being started, by keeping it for a set of events, or as the answer to one or
            more of its waits. `()` if no step did; also for a stop event and for one that was
            dropped.

        Raises:
            WorkflowRuntimeError: If `ev` is no event, `step` does not exist or does not accept it,
                or if the run has ended.
        """
        return self._in_loop(self._run.send, ev, step, self._work)

    async def running_steps(self) -> list[str]:
        """Return the sorted names of the steps that are at work, wait, or are to be tried again."""
        self._check_alive()
        return self._run.ledger.queues.active_steps()

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
        _check_event(ev, "collected")
        work = self._own_work("collect events")
        return self._in_loop(self._collect, work, ev, list(expected), buffer_id)

    def _collect(
        self, work: Work, event: Event, expected: list[type[Event]], buffer_id: str | None
    ) -> list[Event] | None:
        name = type(event).__name__
        self._run.check_open(f"{name} cannot be collected")
        known = type(event) in expected
        if not known and (remark := namesakes([type(event)], expected)):
            raise WorkflowRuntimeError(f"{name} is not among the events to collect: {remark}")
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
            waiter_event: Published once when the wait begins, typically an `InputRequiredEvent`.
            waiter_id: Names the wait. Needed where one execution waits for equal things at once.
            requirements: Attributes that the event must have, with their values.
            timeout: Seconds to wait; `None` for no limit.

        Raises:
            TimeoutError: If no such event came in time.
            WorkflowRuntimeError: Outside a step, if an equal wait is open in this execution, or if
                the end of the run is decided.
        """
        work = self._own_work("wait for an event")
        if not self._run.loop.is_here():
            raise _elsewhere()
        self._check_alive()
        if not (isinstance(event_type, type) and issubclass(event_type, Event)):
            raise WorkflowRuntimeError(f"a step waits for an event class, not for {event_type!r}")
        if timeout is not None and not is_positive_number(timeout, or_zero=True):
            raise WorkflowRuntimeError(
                f"timeout must be a number of seconds, or None, not {timeout!r}"
            )
        if isinstance(waiter_event, StopEvent) or not isinstance(waiter_event, Event | None):
            raise _not_writable(waiter_event)
        if not isinstance(waiter_id, str | None):
            raise WorkflowRuntimeError(f"waiter_id must be a str, or None, not {waiter_id!r}")
        wait = Wait(work, event_type, dict(requirements or {}), waiter_id)
        await _suspend(self._run, wait, waiter_event, timeout, self._clock)
        if wait.answer is None:
            assert timeout is not None
            name = event_type.__name__
            raise TimeoutError(f"no {name} that was waited for came within {timeout:g} s")
        return cast(EventT, wait.answer)

    async def relay_events(self, child: Awaitable[ResultT]) -> ResultT:
        """Forward the events of a child run, except its terminal event, to this run's stream.

        Args:
            child: The handler of the child run.

        Returns:
            The result of the child run.

        Raises:
            WorkflowRuntimeError: If `child` is no handler, or the one of the step's own run, or of a run
                that waits for it.
            BaseException: As `await child` does.
        """
        run, stream_events = getattr(child, "_run", None), getattr(child, "stream_events", None)
        if run is None or stream_events is None:
            raise WorkflowRuntimeError(
                f"relay_events() takes the handler of a run, not {reprlib.repr(child)}"
            )
        mine = _current_step()
        if mine is not None and mine._belongs_to(run):
            raise WorkflowRuntimeError("a step cannot relay the events of its own run to itself")
        with self._until_given_up():
            async for event in stream_events():
                if not isinstance(event, StopEvent):
                    self.write_event_to_stream(event)
            return await child

    def _own_work(self, what: str) -> Work:
        raise WorkflowRuntimeError(f"only a step can {what}, with the context it is given")

    def _in_loop(self, func: Callable[..., T], *args: Any) -> T:
        """Call a function of the run, from one of its sync steps' threads if need be (R5)."""
        run = self._run
        if run.loop.is_here():
            if run.ended or self._given_up:
                self._check_alive()
            return func(*args)
        if run.ended:  # its loop may stand still
            run.check_open("the context of a step cannot be used")
        arrived: list[bool] = []
        try:
            return anyio.from_thread.run_sync(self._call_here, arrived, func, *args)
        except RuntimeError as exc:
            if arrived:  # then it is an error of the call, not of the way there
                raise
            raise _elsewhere() from exc

    def _call_here(self, arrived: list[bool], func: Callable[..., T], *args: Any) -> T:
        if not self._run.loop.is_here():
            raise RuntimeError("another event loop")
        arrived.append(True)
        self._check_alive()
        return func(*args)

    def _check_alive(self) -> None:
        """Raise if the execution that it was made for is over, though its thread may go on."""

    def _until_given_up(self) -> AbstractContextManager[None]:
        """Bound a wait by the life of the attempt, in whose thread it may have been called (T7)."""
        return nullcontext()

    if not TYPE_CHECKING:
        # No `__getattr__`: it would make each use of a context dearer, 0.15 us a streamed event.
        def __setattr__(self, name: str, value: object) -> None:
            try:
                super().__setattr__(name, value)
            except AttributeError as error:
                raise AttributeError(f"{error}; {_instead(name)}", name=name, obj=self) from None

        def __reduce_ex__(self, protocol: object) -> Any:
            raise TypeError(
                "a context can neither be pickled nor copied; ctx.to_dict() gives a snapshot of its run, "
                "and Context.from_dict() a context that goes on from there"
            )

    def __repr__(self) -> str:
        return f"<Context of {self._saved.run or self._saved.graph.name}>"


def _instead(name: str) -> str:
    """Say what to use instead of an attribute that a context does not have."""
    if hasattr(StateStore, name) and not name.startswith("_"):
        return f"use ctx.store.{name}()"
    if close := get_close_matches(name, [known for known in dir(Context) if known[0] != "_"], n=1):
        return f"did you mean {close[0]!r}?"
    return f"what steps share is kept in ctx.store: await ctx.store.set({name!r}, value)"


# Asked of contexts by those who know another library; other names get advice in steps only.
for _name in ("get", "set", "get_state", "set_state", "edit_state", "clear", "data", "state"):
    setattr(Context, _name, Absent(_name, _instead(_name)))


def _advice(error: BaseException) -> str:
    """Say what to do instead of asking a step's context for an attribute that it does not have.

    Returns:
        A sentence; empty for other errors, and for those that have it already.
    """
    if type(error) is not AttributeError:
        return ""
    if isinstance(error.obj, Context) and error.name is not None:
        instead = _instead(error.name)
        return "" if instead in str(error) else instead
    found = _SETTING.match(str(error))  # Python notes no `obj` with this one
    return f"a context takes no attributes; {_instead(found[1])}" if found else ""


class _StepContext(Context[Any]):
    """The context of one attempt of a step."""

    # Written for each step: a Python function here would cost 0.4 us. See `advice`.
    __setattr__ = object.__setattr__
    __slots__ = ("_clock", "_given_up", "_number", "_run", "_work")
    _run: RunPort  # not a property as in `Context`: it is read for each event that is written

    def __init__(self, run: RunPort, work: Work | None = None) -> None:
        self._run = run  # pyright: ignore[reportIncompatibleMethodOverride]
        self._saved = run.saved
        self._work = work
        self._number = 1 if work is None else work.attempt
        self._given_up = False
        self._clock = None  # set while the attempt is bounded by a timeout

    def _give_up(self) -> None:
        """Note that the attempt was cancelled and has ended, though its thread may go on.

        No cancellation reaches the calls of that thread any more, which are tasks of their own (T7).
        So the waits among them are ended here, but for those that the ledger knows.
        """
        self._given_up = True
        self._saved.drop_dead_writers()
        for scope in _waits.get(self, ()):
            scope.cancel()

    @contextmanager
    def _until_given_up(self) -> Generator[None]:
        self._check_alive()
        scopes = _waits.setdefault(self, [])
        scope = anyio.CancelScope()
        scopes.append(scope)
        try:
            with scope:
                yield
        except anyio.get_cancelled_exc_class():
            # On asyncio the scopes that the attempt has left still pass for cancelled, so that ours
            # does not catch what it raised.
            if self._given_up:
                self._check_alive()
            raise
        finally:
            scopes.remove(scope)
        if self._given_up:
            self._check_alive()

    def _belongs_to(self, run: RunPort) -> bool:
        """Return whether this is the context of a step of `run`, or of a run started in one."""
        mine: RunPort | None = self._run
        while mine is not None and mine is not run:
            mine = mine.parent
        return mine is run

    def _own_work(self, what: str) -> Work:
        work = self._work
        if work is None:
            return super()._own_work(what)
        if work.started is None or work.attempt != self._number:
            if self._run.ended or self._given_up:
                self._run.check_open(f"a step cannot {what}")
            name = work.queue.spec.name
            raise WorkflowRuntimeError(
                f"attempt {self._number} of step {name} has ended; it can no longer {what}"
            )
        return work

    def _check_alive(self) -> None:
        if self._run.ended or self._given_up:
            self._run.check_open("the context of a step cannot be used")
        if self._given_up:
            assert self._work is not None
            why = "with its batch" if self._work.dropped else "at its timeout"
            raise WorkflowRuntimeError(
                f"step {self._work.queue.spec.name} was cancelled {why} and has ended"
            )


# What Python says about a step's context, in errors for example, has the name that the docs have.
_StepContext.__name__ = _StepContext.__qualname__ = "StepContext"


def _graph_of(workflow: object, where: str) -> Graph:
    graph = getattr(workflow, "graph", None)
    if not isinstance(graph, Graph):
        raise WorkflowConfigurationError(f"{where} takes a workflow, not {reprlib.repr(workflow)}")
    return graph


def _context_of(saved: SavedState) -> Context[Any]:
    """Return a context that stands outside of the steps."""
    context: Context[Any] = Context.__new__(Context)
    object.__setattr__(context, "_saved", saved)  # 0.4 us less
    return context


def _nothing() -> None:
    return None


# Where the current task is: in which run, and in which step. Whatever copies the context variables
# keeps their values: asyncio's timers, also cancelled ones, and tasks that a step starts in somebody
# else's task group. So these refer weakly, or an ended run would live as long as those (O6).
_current_run: ContextVar[Callable[[], RunPort | None]] = ContextVar(
    "anyio_workflows.current_run", default=_nothing
)
_current_context: ContextVar[Callable[[], _StepContext | None]] = ContextVar(
    "anyio_workflows.current_context", default=_nothing
)


def _enter_run(run: RunPort) -> None:
    """Note that the current task belongs to a run, and executes no step yet."""
    _current_run.set(weakref.ref(run))
    _current_context.set(_nothing)


def _current_step() -> _StepContext | None:
    """Return the context of the step that the current task belongs to; `None` outside of runs.

    A task that outlives its step gets a context of the run, until the run ends.
    """
    if (find_run := _current_run.get()) is _nothing:
        return None
    context = _current_context.get()()
    if context is None and (run := find_run()) is not None and not run.ended:
        context = _StepContext(run)
    return context


_waits: weakref.WeakKeyDictionary[_StepContext, list[anyio.CancelScope]] = (
    weakref.WeakKeyDictionary()
)
"""The waits in progress that end when the attempt is given up. Not in the context: few have any."""


def _elsewhere() -> WorkflowRuntimeError:
    return WorkflowRuntimeError(
        "a context is used in the event loop of its run, or in the thread of a sync step while that "
        "loop is running"
    )


def _check_event(value: object, done: str) -> None:
    """Raise if something that is to be written, sent or collected is no event."""
    if not isinstance(value, Event):
        raise _no_event(value, done)


def _no_event(value: object, done: str) -> WorkflowRuntimeError:
    return WorkflowRuntimeError(
        f"only events can be {done}, not {reprlib.repr(value)} ({type(value).__qualname__})"
    )


def _not_writable(value: object) -> WorkflowRuntimeError:
    if not isinstance(value, StopEvent):
        return _no_event(value, "written to the stream")
    return WorkflowRuntimeError(
        f"{type(value).__name__} cannot be written to the stream: return it from the step, "
        "that ends the run and publishes it"
    )


# --- Suspending a step until an event comes --------------------------------------------------------


@attrs.define(eq=False, repr=False)
class _AttemptClock:
    """The clock of an attempt that is bounded by a timeout (R8).

    Attributes:
        scope: The scope that bounds it.
        loop: The event loop, whose time it goes by.
    """

    scope: anyio.CancelScope
    loop: LoopHandle
    _suspensions: int = 0
    _remaining: float = math.inf

    @contextmanager
    def suspended(self) -> Generator[None]:
        """Stop the clock while the step waits for an event, unless it has run out."""
        if not self._suspensions:
            self._remaining = self.scope.deadline - self.loop.current_time()
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
                self.scope.deadline = self.loop.current_time() + self._remaining


async def _suspend(
    run: RunPort,
    wait: Wait,
    question: Event | None,
    timeout: float | None,
    clock: _AttemptClock | None,
) -> None:
    """Suspend an execution until its wait is over, and it has a slot to continue (W1-W3).

    Args:
        run: The run.
        wait: What is waited for; its `answer` is there afterwards, unless the time is over.
        question: Written to the stream, unless that was done before: by an earlier attempt, or in an
            earlier run, if it was read there (W4).
        timeout: Seconds to wait; `None` for no limit.
        clock: The clock of the attempt, which stands still meanwhile, if it has a timeout.

    Raises:
        WorkflowRuntimeError: If an equal wait is open in this execution, or the end of the run is
            decided.
    """
    what = f"{wait.event_type.__name__} cannot be waited for"
    run.check_open(what)
    signal = anyio.Event()
    wait.wake = signal.set
    waits = run.ledger.waits
    waits.begin(wait)
    if wait.over:
        await checkpoint()
        return
    try:
        if question is not None and not wait.asked:
            wait.question, wait.question_number = question, run.ask(question)
            wait.asked = True
        run.note_wait(wait)
        with clock.suspended() if clock is not None else nullcontext():
            with anyio.move_on_after(timeout):
                await signal.wait()
            if not signal.is_set():
                waits.end(wait)  # without an answer; the execution requests a slot to continue
                await signal.wait()
    finally:
        run.check_cancellation()  # while the ledger still knows that the step was waiting
        waits.abandon(wait)  # if it was cancelled; else it is over
    if wait.refused:
        run.check_open(what)
        raise WorkflowRuntimeError(f"{what}: step {wait.work.queue.spec.name} has ended")
