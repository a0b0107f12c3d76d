"""Which step takes which event, and how steps share the time (R1-R4, R6, R9)."""

from __future__ import annotations

import itertools
import time
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyio_workflows import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowFailedEvent,
    WorkflowTimedOutEvent,
    step,
)
from anyio_workflows.errors import WorkflowRuntimeError
from anyio_workflows.events import StepStateChanged, UnhandledEvent

from .running import check_ending, hog
from .samples import Answer, AsksByReturning, Ends, Item, Next, Note, Other, ProviderError

pytestmark = pytest.mark.anyio


class Unspeakable(Event):
    def __repr__(self) -> str:
        raise ProviderError("no words")


class Untouchable:
    @property
    def __class__(self) -> Any:
        raise ProviderError("no class")


@pytest.mark.parametrize("odd", [Unspeakable, Untouchable])
async def test_r4_result_that_cannot_be_shown_fails_the_step(odd: Any) -> None:
    class Odd(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            return odd()

    _, last = await check_ending(Odd().run())
    assert isinstance(last, WorkflowFailedEvent)
    assert last.step_name == "work"


# --- R1-R4: routing ---------------------------------------------------------------------------


class Base(Event):
    pass


class Derived(Base):
    pass


class Routes(Workflow):
    @step
    async def start(self, ctx: Context, ev: StartEvent) -> Base | Derived | StopEvent:
        ctx.send_event(ev.event)
        await anyio.sleep(1)
        return StopEvent(result=sorted(self.taken))

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[str] = []

    @step
    async def exact(self, ev: Base) -> None:
        self.taken.append("exact")

    @step
    async def exact_too(self, ev: Base) -> None:
        self.taken.append("exact_too")

    @step(accept_event_subclasses=True)
    async def family(self, ev: Base) -> None:
        self.taken.append("family")

    @step
    async def special(self, ev: Derived) -> None:
        self.taken.append("special")


async def test_r1_event_goes_to_every_step_that_accepts_exactly_its_type() -> None:
    assert await Routes().run(event=Base()) == ["exact", "exact_too", "family"]


async def test_r1_subclass_goes_to_its_own_takers_and_where_subclasses_are_accepted() -> None:
    assert await Routes().run(event=Derived()) == ["family", "special"]


async def test_r1_union_of_types_is_one_step() -> None:
    class Either(Workflow):
        @step
        async def fork(self, ctx: Context, ev: StartEvent) -> Item | Other | None:
            ctx.send_event(Item(n=1))
            ctx.send_event(Other(n=2))

        @step
        async def take(self, ev: Item | Other) -> StopEvent | None:
            taken.append(ev.n)
            return StopEvent() if len(taken) == 2 else None

    taken: list[int] = []
    await Either().run()
    assert taken == [1, 2]


@pytest.mark.parametrize("workers", [1, 2, 4, 50])
async def test_r2_at_most_num_workers_in_progress_first_in_first_out(workers: int) -> None:
    class Pool(Workflow):
        @step
        async def fork(self, ctx: Context, ev: StartEvent) -> Next | StopEvent:
            for n in range(20):
                ctx.send_event(Next(n=n))
            await anyio.sleep(100)
            return StopEvent()

        @step(num_workers=workers)
        async def work(self, ev: Next) -> None:
            nonlocal running, most
            order.append(ev.n)
            running += 1
            most = max(most, running)
            await anyio.sleep(1 + ev.n % 3)
            running -= 1

    order: list[int] = []
    running = most = 0
    await Pool(timeout=None).run()
    assert order == list(range(20))
    assert most == min(workers, 20)


async def test_r2_default_is_four_workers_and_all_are_used() -> None:
    class Pool(Workflow):
        @step
        async def fork(self, ctx: Context, ev: StartEvent) -> Next | StopEvent:
            for n in range(8):
                ctx.send_event(Next(n=n))
            await anyio.sleep(19.5)
            return StopEvent(result=ended)

        @step
        async def work(self, ev: Next) -> None:
            nonlocal ended
            await anyio.sleep(10)
            ended += 1

    ended = 0
    assert await Pool().run() == 4


async def test_r2_busy_step_does_not_hold_up_another() -> None:
    class Pool(Workflow):
        @step
        async def fork(self, ctx: Context, ev: StartEvent) -> Item | Other | None:
            for _ in range(10):
                ctx.send_event(Item())
            ctx.send_event(Other())

        @step(num_workers=1)
        async def slow(self, ev: Item) -> None:
            await anyio.sleep(100)

        @step
        async def quick(self, ev: Other) -> StopEvent:
            return StopEvent(result="quick")

    assert await Pool(timeout=10).run() == "quick"


async def test_r2_place_of_an_ended_execution_is_free_at_once() -> None:
    class Chain(Workflow):
        @step(num_workers=1)
        async def loop(self, ev: StartEvent | Next) -> Next | StopEvent:
            n = ev.n if isinstance(ev, Next) else 0
            return StopEvent(result=n) if n == 500 else Next(n=n + 1)

    assert await Chain().run() == 500


async def test_r2_workers_started_by_events_from_outside() -> None:
    class Inbox(Workflow):
        @step
        async def ask(self, ev: StartEvent) -> InputRequiredEvent:
            return InputRequiredEvent()

        @step(num_workers=2)
        async def take(self, ev: HumanResponseEvent) -> StopEvent | None:
            order.append(ev.n)
            await anyio.sleep(1)
            return StopEvent() if ev.n == 5 else None

    order: list[int] = []
    handler = Inbox().run()
    for n in range(6):
        await handler.send_event(HumanResponseEvent(n=n))
        if n == 2:
            await anyio.sleep(10)  # everything has been done: the run sleeps
    await check_ending(handler)
    assert order == [0, 1, 2, 3, 4, 5]


class Sends(Workflow):
    @step
    async def start(self, ctx: Context, ev: StartEvent) -> Next | StopEvent | None:
        ctx.send_event(ev.event, step=ev.get("step"))
        assert ctx.is_running is not isinstance(ev.event, StopEvent)
        return None

    @step
    async def taker(self, ev: Next) -> StopEvent:
        return StopEvent(result="taker")

    @step
    async def other_taker(self, ev: Next) -> None:
        await anyio.sleep(100)


async def test_r3_event_aimed_at_a_step() -> None:
    handler = Sends().run(event=Next(), step="taker")
    assert await handler == "taker"
    assert handler.statistics().steps["other_taker"].done == 0


@pytest.mark.parametrize(
    ("event", "target", "message"),
    [
        (Next(), "takre", r"'takre': no such step, did you mean 'taker'"),
        (Item(), "taker", r"Item.*'taker'.*accepts Next only"),
        (Next(), 7, r"to step 7: step is the name of a step, a str"),
        (Next(), ["taker"], r"to step \['taker'\]: step is the name of a step, a str"),
        ("text", None, r"only events.*'text' \(str\)"),
        (Next, None, "only events"),
    ],
)
async def test_r3_wrong_sends_raise(event: Any, target: Any, message: str) -> None:
    with pytest.raises(WorkflowRuntimeError, match=message):
        await Sends().run(event=event, step=target)


async def test_r3_unhandled_event_is_logged_and_gone(caplog: pytest.LogCaptureFixture) -> None:
    handler = Ends(timeout=1).run(how="wait")
    await handler.send_event(Item())
    assert "no step accepts Item" in caplog.text
    events, last = await check_ending(handler)
    assert len(events) == 1
    assert isinstance(last, WorkflowTimedOutEvent)


async def test_r3_unhandled_event_is_told_to_those_who_ask() -> None:
    handler = Ends(timeout=1).run(how="wait")
    stream = handler.stream_events(expose_internal=True)
    await handler.send_event(Item())
    events = [event async for event in stream]
    assert events[1] == UnhandledEvent(
        event_type="Item", qualified_name=f"{Item.__module__}.Item", idle=False
    )
    assert [type(event) for event in [events[0], *events[2:]]] == [
        StepStateChanged,
        StepStateChanged,
        StepStateChanged,
        WorkflowTimedOutEvent,
    ]


async def test_r3_unhandled_event_of_an_idle_run() -> None:
    handler = AsksByReturning(timeout=10).run()
    stream = handler.stream_events(expose_internal=True)
    await anyio.sleep(1)
    await handler.send_event(Item())
    unhandled = [event async for event in stream if isinstance(event, UnhandledEvent)]
    assert [event.idle for event in unhandled] == [True]


async def test_r3_run_is_not_idle_while_an_answered_step_waits_for_its_worker() -> None:
    class TakesTurns(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
            ctx.send_event(Item(n=1))
            ctx.send_event(Item(n=2))
            return None

        @step(num_workers=1, skip_graph_checks=["terminal_event"])
        async def work(self, ctx: Context, ev: Item) -> Note | StopEvent:
            if ev.n == 1:
                await ctx.wait_for_event(Answer)
                return StopEvent()
            ctx.send_event(Answer())
            return Note()  # no step takes it

    stream = TakesTurns().run().stream_events(expose_internal=True)
    unhandled = [event async for event in stream if isinstance(event, UnhandledEvent)]
    assert [(event.event_type, event.idle) for event in unhandled] == [("Note", False)]


async def test_r3_send_takes_effect_at_once() -> None:
    class Prompt(Workflow):
        @step
        async def start(self, ctx: Context, ev: StartEvent) -> Next | StopEvent:
            ctx.send_event(Next())
            queued.append(handler.statistics().steps["work"].queued)
            await anyio.sleep(1)
            ctx.send_event(StopEvent(result="sent"))
            queued.append(ctx.is_running)
            return StopEvent(result="returned")

        @step
        async def work(self, ev: Next) -> None:
            pass

    queued: list[Any] = []
    handler = Prompt().run()
    assert await handler == "sent"
    assert queued == [1, False]


@pytest.mark.parametrize("timing", ["at once", "later"])
async def test_r3_stop_event_from_outside_ends_the_run(timing: str) -> None:
    handler = Ends().run(how="wait")
    if timing == "later":
        await anyio.sleep(1)
    await handler.send_event(StopEvent(result="outside"))
    assert await handler == "outside"


class Returns(Workflow):
    result: Any

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result

    @step
    async def work(self, ev: StartEvent) -> Base | StopEvent:
        return self.result

    @step(accept_event_subclasses=True)
    async def take(self, ev: Base) -> StopEvent | None:
        return StopEvent(result=type(ev)) if isinstance(ev, Derived) else None


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("text", r"work returned 'text' \(str\).*Base \| StopEvent"),
        (Next(), r"work returned Next\(n=0\)"),
        (StopEvent, "work returned <class"),
        ([Base()], "work returned "),
        (Event(), "work returned Event"),
    ],
)
async def test_r4_undeclared_result_fails_the_step(result: Any, message: str) -> None:
    handler = Returns(result).run()
    with pytest.raises(WorkflowRuntimeError, match=message):
        await handler
    event = handler.get_stop_event()
    assert isinstance(event, WorkflowFailedEvent)
    assert (event.step_name, event.attempts) == ("work", 1)


