"""Fan-out and fan-in: what opens a batch, when it is joined, how batches nest (F1-F3, F5)."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyio_workflows import (
    Context,
    Event,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowTimedOutEvent,
    step,
)
from anyio_workflows.errors import WorkflowRuntimeError, WorkflowStalledError

from .running import check_ending, numbers, read, read_all, texts, unhandled
from .samples import (
    Answer,
    Done,
    FanOut,
    Item,
    Joined,
    Next,
    Note,
    Numbers,
    Other,
    Part,
    ProviderError,
    Question,
)

pytestmark = pytest.mark.anyio

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
    async def double(self, ev: Other) -> Done:
        return Done(n=2 * ev.n)


async def test_f1_a_list_may_mix_types() -> None:
    assert await Mixed().run(items=[3, 2, 1, 4]) == [4, 8, 1, 3]


class Direct(FanOut):
    """A list whose elements may be for the join at once."""

    @step
    async def split(self, ev: Numbers) -> list[Item | Done]:
        return [Item(n=n) if n % 2 else Done(n=n) for n in ev.items]


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
    async def work(self, ev: Item) -> Done:
        self.worked += 1
        return Done()


@pytest.mark.parametrize(
    "result",
    [[Item(), None], [Item(), "x"], [Item(), Done()], [Item(), [Item()]], (Item(),), Item()],
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
    async def work(self, ev: Item | Other) -> Other | Done:
        left = ev.n if isinstance(ev, Item) else ev.n - 1
        return Other(n=left) if left else Done(n=ev.n)


async def test_f2_a_branch_may_loop() -> None:
    assert await Looping().run(items=[9, 0, 4]) == [0, 1, 1]


class LongBranch(FanOut):
    """Each branch takes three steps, one of which takes a while."""

    @step
    async def work(self, ev: Item) -> Other:
        return Other(n=ev.n)

    @step(num_workers=100)
    async def middle(self, ev: Other) -> Joined | None:
        await anyio.sleep(abs(ev.n))
        return Joined(n=ev.n) if ev.n >= 0 else None

    @step
    async def end(self, ev: Joined) -> Done:
        return Done(n=ev.n)


async def test_f2_a_branch_may_take_several_steps() -> None:
    assert await LongBranch().run(items=[3, -5, 1]) == [1, 3]


class Sending(FanOut):
    """Each branch also sends an event; what becomes of that is slow and would suit the join."""

    @step(num_workers=100)
    async def work(self, ctx: Context, ev: Item) -> Done:
        ctx.send_event(Other(n=ev.n))
        await anyio.sleep(ev.n)
        return Done(n=ev.n)

    @step(num_workers=100)
    async def aside(self, ctx: Context, ev: Other) -> Done:
        await anyio.sleep(0.5 if ev.n < 10 else 100)
        ctx.write_event_to_stream(Note(text=("aside", ev.n)))
        return Done(n=-ev.n)


async def test_f2_sent_events_belong_to_no_branch() -> None:
    begun = anyio.current_time()
    handler = Sending(skip_graph_checks=["reachability"]).run(items=[1, 10])
    events = await read_all(handler)
    assert anyio.current_time() - begun == pytest.approx(10), "the join waited for what was sent"
    assert texts(events) == [("aside", 1), ("joined", [1, 10])]
    assert unhandled(events) == ["Done"], "what descends from a sent event is outside the batch"
    assert await handler == [1, 10]


class Asking(FanOut):
    """Each branch asks somebody."""

    @step(num_workers=1)
    async def work(self, ctx: Context, ev: Item) -> Done | None:
        question = Question(n=ev.n)
        answer = await ctx.wait_for_event(Answer, question, requirements={"n": ev.n})
        return Done(n=ev.n) if answer.text == "yes" else None


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
    async def work(self, ctx: Context, ev: Item) -> Done:
        if ev.n < 3:
            await ctx.wait_for_event(Answer, requirements={"n": ev.n})
        await anyio.sleep(10)
        return Done(n=ev.n)


async def test_r2_who_waited_goes_on_ahead_of_queued_branches_in_the_order_of_the_answers() -> None:
    handler = Resuming(timeout=100).run(items=[1, 2, 3, 4])
    await anyio.sleep(1)
    for n in [2, 1]:
        await handler.send_event(Answer(n=n, text="yes"))
    assert await handler == [3, 2, 1, 4]


class Detour(FanOut):
    """A branch hands over to a person: the answer comes from outside the batch."""

    @step
    async def work(self, ev: Item) -> Question | Done:
        return Question(n=ev.n) if ev.n else Done(n=0)

    @step
    async def answered(self, ev: Answer) -> Done:
        return Done(n=ev.n)


async def test_f2_a_branch_ends_with_the_question_it_returns() -> None:
    handler = Detour().run(items=[1, 0, 2])
    events = await read(handler)
    assert [event.n for event in events if isinstance(event, Question)] == [1, 2]
    assert await handler == [0]


class Audited(FanOut):
    """Two steps take the event that the join takes; three take the element."""

    @step
    async def audit(self, ctx: Context, ev: Done) -> None:
        await anyio.sleep(30)
        ctx.write_event_to_stream(Note(text=("audited", ev.n)))

    @step
    async def again(self, ev: Item) -> Done:
        await anyio.sleep(10)
        return Done(n=100 + ev.n)

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
    async def work(self, ctx: Context, ev: Item) -> Done:
        try:
            await anyio.sleep(ev.n)
            if ev.n == 2:
                raise ProviderError(ev.n)
        finally:
            ctx.write_event_to_stream(Note(text=ev.n))
        return Done(n=ev.n)


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
    async def work(self, ev: Item) -> Done:
        self.inside += 1
        self.most = max(self.most, self.inside)
        await anyio.sleep(1 + ev.n % 3)
        self.inside -= 1
        return Done(n=ev.n)


async def test_f2_a_batch_of_1000_keeps_to_num_workers() -> None:
    workflow = Bursting(timeout=None)
    assert sorted(await workflow.run(items=list(range(1000)))) == list(range(1000))
    assert workflow.most == 4


class Better(Done):
    pass


class Lenient(FanOut):
    @step
    async def work(self, ev: Item) -> Done | Better:
        return Better(n=ev.n) if ev.n % 2 else Done(n=ev.n)

    @step(accept_event_subclasses=True)
    async def join(self, events: list[Done]) -> StopEvent:
        return StopEvent(result=[(type(event), event.n) for event in events])


async def test_f2_a_join_may_accept_subclasses() -> None:
    result = await Lenient().run(items=[1, 2, 3])
    assert result == [(Better, 1), (Done, 2), (Better, 3)]


class Strict(Lenient):
    @step
    async def join(self, events: list[Done]) -> StopEvent:
        return StopEvent(result=numbers(events))


async def test_f2_a_join_takes_exactly_its_types_by_default() -> None:
    handler = Strict(skip_graph_checks=["terminal_event"]).run(items=[1, 2, 3])
    assert unhandled(await read_all(handler)) == ["Better", "Better"]
    assert await handler == [2]


class MixedJoin(FanOut):
    @step
    async def work(self, ev: Item) -> Done | Other | None:
        return [None, Done(n=ev.n), Other(n=ev.n)][ev.n % 3]  # type: ignore[return-value]

    @step
    async def join(self, events: list[Done | Other]) -> StopEvent:
        return StopEvent(result=events)


async def test_f4_a_join_may_take_several_types() -> None:
    result = await MixedJoin().run(items=[0, 1, 2, 3, 4])
    assert result == [Done(n=1), Other(n=2), Done(n=4)]


# --- F3: more than one batch ------------------------------------------------------------------


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
    async def join_parts(self, ctx: Context, events: list[PartDone]) -> Done:
        ctx.write_event_to_stream(Note(text=("parts", sorted(numbers(events)))))
        return Done(n=sum(numbers(events)))

    @step
    async def join(self, events: list[Done]) -> StopEvent:
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
    async def join(self, events: list[Done]) -> Joined:
        return Joined(n=sum(numbers(events)))

    @step
    async def end(self, a: Joined, b: Joined) -> StopEvent:
        return StopEvent(result=[a.n, b.n])


async def test_f3_two_producers_make_two_batches() -> None:
    assert await TwoProducers().run(items=[1, 2, 3]) == [6, 36]


class Twice(FanOut):
    """Two joins for each batch."""

    @step
    async def join(self, events: list[Done]) -> Joined:
        return Joined(n=sum(numbers(events)))

    @step
    async def count(self, events: list[Done]) -> Other:
        return Other(n=len(events))

    @step
    async def end(self, total: Joined, count: Other) -> StopEvent:
        return StopEvent(result=[total.n, count.n])


async def test_f3_two_joins_each_get_everything() -> None:
    assert await Twice().run(items=[4, -1, 5]) == [9, 2]
    assert await Twice().run(items=[]) == [0, 0]


class Concurrent(FanOut):
    """The producer runs several times at once; its batches overlap in time."""

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> None:
        for n in range(5):
            ctx.send_event(Next(n=n))

    @step
    async def split(self, ev: Next) -> list[Item]:
        await checkpoint()
        return [Item(n=10 * i + ev.n) for i in range(ev.n)]

    @step(num_workers=2)
    async def work(self, ev: Item) -> Done:
        await anyio.sleep(ev.n % 7)
        return Done(n=ev.n)

    @step
    async def join(self, events: list[Done]) -> Joined:
        assert len({n % 10 for n in numbers(events)}) <= 1, "batches mixed"
        return Joined(n=len(events))

    @step
    async def end(self, ctx: Context, ev: Joined) -> StopEvent | None:
        found = ctx.collect_events(ev, [Joined] * 5)
        return found and StopEvent(result=sorted(numbers(found)))


async def test_f3_concurrent_batches_of_one_producer_do_not_mix() -> None:
    workflow = Concurrent(skip_graph_checks=["reachability"])
    assert await workflow.run() == [0, 1, 2, 3, 4]


class Chained(FanOut):
    """The join of one batch opens the next, a level below nothing."""

    @step
    async def join(self, events: list[Done]) -> list[Other]:
        return [Other(n=n * 10) for n in numbers(events)]

    @step(num_workers=100)
    async def work_more(self, ev: Other) -> Joined:
        await anyio.sleep(50 - ev.n)
        return Joined(n=ev.n + 1)

    @step
    async def last_join(self, events: list[Joined]) -> StopEvent:
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


# --- F5: nothing is sent to a join ------------------------------------------------------------


class Meddling(FanOut):
    @step
    async def split(self, ctx: Context, ev: Numbers) -> list[Item]:
        with pytest.raises(WorkflowRuntimeError, match="'join': it joins a batch; return"):
            ctx.send_event(Done(n=99), step="join")
        return [Item(n=n) for n in ev.items]

    @step
    async def work(self, ctx: Context, ev: Item) -> Done:
        with pytest.raises(WorkflowRuntimeError, match="'join': it joins a batch; return"):
            ctx.send_event(Done(n=99), step="join")
        ctx.send_event(Done(n=98))
        return Done(n=ev.n)


async def test_f5_nothing_is_sent_to_a_join() -> None:
    handler = Meddling().run(items=[1, 2])
    events = await read_all(handler)
    assert unhandled(events) == ["Done", "Done"]
    assert await handler == [1, 2]


async def test_f5_nothing_is_sent_to_a_join_from_outside() -> None:
    handler = FanOut().run(items=[1, 2])
    internal = handler.stream_events(expose_internal=True)
    await anyio.sleep(0.5)
    with pytest.raises(WorkflowRuntimeError, match="it joins a batch"):
        await handler.send_event(Done(), step="join")
    await handler.send_event(Done())
    assert unhandled([event async for event in internal]) == ["Done"]
    assert await handler == [1, 2]


async def test_f5_another_taker_gets_what_the_join_does_not() -> None:
    handler = Audited(timeout=100).run(items=[])
    events = await read_all(handler)
    assert await handler == []
    assert unhandled(events) == []
    handler = Audited(timeout=100).run(items=[1])
    internal = handler.stream_events(expose_internal=True)
    await handler.send_event(Done(n=50))
    events = [event async for event in internal]
    assert ("audited", 50) in texts(events)
    assert unhandled(events) == []
    assert await handler == [1, 101]


class Outsider(FanOut):
    @step
    async def split(self, ev: Numbers) -> list[Item] | Done:
        return Done()


async def test_f5_an_event_returned_outside_a_batch_joins_nothing() -> None:
    handler = Outsider().run()
    events = await read_all(handler)
    assert unhandled(events) == ["Done"]
    with pytest.raises(WorkflowStalledError):
        await handler


class Undeclared(FanOut):
    """A branch returns a subclass of what it declares, which is for the join of other batches."""

    @step
    async def work(self, ev: Item) -> Done:
        return Better(n=ev.n)

    @step
    async def other_split(self, ev: Numbers) -> list[Other]:
        return [Other(n=10)]

    @step
    async def upgrade(self, ev: Other) -> Better:
        return Better(n=ev.n)

    @step
    async def other_join(self, events: list[Better]) -> Joined:
        return Joined(n=sum(numbers(events)))

    @step
    async def join(self, events: list[Done]) -> Joined:
        return Joined(n=len(events))

    @step
    async def end(self, a: Joined, b: Joined) -> StopEvent:
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
    async def work(self, ctx: Context, ev: Item) -> Other | Done:
        if ev.n == 0:
            return Other(n=ev.n)
        try:
            await anyio.sleep(ev.n)
        finally:
            self.cleaned.append(ev.n)
        return Done(n=ev.n)

    @step
    async def ask(self, ctx: Context, ev: Other) -> Done:
        try:
            await ctx.wait_for_event(Answer)
        finally:
            ctx.write_event_to_stream(Note(text="last words"))
        return Done(n=ev.n)


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


async def test_t6_a_join_of_a_step_that_was_given_up_is_owed_to_nobody() -> None:
    class Stubborn(Workflow):
        @step
        async def split(self, ev: StartEvent) -> list[Item]:
            return [Item(n=1)]

        @step
        async def work(self, ev: Item) -> Done:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(30)
            return Done(n=1)

        @step
        async def join(self, events: list[Done]) -> StopEvent:
            return StopEvent()

    handler = Stubborn(cleanup_timeout=1).run()
    await anyio.sleep(5)
    await handler.cancel_run()
    await anyio.sleep(50)
    assert handler.statistics().steps["work"].done == 1
    assert handler.statistics().steps["join"].queued == 0
