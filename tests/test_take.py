"""Joins that take the first of a batch, and may cancel the rest: `Take` (F4)."""

from __future__ import annotations

import threading
from typing import Annotated, Any

import anyio
import anyio.from_thread
import pytest

from anyio_workflows import Context, Event, StartEvent, StopEvent, Workflow, WorkflowHandler, step
from anyio_workflows.collect import Collect, Take
from anyio_workflows.errors import WorkflowRuntimeError

from .running import PATIENCE, check_ending, numbers, read_all, texts, unhandled
from .samples import (
    Answer,
    Done,
    FanOut,
    Item,
    Joined,
    Note,
    Numbers,
    Other,
    Part,
    ProviderError,
    Question,
)

pytestmark = pytest.mark.anyio


class PartDone(Event):
    n: int = 0


class Few(FanOut):
    """The join fires on the second arrival; the others go on, to no avail."""

    @step(num_workers=100)
    async def work(self, ctx: Context, ev: Item) -> Done | None:
        await anyio.sleep(abs(ev.n))
        ctx.write_event_to_stream(Note(text=("worked", ev.n)))
        return Done(n=ev.n) if ev.n >= 0 else None

    @step
    async def join(self, events: Annotated[list[Done], Collect(Take(2))]) -> Joined:
        return Joined(n=sum(numbers(events)))

    @step
    async def end(self, ctx: Context, ev: Joined) -> StopEvent:
        ctx.write_event_to_stream(Note(text=("joined", ev.n)))
        await anyio.sleep(20)
        return StopEvent(result=ev.n)


async def test_f4_take_fires_on_the_nth_arrival_and_only_once() -> None:
    handler = Few().run(items=[9, 1, 3, -2])
    events = await read_all(handler)
    assert texts(events) == [
        ("worked", 1),
        ("worked", -2),
        ("worked", 3),
        ("joined", 4),
        ("worked", 9),
    ]
    assert unhandled(events) == [], "what comes after the join has fired is dropped"
    assert await handler == 4


@pytest.mark.parametrize(
    ("items", "result"), [([-5, 1, -2], 1), ([7], 7), ([-1], 0), ([], 0)], ids=str
)
async def test_f4_take_fires_with_fewer_when_the_batch_ends(items: list[int], result: int) -> None:
    begun = anyio.current_time()
    assert await Few().run(items=items) == result
    longest = max(map(abs, items), default=0)
    assert anyio.current_time() - begun == pytest.approx(longest + 20)


class First(FanOut):
    """The join fires on the first arrival; the rest is cancelled."""

    started: list[int]
    cleaned: list[int]

    def begin(self, *items: int) -> WorkflowHandler[Any]:
        self.started, self.cleaned = [], []
        return self.run(items=list(items))

    @step(num_workers=3)
    async def work(self, ev: Item) -> Done | None:
        self.started.append(ev.n)
        try:
            await anyio.sleep(abs(ev.n))
        except anyio.get_cancelled_exc_class():
            self.cleaned.append(ev.n)
            raise
        return Done(n=ev.n) if ev.n >= 0 else None

    @step
    async def join(self, events: Annotated[list[Done], Collect(Take(1, cancel=True))]) -> Joined:
        return Joined(n=sum(numbers(events)))

    @step
    async def end(self, ctx: Context, ev: Joined) -> StopEvent:
        await anyio.sleep(10)
        assert await ctx.running_steps() == ["end"]
        return StopEvent(result=ev.n)


async def test_f4_cancel_stops_what_runs_and_what_is_queued() -> None:
    workflow = First()
    handler = workflow.begin(5, 2, 6, 1, 1)
    assert await handler == 2
    assert workflow.started == [5, 2, 6]
    assert sorted(workflow.cleaned) == [5, 6]
    assert handler.statistics().steps["work"].queued == 0


@pytest.mark.parametrize(("items", "result"), [([-1, -2], 0), ([], 0), ([-3, 1], 1)], ids=str)
async def test_f4_cancel_with_fewer_survivors(items: list[int], result: int) -> None:
    assert await First().begin(*items) == result


