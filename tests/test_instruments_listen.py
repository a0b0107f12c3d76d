"""Instruments only listen (I2): what they may not be, may not do, and what is told all the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any

import anyio
import pytest

from anyio_workflows import (
    Context,
    Event,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowHandler,
    step,
)
from anyio_workflows._ledger.ledger import Ledger
from anyio_workflows.collect import Collect, Take
from anyio_workflows.errors import (
    WorkflowConfigurationError,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
)
from anyio_workflows.instrument import (
    ExecutionRecord,
    Instrument,
    RunRecord,
    RunResult,
)

from .running import hog
from .samples import Answer, Done, Item, OneStep, Other, Part

pytestmark = pytest.mark.anyio

HOOKS = [name for name in vars(Instrument) if name[0] != "_"]


class Hook(Instrument):
    """Calls a function each time that it is told one kind of news."""

    def __init__(self, name: str, act: Callable[..., object]) -> None:
        setattr(self, name, act)


def errors(caplog: pytest.LogCaptureFixture) -> list[BaseException | None]:
    """Return what instruments raised."""
    name = "anyio_workflows._engine.instruments"
    records = [record for record in caplog.records if record.name == name]
    return [record.exc_info[1] if record.exc_info else None for record in records]


# --- What is refused ------------------------------------------------------------------------------------


async def awaits(self: Any, *args: Any) -> None: ...
async def awaits_and_yields(self: Any, *args: Any) -> Any:
    yield


def yields(self: Any, *args: Any) -> Any:
    yield


@pytest.mark.parametrize("method", [awaits, awaits_and_yields, yields])
@pytest.mark.parametrize("inherited", [False, True])
def test_i2_a_method_that_would_never_be_executed_is_refused(method: Any, inherited: bool) -> None:
    body = {"execution_ended": method}
    base = type("Base", (), body)
    with pytest.raises(WorkflowConfigurationError, match=r"Odd\.execution_ended\(\) is a.*'def'"):
        type("Odd", (base, Instrument), {}) if inherited else type("Odd", (Instrument,), body)


async def nothing(ctx: Context) -> None:
    pass


class Asks(Workflow[Any]):
    """Waits for two events at once, and writes and sends one before that."""

    def __init__(self, **options: Any) -> None:
        super().__init__(skip_graph_checks=["reachability"], **options)

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(Other())
        ctx.send_event(Item())
        got: list[str] = []
        async with anyio.create_task_group() as group:
            for event_type in (Answer, Done):
                group.start_soon(self.wait, ctx, event_type, got)
        return StopEvent(result=sorted(got))

    async def wait(self, ctx: Context, event_type: type[Event], got: list[str]) -> None:
        got.append(type(await ctx.wait_for_event(event_type)).__name__)

    @step
    async def take(self, ev: Item) -> None: ...


ACTS: dict[str, Callable[[WorkflowHandler[Any]], object]] = {
    "write": lambda handler: handler.ctx.write_event_to_stream(Part()),
    "send": lambda handler: handler.ctx.send_event(Done()),
    "save": lambda handler: handler.ctx.to_dict([Answer, Done]),
    "cancel": lambda handler: handler._run.cancel("by an eager task"),
    "listen": lambda handler: handler.stream_events(expose_internal=True),
}


@pytest.mark.parametrize(
    "name", [name for name in HOOKS if name not in ("run_started", "run_ended")]
)
@pytest.mark.parametrize("act", ACTS)
async def test_i2_what_would_change_the_run_is_refused_while_something_is_told(
    act: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    called: list[str] = []

    def call(*args: Any) -> None:
        if handlers and not called:  # in `run()` there is none
            called.append(name)
            ACTS[act](handlers[0])

    handlers: list[WorkflowHandler[Any]] = []
    instrument = Hook(name, call)
    handlers.append(Asks(instruments=[instrument]).run())
    await anyio.sleep(1)
    before = handlers[0].statistics().steps
    await handlers[0].send_event(Other())
    await handlers[0].send_event(Answer())
    await handlers[0].send_event(Done())
    assert await handlers[0] == ["Answer", "Done"]
    events = [type(event) async for event in handlers[0].stream_events()]
    assert events == [Other, StopEvent]
    assert (before["ask"].waiting, before["ask"].running) == (1, 0)
    assert called == [name]
    [error] = errors(caplog)
    assert isinstance(error, WorkflowRuntimeError)
    assert "by an instrument while it is told what happens" in str(error)


async def test_i2_a_task_of_an_instrument_may_do_what_it_wants() -> None:
    async def answer() -> None:
        handler.ctx.to_dict([Answer, Done])
        await handler.send_event(Answer())
        await handler.send_event(Done())

    async with anyio.create_task_group() as group:
        instrument = Hook("idle", lambda run, time: group.start_soon(answer))
        handler = Asks(instruments=[instrument]).run()
        assert await handler == ["Answer", "Done"]


async def test_p3_the_last_snapshot_can_be_taken_when_the_end_is_told() -> None:
    async def act(ctx: Context) -> None:
        await ctx.store.set("n", 5)

    saved: list[dict[str, Any]] = []
    instrument = Hook("run_ended", lambda *args: saved.append(ctx.to_dict()))
    ctx: Context[Any] = Context(workflow := OneStep(act, instruments=[instrument]))
    await workflow.run(ctx=ctx)
    [data] = saved
    assert data["work"] is None
    assert await Context.from_dict(workflow, data).store.get("n") == 5


class Fan(Workflow[Any]):
    """Makes a list, and joins it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.worked: Counter[int] = Counter()

    @step
    async def begin(self, ev: StartEvent) -> list[Item]:
        return [Item(n=n) for n in range(3)]

    @step
    async def work(self, ev: Item) -> Done:
        self.worked[ev.n] += 1
        return Done(n=ev.n)

    @step
    async def join(self, evs: list[Done]) -> StopEvent:
        return StopEvent(result=len(evs))


