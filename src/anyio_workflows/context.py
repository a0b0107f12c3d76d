"""The `Context` passed to steps, and what outlives a run: its state and its pending work."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, cast
from weakref import WeakKeyDictionary, ref

import anyio
import anyio.from_thread

from ._absent import Absent, absent_names, refuse_arguments, types_given
from ._annotations import is_positive_number
from ._ledger.pending import RunPort, SavedState
from ._ledger.work import OpenWait, Wait, Work
from ._messages import await_missing, closest, namesakes
from ._suspension import AttemptClock, suspend
from .errors import ContextStateError, WorkflowConfigurationError, WorkflowRuntimeError
from .events import Event, StopEvent
from .graph import Graph
from .state import DictState, StateStore
from .steps import RetryInfo

__all__ = ["Context"]

if TYPE_CHECKING:
    import typing_extensions

    from ._json.hooks import Hooks  # only snapshots need it

    StateT = typing_extensions.TypeVar("StateT", default=DictState)
else:
    StateT = TypeVar("StateT")
    __getattr__ = absent_names(__name__)

T = TypeVar("T")
EventT = TypeVar("EventT", bound=Event)
ResultT = TypeVar("ResultT")


class Context(Generic[StateT]):
    """Access to a run, and what outlives the run: its state and its pending work.

    Each execution of a step gets a context of its own, through an annotated parameter:
    `async def ask(self, ctx: Context, ev: StartEvent)`. `Context[MyState]` names the class of the
    state. A plain `def` step runs in a worker thread: it calls the synchronous methods directly and
    the async ones with `anyio.from_thread.run(ctx.wait_for_event, ...)`.

    Outside of steps, `handler.ctx` is the context of a run. `Context(workflow)` makes one before the
    run, to seed its state; `workflow.run(ctx=ctx)` continues from a context, any number of times.

    Args:
        workflow: The workflow whose runs the context is for.

    Raises:
        WorkflowConfigurationError: If `workflow` is not a workflow.
    """

    __slots__ = ("__weakref__", "_saved")
    _saved: SavedState
    _work: Work | None = None
    _given_up: bool = False
    _clock: AttemptClock | None = None

    @refuse_arguments("Context()")
    def __init__(self, workflow: object) -> None:
        graph = _graph_of(workflow, "Context()")
        self._saved = SavedState(graph, hooks=_hooks_of(workflow))

    @staticmethod
    def get_step_context() -> Context[Any]:
        """Return the context of the step that is being executed.

        Raises:
            WorkflowRuntimeError: If it is called outside a step.
        """
        if (context := _current_step()) is None:
            raise WorkflowRuntimeError("get_step_context() was called outside a step")
        return context

    @classmethod
    @refuse_arguments("Context.from_dict()")
    def from_dict(
        cls,
        workflow: object,
        data: Mapping[str, Any],
        types: Iterable[type] = (),
        renamed: Mapping[str, str | None] | None = None,
    ) -> Context[Any]:
        """Restore a context from a snapshot; `workflow.run(ctx=...)` continues from it.

        Args:
            workflow: The workflow that was run, or another instance of its class.
            data: The snapshot, from `to_dict()`. Nothing that it names is imported.
            types: Types that the snapshot may name, besides those that the annotations of the steps
                mention, the event classes that the code of the methods names, and `Workflow.types`.
            renamed: Names that have changed since the snapshot was taken, with the new ones (P8): tags of
                types, `{"app:Page": "app.events:Page"}`; names of steps, `{"work": "finish"}`; fields,
                `{"app:Page.title": "headline"}`, and `{"app:Page.title": None}` to drop what a
                removed field held. Entries that the snapshot does not need have no effect.

        Raises:
            WorkflowConfigurationError: If `workflow` is not a workflow, or an entry of `renamed` leads to
                nothing that there is, or from a name that is still in use.
            ContextSerdeError: If the data is not a snapshot of a run of this workflow, or has a newer
                version. It has the path of the bad value, and a message of at most 1000 characters.
        """
        from ._snapshot import load

        graph = _graph_of(workflow, "Context.from_dict()")
        known = types_given(types, "Context.from_dict()")
        return _context_of(load(graph, data, known, renamed, _hooks_of(workflow)))

    @refuse_arguments("Context.to_dict()")
    def to_dict(self, types: Iterable[type] = ()) -> dict[str, Any]:
        """Return a snapshot of the run, at any moment; `json.dumps()` accepts it (P3).

        It holds the state and all pending work: retries, waits with their answers, open batches,
        collected events, and executions in progress as they were before they began. After a stop
        event it holds only the state; after a failure, also the work for `retry_failed()`. Unread
        events of the stream are not part of it, except for questions (W4).

        Args:
            types: Types that the snapshot may hold, besides those that `from_dict()` knows anyway.

        Raises:
            ContextSerdeError: If a value cannot be written as JSON; it names the value. The run
                continues.
        """
        from ._snapshot import dump

        return self._read(dump, self._saved, types_given(types, "Context.to_dict()"))

    @property
    def store(self) -> StateStore[StateT]:
        """The state that the steps share; during a run, for use in its event loop only.

        It outlives the run. An execution that was given up can no longer use it.
        """
        self._check_alive()
        return self._saved.store._guarded(self._check_here)

    @property
    def has_work_left(self) -> bool:
        """Whether the last run has left pending work, with which `run(ctx=...)` continues.

        After a failure it is false until `retry_failed()` is called.
        """
        return self._saved.pending is not None

    def discard_work(self) -> None:
        """Drop the pending work of the last run, also that for `retry_failed()`; keep the state.

        Raises:
            ContextStateError: If a run is in progress.
        """
        self._saved.discard()

    def retry_failed(self) -> None:
        """Make the work that was pending when the last run failed pending again.

        The next `run(ctx=...)` repeats the failed execution, with attempts counted from 1 and with the
        answers and collected events that it had, and continues with whatever else was queued, running,
        waiting or delayed. It works on the restored snapshot of a failed run, too.

        Raises:
            ContextStateError: If a run is in progress, or there is nothing to repeat: no step failed for
                good, or its work was retried, discarded or followed by another run since.
        """
        self._saved.retry_failed()

    def open_waits(self) -> list[OpenWait]:
        """Return the waits that can be answered now, in the order in which they began.

        Without a run in progress, these are the waits with which `run(ctx=...)` would continue.
        """
        return self._read(self._saved.open_waits)

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
        """Whether a run is in progress and not yet stopped, failed, timed out or cancelled."""
        run = self._saved.run
        return run is not None and run.is_running

    def write_event_to_stream(self, ev: Event | None) -> None:
        """Append an event to the run's public stream, without waiting. `None` is ignored.

        Raises:
            WorkflowRuntimeError: If `ev` is not an event or is a stop event, or the run has ended.
        """
        if ev is not None:
            if not isinstance(ev, Event) or isinstance(ev, StopEvent):
                _refuse_writing(ev)
            self._in_loop(self._run.write, ev)

    async def drain(self, limit: int = 0) -> None:
        """Wait until at most `limit` events of the public stream are unread, while it has a reader.

        This way a step produces at the pace of the reader instead of filling the memory:

            async for token in provider.stream(prompt):
                ctx.write_event_to_stream(Token(text=token))
                await ctx.drain(16)

        An iterator is a reader from its first `anext()` until it is exhausted, closed with `aclose()`
        or dropped; if it is cancelled while it waits for an event, it does not count until the next
        `anext()`. Without a reader, and once the run has ended, this only lets other tasks run.
        An iterator that is kept after a `break` counts as a slow reader: close it.

        Args:
            limit: How many events may be unread, internal ones included if they were asked for.

        Raises:
            WorkflowRuntimeError: If `limit` is not an int of 0 or more, in another event loop, or in an
                execution that was given up.
        """
        if type(limit) is not int or limit < 0:
            raise WorkflowRuntimeError(f"limit must be an int, 0 or more, not {limit!r}")
        self._check_here()
        await self._run.drain(limit, self._until_given_up)

    def send_event(self, message: Event, step: str | None = None) -> tuple[str, ...]:
        """Send an event to every step that accepts it, or only to `step`, at once.

        A stop event ends the run, as returning it does. Once the outcome of the run is decided, the
        event is dropped and the log says so.

        Returns:
            The names of the steps that took the event, in the order of their definition: to start
            with it, to keep it for a set of events, or as the answer to one or more waits. `()` if no
            step took it, if it is a stop event, or if it was dropped.

        Raises:
            WorkflowRuntimeError: If `message` is not an event, `step` does not exist or does not accept
                it, or the run has ended.
        """
        return self._in_loop(self._run.send, message, step, self._work)

    async def running_steps(self) -> list[str]:
        """Return the sorted names of the steps that are running, waiting, or due for a retry."""
        self._check_alive()
        return self._run.ledger.queues.active_steps()

    def retry_info(self) -> RetryInfo:
        """Return facts about the earlier attempts of this execution.

        Raises:
            WorkflowRuntimeError: If it is called outside a step.
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

    @property
    def idempotency_key(self) -> str:
        """Identifies this execution of the step: the same in each of its attempts, also after a crash (D5).

        Give it to services that take such a key: they do what they are asked for once, although an attempt
        that failed, or was killed, may have asked before.

        Raises:
            WorkflowRuntimeError: If it is asked for outside a step.
        """
        work = self._own_work("ask for its idempotency key")
        return f"{self._run.run_id}:{work.id}"

    def collect_events(
        self, ev: Event, expected: Sequence[type[Event]], buffer_id: str | None = None
    ) -> list[Event] | None:
        """Keep an event until there is one for each expected type.

        A retried attempt gets the same results as the one before it.

        Args:
            ev: The event to keep.
            expected: The types to collect; a type may be listed more than once.
            buffer_id: Tells several buffers of one step apart.

        Returns:
            `None` until the events are complete, then one event per expected type, in that order.
            Surplus events stay for the next round. `[]` at once if nothing is expected.

        Raises:
            WorkflowRuntimeError: If it is called outside a step, `ev` is not an event, or the outcome
                of the run is decided.
        """
        _check_event(ev, "collected")
        work = self._own_work("collect events")
        return self._in_loop(self._collect, work, ev, list(expected), buffer_id)

    def _collect(
        self, work: Work, event: Event, expected: list[type[Event]], buffer_id: str | None
    ) -> list[Event] | None:
        name = type(event).__name__
        self._run.check_open(f"{name} cannot be collected")
        if type(event) not in expected and (remark := namesakes([type(event)], expected)):
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
        """Suspend the step until an event arrives, and return that event.

        The code before the call does not run again. A waiting step occupies no worker. A retried
        attempt gets the same answers in the same order, and publishes no question twice.

        Args:
            event_type: The type of the event; with `accept_event_subclasses=True` also a subclass.
            waiter_event: Published once when the wait begins, typically an `InputRequiredEvent`.
            waiter_id: Identifies the wait. Needed if one execution has several equal waits at once.
            requirements: Attributes that the event must have, with their values.
            timeout: Seconds to wait; `None` for no limit. For a wait that an attempt before this one has
                begun, they count from then.

        Raises:
            TimeoutError: If no such event arrived in time.
            WorkflowRuntimeError: If it is called outside a step, an equal wait is open in this
                execution, or the outcome of the run is decided.
        """
        work = self._own_work("wait for an event")
        self._check_here()
        if not (isinstance(event_type, type) and issubclass(event_type, Event)):
            raise WorkflowRuntimeError(f"a step waits for an event class, not for {event_type!r}")
        if timeout is not None and not is_positive_number(timeout, or_zero=True):
            raise WorkflowRuntimeError(
                f"timeout must be a number of seconds, or None, not {timeout!r}"
            )
        if isinstance(waiter_event, StopEvent) or not isinstance(waiter_event, Event | None):
            _refuse_writing(waiter_event)
        if not isinstance(waiter_id, str | None):
            raise WorkflowRuntimeError(f"waiter_id must be a str, or None, not {waiter_id!r}")
        wait = Wait(work, event_type, dict(requirements or {}), waiter_id)
        await suspend(self._run, self._clock, wait, waiter_event, timeout)
        if wait.answer is None:
            assert timeout is not None
            raise TimeoutError(f"no matching {event_type.__name__} arrived within {timeout:g} s")
        return cast(EventT, wait.answer)

    async def relay_events(self, child: Awaitable[ResultT]) -> ResultT:
        """Forward the events of a child run, except its terminal event, to this run's stream.

        Args:
            child: The handler of the child run.

        Returns:
            The result of the child run.

        Raises:
            WorkflowRuntimeError: If `child` is not a handler, or is that of the step's own run or of a
                run that waits for it.
            BaseException: As `await child` does.
        """
        ctx, stream_events = getattr(child, "ctx", None), getattr(child, "stream_events", None)
        if not isinstance(ctx, Context) or stream_events is None:
            raise WorkflowRuntimeError(f"relay_events() takes a handler, not {reprlib.repr(child)}")
        if (mine := _current_step()) is not None and mine._belongs_to(ctx._run):
            raise WorkflowRuntimeError("a step cannot relay the events of its own run to itself")
        with self._until_given_up():
            async for event in stream_events():
                if not isinstance(event, StopEvent):
                    self.write_event_to_stream(event)
            return await child

    def _own_work(self, what: str) -> Work:
        raise WorkflowRuntimeError(f"only a step can {what}, with the context it is given")

    def _read(self, func: Callable[..., T], *args: Any) -> T:
        """Call a function that reads what is saved: in the event loop of the run, while there is one."""
        run = self._saved.run
        return func(*args) if run is None or run.ended else self._in_loop(func, *args)

    def _in_loop(self, func: Callable[..., T], *args: Any) -> T:
        """Call a function in the event loop of the run, also from the thread of a sync step (R5)."""
        run = self._run
        if run.loop.is_here():
            if run.ended or self._given_up:
                self._check_alive()
            return func(*args)
        if run.ended:  # its loop may no longer run anything
            run.check_open("the context of a step cannot be used")
        arrived: list[bool] = []
        try:
            return anyio.from_thread.run_sync(self._call_here, arrived, func, *args)
        except RuntimeError as exc:
            if arrived:  # the function itself has raised it
                raise
            raise _elsewhere() from exc

    def _call_here(self, arrived: list[bool], func: Callable[..., T], *args: Any) -> T:
        if not self._run.loop.is_here():
            raise RuntimeError("another event loop")
        arrived.append(True)
        self._check_alive()
        return func(*args)

    def _check_here(self) -> None:
        """Raise if the execution is over, or in another event loop than that of the run."""
        self._check_alive()
        run = self._saved.run
        if run is not None and not run.ended and not run.loop.is_here():
            raise _elsewhere()

    def _check_alive(self) -> None:
        """Raise if the execution of this context is over, though its thread may still run."""

    def _until_given_up(self) -> AbstractContextManager[None]:
        """End a wait in the block when the attempt is given up; its thread may still run (T7)."""
        return nullcontext()

    if not TYPE_CHECKING:
        # No `__getattr__`: it would slow down each use of a context, by 0.15 us per streamed event.
        def __setattr__(self, name: str, value: object) -> None:
            try:
                super().__setattr__(name, value)
            except AttributeError as error:
                raise AttributeError(f"{error}; {_instead(name)}", name=name, obj=self) from None

        def __reduce_ex__(self, protocol: object) -> Any:
            raise TypeError(
                "a context can be neither pickled nor copied; ctx.to_dict() returns a snapshot of its run, "
                "and Context.from_dict() restores a context from it"
            )

    def __repr__(self) -> str:
        return f"<Context of {self._saved.run or self._saved.graph.name}>"