async def test_r4_subclass_of_a_declared_type_is_fine() -> None:
    assert await Returns(Derived()).run() is Derived


async def test_r4_none_where_declared_starts_nothing() -> None:
    class Quiet(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent | None:
            return None

    _, last = await check_ending(Quiet(timeout=1, stall_check=False).run())
    assert last == WorkflowTimedOutEvent(timeout=1, active_steps=[])


# --- R6, R9: fairness and time ----------------------------------------------------------------


class Spin(Workflow):
    """A step that calls itself for ever and never awaits."""

    turns = 0

    @step
    async def spin(self, ctx: Context, ev: StartEvent | Next) -> Next | StopEvent:
        self.turns += 1
        if self.turns > 1_000_000:
            raise AssertionError("nobody else came to turn")
        if self.turns % 100 == 0:
            ctx.write_event_to_stream(Note(text=self.turns))
        hog(0.0001)
        return Next()


async def test_r6_step_that_never_awaits_lets_others_run() -> None:
    workflow = Spin()
    handler = workflow.run()
    for _ in range(20):
        await checkpoint()
    assert 0 < workflow.turns < 20_000
    await handler.cancel_run()
    assert workflow.turns < 20_000


async def test_r6_step_that_never_awaits_times_out() -> None:
    workflow = Spin(timeout=1)
    _, last = await check_ending(workflow.run())
    assert last == WorkflowTimedOutEvent(timeout=1, active_steps=["spin"])
    assert workflow.turns < 10_100


async def test_r6_step_that_never_awaits_lets_the_reader_read() -> None:
    workflow = Spin()
    handler = workflow.run()
    async for event in handler.stream_events():
        assert isinstance(event, Note)
        if event.text >= 1000:
            break
    assert workflow.turns < 20_000
    await handler.cancel_run()


async def test_r6_runs_that_never_await_go_on_side_by_side() -> None:
    spins = [Spin(), Spin()]
    handlers = [spin.run() for spin in spins]
    assert await Ends().run(how="return") == 7
    while min(spin.turns for spin in spins) < 300:
        await checkpoint()
    assert max(spin.turns for spin in spins) < 20_000
    for handler in handlers:
        await handler.cancel_run()


async def test_r6_stop_between_steps_that_never_await() -> None:
    spin = Spin()
    handler = spin.run()
    await handler.send_event(StopEvent(result="enough"))
    assert await handler == "enough"


async def test_r9_wall_clock_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    wall = itertools.count(2e9, -1e6)
    monkeypatch.setattr(time, "time", lambda: next(wall))
    start = anyio.current_time()
    _, last = await check_ending(Ends(timeout=3600).run(how="wait"))
    assert isinstance(last, WorkflowTimedOutEvent)
    assert anyio.current_time() - start == 3600


async def test_r9_virtual_hours_take_no_time() -> None:
    began = time.perf_counter()
    await check_ending(Ends(timeout=36_000).run(how="wait"))
    assert time.perf_counter() - began < 36_000 / 10
