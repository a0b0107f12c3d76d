"""The termination contract over fan-outs, sets, waits, collectors, step timeouts, children, queues.

A `Plan` is plain data, `play()` runs it under virtual time, `check()` compares the record with the
rules. All times are multiples of 1/4 second: sums are exact, ties are frequent.
"""

from __future__ import annotations

import gc
import threading
from collections import Counter
from functools import partial
from typing import Annotated, Any

import anyio
import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_workflows import (
    Context,
    Event,
    HumanResponseEvent,
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
from anyio_workflows.collect import All, Collect, Take
from anyio_workflows.errors import (
    WorkflowCancelledByUser,
    WorkflowRuntimeError,
    WorkflowStalledError,
    WorkflowTimeoutError,
)

from .conftest import BACKENDS
from .running import Note, check_ending, read, run_virtually

LIMIT = 1000.0
CHILD_CLEANUP = 1.0
TIMEOUTS = {"left": 1.0, "pair": 1.5, "sub": 1.0}


class Began(StartEvent):
    second: bool = False


class Numbered(Event):
    n: int
    sent: bool = False


class Item(Numbered): ...


class Fork(Numbered): ...


class Left(Numbered): ...


class Right(Numbered): ...


class Loose(Numbered): ...


class Sub(Numbered): ...


class SubScored(Numbered): ...


class Scored(Numbered): ...


class Final(Numbered): ...


class Ping(Event):
    n: int
    delay: float


class Question(InputRequiredEvent):
    n: int
    delay: float


class Answer(HumanResponseEvent):
    n: int


ENDS: dict[str, type[Numbered]] = {"score": Scored, "fork": Fork, "loose": Loose}
SENT: dict[str, type[Numbered]] = {"left": Left, "right": Right, "loose": Loose}


class Shapes(Workflow):
    """Branches score, fork into two that pair, meet in a collector, open a batch, or die."""

    outer: All | Take = All()
    inner: All | Take = All()

    def __init__(self, record: Record, **config: Any) -> None:
        super().__init__(**config)
        self.record = record

    @step
    async def start(self, ctx: Context, ev: Began) -> list[Item] | StopEvent:
        if ev.second:
            self.record.second_began = anyio.current_time()
            return StopEvent(result="second")
        items = [Item(n=n) for n in range(self.record.plan.branches)]
        return await self.record.execute("start", ctx, ev, items)

    @step(num_workers=2)
    async def work(
        self, ctx: Context, ev: Item
    ) -> Scored | Fork | Loose | list[Sub] | StopEvent | None:
        end = self.record.script("work", ev.n).end
        result: Any = ENDS[end](n=ev.n) if end in ENDS else None
        if end == "stop":
            result = StopEvent(result=object())
        elif end == "sub":
            result = [Sub(n=ev.n), Sub(n=ev.n), Sub(n=ev.n)]
        return await self.record.execute("work", ctx, ev, result)

    @step(timeout=TIMEOUTS["left"])
    async def left(self, ctx: Context, ev: Fork) -> Left | None:
        return await self.record.execute("left", ctx, ev, Left(n=ev.n))

    @step
    async def right(self, ctx: Context, ev: Fork) -> Right | None:
        return await self.record.execute("right", ctx, ev, Right(n=ev.n))

    @step(timeout=TIMEOUTS["pair"])
    async def pair(self, ctx: Context, a: Left, b: Right) -> Scored:
        return await self.record.execute("pair", ctx, a, Scored(n=a.n, sent=a.sent))

    @step(num_workers=1)
    async def gather(self, ctx: Context, ev: Loose) -> Scored | None:
        both = ctx.collect_events(ev, [Loose, Loose])
        result = None if both is None else Scored(n=ev.n, sent=ev.sent)
        return await self.record.execute("gather", ctx, ev, result)

    @step(num_workers=2, timeout=TIMEOUTS["sub"])
    async def sub(self, ctx: Context, ev: Sub) -> SubScored | None:
        dies = self.record.script("sub", ev.n).end == "die"
        return await self.record.execute("sub", ctx, ev, None if dies else SubScored(n=ev.n))

    @step
    async def inner_join(self, ctx: Context, events: list[SubScored]) -> Scored | None:
        n = events[0].n if events else -1
        return await self.record.execute("inner_join", ctx, Sub(n=n), Scored(n=n))

    @step
    async def join(self, ctx: Context, events: list[Scored]) -> Final:
        return await self.record.execute("join", ctx, Sub(n=0), Final(n=len(events)))

    @step
    async def final(self, ctx: Context, ev: Final) -> StopEvent | None:
        dies = self.record.script("final", 0).end in ("die", "sub", "fork")
        result = None if dies else StopEvent(result=object())
        return await self.record.execute("final", ctx, Sub(n=0), result)


class Taking(Shapes):
    outer = Take(2)
    inner = Take(1)

    @step
    async def inner_join(
        self, ctx: Context, events: Annotated[list[SubScored], Collect(Take(1))]
    ) -> Scored | None:
        return await Shapes.inner_join(self, ctx, events)

    @step
    async def join(self, ctx: Context, events: Annotated[list[Scored], Collect(Take(2))]) -> Final:
        return await Shapes.join(self, ctx, events)


class Cancelling(Shapes):
    outer = Take(2, cancel=True)
    inner = Take(1, cancel=True)

    @step
    async def inner_join(
        self, ctx: Context, events: Annotated[list[SubScored], Collect(Take(1, cancel=True))]
    ) -> Scored | None:
        return await Shapes.inner_join(self, ctx, events)

    @step
    async def join(
        self, ctx: Context, events: Annotated[list[Scored], Collect(Take(2, cancel=True))]
    ) -> Final:
        return await Shapes.join(self, ctx, events)


class Nap(Workflow):
    """The child run: sleeps, and lingers when cancelled."""

    @step
    async def nap(self, ev: StartEvent) -> StopEvent:
        try:
            await anyio.sleep(ev.seconds)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.5 if ev.seconds < 2 else CHILD_CLEANUP + 0.5)
        if ev.fails:
            raise ValueError("a child's own")
        return StopEvent(result="rested")