def _instead(name: str) -> str:
    """Return a hint what to use instead of an attribute that a context does not have."""
    if hasattr(StateStore, name) and not name.startswith("_"):
        return f"use ctx.store.{name}()"
    public = [each for each in dir(Context) if each[0] != "_" and each not in _ELSEWHERE]
    shared = f"what steps share is kept in ctx.store: await ctx.store.set({name!r}, value)"
    return _ELSEWHERE.get(name) or closest(name, public) or shared


_BY_HANDLER = "the stream is read by 'async for ev in handler.stream_events()'"
# Names from other libraries. For any other name, only the errors of steps get a hint: `_advice()`.
_ELSEWHERE = {
    **dict.fromkeys(
        ("get", "set", "get_state", "set_state", "edit_state", "clear", "data", "state")
    ),
    **dict.fromkeys(("stream_events", "streaming_queue"), _BY_HANDLER),
    "get_result": "await the handler for the result",
}
for _name in _ELSEWHERE:
    setattr(Context, _name, Absent(_name, _instead(_name)))


def _graph_of(workflow: object, where: str) -> Graph:
    graph = getattr(workflow, "graph", None)
    if not isinstance(graph, Graph):
        raise WorkflowConfigurationError(f"{where} takes a workflow, not {reprlib.repr(workflow)}")
    return graph


