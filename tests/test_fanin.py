"""Fan-out and fan-in (F1-F5), rule by rule."""

from __future__ import annotations

import functools
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Annotated, Any

import anyio
import anyio.from_thread
import attrs
import pytest
from anyio.lowlevel import checkpoint
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
    WorkflowRuntimeError,
    WorkflowStalledError,
    WorkflowValidationError,
)
from anyio_workflows.events import UnhandledEvent, WorkflowIdleEvent

from .conftest import BACKENDS
from .running import PATIENCE, Note, check_ending, read, run_virtually, texts

pytestmark = pytest.mark.anyio


class Numbers(StartEvent):
    items: list[int] = []


class Item(Event):
    n: int = 0


class Scored(Event):
    n: int = 0


class Other(Event):
    n: int = 0


class Summed(Event):
    n: int = 0


class ProviderError(Exception):
    pass


def numbers(events: Sequence[Any]) -> list[int]:
    return [event.n for event in events]


class FanOut(Workflow):
    """A branch per number: takes so many seconds, dies if the number is negative."""

    @step
    async def split(self, ev: Numbers) -> list[Item]:
        return [Item(n=n) for n in ev.items]

    @step(num_workers=100)
    async def work(self, ev: Item) -> Scored | None:
        await anyio.sleep(abs(ev.n))
        return Scored(n=ev.n) if ev.n >= 0 else None

    @step
    async def join(self, ctx: Context, events: list[Scored]) -> StopEvent:
        ctx.write_event_to_stream(Note(text=("joined", numbers(events))))
        return StopEvent(result=numbers(events))


async def read_all(handler: WorkflowHandler[Any]) -> list[Event]:
    """Read the rest of a stream, internal events included."""
    return [event async for event in handler.stream_events(expose_internal=True)]


def unhandled(events: list[Event]) -> list[str]:
    return [event.event_type for event in events if isinstance(event, UnhandledEvent)]


# --- F1: what opens a batch -------------------------------------------------------------------


async def test_f1_each_element_of_a_list_begins_a_branch() -> None:
    assert await FanOut().run(items=[3, 1, 2]) == [1, 2, 3]


async def test_f1_an_empty_list_opens_and_closes_an_empty_batch() -> None:
    assert await FanOut().run(items=[]) == []


class Choosy(FanOut):
    """Returns a list, one event, or nothing."""

    @step
    async def split(self, ev: Numbers) -> list[Item] | Other | None:
        if not ev.items:
            return None
        return Other(n=ev.items[0]) if len(ev.items) == 1 else [Item(n=n) for n in ev.items]

    @step
    async def single(self, ev: Other) -> StopEvent:
        return StopEvent(result=("single", ev.n))


async def test_f1_a_list_or_one_event() -> None:
    assert await Choosy().run(items=[2, 1]) == [1, 2]
    assert await Choosy().run(items=[7]) == ("single", 7)


async def test_f1_none_opens_no_batch() -> None:
    with pytest.raises(WorkflowStalledError) as caught:
        await Choosy().run(items=[])
    assert caught.value.last_acts["split"] == "returned None"
    assert caught.value.last_acts["join"] == "has not run"


class Mixed(FanOut):
    """A list with two types of elements, each with its way."""

    @step
    async def split(self, ev: Numbers) -> list[Item | Other]:
        return [Item(n=n) if n % 2 else Other(n=n) for n in ev.items]

    @step
    async def double(self, ev: Other) -> Scored:
        return Scored(n=2 * ev.n)


async def test_f1_a_list_may_mix_types() -> None:
    assert await Mixed().run(items=[3, 2, 1, 4]) == [4, 8, 1, 3]


class Direct(FanOut):
    """A list whose elements may be for the join at once."""

    @step
    async def split(self, ev: Numbers) -> list[Item | Scored]:
        return [Item(n=n) if n % 2 else Scored(n=n) for n in ev.items]


async def test_f1_an_element_may_go_to_the_join_at_once() -> None:
    assert await Direct().run(items=[1, 2, 4]) == [2, 4, 1]
    assert await Direct().run(items=[4, 2]) == [4, 2]


class Careless(FanOut):
    """Returns what it should not."""

    result: Any = None
    worked = 0

    @step
    async def split(self, ev: Numbers) -> list[Item]:
        return self.result

    @step
    async def work(self, ev: Item) -> Scored:
        self.worked += 1
        return Scored()


@pytest.mark.parametrize(
    "result",
    [[Item(), None], [Item(), "x"], [Item(), Scored()], [Item(), [Item()]], (Item(),), Item()],
    ids=["None", "string", "other event", "nested list", "tuple", "no list"],
)
async def test_f1_wrong_elements_fail_the_step(result: Any) -> None:
    workflow = Careless()
    workflow.result = result
    _, last = await check_ending(workflow.run())
    assert isinstance(last, WorkflowFailedEvent)
    assert last.step_name == "split"
    assert isinstance(last.exception, WorkflowRuntimeError)
    assert str(last.exception).startswith("step split returned ")
    assert "declares list[Item]" in str(last.exception)
    assert workflow.worked == 0, "a part of the list was routed"


# --- F2: when a join fires --------------------------------------------------------------------


async def test_f2_survivors_come_in_completion_order_and_the_join_fires_once() -> None:
    events, last = await check_ending(FanOut().run(items=[5, -9, 2, 0, -1, 3]))
    assert texts(events) == [("joined", [0, 2, 3, 5])]
    assert last.result == [0, 2, 3, 5]


async def test_f2_the_join_waits_for_branches_that_die() -> None:
    begun = anyio.current_time()
    assert await FanOut().run(items=[1, -20]) == [1]
    assert anyio.current_time() - begun == pytest.approx(20)


async def test_f2_a_batch_without_survivors_is_joined_too() -> None:
    assert await FanOut().run(items=[-1, -2]) == []


class Looping(FanOut):
    """A branch of number n goes n times through its step before it reaches the join."""

    @step
    async def work(self, ev: Item | Other) -> Other | Scored:
        left = ev.n if isinstance(ev, Item) else ev.n - 1
        return Other(n=left) if left else Scored(n=ev.n)


async def test_f2_a_branch_may_loop() -> None:
    assert await Looping().run(items=[9, 0, 4]) == [0, 1, 1]


