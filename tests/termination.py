"""Random workflows with random endings, and what has to be true of each: the rules T1 to T10.

A `Scenario` is plain data: what each step does, how long the run may take, who reads, and what ends
it. `play()` runs it under virtual time and writes down what happened, when; `check()` compares the
record with the rules. The record is exact where the engine decides synchronously: a step notes how
it leaves in the statement before it leaves. So the first cause in the record is the first cause,
and the deadline, a number, is compared with its time.

All times are multiples of 1/4 second: sums are exact, ties are frequent.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import anyio
import attrs
from anyio.lowlevel import checkpoint
from hypothesis import strategies as st

from anyio_workflows import (
    Context,
    Event,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowHandler,
    WorkflowTimedOutEvent,
    step,
)
from anyio_workflows.errors import (
    WorkflowCancelledByUser,
    WorkflowRuntimeError,
    WorkflowStalledError,
    WorkflowTimeoutError,
)

from .conftest import virtual_backend
from .virtual_time import VirtualTimeLoop

LIMIT = 1000.0
"""Virtual seconds after which a run that has not ended counts as hanging."""


variable: ContextVar[str] = ContextVar("variable", default="unset")


# --- The workflow: one step per way of being crowded -------------------------------------------


class Hop(Event):
    number: int


class One(Hop):
    pass


class Two(Hop):
    pass


class Many(Hop):
    pass


class Note(Event):
    number: int


class Question(InputRequiredEvent):
    number: int


class Done(StopEvent):
    by: str


WORKERS = {"start": 4, "one": 1, "two": 2, "many": 4, "echo": 2}
TAKERS: dict[type[Hop], tuple[str, ...]] = {
    One: ("one", "echo"),
    Two: ("two",),
    Many: ("many", "echo"),
}


class Scripted(Workflow[Any]):
    """Its steps do what a scenario says. Only `start` has to return an event."""

    def __init__(self, record: Record, **config: Any) -> None:
        super().__init__(**config)
        self.record = record

    @step(num_workers=WORKERS["start"])
    async def start(self, ctx: Context, ev: StartEvent) -> One | Two | Many | Question | StopEvent:
        return await self.record.execute("start", ctx, ev.number)

    @step(num_workers=WORKERS["one"])
    async def one(self, ctx: Context, ev: One) -> One | Two | Many | Question | StopEvent | None:
        return await self.record.execute("one", ctx, ev.number)

    @step(num_workers=WORKERS["two"])
    async def two(self, ctx: Context, ev: Two) -> One | Two | Many | Question | StopEvent | None:
        return await self.record.execute("two", ctx, ev.number)

    @step(num_workers=WORKERS["many"])
    async def many(self, ctx: Context, ev: Many) -> One | Two | Many | Question | StopEvent | None:
        return await self.record.execute("many", ctx, ev.number)

    @step(num_workers=WORKERS["echo"])
    async def echo(
        self, ctx: Context, ev: One | Many
    ) -> One | Two | Many | Question | StopEvent | None:
        return await self.record.execute("echo", ctx, ev.number)


# --- What a step can do ------------------------------------------------------------------------


class Action(Protocol):
    async def do(self, here: Execution) -> None: ...


@attrs.frozen
class Sleep:
    seconds: float

    async def do(self, here: Execution) -> None:
        await anyio.sleep(self.seconds)
        here.problem_unless(not here.record.is_late(), "was not cancelled")


@attrs.frozen
class SetVariable:
    """Set a context variable, which no other execution may see (O7)."""

    async def do(self, here: Execution) -> None:
        variable.set(here.step)


@attrs.frozen
class Checkpoint:
    async def do(self, here: Execution) -> None:
        await checkpoint()


@attrs.frozen
class Write:
    async def do(self, here: Execution) -> None:
        here.write()


@attrs.frozen
class Send:
    to: type[Hop]

    async def do(self, here: Execution) -> None:
        here.send(self.to)


@attrs.frozen
class SendStop:
    async def do(self, here: Execution) -> None:
        event = StopEvent(result=object())
        if not here.refused(lambda: here.ctx.send_event(event), Cause("stop", event, here)):
            here.problem_unless(not here.ctx.is_running, "a sent StopEvent decided nothing")


@attrs.frozen
class CancelRun:
    async def do(self, here: Execution) -> None:
        here.record.note(Cause("cancel", by=here))
        await here.handler.cancel_run()
        here.problem_unless(here.handler.is_done(), "cancel_run() returned before the end")


@attrs.frozen
class AwaitOwnRun:
    async def do(self, here: Execution) -> None:
        if not here.handler.is_done():
            try:
                await here.handler
            except WorkflowRuntimeError:
                return
            here.record.problems.append(f"{here.step} could wait for its own run")


@attrs.frozen
class Shielded:
    seconds: float

    async def do(self, here: Execution) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(self.seconds)


@attrs.frozen
class Swallow:
    """Sleep, and go on if cancelled."""

    seconds: float

    async def do(self, here: Execution) -> None:
        try:
            await anyio.sleep(self.seconds)
        except anyio.get_cancelled_exc_class():
            pass


@attrs.frozen
class Hog:
    """Compute for some time without letting anybody else run."""

    seconds: float

    async def do(self, here: Execution) -> None:
        here.record.pass_time(self.seconds)


@attrs.frozen
class Nest:
    """Open a task group with a child that writes when it is done, or cancelled."""

    seconds: float

    async def do(self, here: Execution) -> None:
        async def child() -> None:
            try:
                await anyio.sleep(self.seconds)
            finally:
                here.write()

        coroutine = child()
        try:
            async with anyio.create_task_group() as group:
                group.create_task(coroutine)
                await checkpoint()
        finally:
            coroutine.close()  # when asyncio's loop ends, a task may be thrown away before it began


class OddError(BaseException):
    """An exception that is no `Exception`."""


ERRORS: dict[str, Callable[[], BaseException]] = {
    "error": lambda: ValueError("a step's own"),
    "group": lambda: ExceptionGroup("a step's own", [ValueError(), TypeError()]),
    "timeout": lambda: TimeoutError("a step's own"),
    "run timeout": lambda: WorkflowTimeoutError(1, ["another run's"]),
    "run cancelled": lambda: WorkflowCancelledByUser("another run's"),
    "stop iteration": StopIteration,
    "generator exit": GeneratorExit,
    "odd": OddError,
    "interrupt": KeyboardInterrupt,
    "exit": lambda: SystemExit(3),
}


@attrs.frozen
class Raise:
    kind: str

    async def do(self, here: Execution) -> None:
        raise ERRORS[self.kind]()


@attrs.frozen
class Stray:
    """Let a cancellation escape that is not the run's: one of a scope, or one of asyncio's own.

    trio has no others, so there each kind but "pending" leaks one of a scope.
    """

    kind: str  # "scope", "group", "native", "pending": asked for, and not delivered yet

    async def do(self, here: Execution) -> None:
        here.leaks = True
        if self.kind in ("native", "pending") and here.record.backend == "asyncio":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            if self.kind == "native":
                await checkpoint()
        elif self.kind != "pending":
            stray = await self._catch_one()
            raise BaseExceptionGroup("leaked", [stray]) if self.kind == "group" else stray

    async def _catch_one(self) -> BaseException:
        with anyio.CancelScope() as scope:
            scope.cancel()
            try:
                await checkpoint()
            except anyio.get_cancelled_exc_class() as exc:
                return exc
        raise AssertionError("nothing was cancelled")


# --- How a step can end, if nothing is raised --------------------------------------------------


class End(Protocol):
    def event(self, here: Execution) -> Event | None: ...


@attrs.frozen
class Go:
    """Return an event for other steps; a run that has made enough of them is stopped instead."""

    to: type[Hop]

    def event(self, here: Execution) -> Event | None:
        return here.record.hop(self.to) or StopEvent(result="enough")


@attrs.frozen
class Stop:
    typed: bool

    def event(self, here: Execution) -> Event | None:
        return Done(by=here.step) if self.typed else StopEvent(result=object())


@attrs.frozen
class Ask:
    def event(self, here: Execution) -> Event | None:
        return Question(number=here.record.count())


@attrs.frozen
class Nothing:
    def event(self, here: Execution) -> Event | None:
        return None


@attrs.frozen
class Script:
    """One execution of a step: `try: body, return end; finally: cleanup`."""

    body: tuple[Action, ...]
    end: End
    cleanup: tuple[Action, ...]

    async def act(self, here: Execution) -> Event | None:
        try:
            for action in self.body:
                await action.do(here)
        finally:
            for action in self.cleanup:
                await action.do(here)
        return self.end.event(here)


# --- What can end a run from outside -----------------------------------------------------------


@attrs.frozen
class Moment:
    """Some seconds from now, and then some checkpoints later."""

    seconds: float
    checkpoints: int

    async def come(self) -> None:
        if self.seconds:
            await anyio.sleep(self.seconds)
        for _ in range(self.checkpoints):
            await checkpoint()


class Ending(Protocol):
    async def come(self, record: Record) -> None: ...


@attrs.frozen
class Undisturbed:
    async def come(self, record: Record) -> None:
        pass


@attrs.frozen
class RunCancelled:
    at: Moment
    patience: float | None
    again: bool

    async def come(self, record: Record) -> None:
        await self.at.come()
        for _ in range(1 + self.again):
            begun = anyio.current_time()
            record.note(Cause("cancel"))
            await record.handler.cancel_run(self.patience)
            waited = anyio.current_time() - begun
            if not record.handler.is_done() and (self.patience is None or waited < self.patience):
                record.problems.append("cancel_run() came back too early")


@attrs.frozen
class OwnerCancelled:
    at: Moment
    native: bool

    async def come(self, record: Record) -> None:
        native = self.native and record.backend == "asyncio"
        task = asyncio.current_task() if native else None
        with anyio.CancelScope() as scope:
            try:
                async with record.handler:
                    await self.at.come()
                    task.cancel() if task is not None else scope.cancel()
                    try:
                        await checkpoint()
                    finally:
                        record.note(Cause("cancel"))
            except anyio.get_cancelled_exc_class():
                if task is None:
                    raise
                task.uncancel()
        if not record.handler.is_done():
            record.problems.append("the block was left before the run had ended")


class LeftEarly(Exception):
    """Raised in the block that owns a run."""


@attrs.frozen
class BlockRaised:
    at: Moment

    async def come(self, record: Record) -> None:
        error = LeftEarly()
        try:
            async with record.handler:
                await self.at.come()
                record.note(Cause("cancel"))
                raise error
        except LeftEarly as exc:
            if exc is not error or exc.__context__ is not None or not record.handler.is_done():
                record.problems.append("the block's exception did not pass as it was")
        else:
            record.problems.append("the block's exception was lost")


@attrs.frozen
class BlockLeft:
    """The block is left as usual: that waits, and raises what nobody else has seen."""

    at: Moment

    async def come(self, record: Record) -> None:
        cancelled = anyio.get_cancelled_exc_class()
        try:
            async with record.handler:
                await self.at.come()
        except cancelled:
            raise
        except BaseException as exc:
            record.block_raised = exc
        if not record.handler.is_done():
            record.problems.append("the block was left before the run had ended")


@attrs.frozen
class LoopEnded:
    at: Moment

    async def come(self, record: Record) -> None:
        await self.at.come()
        record.note(Cause("loop end"))


# --- The scenario ------------------------------------------------------------------------------


@attrs.frozen
class Read:
    """Read until the stream ends, some events are there, or patience is at its end."""

    limit: int | None = None
    patience: float | None = None
    native: bool = False


@attrs.frozen
class Scenario:
    """Everything that is drawn: the workflow, its limits, its readers and its ending."""

    scripts: dict[str, tuple[Script, ...]]
    ending: Ending
    timeout: float | None
    cleanup_timeout: float
    reads: tuple[Read, ...] = ()
    read_after: float = 0.0
    visits: tuple[Moment, ...] = ()
    """When somebody sends an event from outside."""
    patience: tuple[float, ...] = ()
    """How long others wait for the result who then give up."""
    hops: int = 10
    """Events that the steps make altogether."""

    @property
    def hogs(self) -> bool:
        """Whether some step computes for long, so that times are not exact."""
        return any(
            isinstance(action, Hog)
            for scripts in self.scripts.values()
            for script in scripts
            for action in (*script.body, *script.cleanup)
        )


# --- The record --------------------------------------------------------------------------------


@attrs.define(eq=False)
class Cause:
    """Something that would end the run if nothing else had."""

    kind: str
    """One of "stop", "failure", "no event", "stray", "stalled", "cancel", "loop end", "deadline"."""
    value: Any = None
    by: Execution | None = attrs.field(default=None, repr=lambda by: repr(by and by.step))
    time: float = -1.0


@attrs.define(eq=False)
class Execution:
    """One execution of a step, and what it can do."""

    record: Record = attrs.field(repr=False)
    step: str
    ctx: Context = attrs.field(repr=False)
    number: int
    entered: float
    left: float | None = None
    outlived: bool = False
    """Whether the run had ended before this execution did."""
    leaks: bool = False
    """Whether it leaks a cancellation of its own."""

    @property
    def handler(self) -> WorkflowHandler[Any]:
        return self.record.handler

    def problem_unless(self, fine: bool, problem: str) -> None:
        if not fine:
            self.record.problems.append(f"{self.step}: {problem}")

    def refused(self, act: Callable[[], None], cause: Cause | None = None) -> bool:
        """Do something to the run; return whether it refused, as it has to after its end (T7)."""
        ended = self.handler.is_done()
        if cause is not None and not ended:
            self.record.note(cause)
        try:
            act()
        except WorkflowRuntimeError as exc:
            self.problem_unless(ended and "the run has ended" in str(exc), f"refused: {exc}")
            return True
        self.problem_unless(not ended, "could act on a run that had ended")
        return False

    def write(self) -> None:
        event = Note(number=self.record.count())
        if not self.refused(lambda: self.ctx.write_event_to_stream(event)):
            self.record.written.append(event)

    def send(self, to: type[Hop]) -> None:
        event = self.record.hop(to)
        if event is not None:
            running = self.ctx.is_running
            if not self.refused(lambda: self.ctx.send_event(event)) and running:
                self.record.route(event)

    def leave_with(self, result: Event | None) -> None:
        """Note how the execution ends, right before it does."""
        left, deadline = self._leave(), self.record.deadline
        in_time = self.ctx.is_running and (deadline is None or left < deadline)
        if isinstance(result, StopEvent):
            self.record.note(Cause("stop", result, self))
        elif result is None and self.step == "start":
            self.record.note(Cause("no event", by=self))
        elif in_time and isinstance(result, Hop):
            self.record.route(result)
        elif in_time and isinstance(result, Question):
            self.record.written.append(result)
        if in_time and self.record.is_stalled():
            self.record.note(Cause("stalled", by=self))

    def leave_by(self, error: BaseException) -> None:
        self._leave()
        kind = "stray" if is_cancellation(error) else "failure"
        if kind == "failure" or self.leaks or not self.record.loop_is_ending:
            self.record.note(Cause(kind, error, self))

    def _leave(self) -> float:
        self.left = anyio.current_time()
        self.outlived = self.handler.is_done()
        return self.left


@attrs.define(eq=False)
class Record:
    """What happened in one run."""

    scenario: Scenario
    backend: str
    pass_time: Callable[[float], None]
    handler: WorkflowHandler[Any] = attrs.field(init=False)
    begun: float = 0.0
    ended: float | None = None
    """When `await handler` was over."""
    outcome: Any = None
    """What `await handler` returned or raised."""
    block_raised: BaseException | None = None
    executions: list[Execution] = attrs.Factory(list)
    routed: dict[str, list[tuple[int, float]]] = attrs.Factory(lambda: defaultdict(list))
    written: list[Event] = attrs.Factory(list)
    seen: list[Event] = attrs.Factory(list)
    causes: list[Cause] = attrs.Factory(list)
    logged: list[logging.LogRecord] = attrs.Factory(list)
    problems: list[str] = attrs.Factory(list)
    _numbers: int = 0
    _hops: int = 0

    @property
    def deadline(self) -> float | None:
        timeout = self.scenario.timeout
        return None if timeout is None else self.begun + timeout

    @property
    def has_been_read(self) -> bool:
        return bool(self.seen) and isinstance(self.seen[-1], StopEvent)

    @property
    def loop_is_ending(self) -> bool:
        return any(cause.kind == "loop end" for cause in self.causes)

    def is_late(self) -> bool:
        """Return whether the run was decided before now; unsure where steps compute for long."""
        now = anyio.current_time()
        if self.scenario.hogs or self.loop_is_ending:
            return False
        decided = [cause.time for cause in self.causes[:1]]
        if self.deadline is not None:
            decided.append(self.deadline)
        return bool(decided) and min(decided) < now

    def is_stalled(self) -> bool:
        """T9: all that was routed has been executed, and nobody has been asked anything."""
        owed = sum(len(routed) for routed in self.routed.values())
        left = sum(execution.left is not None for execution in self.executions)
        return owed == left and not any(isinstance(event, Question) for event in self.written)

    def count(self) -> int:
        self._numbers += 1
        return self._numbers

    def hop(self, to: type[Hop]) -> Hop | None:
        """Make an event for some step, unless enough of them were made."""
        self._hops += 1
        return to(number=self.count()) if self._hops <= self.scenario.hops else None

    def note(self, cause: Cause) -> None:
        cause.time = anyio.current_time()
        self.causes.append(cause)

    def route(self, event: Hop) -> None:
        for name in TAKERS[type(event)]:
            self.routed[name].append((event.number, anyio.current_time()))

    async def execute(self, name: str, ctx: Context, number: int) -> Any:
        """Be the body of a step."""
        now = anyio.current_time()
        if self.causes and not self.loop_is_ending:
            self.problems.append(f"{name} began after {self.causes[0]}")
        if self.deadline is not None and now >= self.deadline:
            self.problems.append(f"{name} began after the deadline")
        if variable.get() != "caller":
            self.problems.append(f"{name} sees the context variable of {variable.get()}")
        scripts = self.scenario.scripts[name]
        visit = sum(execution.step == name for execution in self.executions)
        here = Execution(self, name, ctx, number, now)
        self.executions.append(here)
        try:
            result = await scripts[visit % len(scripts)].act(here)
        except BaseException as exc:
            here.leave_by(exc)
            raise
        here.leave_with(result)
        return result


def is_cancellation(error: BaseException) -> bool:
    cancelled = anyio.get_cancelled_exc_class()
    if isinstance(error, BaseExceptionGroup):
        return error.split(cancelled)[1] is None
    return isinstance(error, cancelled)


# --- Playing a scenario ------------------------------------------------------------------------


class PassingTimeLoop(VirtualTimeLoop):
    """A loop whose clock can be moved on while a task computes."""

    def pass_time(self, seconds: float) -> None:
        self._clock.now += seconds


def play(scenario: Scenario, backend: str) -> Record:
    """Run a scenario in an event loop of its own and return what happened."""
    name, options = virtual_backend(backend)
    if name == "asyncio":
        loop = PassingTimeLoop()
        options, pass_time = {"loop_factory": lambda: loop}, loop.pass_time
    else:
        pass_time = options["clock"].jump
    record = Record(scenario, backend, pass_time)
    catcher = _Catcher(record.logged)
    logging.getLogger().addHandler(catcher)
    try:
        anyio.run(_run, record, backend=name, backend_options=options)
        if isinstance(scenario.ending, LoopEnded):
            name, options = virtual_backend(backend)
            anyio.run(_look_back, record, backend=name, backend_options=options)
    finally:
        logging.getLogger().removeHandler(catcher)
    return record


class _Catcher(logging.Handler):
    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__(logging.WARNING)
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)


async def _run(record: Record) -> None:
    scenario = record.scenario
    record.begun = anyio.current_time()
    workflow = Scripted(record, timeout=scenario.timeout, cleanup_timeout=scenario.cleanup_timeout)
    number = record.count()
    record.routed["start"].append((number, record.begun))
    variable.set("caller")
    record.handler = workflow.run(number=number)
    with anyio.fail_after(LIMIT):
        if isinstance(scenario.ending, LoopEnded):
            for read in scenario.reads:
                if read.patience is not None and not record.has_been_read:
                    await _read(record, read)
            await scenario.ending.come(record)
            return
        async with anyio.create_task_group() as group:
            group.start_soon(_read_all, record)
            if not isinstance(scenario.ending, BlockLeft):
                group.start_soon(_wait, record)
            for moment in scenario.visits:
                group.start_soon(_visit, record, moment)
            for patience in scenario.patience:
                group.start_soon(_wait_for_a_while, record, patience)
            await scenario.ending.come(record)
        await _look_back(record)


@asynccontextmanager
async def _giving_up_after(record: Record, read: Read) -> AsyncIterator[None]:
    if read.patience is not None and read.native and record.backend == "asyncio":
        try:
            async with asyncio.timeout(read.patience):
                yield
        except TimeoutError:
            pass
    else:
        with anyio.move_on_after(read.patience):
            yield


async def _read(record: Record, read: Read) -> None:
    """Read some of the stream; what it gives is the public events, each once, in order (S2, S3)."""
    left = read.limit
    async with _giving_up_after(record, read):
        events = record.handler.stream_events()
        async for event in events:
            record.seen.append(event)
            if isinstance(event, StopEvent):
                _check_that_it_is_over(record, "the terminal event was read")
            left = None if left is None else left - 1
            if left == 0:
                break


async def _read_all(record: Record) -> None:
    await anyio.sleep(record.scenario.read_after)
    for read in (*record.scenario.reads, Read()):
        if not record.has_been_read:
            await _read(record, read)


async def _wait(record: Record) -> None:
    """Wait for the run, and look around when that is over (T3)."""
    handler = record.handler
    if not handler.is_done() and handler.get_stop_event() is not None:
        record.problems.append("there was a terminal event before the end")
    cancelled = anyio.get_cancelled_exc_class()
    try:
        record.outcome = await handler
    except cancelled:
        raise
    except BaseException as exc:
        record.outcome = exc
    record.ended = anyio.current_time()
    _check_that_it_is_over(record, "`await handler` was over")


def _check_that_it_is_over(record: Record, when: str) -> None:
    """Check that no step goes on except those that were given up, and that everybody can tell."""
    handler = record.handler
    if not handler.is_done() or handler.statistics().state != "ended":
        record.problems.append(f"when {when}, the run was not done")
    if not record.has_been_read and not handler.statistics().unread_events:
        record.problems.append(f"when {when}, the terminal event could not be read")
    gave_up = any("gave up waiting" in logged.getMessage() for logged in record.logged)
    if not gave_up and (busy := [e.step for e in record.executions if e.left is None]):
        record.problems.append(f"when {when}, steps were going on: {busy}")


async def _wait_for_a_while(record: Record, patience: float) -> None:
    cancelled = anyio.get_cancelled_exc_class()
    with anyio.move_on_after(patience):
        try:
            await record.handler
        except cancelled:
            raise
        except BaseException:
            pass


async def _visit(record: Record, moment: Moment) -> None:
    """Send an event from outside; a run that has ended refuses it (T7)."""
    await moment.come()
    event = One(number=record.count())
    try:
        await record.handler.send_event(event)
    except WorkflowRuntimeError:
        if not record.handler.is_done():
            record.problems.append("an event from outside was refused during the run")
    else:
        if record.handler.is_done():
            record.problems.append("an event from outside was accepted after the end")
        if record.handler.ctx.is_running:
            record.route(event)


async def _look_back(record: Record) -> None:
    """Do to a run that has ended all that does not change it any more (T5, T7, T10, S3)."""
    handler = record.handler
    if not record.has_been_read:
        await _read(record, Read())
    first, depth = await _await_again(handler)
    if record.ended is None:
        record.outcome = first

    async def send_from_outside() -> None:
        await handler.send_event(One(number=0))

    async def send() -> None:
        handler.ctx.send_event(StopEvent(result="too late"))

    async def write() -> None:
        handler.ctx.write_event_to_stream(Note(number=0))

    for act in (send_from_outside, send, write):
        await _check_refusal(record, act, "the run has ended")
    events = handler.stream_events()
    await _check_refusal(
        record, events.__anext__, "All the streamed events have already been consumed."
    )
    await handler.cancel_run()
    second, same_depth = await _await_again(handler)
    if first is not second or first is not record.outcome:
        record.problems.append(f"outcomes differ: {record.outcome!r}, {first!r}, {second!r}")
    if depth != same_depth:
        record.problems.append(f"the traceback grows, from {depth} to {same_depth}")


async def _check_refusal(record: Record, act: Callable[[], Awaitable[Any]], words: str) -> None:
    try:
        await act()
    except WorkflowRuntimeError as exc:
        if words not in str(exc):
            record.problems.append(f"refused with {exc}")
    else:
        record.problems.append(f"{getattr(act, '__name__', act)} was possible after the end")


async def _await_again(handler: WorkflowHandler[Any]) -> tuple[Any, int]:
    """Return what `await handler` gives, and how long the traceback is."""
    cancelled = anyio.get_cancelled_exc_class()
    try:
        return await handler, 0
    except cancelled:
        raise
    except BaseException as exc:
        depth, traceback = 0, exc.__traceback__
        while traceback is not None:
            depth, traceback = depth + 1, traceback.tb_next
        return exc, depth


# --- The rules ---------------------------------------------------------------------------------


def check(record: Record) -> None:
    """Check that a run did what the rules say."""
    assert not record.problems, record.problems
    errors = [logged.getMessage() for logged in record.logged if logged.levelno >= logging.ERROR]
    assert not errors, errors
    assert all(execution.left is not None for execution in record.executions)
    check_stream(record)
    cause = find_cause(record)
    check_log(record, cause)
    if not record.scenario.hogs:
        check_times(record, cause)
        check_queues(record, cause)


def check_stream(record: Record) -> None:
    """T1, S1 to S3: all that was written, then one terminal event, once and in order."""
    terminal = record.handler.get_stop_event()
    assert terminal is not None
    expected = [*record.written, terminal]
    assert [id(event) for event in record.seen] == [id(event) for event in expected], (
        f"read {record.seen}, not {expected}"
    )
    assert record.handler.statistics().unread_events == 0


def find_cause(record: Record) -> Cause:
    """Return the cause that the terminal event and the outcome agree with; T2, T4, T5, T8."""
    allowed = allowed_causes(record)
    for cause in allowed:
        if is_told(record, cause):
            return cause
    terminal = record.handler.get_stop_event()
    raise AssertionError(f"{terminal!r} and {record.outcome!r} tell of none of {allowed}")


def allowed_causes(record: Record) -> list[Cause]:
    """Return the causes that may have been first.

    That is one, except when the loop ends: its tasks learn of that one after the other, and what
    they do until then comes first.
    """
    deadline = record.deadline
    timed_out = [] if deadline is None else [Cause("deadline", time=deadline)]
    if not record.causes:
        return timed_out
    first = record.causes[0]
    if deadline is not None and first.time >= deadline:
        return timed_out
    if first.kind != "loop end":
        return [first]
    late = [cause for cause in record.causes[1:2] if deadline is None or cause.time < deadline]
    return [first, *late, *(timed_out if record.scenario.hogs else [])]


def is_told(record: Record, cause: Cause) -> bool:
    """Return whether the terminal event and `await handler` both tell of this cause."""
    terminal, outcome = record.handler.get_stop_event(), record.outcome
    if record.block_raised is not None:
        assert record.block_raised is outcome
    match cause.kind:
        case "stop":
            result = cause.value.result if type(cause.value) is StopEvent else cause.value
            return terminal is cause.value and outcome is result
        case "cancel" | "loop end":
            told = type(terminal) is WorkflowCancelledEvent
            return told and type(outcome) is WorkflowCancelledByUser
        case "deadline":
            return (
                type(terminal) is WorkflowTimedOutEvent
                and type(outcome) is WorkflowTimeoutError
                and terminal.timeout == outcome.timeout == record.scenario.timeout
                and terminal.active_steps == outcome.active_steps
                and are_active(record, terminal.active_steps)
            )
        case "stalled":
            return (
                type(terminal) is WorkflowFailedEvent
                and cause.by is not None
                and terminal.step_name == cause.by.step
                and terminal.attempts is terminal.elapsed_seconds is None
                and terminal.exception is outcome
                and type(outcome) is WorkflowStalledError
                and outcome.missing == ()
                and are_last_acts(record, outcome.last_acts)
            )
    return (
        type(terminal) is WorkflowFailedEvent
        and cause.by is not None
        and cause.by.left is not None
        and terminal.step_name == cause.by.step
        and terminal.attempts == 1
        and terminal.elapsed_seconds == cause.by.left - cause.by.entered
        and terminal.exception is outcome
        and is_error_of(cause, outcome)
    )


def is_error_of(cause: Cause, outcome: BaseException) -> bool:
    """T5, T8: the very exception of the step, save for what cannot be raised as it is."""
    error = cause.value
    if cause.kind == "failure":
        if isinstance(error, RuntimeError) and isinstance(error.__cause__, StopIteration):
            return type(outcome) is WorkflowRuntimeError and outcome.__cause__ is error.__cause__
        return outcome is error
    return type(outcome) is WorkflowRuntimeError and outcome.__cause__ is error


def are_active(record: Record, steps: list[str]) -> bool:
    """T2: sorted names of the steps that were in progress at the deadline."""
    deadline = record.deadline
    assert deadline is not None
    surely: set[str] = set()
    maybe: set[str] = set()
    for execution in record.executions:
        assert execution.left is not None
        if execution.entered < deadline < execution.left:
            surely.add(execution.step)
        if execution.entered <= deadline <= execution.left:
            maybe.add(execution.step)
    return steps == sorted(set(steps)) and surely <= set(steps) <= maybe


def are_last_acts(record: Record, acts: dict[str, str]) -> bool:
    """T9: what each step last did; all that a run that stalls can have done is to return."""
    ran = {execution.step for execution in record.executions}
    return list(acts) == list(WORKERS) and all(
        act.startswith("returned ") if name in ran else act == "has not run"
        for name, act in acts.items()
    )


def check_times(record: Record, cause: Cause) -> None:
    """T6: the run ends with its last step, or gives up the rest after the cleanup timeout."""
    limit = cause.time + record.scenario.cleanup_timeout
    last = max((execution.left or 0.0 for execution in record.executions), default=0.0)
    if record.ended is not None:
        assert record.ended == max(cause.time, min(last, limit))
    outlived = [execution for execution in record.executions if execution.outlived]
    for execution in outlived:
        assert execution.left is not None
        assert execution.left >= limit, f"{execution} was given up too early"
    messages = [logged.getMessage() for logged in record.logged]
    gave_up = [message for message in messages if "gave up waiting" in message]
    if outlived or last > limit:
        assert len(gave_up) == 1
        assert all(execution.step in gave_up[0] for execution in outlived)
    elif last < limit:
        assert not gave_up


def check_queues(record: Record, cause: Cause) -> None:
    """R2: each event starts its steps as soon as there is a place, first come first served."""
    for name, routed in record.routed.items():
        executions = [execution for execution in record.executions if execution.step == name]
        numbers = [number for number, _ in routed]
        assert [execution.number for execution in executions] == numbers[: len(executions)]
        ends = [execution.left or 0.0 for execution in executions]
        for n, (_, arrived) in enumerate(routed):
            place = n - WORKERS[name]
            if n < len(executions):
                free = arrived if place < 0 else sorted(ends[:n])[place]
                assert executions[n].entered == max(arrived, free), f"{executions[n]} was late"
            elif place < 0 or len(executions) > place:
                free = arrived if place < 0 else sorted(ends)[place] if n == len(ends) else None
                if free is not None:
                    assert max(arrived, free) >= cause.time, f"{name} was not started in time"


def check_log(record: Record, cause: Cause) -> None:
    """T4: a failure that comes too late to matter is in the log."""
    logged = [r.exc_info[1] for r in record.logged if r.exc_info]
    for late in record.causes:
        too_late = late.kind == "failure" and late is not cause
        if too_late and not isinstance(late.value, WorkflowCancelledByUser):
            assert any(is_error_of(late, error) for error in logged if error is not None), late


# --- Drawing a scenario ------------------------------------------------------------------------


def seconds(least: float, most: float) -> st.SearchStrategy[float]:
    return st.integers(int(least * 4), int(most * 4)).map(lambda quarters: quarters / 4)


HOPS = st.sampled_from([One, Two, Many])
MOMENTS = st.builds(Moment, seconds(0, 4), st.integers(0, 8))

TROUBLE: st.SearchStrategy[Any] = st.one_of(
    st.builds(Raise, st.sampled_from(list(ERRORS))),
    st.builds(Stray, st.sampled_from(["scope", "group", "native", "pending"])),
    st.just(SendStop()),
    st.just(CancelRun()),
    st.builds(Hog, seconds(0.25, 4)),
)
ACTIONS: st.SearchStrategy[Any] = st.one_of(
    st.builds(Sleep, seconds(0, 3)),
    st.builds(Sleep, seconds(0.25, 1)),
    st.just(Checkpoint()),
    st.just(Write()),
    st.builds(Send, HOPS),
    st.builds(Send, HOPS),
    st.builds(Shielded, seconds(0, 3)),
    st.builds(Swallow, seconds(0, 3)),
    st.builds(Nest, seconds(0, 2)),
    st.just(AwaitOwnRun()),
    st.just(SetVariable()),
    TROUBLE,
)
CLEANUPS: st.SearchStrategy[Any] = st.one_of(
    st.just(Write()),
    st.just(Checkpoint()),
    st.builds(Shielded, seconds(0, 3)),
    st.builds(Swallow, seconds(0, 3)),
    st.builds(Nest, seconds(0, 2)),
    st.builds(Send, HOPS),
    TROUBLE,
)
ENDS: st.SearchStrategy[Any] = st.one_of(
    st.builds(Go, HOPS),
    st.builds(Go, HOPS),
    st.builds(Stop, st.booleans()),
    st.just(Nothing()),
    st.just(Ask()),
)
FIRST_ENDS: st.SearchStrategy[Any] = st.one_of(st.builds(Go, HOPS), ENDS)


def scripts(ends: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    body = st.lists(ACTIONS, max_size=4).map(tuple)
    cleanup = st.lists(CLEANUPS, max_size=2).map(tuple)
    return st.lists(st.builds(Script, body, ends, cleanup), min_size=1, max_size=2).map(tuple)


READS = st.builds(
    Read,
    limit=st.none() | st.integers(1, 3),
    patience=st.none() | seconds(0, 2),
    native=st.booleans(),
)

ENDINGS: dict[str, st.SearchStrategy[Any]] = {
    "undisturbed": st.just(Undisturbed()),
    "cancel_run": st.builds(RunCancelled, MOMENTS, st.none() | seconds(0, 2), st.booleans()),
    "owner cancelled": st.builds(OwnerCancelled, MOMENTS, st.booleans()),
    "block raised": st.builds(BlockRaised, MOMENTS),
    "block left": st.builds(BlockLeft, MOMENTS),
    "loop ended": st.builds(LoopEnded, MOMENTS),
}


def scenarios(ending: str) -> st.SearchStrategy[Scenario]:
    """Draw workflows with this ending; those that nobody ends for sure have a deadline."""
    timeouts = seconds(0.25, 5)
    if ending not in ("undisturbed", "block left"):
        timeouts = timeouts | st.none()
    return st.builds(
        Scenario,
        scripts=st.fixed_dictionaries(
            {name: scripts(FIRST_ENDS if name == "start" else ENDS) for name in WORKERS}
        ),
        ending=ENDINGS[ending],
        timeout=timeouts,
        cleanup_timeout=seconds(0, 2),
        reads=st.lists(READS, max_size=3).map(tuple),
        read_after=st.just(0.0) | seconds(0, 6),
        visits=st.lists(MOMENTS, max_size=2).map(tuple),
        patience=st.lists(seconds(0, 4), max_size=2).map(tuple),
    )