def _hooks_of(workflow: Any) -> Hooks | None:
    """Return the hooks of the converter of a workflow."""
    hooks: Hooks | None = workflow._config.hooks
    return hooks


def _context_of(saved: SavedState) -> Context[Any]:
    """Return a context for use outside of the steps."""
    context: Context[Any] = Context.__new__(Context)
    object.__setattr__(context, "_saved", saved)  # 0.4 us faster than `Context.__setattr__`
    return context


def _elsewhere() -> WorkflowRuntimeError:
    return WorkflowRuntimeError(
        "a context can only be used in the event loop of its run, or in the thread of a sync step "
        "while that loop is running"
    )


def _check_event(value: object, done: str) -> None:
    """Raise if something to be written, sent or collected is not an event."""
    if not isinstance(value, Event):
        raise WorkflowRuntimeError(
            f"only events can be {done}, not {reprlib.repr(value)} ({type(value).__qualname__})"
        )


def _refuse_writing(value: object) -> NoReturn:
    _check_event(value, "written to the stream")
    raise WorkflowRuntimeError(
        f"{type(value).__name__} cannot be written to the stream: return it from the step, "
        "which ends the run and publishes it"
    )


# --- The context of a step -----------------------------------------------------------------------

_waits: WeakKeyDictionary[_StepContext, list[anyio.CancelScope]] = WeakKeyDictionary()
"""The waits that end when their attempt is given up. Not in the context: few contexts have any."""