class LongBranch(FanOut):
    """Each branch takes three steps, one of which takes a while."""

    @step
    async def work(self, ev: Item) -> Other:
        return Other(n=ev.n)

    @step(num_workers=100)
    async def middle(self, ev: Other) -> Summed | None:
        await anyio.sleep(abs(ev.n))
        return Summed(n=ev.n) if ev.n >= 0 else None

    @step
    async def end(self, ev: Summed) -> Scored:
        return Scored(n=ev.n)


async def test_f2_a_branch_may_take_several_steps() -> None:
    assert await LongBranch().run(items=[3, -5, 1]) == [1, 3]


class Sending(FanOut):
    """Each branch also sends an event; what becomes of that is slow and would suit the join."""

    @step(num_workers=100)
    async def work(self, ctx: Context, ev: Item) -> Scored:
        ctx.send_event(Other(n=ev.n))
        await anyio.sleep(ev.n)
        return Scored(n=ev.n)

    @step(num_workers=100)
    async def aside(self, ctx: Context, ev: Other) -> Scored:
        await anyio.sleep(0.5 if ev.n < 10 else 100)
        ctx.write_event_to_stream(Note(text=("aside", ev.n)))
        return Scored(n=-ev.n)


async def test_f2_sent_events_belong_to_no_branch() -> None:
    begun = anyio.current_time()
    handler = Sending(skip_graph_checks=["reachability"]).run(items=[1, 10])
    events = await read_all(handler)
    assert anyio.current_time() - begun == pytest.approx(10), "the join waited for what was sent"
    assert texts(events) == [("aside", 1), ("joined", [1, 10])]
    assert unhandled(events) == ["Scored"], "what descends from a sent event is outside the batch"
    assert await handler == [1, 10]


class Question(InputRequiredEvent):
    n: int


class Answer(HumanResponseEvent):
    n: int
    text: str


class Asking(FanOut):
    """Each branch asks somebody."""

    @step(num_workers=1)
    async def work(self, ctx: Context, ev: Item) -> Scored | None:
        question = Question(n=ev.n)
        answer = await ctx.wait_for_event(Answer, question, requirements={"n": ev.n})
        return Scored(n=ev.n) if answer.text == "yes" else None


async def test_f2_a_branch_may_wait_for_a_person() -> None:
    handler = Asking().run(items=[1, 2, 3, 4])
    asked = []
    async for event in handler.stream_events():
        if isinstance(event, Question):
            asked.append(event.n)
        if len(asked) == 4:
            break
    assert asked == [1, 2, 3, 4]
    for n in [3, 1, 4, 2]:
        await handler.send_event(Answer(n=n, text="no" if n == 4 else "yes"))
    assert await handler == [3, 1, 2]


class Resuming(FanOut):
    """One worker: 1 and 2 wait for an answer before they work, 3 and 4 work at once."""

    @step(num_workers=1)
    async def work(self, ctx: Context, ev: Item) -> Scored:
        if ev.n < 3:
            await ctx.wait_for_event(Answer, requirements={"n": ev.n})
        await anyio.sleep(10)
        return Scored(n=ev.n)


async def test_r2_who_waited_goes_on_ahead_of_queued_branches_in_the_order_of_the_answers() -> None:
    handler = Resuming(timeout=100).run(items=[1, 2, 3, 4])
    await anyio.sleep(1)
    for n in [2, 1]:
        await handler.send_event(Answer(n=n, text="yes"))
    assert await handler == [3, 2, 1, 4]


class Detour(FanOut):
    """A branch hands over to a person: the answer comes from outside the batch."""

    @step
    async def work(self, ev: Item) -> Question | Scored:
        return Question(n=ev.n) if ev.n else Scored(n=0)

    @step
    async def answered(self, ev: Answer) -> Scored:
        return Scored(n=ev.n)


async def test_f2_a_branch_ends_with_the_question_it_returns() -> None:
    handler = Detour().run(items=[1, 0, 2])
    events = await read(handler)
    assert [event.n for event in events if isinstance(event, Question)] == [1, 2]
    assert await handler == [0]


class Audited(FanOut):
    """Two steps take the event that the join takes; three take the element."""

    @step
    async def audit(self, ctx: Context, ev: Scored) -> None:
        await anyio.sleep(30)
        ctx.write_event_to_stream(Note(text=("audited", ev.n)))

    @step
    async def again(self, ev: Item) -> Scored:
        await anyio.sleep(10)
        return Scored(n=100 + ev.n)

    @step
    async def nothing(self, ev: Item) -> None: ...


async def test_f2_a_branch_ends_when_all_takers_of_its_events_have_ended() -> None:
    events, last = await check_ending(Audited(timeout=100).run(items=[1, 2]))
    assert sorted(last.result) == [1, 2, 101, 102]
    *audits, joined = texts(events)
    assert sorted(audits) == [("audited", n) for n in (1, 2, 101, 102)]
    assert joined == ("joined", last.result)


class Failing(FanOut):
    """Number 2 fails; the others clean up."""

    @step(num_workers=3)
    async def work(self, ctx: Context, ev: Item) -> Scored:
        try:
            await anyio.sleep(ev.n)
            if ev.n == 2:
                raise ProviderError(ev.n)
        finally:
            ctx.write_event_to_stream(Note(text=ev.n))
        return Scored(n=ev.n)


async def test_f2_a_failing_branch_fails_the_run() -> None:
    events, last = await check_ending(Failing().run(items=[1, 5, 2, 6, 7, 8]))
    assert isinstance(last, WorkflowFailedEvent)
    assert last.step_name == "work"
    assert isinstance(last.exception, ProviderError)
    assert sorted(texts(events)) == [1, 2, 5, 6], "7 and 8 were queued, nothing was joined"


class Bursting(FanOut):
    """Counts how many executions are in progress at once."""

    inside = most = 0

    @step(num_workers=4)
    async def work(self, ev: Item) -> Scored:
        self.inside += 1
        self.most = max(self.most, self.inside)
        await anyio.sleep(1 + ev.n % 3)
        self.inside -= 1
        return Scored(n=ev.n)


async def test_f2_a_batch_of_1000_keeps_to_num_workers() -> None:
    workflow = Bursting(timeout=None)
    assert sorted(await workflow.run(items=list(range(1000)))) == list(range(1000))
    assert workflow.most == 4


class Better(Scored):
    pass


class Lenient(FanOut):
    @step
    async def work(self, ev: Item) -> Scored | Better:
        return Better(n=ev.n) if ev.n % 2 else Scored(n=ev.n)

    @step(accept_event_subclasses=True)
    async def join(self, events: list[Scored]) -> StopEvent:
        return StopEvent(result=[(type(event), event.n) for event in events])