class FirstAnswer(First):
    """Each branch asks somebody; the first answer is enough."""

    @step(num_workers=1)
    async def work(self, ctx: Context, ev: Item) -> Done:
        self.started.append(ev.n)
        try:
            await ctx.wait_for_event(Answer, Question(n=ev.n), requirements={"n": ev.n})
        except anyio.get_cancelled_exc_class():
            self.cleaned.append(ev.n)
            raise
        return Done(n=ev.n)


async def test_f4_cancel_stops_what_waits() -> None:
    workflow = FirstAnswer()
    handler = workflow.begin(1, 2, 3)
    stream = handler.stream_events(expose_internal=True)
    asked = 0
    async for event in stream:
        asked += isinstance(event, Question)
        if asked == 3:
            break
    await handler.send_event(Answer(n=2, text="yes"))
    await anyio.sleep(1)
    assert sorted(workflow.cleaned) == [1, 3]
    await handler.send_event(Answer(n=1, text="too late"))
    assert unhandled([event async for event in stream]) == ["Answer"]
    assert await handler == 2


class SlowToStop(First):
    """Cleaning up takes longer than anything else."""

    @step(num_workers=3)
    async def work(self, ctx: Context, ev: Item) -> Done:
        self.started.append(ev.n)
        try:
            await anyio.sleep(ev.n)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(3)
            self.cleaned.append(ev.n)
        return Done(n=ev.n)

    @step
    async def end(self, ctx: Context, ev: Joined) -> StopEvent:
        assert self.cleaned == [1]
        assert await ctx.running_steps() == ["end", "work"]
        await anyio.sleep(10)
        assert sorted(self.cleaned) == [1, 20, 30]
        return StopEvent(result=ev.n)


async def test_f4_the_join_does_not_wait_for_cancelled_branches() -> None:
    assert await SlowToStop().begin(20, 1, 30) == 1


class Stubborn(First):
    """Swallows its cancellation: one fails then, one returns an event, one ends the run, or would."""

    @step(num_workers=4)
    async def work(self, ev: Item) -> Done | StopEvent:
        try:
            await anyio.sleep(ev.n)
        except anyio.get_cancelled_exc_class():
            if ev.n == 7:
                raise ProviderError from None
            if ev.n == 8:
                return StopEvent(result="no")
        return Done(n=ev.n)


async def test_f4_what_a_cancelled_branch_returns_or_raises_changes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, last = await check_ending(Stubborn().begin(1, 7, 8, 9))
    assert last.result == 1
    [told] = [r.message for r in caplog.records if "dropped step" in r.message]
    assert "ProviderError" in told, "only the one that failed is worth a line"


class Exiting(First):
    @step
    async def work(self, ev: Item) -> Done:
        try:
            await anyio.sleep(ev.n)
        except anyio.get_cancelled_exc_class():
            raise SystemExit(3) from None
        return Done(n=ev.n)


async def test_t8_an_exit_in_a_cancelled_branch_ends_the_run() -> None:
    handler = Exiting().run(items=[1, 5])
    with pytest.raises(SystemExit):
        await handler


class Threads(First):
    """Number 0 is quick; the others sit in a thread."""

    def __init__(self) -> None:
        super().__init__(timeout=None)
        self.in_thread = anyio.Event()
        self.release = threading.Event()
        self.errors: list[str] = []
        self.thread_done = threading.Event()

    @step
    async def work(self, ev: Item) -> Done | Other:
        if ev.n:
            return Other(n=ev.n)
        await self.in_thread.wait()
        return Done(n=ev.n)

    @step
    def sit(self, ctx: Context, ev: Other) -> Done:
        anyio.from_thread.run_sync(self.in_thread.set)
        self.release.wait(PATIENCE)
        try:
            ctx.write_event_to_stream(Note(text="late"))
        except WorkflowRuntimeError as exc:
            self.errors.append(str(exc))
        self.thread_done.set()
        return Done(n=ev.n)

    @step
    async def end(self, ctx: Context, ev: Joined) -> StopEvent:
        return StopEvent(result=ev.n)