# --- What is drawn ------------------------------------------------------------------------------


@attrs.frozen
class Act:
    kind: str
    seconds: float = 0.0


@attrs.frozen
class Script:
    """`try: body; finally: cleanup`, and what becomes of the branch."""

    body: tuple[Act, ...] = (Act("sleep", 0.5),)
    cleanup: tuple[Act, ...] = ()
    end: str = "score"


@attrs.frozen
class Plan:
    shape: type[Shapes]
    branches: int
    scripts: dict[tuple[str, int], Script]
    ending: str
    moment: float
    timeout: float
    cleanup_timeout: float
    second: float | None
    """When the run that is queued behind this one is cancelled, if there is one."""


SECONDS = st.integers(0, 12).map(lambda quarters: quarters / 4)
KINDS = [
    "sleep",
    "sleep",
    "sleep",
    "write",
    "shield",
    "swallow",
    "ask",
    "poll",
    "wait",
    "lapse",
    "raise",
]
KINDS += ["send left", "send right", "send loose", "child", "child awaited", "child fails"]
CLEANUPS = st.builds(
    Act, st.sampled_from(["write", "shield", "shield", "swallow", "raise"]), SECONDS
)
SCRIPTS = st.builds(
    Script,
    st.lists(st.builds(Act, st.sampled_from(KINDS), SECONDS), max_size=2).map(tuple),
    st.lists(CLEANUPS, max_size=1).map(tuple),
    st.sampled_from(["sub", "fork", "sub", "loose", "die", "fork", "score", "stop"]),
)
# The work of the branches decides what else there is, so it is always drawn.
OTHERS = ["sub", "pair", "left", "final", "right", "gather", "inner_join", "join", "start"]
KEYS = st.tuples(st.sampled_from(OTHERS), st.sampled_from([0, 0, 1, 2]))
ALL_SCRIPTS = st.builds(
    lambda works, others: {**{("work", n): s for n, s in enumerate(works)}, **others},
    st.lists(SCRIPTS, min_size=3, max_size=3),
    st.dictionaries(KEYS, SCRIPTS, min_size=2, max_size=6),
)
PLANS = st.builds(
    Plan,
    st.sampled_from([Shapes, Taking, Cancelling]),
    st.sampled_from([3, 2, 3, 1, 0]),
    ALL_SCRIPTS,
    st.sampled_from(["none", "none", "cancel_run", "owner cancelled", "loop ended"]),
    st.integers(2, 16).map(lambda quarters: quarters / 4),
    st.just(300.0) | st.integers(2, 20).map(lambda quarters: quarters / 4),
    st.integers(0, 8).map(lambda quarters: quarters / 4),
    st.none() | st.just(LIMIT / 2) | SECONDS,
)