async def test_f2_a_join_may_accept_subclasses() -> None:
    result = await Lenient().run(items=[1, 2, 3])
    assert result == [(Better, 1), (Scored, 2), (Better, 3)]


class Strict(Lenient):
    @step
    async def join(self, events: list[Scored]) -> StopEvent:
        return StopEvent(result=numbers(events))


async def test_f2_a_join_takes_exactly_its_types_by_default() -> None:
    handler = Strict(skip_graph_checks=["terminal_event"]).run(items=[1, 2, 3])
    assert unhandled(await read_all(handler)) == ["Better", "Better"]
    assert await handler == [2]


class MixedJoin(FanOut):
    @step
    async def work(self, ev: Item) -> Scored | Other | None:
        return [None, Scored(n=ev.n), Other(n=ev.n)][ev.n % 3]  # type: ignore[return-value]

    @step
    async def join(self, events: list[Scored | Other]) -> StopEvent:
        return StopEvent(result=events)


async def test_f4_a_join_may_take_several_types() -> None:
    result = await MixedJoin().run(items=[0, 1, 2, 3, 4])
    assert result == [Scored(n=1), Other(n=2), Scored(n=4)]


# --- F3: more than one batch ------------------------------------------------------------------


class Part(Event):
    n: int = 0


class Piece(Event):
    n: int = 0


class PartDone(Event):
    n: int = 0


class PieceDone(Event):
    n: int = 0


class Nested(Workflow):
    """Three levels: item n has n parts, part n has n pieces, which takes n seconds each."""

    @step
    async def split(self, ev: Numbers) -> list[Item]:
        return [Item(n=n) for n in ev.items]

    @step
    async def split_item(self, ev: Item) -> list[Part] | None:
        return [Part(n=n) for n in range(ev.n)] if ev.n >= 0 else None

    @step
    async def split_part(self, ev: Part) -> list[Piece]:
        return [Piece(n=n) for n in range(ev.n)]

    @step(num_workers=2)
    async def work(self, ev: Piece) -> PieceDone | None:
        await anyio.sleep(ev.n)
        return PieceDone(n=ev.n) if ev.n != 1 else None

    @step
    async def join_pieces(self, ctx: Context, events: list[PieceDone]) -> PartDone:
        ctx.write_event_to_stream(Note(text=("pieces", numbers(events))))
        return PartDone(n=len(events))

    @step
    async def join_parts(self, ctx: Context, events: list[PartDone]) -> Scored:
        ctx.write_event_to_stream(Note(text=("parts", sorted(numbers(events)))))
        return Scored(n=sum(numbers(events)))

    @step
    async def join(self, events: list[Scored]) -> StopEvent:
        return StopEvent(result=sorted(numbers(events)))


def fired(events: list[Event], name: str) -> list[list[int]]:
    return sorted(text[1] for text in texts(events) if text[0] == name)


async def test_f3_each_inner_join_fires_once_per_outer_element() -> None:
    events, last = await check_ending(Nested(timeout=None).run(items=[4, 0, -1, 3]))
    assert fired(events, "pieces") == sorted([[], [0], [0], [0, 2], [], [0], [0]])
    assert fired(events, "parts") == sorted([[0, 1, 1, 2], [], [0, 1, 1]])
    assert last.result == [0, 2, 4]


async def test_f3_an_empty_outer_batch_has_no_inner_ones() -> None:
    events, last = await check_ending(Nested().run(items=[]))
    assert texts(events) == []
    assert last.result == []


class TwoProducers(FanOut):
    """Two steps return lists for the same join: two batches."""

    joined: list[list[int]]

    @step
    async def other_split(self, ev: Numbers) -> list[Item]:
        return [Item(n=n + 10) for n in ev.items]

    @step
    async def join(self, events: list[Scored]) -> Summed:
        return Summed(n=sum(numbers(events)))

    @step
    async def end(self, a: Summed, b: Summed) -> StopEvent:
        return StopEvent(result=[a.n, b.n])


async def test_f3_two_producers_make_two_batches() -> None:
    assert await TwoProducers().run(items=[1, 2, 3]) == [6, 36]


class Twice(FanOut):
    """Two joins for each batch."""

    @step
    async def join(self, events: list[Scored]) -> Summed:
        return Summed(n=sum(numbers(events)))

    @step
    async def count(self, events: list[Scored]) -> Other:
        return Other(n=len(events))

    @step
    async def end(self, total: Summed, count: Other) -> StopEvent:
        return StopEvent(result=[total.n, count.n])


async def test_f3_two_joins_each_get_everything() -> None:
    assert await Twice().run(items=[4, -1, 5]) == [9, 2]
    assert await Twice().run(items=[]) == [0, 0]


class Request(Event):
    n: int


class Concurrent(FanOut):
    """The producer runs several times at once; its batches overlap in time."""

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> None:
        for n in range(5):
            ctx.send_event(Request(n=n))

    @step
    async def split(self, ev: Request) -> list[Item]:
        await checkpoint()
        return [Item(n=10 * i + ev.n) for i in range(ev.n)]

    @step(num_workers=2)
    async def work(self, ev: Item) -> Scored:
        await anyio.sleep(ev.n % 7)
        return Scored(n=ev.n)

    @step
    async def join(self, events: list[Scored]) -> Summed:
        assert len({n % 10 for n in numbers(events)}) <= 1, "batches mixed"
        return Summed(n=len(events))

    @step
    async def end(self, ctx: Context, ev: Summed) -> StopEvent | None:
        found = ctx.collect_events(ev, [Summed] * 5)
        return found and StopEvent(result=sorted(numbers(found)))


async def test_f3_concurrent_batches_of_one_producer_do_not_mix() -> None:
    workflow = Concurrent(skip_graph_checks=["reachability"])
    assert await workflow.run() == [0, 1, 2, 3, 4]


class Chained(FanOut):
    """The join of one batch opens the next, a level below nothing."""

    @step
    async def join(self, events: list[Scored]) -> list[Other]:
        return [Other(n=n * 10) for n in numbers(events)]

    @step(num_workers=100)
    async def work_more(self, ev: Other) -> Summed:
        await anyio.sleep(50 - ev.n)
        return Summed(n=ev.n + 1)

    @step
    async def last_join(self, events: list[Summed]) -> StopEvent:
        return StopEvent(result=numbers(events))


async def test_f3_a_join_may_return_a_list() -> None:
    assert await Chained().run(items=[3, 1, 2]) == [31, 21, 11]
    assert await Chained().run(items=[]) == []