async def test_i2_to_look_at_a_run_whose_time_is_up_does_not_end_it_in_the_middle_of_a_list() -> (
    None
):
    """Else it would continue with the step that returned the list, and with the list."""

    def look(execution: ExecutionRecord) -> None:
        if execution.step == "work":
            hog(20)
            handler.statistics()

    workflow = Fan(timeout=10, instruments=[Hook("execution_queued", look)])
    handler = workflow.run()
    with pytest.raises(WorkflowTimeoutError):
        await handler
    workflow._config.instruments.clear()
    assert await workflow.run(ctx=handler.ctx) == 3
    assert workflow.worked == {0: 1, 1: 1, 2: 1}


async def test_i2_one_without_a_repr_is_logged_too(caplog: pytest.LogCaptureFixture) -> None:
    class Unspeakable(Instrument):
        def execution_started(self, execution: ExecutionRecord, time: float) -> None:
            raise ValueError("boo")

        def __repr__(self) -> str:
            raise ValueError("no repr")

    await OneStep(nothing, instruments=[Unspeakable()]).run()
    [error] = errors(caplog)
    assert str(error) == "boo"
    assert "Unspeakable" in caplog.text


# --- What is told all the same ---------------------------------------------------------------------------


async def test_o5_a_run_that_its_parent_refuses_tells_nothing() -> None:
    async def act(ctx: Context) -> None:
        try:
            await anyio.sleep(100)
        finally:
            with pytest.raises(WorkflowRuntimeError, match="cannot start a run"):
                OneStep(nothing, instruments=instruments).run()

    told: list[str] = []
    instruments = [Hook(name, lambda *args: told.append("something")) for name in HOOKS]
    with pytest.raises(WorkflowTimeoutError):
        await OneStep(act, timeout=1).run()
    assert told == []


async def test_i1_what_was_dropped_in_the_queue_is_the_source_of_nothing() -> None:
    class Race(Workflow[Any]):
        @step
        async def begin(self, ev: StartEvent) -> list[Part | Other]:
            return [Part(), Other()]

        @step
        async def work(self, ev: Part) -> Done: ...

        @step
        async def first(
            self, evs: Annotated[list[Other], Collect(Take(1, cancel=True))]
        ) -> None: ...

        @step
        async def rest(self, evs: list[Done]) -> StopEvent:
            return StopEvent(result=len(evs))

    steps: dict[int, str] = {}
    sources: dict[str, list[str]] = {}

    def note(execution: ExecutionRecord) -> None:
        steps[execution.id] = execution.step
        sources[execution.step] = [steps[source] for source in execution.sources]

    assert await Race(instruments=[Hook("execution_queued", note)]).run() == 0
    assert sources == {"begin": [], "work": ["begin"], "first": ["begin"], "rest": ["begin"]}


async def test_i1_no_time_is_before_one_that_was_told_earlier() -> None:
    """Also if it takes a while to queue a long list."""

    def queued(execution: ExecutionRecord) -> None:
        hog(0.25)
        times.append(execution.queued)

    times: list[float] = []
    instruments = [
        Hook("execution_queued", queued),
        Hook("execution_started", lambda execution, time: times.append(time)),
        Hook("execution_ended", lambda execution, result: times.append(result.time)),
        Hook("event_written", lambda run, record: (times.append(record.time), hog(0.25))),
        Hook("run_ended", lambda run, result: times.append(result.time)),
    ]
    assert await Fan(instruments=instruments).run() == 3
    assert len(times) == 3 * 5 + 2
    assert times == sorted(times)


@pytest.mark.parametrize("told", [True, False])
async def test_r9_no_step_starts_when_the_deadline_passed_while_a_list_was_queued(
    told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_slowly(self: Ledger, batch: Any) -> Any:
        hog(4)
        return open_branch(self, batch)

    open_branch = Ledger.open_branch
    monkeypatch.setattr(Ledger, "open_branch", open_slowly)
    started: list[str] = []
    hook = Hook("execution_started", lambda execution, time: started.append(execution.step))
    workflow = Fan(timeout=10, instruments=[hook] if told else [])
    with pytest.raises(WorkflowTimeoutError):
        await workflow.run()
    assert not workflow.worked
    assert started == (["begin"] if told else [])


async def test_i1_a_wait_that_is_left_behind_does_not_end_later_than_its_attempt() -> None:
    async def act(ctx: Context) -> None:
        group.start_soon(wait, ctx)
        await anyio.sleep(1)

    async def wait(ctx: Context) -> None:
        with pytest.raises(WorkflowRuntimeError):
            await ctx.wait_for_event(Answer)

    times: list[float] = []
    instruments = [
        Hook("wait_ended", lambda execution, wait, result: (times.append(result.time), hog(1))),
        Hook("execution_ended", lambda execution, result: times.append(result.time)),
    ]
    async with anyio.create_task_group() as group:
        await OneStep(act, instruments=instruments).run()
    assert times == [times[0]] * 2


async def test_i1_the_end_of_the_run_is_not_before_its_last_event() -> None:
    def ended(run: RunRecord, result: RunResult) -> None:
        seen.append(result.time)

    seen: list[float] = []
    instruments = [
        Hook("event_written", lambda run, record: (seen.append(record.time), hog(1))),
        Hook("run_ended", ended),
    ]
    await OneStep(nothing, instruments=instruments).run()
    assert seen == [seen[0], seen[0] + 1]