async def test_f4_cancel_abandons_threads() -> None:
    workflow = Threads()
    try:
        handler = workflow.run(items=[1, 0])
        assert await handler == 0
        assert not workflow.thread_done.is_set()
    finally:
        workflow.release.set()
    await anyio.to_thread.run_sync(workflow.thread_done.wait, 30)
    [error] = workflow.errors
    assert "has ended" in error


@pytest.mark.parametrize("n", [1, 2])
async def test_f4_elements_after_the_one_that_fires_a_cancelling_join_never_start(n: int) -> None:
    worked = []

    class AtOnce(Workflow):
        @step
        async def split(self, ev: StartEvent) -> list[Done | Item]:
            return [*[Done()] * n, Item(n=1), Item(n=2)]

        @step
        async def work(self, ev: Item) -> Done:
            worked.append(ev.n)
            return Done(n=ev.n)

        @step
        async def join(self, events: Annotated[list[Done], Collect(Take(n, cancel=True))]) -> Other:
            return Other(n=len(events))

        @step
        async def end(self, ev: Other) -> StopEvent:
            await anyio.sleep(1)
            return StopEvent(result=ev.n)

    assert await AtOnce().run() == n
    assert worked == []


class InnerBatches(Workflow):
    """Item 0 is quick; item 1 opens an inner batch, which is cancelled with its branch."""

    started: int = 0

    @step
    async def split(self, ev: StartEvent) -> list[Item]:
        return [Item(n=1), Item(n=0)]

    @step
    async def split_item(self, ev: Item) -> list[Part] | Done:
        if ev.n:
            return [Part(n=n) for n in range(6)]
        await anyio.sleep(1)
        return Done(n=0)

    @step(num_workers=2)
    async def work(self, ev: Part) -> PartDone:
        self.started += 1
        await anyio.sleep(0.6)
        return PartDone(n=ev.n)

    @step
    async def inner_join(self, ctx: Context, events: list[PartDone]) -> Done:
        ctx.write_event_to_stream(Note(text="the join of a cancelled batch fired"))
        return Done(n=9)

    @step
    async def join(self, events: Annotated[list[Done], Collect(Take(1, cancel=True))]) -> Other:
        return Other(n=numbers(events)[0])

    @step
    async def end(self, ev: Other) -> StopEvent:
        await anyio.sleep(10)
        return StopEvent(result=ev.n)


async def test_f4_cancel_reaches_inner_batches_and_their_joins() -> None:
    workflow = InnerBatches()
    handler = workflow.run()
    events, last = await check_ending(handler)
    assert last.result == 0
    assert workflow.started == 4, "two ended, two were in progress, two were queued"
    assert texts(events) == []
    found = handler.statistics().steps["work"]
    assert (found.queued, found.running, found.waiting) == (0, 0, 0)


class SlowJoin(InnerBatches):
    """The inner join is in progress when its branch is cancelled, and another is queued."""

    joining: int = 0

    @step
    async def split(self, ev: StartEvent) -> list[Item]:
        return [Item(n=1), Item(n=2), Item(n=0)]

    @step
    async def split_item(self, ev: Item) -> list[Part] | Done:
        if ev.n:
            return []
        await anyio.sleep(1)
        return Done(n=0)

    @step(num_workers=1)
    async def inner_join(self, ctx: Context, events: list[PartDone]) -> Done:
        self.joining += 1
        try:
            await anyio.sleep(20)
        finally:
            ctx.write_event_to_stream(Note(text="cleaned"))
        return Done(n=9)


async def test_f4_cancel_stops_the_inner_joins_that_run_or_are_queued() -> None:
    workflow = SlowJoin()
    begun = anyio.current_time()
    events, last = await check_ending(workflow.run())
    assert anyio.current_time() - begun == pytest.approx(11)
    assert last.result == 0
    assert workflow.joining == 1
    assert texts(events) == ["cleaned"]