class Interval(Event):
    low: int
    high: int
    top: bool = False


class Sum(Event):
    n: int
    width: int


class DivideAndConquer(Workflow):
    """Sums the numbers of an interval by halves: a step that returns a list of what it takes."""

    width = 0

    @step
    async def begin(self, ev: Numbers) -> Interval:
        self.width = ev.items[0]
        return Interval(low=0, high=self.width)

    @step
    async def split(self, ev: Interval) -> list[Interval] | Sum:
        if ev.high - ev.low == 1:
            await anyio.sleep(ev.low % 3)
            return Sum(n=ev.low, width=1)
        middle = (ev.low + ev.high) // 2
        return [Interval(low=ev.low, high=middle), Interval(low=middle, high=ev.high)]

    @step
    async def add(self, events: list[Sum]) -> Sum | StopEvent:
        assert len(events) == 2
        total = Sum(n=sum(e.n for e in events), width=sum(e.width for e in events))
        return StopEvent(result=total.n) if total.width == self.width else total


@pytest.mark.parametrize("width", [2, 3, 13, 64])
async def test_f3_a_step_may_return_a_list_of_what_it_takes(width: int) -> None:
    assert await DivideAndConquer(timeout=None).run(items=[width]) == sum(range(width))


class Chain(Workflow):
    """Lists of one element, each inside the one before, and no join."""

    @step
    async def begin(self, ev: Numbers) -> list[Item]:
        return [Item(n=ev.items[0])]

    @step
    async def down(self, ctx: Context, ev: Item) -> list[Item] | None:
        if ev.n:
            return [Item(n=ev.n - 1)]
        ctx.send_event(Other())
        return None

    @step
    async def end(self, ev: Other) -> StopEvent:
        await anyio.sleep(1)
        return StopEvent(result="down there")


@pytest.mark.parametrize("depth", [10, 3000])
async def test_f3_batches_nest_as_deep_as_one_likes(depth: int) -> None:
    workflow = Chain(skip_graph_checks=["reachability", "dead_end"])
    assert await workflow.run(items=[depth]) == "down there"


# --- F4: Take ---------------------------------------------------------------------------------


class Few(FanOut):
    """The join fires on the second arrival; the others go on, to no avail."""

    @step(num_workers=100)
    async def work(self, ctx: Context, ev: Item) -> Scored | None:
        await anyio.sleep(abs(ev.n))
        ctx.write_event_to_stream(Note(text=("worked", ev.n)))
        return Scored(n=ev.n) if ev.n >= 0 else None

    @step
    async def join(self, events: Annotated[list[Scored], Collect(Take(2))]) -> Summed:
        return Summed(n=sum(numbers(events)))

    @step
    async def end(self, ctx: Context, ev: Summed) -> StopEvent:
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
    async def work(self, ev: Item) -> Scored | None:
        self.started.append(ev.n)
        try:
            await anyio.sleep(abs(ev.n))
        except anyio.get_cancelled_exc_class():
            self.cleaned.append(ev.n)
            raise
        return Scored(n=ev.n) if ev.n >= 0 else None

    @step
    async def join(self, events: Annotated[list[Scored], Collect(Take(1, cancel=True))]) -> Summed:
        return Summed(n=sum(numbers(events)))

    @step
    async def end(self, ctx: Context, ev: Summed) -> StopEvent:
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
    async def work(self, ctx: Context, ev: Item) -> Scored:
        self.started.append(ev.n)
        try:
            await ctx.wait_for_event(Answer, Question(n=ev.n), requirements={"n": ev.n})
        except anyio.get_cancelled_exc_class():
            self.cleaned.append(ev.n)
            raise
        return Scored(n=ev.n)


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
    async def work(self, ctx: Context, ev: Item) -> Scored:
        self.started.append(ev.n)
        try:
            await anyio.sleep(ev.n)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(3)
            self.cleaned.append(ev.n)
        return Scored(n=ev.n)

    @step
    async def end(self, ctx: Context, ev: Summed) -> StopEvent:
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
    async def work(self, ev: Item) -> Scored | StopEvent:
        try:
            await anyio.sleep(ev.n)
        except anyio.get_cancelled_exc_class():
            if ev.n == 7:
                raise ProviderError from None
            if ev.n == 8:
                return StopEvent(result="no")
        return Scored(n=ev.n)


async def test_f4_what_a_cancelled_branch_returns_or_raises_changes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, last = await check_ending(Stubborn().begin(1, 7, 8, 9))
    assert last.result == 1
    [told] = [r.message for r in caplog.records if "dropped step" in r.message]
    assert "ProviderError" in told, "only the one that failed is worth a line"


class Exiting(First):
    @step
    async def work(self, ev: Item) -> Scored:
        try:
            await anyio.sleep(ev.n)
        except anyio.get_cancelled_exc_class():
            raise SystemExit(3) from None
        return Scored(n=ev.n)


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
    async def work(self, ev: Item) -> Scored | Other:
        if ev.n:
            return Other(n=ev.n)
        await self.in_thread.wait()
        return Scored(n=ev.n)

    @step
    def sit(self, ctx: Context, ev: Other) -> Scored:
        anyio.from_thread.run_sync(self.in_thread.set)
        self.release.wait(PATIENCE)
        try:
            ctx.write_event_to_stream(Note(text="late"))
        except WorkflowRuntimeError as exc:
            self.errors.append(str(exc))
        self.thread_done.set()
        return Scored(n=ev.n)

    @step
    async def end(self, ctx: Context, ev: Summed) -> StopEvent:
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
        async def split(self, ev: StartEvent) -> list[Scored | Item]:
            return [*[Scored()] * n, Item(n=1), Item(n=2)]

        @step
        async def work(self, ev: Item) -> Scored:
            worked.append(ev.n)
            return Scored(n=ev.n)

        @step
        async def join(
            self, events: Annotated[list[Scored], Collect(Take(n, cancel=True))]
        ) -> Other:
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
    async def split_item(self, ev: Item) -> list[Part] | Scored:
        if ev.n:
            return [Part(n=n) for n in range(6)]
        await anyio.sleep(1)
        return Scored(n=0)

    @step(num_workers=2)
    async def work(self, ev: Part) -> PartDone:
        self.started += 1
        await anyio.sleep(0.6)
        return PartDone(n=ev.n)

    @step
    async def inner_join(self, ctx: Context, events: list[PartDone]) -> Scored:
        ctx.write_event_to_stream(Note(text="the join of a cancelled batch fired"))
        return Scored(n=9)

    @step
    async def join(self, events: Annotated[list[Scored], Collect(Take(1, cancel=True))]) -> Other:
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
    async def split_item(self, ev: Item) -> list[Part] | Scored:
        if ev.n:
            return []
        await anyio.sleep(1)
        return Scored(n=0)

    @step(num_workers=1)
    async def inner_join(self, ctx: Context, events: list[PartDone]) -> Scored:
        self.joining += 1
        try:
            await anyio.sleep(20)
        finally:
            ctx.write_event_to_stream(Note(text="cleaned"))
        return Scored(n=9)


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
    async def inner(
        self, events: Annotated[list[PartDone], Collect(Take(1, cancel=True))]
    ) -> Scored:
        [first] = events
        return Scored(n=first.n)

    @step
    async def join(self, events: list[Scored]) -> StopEvent:
        return StopEvent(result=sorted(numbers(events)))