# --- What happens -------------------------------------------------------------------------------


@attrs.define(eq=False)
class Cause:
    kind: str
    value: Any
    step: str
    time: float = attrs.field(factory=anyio.current_time)


@attrs.define(eq=False)
class Execution:
    record: Record = attrs.field(repr=False)
    step: str
    ctx: Context = attrs.field(repr=False)
    n: int
    sent: bool
    entered: float = attrs.field(factory=anyio.current_time)
    left: float | None = None
    waited: float = 0.0
    outlived: bool = False
    dropped: bool = False

    async def do(self, act: Act) -> None:
        record, seconds = self.record, act.seconds
        match act.kind.split():
            case ["sleep"]:
                await anyio.sleep(seconds)
            case ["write"]:
                self.write()
            case ["raise"]:
                raise ValueError("a step's own")
            case ["shield"]:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(seconds)
            case ["swallow"]:
                try:
                    await anyio.sleep(seconds)
                except anyio.get_cancelled_exc_class():
                    pass
            case ["ask" | "poll"]:
                prompt = Question if act.kind == "ask" else Ping
                await self.wait(prompt(n=record.count(), delay=seconds), 2.0, escapes=True)
            case ["wait" | "lapse"]:
                await self.wait(None, seconds, escapes=act.kind == "lapse")
            case ["send", kind]:
                if record.count() < 20:
                    self.try_to(partial(self.ctx.send_event, SENT[kind](n=self.n, sent=True)))
            case ["child", *more]:
                child = record.nap.run(seconds=seconds, fails=more == ["fails"])
                record.children.append(child)
                if not record.handler.is_done():  # a run that has ended owns nothing (O5)
                    record.owned.append(child)
                if more:
                    await child

    def try_to(self, act: Any) -> bool:
        """Act on the run; after its end, and only then, that has to be refused (T7)."""
        ended = self.record.handler.is_done()
        try:
            act()
        except WorkflowRuntimeError as exc:
            self.record.problem_unless(ended and "the run has ended" in str(exc), f"{self}: {exc}")
            return False
        self.record.problem_unless(not ended, f"{self} acted on a run that had ended")
        return True

    def write(self) -> None:
        note = Note(text=self.record.count())
        if self.try_to(partial(self.ctx.write_event_to_stream, note)):
            self.record.written.append(note)

    async def wait(self, prompt: Any, timeout: float, *, escapes: bool) -> None:
        running, begun = self.ctx.is_running, anyio.current_time()
        if running and prompt is not None:
            self.record.written.append(prompt)
        n = -1 if prompt is None else prompt.n
        try:
            got = await self.ctx.wait_for_event(
                Answer, prompt, requirements={"n": n}, timeout=timeout
            )
            self.record.problem_unless(got.n == n, f"{self} got the answer to another question")
        except TimeoutError:
            lasted = anyio.current_time() - begun
            self.record.problem_unless(lasted >= timeout, f"{self} waited {lasted}")
            if escapes:
                raise
        finally:
            self.waited += anyio.current_time() - begun

    def leave(self, result: Any, error: BaseException | None) -> None:
        """Note what becomes of the execution, in the statement before it does."""
        record, now = self.record, anyio.current_time()
        self.left, self.outlived = now, record.handler.is_done()
        late = now - self.entered - self.waited >= TIMEOUTS.get(self.step, LIMIT)
        if self.dropped:
            return
        if error is not None and not isinstance(error, anyio.get_cancelled_exc_class()):
            record.note("failure", error, self.step)
        elif late:
            record.note("step timeout", None, self.step)
        elif error is not None:
            if not record.is_decided():
                record.note("stray", error, self.step)
        elif isinstance(result, StopEvent):
            record.note("stop", result, self.step)
        elif isinstance(result, (Scored, SubScored)) and not self.sent and not record.is_decided():
            record.arrive(result, self.n)