class _StepContext(Context[Any]):
    """The context of one attempt of a step."""

    # Each attempt sets attributes, and a Python function here would cost 0.4 us. See `_advice()`.
    __setattr__ = object.__setattr__
    __slots__ = ("_clock", "_given_up", "_number", "_run", "_work")
    _run: RunPort  # not a property as in `Context`: every streamed event reads it

    def __init__(self, run: RunPort, work: Work | None = None) -> None:
        self._run = run  # pyright: ignore[reportIncompatibleMethodOverride]
        self._saved = run.saved
        self._work = work
        self._number = 1 if work is None else work.attempt
        self._given_up = False
        self._clock = None  # set while the attempt is bounded by a timeout

    def _give_up(self) -> None:
        """Note that the attempt was cancelled and has ended, though its thread may still run.

        Cancellation no longer reaches the calls from that thread, each of which is a task of its own
        (T7). So their waits are ended here, except for those that the ledger knows.
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
            # On asyncio the scopes that the attempt has left still count as cancelled, so our scope
            # does not catch the cancellation that it has caused.
            if not self._given_up:
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
            name = work.step
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
            raise WorkflowRuntimeError(f"step {self._work.step} was cancelled {why} and has ended")


# Python's own messages about a step's context have the name that the documentation uses.
_StepContext.__name__ = _StepContext.__qualname__ = "StepContext"

_SETTING = re.compile("'StepContext' object (?:has no )?attribute '([^']*)'")
"""Python's message for an attribute that cannot be set, because the class has slots."""