async def test_f4_cancel_touches_its_own_batch_only() -> None:
    events, last = await check_ending(InnerFirst().run(items=[10, 20, 30]))
    assert last.result == [10, 20, 30]
    assert sorted(texts(events)) == [10, 20, 30]


class OneOfTwo(FanOut):
    """One join takes the first and cancels, the other takes all: what came until then."""

    @step
    async def join(self, events: Annotated[list[Scored], Collect(Take(2, cancel=True))]) -> Summed:
        return Summed(n=sum(numbers(events)))

    @step
    async def count(self, events: list[Scored]) -> Other:
        return Other(n=len(events))

    @step
    async def end(self, total: Summed, count: Other) -> StopEvent:
        return StopEvent(result=[total.n, count.n])


async def test_f4_cancel_ends_the_batch_for_the_other_joins() -> None:
    begun = anyio.current_time()
    assert await OneOfTwo().run(items=[1, 30, 2, 40]) == [3, 2]
    assert anyio.current_time() - begun == pytest.approx(2)


@pytest.mark.parametrize("name", ["a_taker", "z_taker"])
async def test_f4_cancel_treats_takers_before_and_after_the_join_alike(name: str) -> None:
    async def taker(self: Any, ctx: Context, ev: Scored) -> None:
        ctx.write_event_to_stream(Note(text="taken"))

    async def join(self: Any, events: Any) -> Other:
        return Other()

    join.__annotations__["events"] = Annotated[list[Scored], Collect(Take(1, cancel=True))]

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
    async def split(self, ev: Other) -> list[Item | Answer | Scored]:
        return [Item(), Answer(n=1, text="yes"), Scored()]

    @step(num_workers=1)
    async def work(self, ctx: Context, ev: Item) -> StopEvent:
        await ctx.wait_for_event(Answer, timeout=None)
        return StopEvent(result="answered")

    @step
    async def join(
        self, events: Annotated[list[Scored], Collect(Take(1, cancel=True))]
    ) -> None: ...


async def test_f4_the_place_of_a_cancelled_event_is_passed_on() -> None:
    workflow = Resumed(skip_graph_checks=["terminal_event", "dead_end"])
    assert await workflow.run() == "answered"


# --- F4: one parameter per event --------------------------------------------------------------


class Pairs(Workflow):
    """Pairs of an item and another."""

    @step
    async def begin(self, ctx: Context, ev: Numbers) -> Item | Other | None:
        for n in ev.items:
            ctx.send_event(Item(n=n) if n > 0 else Other(n=n))
        return None

    @step
    async def pair(self, ctx: Context, a: Item, b: Other) -> None:
        ctx.write_event_to_stream(Note(text=(a.n, b.n)))

    @step
    async def last(self, ev: Scored) -> StopEvent:
        return StopEvent()


async def pairs(workflow: type[Workflow], items: list[int]) -> tuple[list[Any], Any]:
    options: Any = {"skip_graph_checks": ["reachability", "terminal_event", "dead_end"]}
    handler = workflow(**options).run(items=items)
    handler.stream_events(expose_internal=True)
    events = []
    with anyio.move_on_after(1):
        async for event in handler.stream_events():
            events.append(event)
    await handler.send_event(Scored())
    await handler
    return texts(events), events


async def test_f4_full_sets_fire_in_arrival_order_and_the_surplus_is_kept() -> None:
    found, _ = await pairs(Pairs, [1, 2, -1, 3, -2, -3, -4])
    assert found == [(1, -1), (2, -2), (3, -3)]


async def test_f4_what_an_incomplete_set_lacks_is_told() -> None:
    handler = Incomplete().run()
    with pytest.raises(WorkflowStalledError) as caught:
        await handler
    assert caught.value.missing == (("pair", "b"),)