@attrs.define(eq=False)
class Record:
    plan: Plan
    begun: float = 0.0
    handler: WorkflowHandler[Any] = attrs.field(init=False)
    second: WorkflowHandler[Any] | None = None
    second_began: float | None = None
    ended: float | None = None
    outcomes: list[Any] = attrs.field(factory=list)
    executions: list[Execution] = attrs.field(factory=list)
    written: list[Event] = attrs.field(factory=list)
    seen: list[Event] = attrs.field(factory=list)
    causes: list[Cause] = attrs.field(factory=list)
    problems: list[str] = attrs.field(factory=list)
    children: list[WorkflowHandler[Any]] = attrs.field(factory=list)
    owned: list[WorkflowHandler[Any]] = attrs.field(factory=list)
    nap: Nap = attrs.field(factory=lambda: Nap(cleanup_timeout=CHILD_CLEANUP))
    arrived: Counter[int | None] = attrs.field(factory=Counter)
    """Of each inner batch, and of the outer one."""
    _count: int = 0

    @property
    def deadline(self) -> float:
        return self.begun + self.plan.timeout

    def count(self) -> int:
        self._count += 1
        return self._count

    def script(self, name: str, n: int) -> Script:
        return self.plan.scripts.get((name, n), Script())

    def problem_unless(self, fine: bool, problem: str) -> None:
        if not fine:
            self.problems.append(problem)

    def note(self, kind: str, value: Any = None, step: str = "") -> None:
        self.causes.append(Cause(kind, value, step))

    def is_decided(self) -> bool:
        return bool(self.causes) or anyio.current_time() >= self.deadline

    def is_dropped(self, name: str, n: int) -> bool:
        """Whether `Take(n, cancel=True)` has taken back what this step does for a branch (F4)."""

        def full(policy: All | Take, batch: int | None) -> bool:
            cancels = isinstance(policy, Take) and policy.cancel
            return cancels and self.arrived[batch] >= policy.n

        if name in ("start", "join", "final"):
            return False
        return full(self.plan.shape.outer, None) or (
            name == "sub" and full(self.plan.shape.inner, n)
        )

    def arrive(self, event: Numbered, n: int) -> None:
        self.arrived[n if isinstance(event, SubScored) else None] += 1
        for other in self.executions:
            if other.left is None and not other.sent and self.is_dropped(other.step, other.n):
                other.dropped = True

    async def execute(self, name: str, ctx: Context, event: Any, result: Any) -> Any:
        n, sent = getattr(event, "n", 0), getattr(event, "sent", False)
        loop_ends = self.causes and self.causes[0].kind == "loop ended"
        self.problem_unless(loop_ends or not self.is_decided(), f"{name} began too late")
        dropped = self.is_dropped(name, n) and not sent
        self.problem_unless(not dropped, f"{name} began in a batch that had been cancelled")
        script = self.script(name, n)
        here = Execution(self, name, ctx, n, sent)
        self.executions.append(here)
        try:
            try:
                for act in script.body:
                    await here.do(act)
            finally:
                for act in script.cleanup:
                    await here.do(act)
        except BaseException as exc:
            here.leave(None, exc)
            raise
        here.leave(result, None)
        return result