def _advice(error: BaseException) -> str:
    """Return a hint for an error about an attribute that the context of a step does not have.

    It is empty for other errors, and for those whose message has the hint already.
    """
    if type(error) is not AttributeError:
        return ""
    if isinstance(error.obj, CoroutineType):
        return await_missing(error.obj)
    if isinstance(error.obj, Context) and error.name is not None:
        instead = _instead(error.name)
        return "" if instead in str(error) else instead
    found = _SETTING.match(str(error))  # Python sets no `obj` on this error
    return f"a context takes no attributes; {_instead(found[1])}" if found else ""


# --- The run and the step of the current task ----------------------------------------------------
#
# Everything that copies the context variables keeps their values: asyncio's timers, also cancelled
# ones, and tasks that a step starts in a foreign task group. Strong references would keep an ended run
# alive as long as those, so these are weak (O6).


def _nothing() -> None:
    return None


_current_run: ContextVar[Callable[[], RunPort | None]] = ContextVar(
    "anyio_workflows.current_run", default=_nothing
)
_current_context: ContextVar[Callable[[], _StepContext | None]] = ContextVar(
    "anyio_workflows.current_context", default=_nothing
)


def _enter_run(run: RunPort) -> None:
    """Note that the current task belongs to a run and executes no step yet."""
    _current_run.set(ref(run))
    _current_context.set(_nothing)


def _current_step() -> _StepContext | None:
    """Return the context of the step that the current task belongs to; `None` outside of runs.

    A task that outlives its step gets a context of the run, until the run ends.
    """
    context = _current_context.get()()
    if context is None and (run := _current_run.get()()) is not None and not run.ended:
        context = _StepContext(run)
    return context