class InnerFirst(Workflow):
    """An inner join that takes the first of each; the outer one takes all."""

    @step
    async def split(self, ev: Numbers) -> list[Item]:
        return [Item(n=n) for n in ev.items]

    @step
    async def split_item(self, ev: Item) -> list[Part]:
        return [Part(n=ev.n + n) for n in (2, 0, 1)]

    @step(num_workers=100)
    async def work(self, ctx: Context, ev: Part) -> PartDone:
        await anyio.sleep(ev.n % 10 + 1)
        ctx.write_event_to_stream(Note(text=ev.n))
        return PartDone(n=ev.n)

    @step
    async def inner(self, events: Annotated[list[PartDone], Collect(Take(1, cancel=True))]) -> Done:
        [first] = events
        return Done(n=first.n)

    @step
    async def join(self, events: list[Done]) -> StopEvent:
        return StopEvent(result=sorted(numbers(events)))


async def test_f4_cancel_touches_its_own_batch_only() -> None:
    events, last = await check_ending(InnerFirst().run(items=[10, 20, 30]))
    assert last.result == [10, 20, 30]
    assert sorted(texts(events)) == [10, 20, 30]


class OneOfTwo(FanOut):
    """One join takes the first and cancels, the other takes all: what came until then."""

    @step
    async def join(self, events: Annotated[list[Done], Collect(Take(2, cancel=True))]) -> Joined:
        return Joined(n=sum(numbers(events)))

    @step
    async def count(self, events: list[Done]) -> Other:
        return Other(n=len(events))

    @step
    async def end(self, total: Joined, count: Other) -> StopEvent:
        return StopEvent(result=[total.n, count.n])


async def test_f4_cancel_ends_the_batch_for_the_other_joins() -> None:
    begun = anyio.current_time()
    assert await OneOfTwo().run(items=[1, 30, 2, 40]) == [3, 2]
    assert anyio.current_time() - begun == pytest.approx(2)


@pytest.mark.parametrize("name", ["a_taker", "z_taker"])
async def test_f4_cancel_treats_takers_before_and_after_the_join_alike(name: str) -> None:
    async def taker(self: Any, ctx: Context, ev: Done) -> None:
        ctx.write_event_to_stream(Note(text="taken"))

    async def join(self: Any, events: Any) -> Other:
        return Other()

    join.__annotations__["events"] = Annotated[list[Done], Collect(Take(1, cancel=True))]

    async def end(self: Any, ev: Other) -> StopEvent:
        await anyio.sleep(1)
        return StopEvent()

    members = {"join": step(join), "end": step(end)}
    mine = {"taker": step(taker)}
    members = {**mine, **members} if name == "a_taker" else {**members, **mine}
    base = {"split": FanOut.split, "work": FanOut.work}
    workflow = type("Taken", (Workflow,), {**base, **members})
    events, _ = await check_ending(workflow().run(items=[1, 2]))
    assert texts(events) == []  # its branch is cancelled like the others


class Resumed(Workflow):
    """The place of a dropped event is passed on to an execution that wants to go on."""

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Other:
        ctx.send_event(Item())
        await anyio.sleep(1)
        return Other()

    @step
    async def split(self, ev: Other) -> list[Item | Answer | Done]:
        return [Item(), Answer(n=1, text="yes"), Done()]

    @step(num_workers=1)
    async def work(self, ctx: Context, ev: Item) -> StopEvent:
        await ctx.wait_for_event(Answer, timeout=None)
        return StopEvent(result="answered")

    @step
    async def join(self, events: Annotated[list[Done], Collect(Take(1, cancel=True))]) -> None: ...


async def test_f4_the_place_of_a_cancelled_event_is_passed_on() -> None:
    workflow = Resumed(skip_graph_checks=["terminal_event", "dead_end"])
    assert await workflow.run() == "answered"