async def answer(record: Record, prompt: Any) -> None:
    await anyio.sleep(prompt.delay)
    if not record.handler.is_done():
        try:
            await record.handler.send_event(Answer(n=prompt.n))
        except WorkflowRuntimeError:
            record.problem_unless(record.handler.is_done(), "an answer was refused")


async def read_and_answer(record: Record, group: Any) -> None:
    """Read the stream; nothing of the run is left when its terminal event comes (T1, T6)."""
    async for event in record.handler.stream_events():
        record.seen.append(event)
        if isinstance(event, Question | Ping):
            group.start_soon(answer, record, event)
        if isinstance(event, StopEvent):
            record.ended = anyio.current_time()
            record.problem_unless(record.handler.is_done(), "the run was not done")
            for child in record.owned:
                record.problem_unless(child.is_done(), "a child outlived its parent")


async def await_run(record: Record) -> None:
    cancelled = anyio.get_cancelled_exc_class()
    try:
        outcome = await record.handler
    except cancelled:
        raise
    except BaseException as exc:
        outcome = exc
    record.problem_unless(record.handler.is_done(), "the run was awaited before its end")
    unread = record.handler.statistics().unread_events
    read_it = any(isinstance(event, StopEvent) for event in record.seen)
    record.problem_unless(read_it or bool(unread), "awaited before the terminal event was there")
    record.outcomes.append(outcome)


async def cancel_second(record: Record, second: WorkflowHandler[Any], moment: float) -> None:
    await anyio.sleep(moment)
    begun = anyio.current_time()
    await second.cancel_run()
    record.problem_unless(anyio.current_time() == begun, "a queued run was not cancelled at once")


async def end(record: Record) -> None:
    plan, handler = record.plan, record.handler
    if plan.ending == "owner cancelled":
        with anyio.CancelScope() as scope:
            async with handler:
                await anyio.sleep(plan.moment)
                scope.cancel()
                try:
                    await anyio.lowlevel.checkpoint()
                finally:
                    record.note("cancel")
        record.problem_unless(handler.is_done(), "the block was left before the end")
    elif plan.ending != "none":
        await anyio.sleep(plan.moment)
    if plan.ending == "cancel_run":
        record.note("cancel")
        await handler.cancel_run()
        record.problem_unless(handler.is_done(), "cancel_run() returned before the end")


async def play_in_loop(record: Record) -> None:
    plan, queued = record.plan, record.plan.second is not None
    record.begun = anyio.current_time()
    workflow = plan.shape(
        record,
        timeout=plan.timeout,
        cleanup_timeout=plan.cleanup_timeout,
        num_concurrent_runs=1 if queued else None,
    )
    record.handler = workflow.run()
    if plan.second is not None:
        record.second = workflow.run(second=True)
    with anyio.fail_after(LIMIT):
        async with anyio.create_task_group() as group:
            group.start_soon(read_and_answer, record, group)
            if record.second is not None and plan.second is not None:
                group.start_soon(cancel_second, record, record.second, plan.second)
            if plan.ending != "loop ended":
                group.start_soon(await_run, record)
            await end(record)
            if plan.ending == "loop ended":
                group.cancel_scope.cancel()
        if plan.ending == "loop ended":
            record.note("loop ended")
        else:
            await anyio.sleep(20)  # until the executions that were given up have ended, too
            await look_back(record)