class Incomplete(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Item | Other:
        return Item()

    @step
    async def pair(self, a: Item, b: Other) -> StopEvent:
        return StopEvent()


class Doubles(Pairs):
    @step
    async def pair(self, ctx: Context, a: Item, b: Item, c: Other) -> None:
        ctx.write_event_to_stream(Note(text=(a.n, b.n, c.n)))


async def test_f4_parameters_of_one_type_fill_in_arrival_order() -> None:
    found, _ = await pairs(Doubles, [1, -1, 2, 3, -2, 4, 5])
    assert found == [(1, 2, -1), (3, 4, -2)]


def test_f4_parameters_that_share_only_some_types_are_refused() -> None:
    with pytest.raises(WorkflowValidationError, match="'a' and 'b' share some types"):

        class Overlapping(Workflow):
            @step
            async def pair(self, a: Item | Other, b: Other) -> StopEvent: ...

    with pytest.raises(WorkflowValidationError, match="'a' and 'b' share some types"):

        class Related(Workflow):
            @step(accept_event_subclasses=True)
            async def pair(self, a: Scored, b: Better) -> StopEvent: ...


class BranchPairs(Workflow):
    """Both halves of a pair come from one branch, at different times."""

    @step
    async def split(self, ev: Numbers) -> list[Part]:
        return [Part(n=n) for n in ev.items]

    @step(num_workers=100)
    async def left(self, ev: Part) -> Item:
        await anyio.sleep(ev.n)
        return Item(n=ev.n)

    @step(num_workers=100)
    async def right(self, ev: Part) -> Other | None:
        await anyio.sleep(10 - ev.n)
        return Other(n=ev.n) if ev.n != 4 else None

    @step
    async def pair(self, a: Item, b: Other) -> Scored:
        assert a.n == b.n, "events of different branches were paired"
        return Scored(n=a.n)

    @step
    async def join(self, events: list[Scored]) -> StopEvent:
        return StopEvent(result=numbers(events))


async def test_f4_inside_a_batch_events_of_one_branch_are_paired() -> None:
    assert await BranchPairs().run(items=[1, 8, 3, 5, 4]) == [5, 3, 8, 1]


class Outside(BranchPairs):
    """Sent events pair among themselves, also if a branch sends them."""

    @step(num_workers=100)
    async def right(self, ctx: Context, ev: Part) -> Other | None:
        ctx.send_event(Other(n=-ev.n))
        ctx.send_event(Item(n=-ev.n))
        await anyio.sleep(20 + ev.n)
        return Other(n=ev.n)


async def test_f4_sent_events_pair_outside_the_branches() -> None:
    handler = Outside().run(items=[1, 2])
    events = await read_all(handler)
    assert await handler == [1, 2]
    assert unhandled(events) == ["Scored", "Scored"], "the pairs of sent events"


# --- F5: nothing is sent to a join ------------------------------------------------------------


class Meddling(FanOut):
    @step
    async def split(self, ctx: Context, ev: Numbers) -> list[Item]:
        with pytest.raises(WorkflowRuntimeError, match="'join': it joins a batch; return"):
            ctx.send_event(Scored(n=99), step="join")
        return [Item(n=n) for n in ev.items]

    @step
    async def work(self, ctx: Context, ev: Item) -> Scored:
        with pytest.raises(WorkflowRuntimeError, match="'join': it joins a batch; return"):
            ctx.send_event(Scored(n=99), step="join")
        ctx.send_event(Scored(n=98))
        return Scored(n=ev.n)


async def test_f5_nothing_is_sent_to_a_join() -> None:
    handler = Meddling().run(items=[1, 2])
    events = await read_all(handler)
    assert unhandled(events) == ["Scored", "Scored"]
    assert await handler == [1, 2]


async def test_f5_nothing_is_sent_to_a_join_from_outside() -> None:
    handler = FanOut().run(items=[1, 2])
    internal = handler.stream_events(expose_internal=True)
    await anyio.sleep(0.5)
    with pytest.raises(WorkflowRuntimeError, match="it joins a batch"):
        await handler.send_event(Scored(), step="join")
    await handler.send_event(Scored())
    assert unhandled([event async for event in internal]) == ["Scored"]
    assert await handler == [1, 2]


async def test_f5_another_taker_gets_what_the_join_does_not() -> None:
    handler = Audited(timeout=100).run(items=[])
    events = await read_all(handler)
    assert await handler == []
    assert unhandled(events) == []
    handler = Audited(timeout=100).run(items=[1])
    internal = handler.stream_events(expose_internal=True)
    await handler.send_event(Scored(n=50))
    events = [event async for event in internal]
    assert ("audited", 50) in texts(events)
    assert unhandled(events) == []
    assert await handler == [1, 101]


class Outsider(FanOut):
    @step
    async def split(self, ev: Numbers) -> list[Item] | Scored:
        return Scored()


async def test_f5_an_event_returned_outside_a_batch_joins_nothing() -> None:
    handler = Outsider().run()
    events = await read_all(handler)
    assert unhandled(events) == ["Scored"]
    with pytest.raises(WorkflowStalledError):
        await handler


class Undeclared(FanOut):
    """A branch returns a subclass of what it declares, which is for the join of other batches."""

    @step
    async def work(self, ev: Item) -> Scored:
        return Better(n=ev.n)

    @step
    async def other_split(self, ev: Numbers) -> list[Other]:
        return [Other(n=10)]

    @step
    async def upgrade(self, ev: Other) -> Better:
        return Better(n=ev.n)

    @step
    async def other_join(self, events: list[Better]) -> Summed:
        return Summed(n=sum(numbers(events)))

    @step
    async def join(self, events: list[Scored]) -> Summed:
        return Summed(n=len(events))

    @step
    async def end(self, a: Summed, b: Summed) -> StopEvent:
        return StopEvent(result=sorted([a.n, b.n]))


async def test_f5_an_event_for_the_join_of_another_batch_is_unhandled() -> None:
    handler = Undeclared().run(items=[1])
    assert unhandled(await read_all(handler)) == ["Better"]
    assert await handler == [0, 10]


# --- T rules in the middle of a batch ---------------------------------------------------------


class Slow(FanOut):
    """Even numbers run, odd ones wait for a person."""

    def __init__(self, timeout: float | None = 45.0) -> None:
        super().__init__(timeout=timeout)
        self.cleaned: list[int] = []

    @step(num_workers=2)
    async def work(self, ctx: Context, ev: Item) -> Other | Scored:
        if ev.n == 0:
            return Other(n=ev.n)
        try:
            await anyio.sleep(ev.n)
        finally:
            self.cleaned.append(ev.n)
        return Scored(n=ev.n)

    @step
    async def ask(self, ctx: Context, ev: Other) -> Scored:
        try:
            await ctx.wait_for_event(Answer)
        finally:
            ctx.write_event_to_stream(Note(text="last words"))
        return Scored(n=ev.n)


async def test_t2_a_deadline_in_the_middle_of_a_batch() -> None:
    workflow = Slow(timeout=5)
    events, last = await check_ending(workflow.run(items=[0, 1, 2, 8, 9, 10, 11]))
    assert isinstance(last, WorkflowTimedOutEvent)
    assert last.active_steps == ["ask", "work"]
    assert sorted(workflow.cleaned) == [1, 2, 8, 9], "10 and 11 had not started"
    assert texts(events) == ["last words"]


async def test_t2_a_cancellation_in_the_middle_of_a_batch() -> None:
    workflow = Slow()
    handler = workflow.run(items=[1, 20, 0, 30, 40])
    await anyio.sleep(10)
    found = handler.statistics().steps
    assert (found["work"].running, found["work"].queued, found["ask"].waiting) == (2, 1, 1)
    await handler.cancel_run()
    assert handler.is_done()
    events, last = await check_ending(handler)
    assert isinstance(last, WorkflowCancelledEvent)
    assert sorted(workflow.cleaned) == [1, 20, 30]
    assert texts(events) == ["last words"]


class Early(Slow):
    """A branch ends the run; the others are cancelled and nothing is joined."""

    @step
    async def ask(self, ev: Other) -> StopEvent:
        await anyio.sleep(3)
        return StopEvent(result="early")


async def test_t1_a_branch_may_end_the_run() -> None:
    workflow = Early()
    events, last = await check_ending(workflow.run(items=[0, 1, 20, 30]))
    assert last.result == "early"
    assert sorted(workflow.cleaned) == [1, 20, 30]
    assert texts(events) == []


# --- Random trees of batches, against a model -------------------------------------------------


@attrs.frozen
class Plan:
    """What one branch does: first the acts, then how it ends.

    Attributes:
        acts: `"loop"` goes through the step again, `"ask"` waits for a person, a number sleeps.
        end: `"leaf"` brings something to the join, `"die"` does not; a tuple opens a batch.
    """

    acts: tuple[str | float, ...]
    end: str | tuple[Plan, ...]


LEVELS = 3


def plans(level: int = 1) -> st.SearchStrategy[Plan]:
    acts = st.lists(st.sampled_from(["loop", "ask", 1.0, 2.0, 5.0]), max_size=3).map(tuple)
    ends: st.SearchStrategy[Any] = st.sampled_from(["leaf", "leaf", "die"])
    if level < LEVELS:
        ends = batches(level + 1) | ends
    return st.builds(Plan, acts, ends)


def batches(level: int = 1) -> st.SearchStrategy[tuple[Plan, ...]]:
    return st.lists(plans(level), max_size=4).map(tuple)


LIMITS = st.tuples(*[st.sampled_from([1, 2, 4])] * LEVELS)
POLICIES = st.tuples(
    *[st.sampled_from([All(), Take(2), Take(2, cancel=True), Take(3, cancel=True)])] * LEVELS
)


def canonical(values: Sequence[Any]) -> tuple[Any, ...]:
    """Return the survivors of a batch in an order that does not depend on time."""
    return tuple(sorted(values, key=repr))


def survivors(batch: Sequence[Plan], path: tuple[int, ...] = ()) -> Iterator[Any]:
    """Yield what the branches of a batch bring to its join, according to the plan."""
    for number, plan in enumerate(batch):
        if isinstance(plan.end, tuple):
            yield canonical(list(survivors(plan.end, (*path, number))))
        elif plan.end == "leaf":
            yield (*path, number, "leaf")


def planned_batches(batch: Sequence[Plan]) -> Iterator[Any]:
    """Yield the survivors of a batch and of all batches inside it."""
    yield sum(plan.end != "die" for plan in batch)
    for plan in batch:
        if isinstance(plan.end, tuple):
            yield from planned_batches(plan.end)


class Seed(StartEvent):
    plans: Any


class Node(Event):
    serial: int
    path: Any
    plan: Any


class Node1(Node): ...


class Node2(Node): ...


class Node3(Node): ...


class Leaf(Event):
    """What a branch brings to its join; the first leaf of a marked batch says which it is."""

    serial: int
    value: Any
    path: Any = None


class Leaf1(Leaf): ...


class Leaf2(Leaf): ...


class Leaf3(Leaf): ...


NODES = [Node1, Node2, Node3]
LEAVES = [Leaf1, Leaf2, Leaf3]


class WhoAreYou(InputRequiredEvent):
    serial: int


class Me(HumanResponseEvent):
    serial: int


@attrs.define(eq=False)
class Gardener:
    """What the steps of a tree do, and the books that a test keeps about it.

    Attributes:
        limits: `num_workers` of the steps of each level.
        policies: When the joins of each level fire; `None` for unmarked trees, where all wait.
        started: The serial numbers of the events that started a step.
        inside: How many executions of a step are in progress.
        arrivals: What was brought to each batch of a marked tree; its number is a serial number.
        joined: What each join got.
        cancelled: The batches that were cancelled.
    """

    limits: tuple[int, ...]
    policies: tuple[All | Take, ...] | None = None
    serials: Iterator[int] = attrs.Factory(lambda: count(1))
    started: dict[str, list[int]] = attrs.Factory(lambda: defaultdict(list))
    inside: Counter[str] = attrs.Factory(Counter)
    arrivals: dict[tuple[int, ...], list[int]] = attrs.Factory(lambda: defaultdict(list))
    joined: list[list[Leaf]] = attrs.Factory(list)
    joined_at: dict[tuple[int, ...], list[list[int]]] = attrs.Factory(lambda: defaultdict(list))
    cancelled: set[tuple[int, ...]] = attrs.Factory(set)

    def sow(self, level: int, path: tuple[int, ...], batch: Sequence[Plan]) -> list[Event]:
        events: list[Event] = []
        if self.policies is not None:
            events.append(self.leaf(level, (*path, -1), "mark", path=path))
        for number, plan in enumerate(batch):
            node = NODES[level - 1](serial=next(self.serials), path=(*path, number), plan=plan)
            events.append(node)
        return events

    def leaf(self, level: int, branch: tuple[int, ...], value: Any, **fields: Any) -> Leaf:
        """Bring something to the join of the batch that the branch belongs to."""
        leaf = LEAVES[level - 1](serial=next(self.serials), value=value, **fields)
        batch = branch[:-1]
        if self.policies is not None and not self.is_cancelled(branch):
            arrived = self.arrivals[batch]
            arrived.append(leaf.serial)
            policy = self.policies[level - 1]
            if isinstance(policy, Take) and policy.cancel and len(arrived) == policy.n:
                self.cancelled.add(batch)
        return leaf

    def is_cancelled(self, path: tuple[int, ...]) -> bool:
        """Return whether a branch was cancelled, with a batch that it belongs to."""
        return any(path[:length] in self.cancelled for length in range(len(path)))

    def enter(self, name: str, limit: int) -> None:
        self.inside[name] += 1
        assert self.inside[name] <= limit, "more executions in progress than num_workers"

    async def visit(self, level: int, ctx: Context, ev: Node) -> Any:
        """Do what the plan says."""
        name, limit = f"visit{level}", self.limits[level - 1]
        assert not self.is_cancelled(ev.path), "a cancelled branch went on"
        self.started[name].append(ev.serial)
        self.enter(name, limit)
        try:
            for position, act in enumerate(ev.plan.acts, start=1):
                if act == "loop":
                    rest = attrs.evolve(ev.plan, acts=ev.plan.acts[position:])
                    return ev.replace(serial=next(self.serials), plan=rest)
                if act == "ask":
                    self.inside[name] -= 1
                    try:
                        await self.ask(ctx)
                    finally:
                        self.inside[name] += 1
                    assert self.inside[name] <= limit, "went on without a place"
                else:
                    await anyio.sleep(act)
        finally:
            self.inside[name] -= 1
        if ev.plan.end == "die":
            return None
        if ev.plan.end == "leaf":
            return self.leaf(level, ev.path, (*ev.path, "leaf"))
        return self.sow(level + 1, ev.path, ev.plan.end)

    async def ask(self, ctx: Context) -> None:
        serial = next(self.serials)
        await ctx.wait_for_event(
            Me, WhoAreYou(serial=serial), requirements={"serial": serial}, timeout=None
        )

    async def join(self, level: int, leaves: list[Leaf]) -> Any:
        """Bring what was joined one level up."""
        serials = [leaf.serial for leaf in leaves]
        assert serials == sorted(serials), "not in the order of completion"
        path: tuple[int, ...] = ()
        if self.policies is not None:
            path, leaves = leaves[0].path, leaves[1:]
            assert not self.is_cancelled(path), "a join in a cancelled branch fired"
            self.joined_at[path].append(serials)
        self.joined.append(leaves)
        value = canonical([leaf.value for leaf in leaves])
        if level == 1:
            return StopEvent(result=value)
        return self.leaf(level - 1, path, value)


@functools.cache
def tree_class(limits: tuple[int, ...], policies: tuple[All | Take, ...]) -> type[Workflow]:
    """Return a workflow with a step that fans out and one that joins, for each level."""
    first, second, third = limits
    join_first, join_second, join_third = (
        Annotated[list[leaf], Collect(policy)]  # type: ignore[valid-type]
        for leaf, policy in zip(LEAVES, policies, strict=True)
    )

    class Tree(Workflow):
        gardener: Gardener

        @step
        async def plant(self, ev: Seed) -> list[Node1 | Leaf1]:
            return self.gardener.sow(1, (), ev.plans)  # type: ignore[return-value]

        @step(num_workers=first)
        async def visit1(
            self, ctx: Context, ev: Node1
        ) -> Node1 | list[Node2 | Leaf2] | Leaf1 | None:
            return await self.gardener.visit(1, ctx, ev)

        @step(num_workers=second)
        async def visit2(
            self, ctx: Context, ev: Node2
        ) -> Node2 | list[Node3 | Leaf3] | Leaf2 | None:
            return await self.gardener.visit(2, ctx, ev)

        @step(num_workers=third)
        async def visit3(self, ctx: Context, ev: Node3) -> Node3 | Leaf3 | None:
            return await self.gardener.visit(3, ctx, ev)

        @step
        async def join3(self, leaves: join_third) -> Leaf2:  # type: ignore[valid-type]
            return await self.gardener.join(3, leaves)

        @step
        async def join2(self, leaves: join_second) -> Leaf1:  # type: ignore[valid-type]
            return await self.gardener.join(2, leaves)

        @step
        async def join1(self, leaves: join_first) -> StopEvent:  # type: ignore[valid-type]
            return await self.gardener.join(1, leaves)

    return Tree


async def answer(handler: WorkflowHandler[Any], serial: int) -> None:
    try:
        await handler.send_event(Me(serial=serial))
    except WorkflowRuntimeError:
        assert handler.is_done()


def grow(
    backend: str,
    gardener: Gardener,
    batch: Sequence[Plan],
    *,
    patient: bool,
) -> tuple[Any, WorkflowHandler[Any]]:
    """Run a tree; a patient reader answers only when nothing else goes on, last question first."""
    policies = gardener.policies or (All(),) * LEVELS

    async def main() -> tuple[Any, WorkflowHandler[Any]]:
        workflow = tree_class(gardener.limits, policies)(timeout=10_000)
        workflow.gardener = gardener  # type: ignore[attr-defined]
        handler = workflow.run(plans=batch)
        open_questions: list[int] = []
        async for event in handler.stream_events(expose_internal=True):
            assert not isinstance(event, UnhandledEvent) or gardener.cancelled
            if isinstance(event, WhoAreYou):
                open_questions.append(event.serial)
            if isinstance(event, WorkflowIdleEvent) or not patient:
                while open_questions:
                    await answer(handler, open_questions.pop())
        return await handler, handler

    return run_virtually(backend, main)


def check_order(gardener: Gardener) -> None:
    """Events of one step start in the order in which they came; all that started has ended."""
    for serials in gardener.started.values():
        assert serials == sorted(serials)
    assert not any(gardener.inside.values())


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=150, deadline=None)
@given(batch=batches(), limits=LIMITS, patient=st.booleans())
def test_f2_f3_random_trees_give_what_the_plan_says(
    backend: str, batch: tuple[Plan, ...], limits: tuple[int, ...], patient: bool
) -> None:
    gardener = Gardener(limits)
    result, handler = grow(backend, gardener, batch, patient=patient)
    assert result == canonical(list(survivors(batch)))
    assert Counter(map(len, gardener.joined)) == Counter(planned_batches(batch))
    check_order(gardener)
    for found in handler.statistics().steps.values():
        assert (found.queued, found.running, found.waiting) == (0, 0, 0)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=150, deadline=None)