async def look_back(record: Record) -> None:
    """What is true of a run that has ended, in another loop as well (T1, T2, T5, T7)."""
    handler = record.handler
    if not any(isinstance(event, StopEvent) for event in record.seen):
        record.seen += await read(handler)
    await await_run(record)
    with pytest.raises(WorkflowRuntimeError, match="the run has ended"):
        await handler.send_event(Answer(n=0))
    with pytest.raises(WorkflowRuntimeError, match="the run has ended"):
        handler.ctx.write_event_to_stream(Note())
    await await_run(record)
    statistics = handler.statistics()
    busy = {n: s for n, s in statistics.steps.items() if s.running or s.waiting}
    assert statistics.state == "ended"
    assert not busy, busy
    if record.second is not None:
        _, last = await check_ending(record.second)
        began = record.second_began
        assert type(last) is not StopEvent or (last.result == "second" and began is not None)
        loop_ended = record.plan.ending == "loop ended"
        assert type(last) is StopEvent or began is None or loop_ended, "cancelled too late"
        patience = record.begun + (record.plan.second or 0.0)
        if record.ended is not None and (began is not None or patience > record.ended):
            assert began == record.ended, "the queued run did not begin when this one ended"


def play(plan: Plan, backend: str) -> Record:
    record = Record(plan)
    run_virtually(backend, partial(play_in_loop, record))
    if plan.ending == "loop ended":
        run_virtually(backend, partial(look_back, record))
    return record


# --- The rules ----------------------------------------------------------------------------------


def check(record: Record) -> None:
    assert not record.problems, record.problems
    assert all(execution.left is not None for execution in record.executions)
    assert all(child.is_done() for child in record.children)
    terminal = record.handler.get_stop_event()
    assert record.seen == [*record.written, terminal], "T1, S1"
    first, *again = record.outcomes
    assert again
    assert all(outcome is first for outcome in again), "T5"
    cause = next((cause for cause in allowed_causes(record) if is_told(record, cause)), None)
    assert cause is not None, f"{terminal!r}, {first!r}: none of {record.causes}"
    check_time(record, cause)


def allowed_causes(record: Record) -> list[Cause]:
    """The first cause (T4); at the end of the loop its tasks learn of it one after the other."""
    last = max((e.left or 0.0 for e in record.executions), default=0.0)
    first = record.causes[0] if record.causes else None
    decided = min(record.deadline, LIMIT if first is None else first.time)
    causes: list[Cause] = []
    asked = any(isinstance(event, Question) for event in record.written)
    joined = any(execution.step == "final" for execution in record.executions)  # F2: always
    if last <= decided and joined and not asked:
        causes.append(Cause("stalled", None, "", last))
    if first is None or first.time >= record.deadline:
        return [*causes, Cause("deadline", None, "", record.deadline)]
    return [*causes, *record.causes[: 2 if first.kind == "loop ended" else 1]]


def is_told(record: Record, cause: Cause) -> bool:
    """Whether the terminal event and `await handler` both tell of this cause (T2)."""
    terminal, outcome = record.handler.get_stop_event(), record.outcomes[0]
    match cause.kind:
        case "stop":
            return terminal is cause.value and outcome is cause.value.result
        case "cancel" | "loop ended":
            told = type(terminal) is WorkflowCancelledEvent
            return told and type(outcome) is WorkflowCancelledByUser
        case "deadline":
            told = type(terminal) is WorkflowTimedOutEvent and type(outcome) is WorkflowTimeoutError
            return told and are_active(record, terminal.active_steps)
    if type(terminal) is not WorkflowFailedEvent or terminal.exception is not outcome:
        return False
    if cause.kind == "stalled":
        return type(outcome) is WorkflowStalledError and terminal.attempts is None
    if cause.kind == "step timeout":
        told = type(outcome) is TimeoutError and f"{cause.step} took longer" in str(outcome)
    else:
        told = outcome is cause.value
    return told and terminal.step_name == cause.step and terminal.attempts == 1


def are_active(record: Record, steps: list[str]) -> bool:
    """Whether these are the steps in progress at the deadline; else the run had stalled (T9)."""
    end = record.deadline
    spans = [(e.step, e.entered, e.left or 0.0) for e in record.executions]
    surely = {name for name, entered, left in spans if entered < end < left}
    maybe = {name for name, entered, left in spans if entered <= end <= left}
    asked = any(isinstance(event, Question) for event in record.written)
    for_ever = record.plan.timeout == 300.0  # all that steps do takes less
    if steps != sorted(set(steps)) or not surely <= set(steps) <= maybe:
        return False
    return asked and not maybe if for_ever else asked or bool(maybe)


def check_time(record: Record, cause: Cause) -> None:
    """T6: the run ends with its last execution, or gives up after the cleanup timeout."""
    if record.ended is None:
        return
    limit = cause.time + record.plan.cleanup_timeout
    last = max((e.left or 0.0 for e in record.executions), default=0.0)
    least = max(cause.time, min(last, limit))
    most = max(least, cause.time + CHILD_CLEANUP) if record.children else least
    assert least <= record.ended <= most, (cause, least, record.ended, most)
    for execution in record.executions:
        assert not execution.outlived or execution.left >= limit, f"{execution} was given up early"


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=150)
@given(plan=PLANS)
def test_every_shape_obeys_the_termination_contract(backend: str, plan: Plan) -> None:
    check(play(plan, backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_branch_that_was_given_up_fires_no_join(backend: str) -> None:
    """Its batch would end with it, after the run."""
    work = Script((Act("shield", 3.0), Act("write")))
    plan = Plan(Shapes, 1, {("work", 0): work}, "cancel_run", 1.0, 300.0, 1.0, None)
    record = play(plan, backend)
    check(record)
    assert record.executions[-1].outlived
    del record
    gc.collect()  # streams that were left open warn


# --- Sync steps, on the real clock ------------------------------------------------------------


class Threads(Workflow):
    """The branch of number 0 stays in its thread until it is let go; others score at once."""

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        self.entered, self.let_go, self.gone = (threading.Event() for _ in range(3))
        self.refusal: Exception | None = None

    @step
    async def start(self, ev: Began) -> list[Item]:
        return [Item(n=0), Item(n=1)]

    @step
    def work(self, ctx: Context, ev: Item) -> Scored:
        if ev.n == 0:
            self.entered.set()
            self.let_go.wait(20)
            try:
                ctx.write_event_to_stream(Note(text="late"))
            except Exception as exc:
                self.refusal = exc
            self.gone.set()
        else:
            self.entered.wait(20)
        return Scored(n=ev.n)

    @step
    async def join(self, events: list[Scored]) -> StopEvent:
        return StopEvent(result=[event.n for event in events])


class BoundedThreads(Threads):
    @step(timeout=0.05)
    def work(self, ctx: Context, ev: Item) -> Scored:
        return Threads.work(self, ctx, ev)


class TakingThreads(Threads):
    @step
    async def join(
        self, events: Annotated[list[Scored], Collect(Take(1, cancel=True))]
    ) -> StopEvent:
        return StopEvent(result=[event.n for event in events])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("shape", "kind", "refusal"),
    [
        (Threads, WorkflowCancelledEvent, "run has ended, it was cancelled"),
        (BoundedThreads, WorkflowFailedEvent, "run has ended, step work failed"),
        (TakingThreads, StopEvent, "run has ended, it"),
    ],
    ids=["cancelled", "timed out", "dropped"],
)
def test_a_thread_of_a_branch_is_left_behind_and_refused(
    backend: str, shape: type[Threads], kind: type[StopEvent], refusal: str
) -> None:
    async def main() -> None:
        with anyio.fail_after(15):
            handler = workflow.run()
            await anyio.to_thread.run_sync(workflow.entered.wait)
            if shape is Threads:
                await handler.cancel_run()
            events, last = await check_ending(handler)
            assert events == [last]
            assert type(last) is kind
            assert not any(s.running or s.waiting for s in handler.statistics().steps.values())
            workflow.let_go.set()
            await anyio.to_thread.run_sync(workflow.gone.wait)
        assert handler.get_stop_event() is last

    workflow = shape()
    try:
        anyio.run(main, backend=backend)
    finally:
        workflow.let_go.set()
    with pytest.raises(WorkflowRuntimeError, match=refusal):
        raise workflow.refusal or AssertionError("the late write was accepted")