@given(batch=batches(), limits=LIMITS, policies=POLICIES, patient=st.booleans())
def test_f4_random_trees_with_early_joins(
    backend: str,
    batch: tuple[Plan, ...],
    limits: tuple[int, ...],
    policies: tuple[All | Take, ...],
    patient: bool,
) -> None:
    gardener = Gardener(limits, policies)
    grow(backend, gardener, batch, patient=patient)
    check_order(gardener)
    for path, arrived in gardener.arrivals.items():
        policy = policies[len(path)]
        expected = arrived[: policy.n] if isinstance(policy, Take) else arrived
        joined = gardener.joined_at[path]
        if policies[0] == All() and not gardener.is_cancelled(path):
            assert joined == [expected]
        else:  # the run ended, or the branch was cancelled, perhaps before the join started
            assert joined in ([], [expected])
    assert len(gardener.joined_at[()]) == 1


async def test_t6_a_join_of_a_step_that_was_given_up_is_owed_to_nobody() -> None:
    class Stubborn(Workflow):
        @step
        async def split(self, ev: StartEvent) -> list[Item]:
            return [Item(n=1)]

        @step
        async def work(self, ev: Item) -> Scored:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(30)
            return Scored(n=1)

        @step
        async def join(self, events: list[Scored]) -> StopEvent:
            return StopEvent()

    handler = Stubborn(cleanup_timeout=1).run()
    await anyio.sleep(5)
    await handler.cancel_run()
    await anyio.sleep(50)
    assert handler.statistics().steps["work"].done == 1
    assert handler.statistics().steps["join"].queued == 0
