"""How often a line of descent is recovered, and recoveries in batches (X4, F2)."""

from __future__ import annotations

from typing import Annotated, Any

import anyio
import pytest

from anyio_workflows import Context, Event, StartEvent, StopEvent, Workflow, catch_error, step
from anyio_workflows.collect import Collect, Take
from anyio_workflows.events import StepFailedEvent

from .recovering import ended_well, fail, failed, line
from .running import check_ending, texts
from .samples import Answer, Item, Note, Other, Part, ProviderError

pytestmark = pytest.mark.anyio

# --- Budgets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 2, 5])
async def test_x4_a_loop_that_returns_to_the_failing_step_ends(budget: int) -> None:
    async def work(ctx: Context, ev: Event) -> Any:
        errors.append(ProviderError(len(errors)))
        raise errors[-1]

    async def rescue(ctx: Context, ev: StepFailedEvent) -> Event:
        assert len(errors) <= budget
        return Item()

    errors: list[ProviderError] = []
    run = line(work, rescue, budget=budget).run()
    assert await failed(run, "work", ProviderError) is errors[budget]
    assert run.statistics().steps["rescue"].done == budget


async def test_x4_success_on_the_way_does_not_fill_the_budget_up() -> None:
    async def work(ctx: Context, ev: StartEvent | Item) -> Any:
        calls.append(ev)
        if len(calls) == 2:
            return Item(n=2)
        raise ProviderError

    async def rescue(ctx: Context, ev: StepFailedEvent) -> Event:
        assert len(calls) == 1
        return Item(n=1)

    calls: list[Event] = []
    await failed(line(work, rescue).run(), "work", ProviderError)
    assert calls[1:] == [Item(n=1), Item(n=2)]


async def test_x4_each_handler_has_a_budget_of_its_own() -> None:
    class Two(Workflow):
        @step
        async def one(self, ev: StartEvent) -> Item:
            raise ProviderError

        @step
        async def two(self, ev: Item) -> StopEvent:
            raise ProviderError

        @catch_error(for_steps=["one"])
        async def rescue_one(self, ev: StepFailedEvent) -> Item:
            return Item()

        @catch_error(for_steps=["two"])
        async def rescue_two(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent(result="both")

    assert await ended_well(Two().run()) == "both"


async def test_x4_steps_of_one_handler_share_its_budget() -> None:
    class Shared(Workflow):
        @step
        async def one(self, ev: StartEvent) -> Item:
            raise ProviderError

        @step
        async def two(self, ev: Item) -> StopEvent:
            raise ProviderError

        @catch_error
        async def rescue(self, ev: StepFailedEvent) -> Item | StopEvent:
            return Item()

    await failed(Shared().run(), "two", ProviderError)


async def test_x4_two_lines_have_budgets_of_their_own() -> None:
    class Lines(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(n=1), Item(n=2)]

        @step
        async def work(self, ev: Item) -> Part:
            raise ProviderError

        @catch_error(for_steps=["work"])
        async def rescue(self, ev: StepFailedEvent) -> Part:
            assert isinstance(ev.input_event, Item)
            return Part(n=ev.input_event.n * 10)

        @step
        async def join(self, evs: list[Part]) -> StopEvent:
            return StopEvent(result=[ev.n for ev in evs])

    assert await ended_well(Lines().run()) == [10, 20]


class Rounds(Workflow):
    """Opens a batch whose branches fail as told, joins it, and begins again."""

    def __init__(self, *rounds: set[int]) -> None:
        super().__init__()
        self.rounds = list(rounds)

    @step
    async def begin(self, ev: StartEvent | Other) -> list[Item] | StopEvent:
        if not self.rounds:
            return StopEvent(result="through")
        self.failing = self.rounds.pop(0)
        return [Item(n=1), Item(n=2), Item(n=3)]

    @step
    async def work(self, ev: Item) -> Part:
        if ev.n in self.failing:
            raise ProviderError(ev.n)
        return Part(n=ev.n)

    @catch_error(for_steps=["work"], max_recoveries=2)
    async def rescue(self, ev: StepFailedEvent) -> Part:
        return Part()

    @step
    async def join(self, evs: list[Part]) -> Other:
        return Other()


@pytest.mark.parametrize(
    "rounds",
    [({1, 2, 3},), ({1, 2, 3}, {1, 2, 3}), ({1}, set[int](), {3})],
    ids=["many branches count once", "as often as the budget says", "with pauses"],
)
async def test_x4_a_join_goes_on_with_the_largest_count_of_its_events(
    rounds: tuple[set[int], ...],
) -> None:
    assert await ended_well(Rounds(*rounds).run()) == "through"


@pytest.mark.parametrize("rounds", [({1}, {2}, {3}), ({3}, {2, 1}, set[int](), {1})])
async def test_x4_a_loop_through_a_join_ends(rounds: tuple[set[int], ...]) -> None:
    raised = await failed(Rounds(*rounds).run(), "work", ProviderError)
    assert raised.args[0] in rounds[-1]


class Pairs(Workflow):
    """Makes sets of a `Part` that comes from `work`, which may fail, and an `Other`."""

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
        ctx.send_event(Item(n=1))
        return None

    @step
    async def work(self, ctx: Context, ev: Item) -> Part:
        ctx.send_event(Other())
        raise ProviderError(ev.n)

    @catch_error(for_steps=["work"])
    async def rescue(self, ev: StepFailedEvent) -> Part:
        assert isinstance(ev.input_event, Item)
        return Part(n=ev.input_event.n)

    @step
    async def pair(self, part: Part, other: Other) -> Item | StopEvent | None:
        if part.n == 1:
            return Item(n=2)
        return StopEvent(result=part) if part.n == 4 else None


async def test_x4_a_set_goes_on_with_the_largest_count_of_its_events() -> None:
    workflow = Pairs(skip_graph_checks=["reachability"])
    raised = await failed(workflow.run(), "work", ProviderError)
    assert raised.args == (2,)


async def test_x4_a_set_of_a_fresh_line_has_a_fresh_budget() -> None:
    class Fresh(Pairs):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
            return Item(n=3)

        @step
        async def pair(self, part: Part, other: Other) -> Item | StopEvent | None:
            if part.n == 5:  # of nothing that was recovered
                return Item(n=4)
            return StopEvent(result=part) if part.n == 4 else None

    handler = Fresh(skip_graph_checks=["reachability"], timeout=60, stall_check=False).run()
    await anyio.sleep(1)
    assert handler.statistics().steps["pair"].done == 1
    await handler.send_event(Part(n=5))
    await handler.send_event(Other())
    assert await ended_well(handler) == Part(n=4)


async def test_x4_a_join_inherits_the_most_of_its_batch_also_of_what_never_arrived() -> None:
    class Loop(Workflow):
        @step
        async def begin(self, ev: StartEvent | Other) -> list[Item]:
            rounds.append(ev)
            return [Item(n=len(rounds))]

        @step
        async def work(self, ev: Item) -> Part:
            raise ProviderError(ev.n)

        @catch_error(for_steps=["work"])
        async def rescue(self, ev: StepFailedEvent) -> None: ...

        @step
        async def join(self, evs: list[Part]) -> Other | StopEvent:
            return Other() if len(rounds) < 10 else StopEvent()

    rounds: list[Event] = []
    raised = await failed(Loop().run(), "work", ProviderError)
    assert raised.args == (2,)


@pytest.mark.parametrize("expected", [[Answer, Part], [Part, Answer]], ids=["first", "last"])
async def test_x4_a_collected_list_goes_on_with_the_largest_count_of_its_events(
    expected: list[type[Event]],
) -> None:
    class Collects(Workflow):
        """What completes the list was not recovered, something else in it was."""

        @step
        async def begin(self, ctx: Context, ev: StartEvent | Other) -> Item | StopEvent:
            rounds.append(len(rounds))
            ctx.send_event(Part())
            return StopEvent() if len(rounds) == 10 else Item()

        @step
        async def work(self, ev: Item) -> Answer:
            raise ProviderError(len(rounds))

        @catch_error(for_steps=["work"])
        async def rescue(self, ev: StepFailedEvent) -> Answer:
            return Answer()

        @step
        async def collect(self, ctx: Context, ev: Answer | Part) -> Other | None:
            if isinstance(ev, Part):
                await anyio.sleep(1)
            both = ctx.collect_events(ev, expected)
            return None if both is None else Other()

    rounds: list[int] = []
    raised = await failed(Collects(skip_graph_checks=["reachability"]).run(), "work", ProviderError)
    assert raised.args == (2,)


async def test_x4_what_a_step_sends_belongs_to_its_line() -> None:
    async def work(ctx: Context, ev: Event) -> Any:
        errors.append(ProviderError())
        raise errors[-1]

    async def rescue(ctx: Context, ev: StepFailedEvent) -> None:
        assert len(errors) == 1
        ctx.send_event(Item())

    errors: list[ProviderError] = []
    assert await failed(line(work, rescue).run(), "work", ProviderError) is errors[1]


async def test_x4_what_comes_from_outside_begins_a_line() -> None:
    async def rescue(ctx: Context, ev: StepFailedEvent) -> StopEvent | None:
        recovered.append(ev.input_event)
        return StopEvent() if len(recovered) == 3 else None

    recovered: list[Any] = []
    handler = line(fail, rescue).run()
    for n in (1, 2):
        await anyio.sleep(1)
        await handler.send_event(Item(n=n))
    await ended_well(handler)
    assert recovered == [StartEvent(), Item(n=1), Item(n=2)]


# --- In batches ---------------------------------------------------------------------------------------


class Batch(Workflow):
    """Fails in one branch of three, in the first of two steps."""

    def __init__(self, substitute: Any) -> None:
        super().__init__()
        self.substitute = substitute

    @step
    async def begin(self, ev: StartEvent) -> list[Item]:
        return [Item(n=1), Item(n=2), Item(n=3)]

    @step
    async def work(self, ev: Item) -> Other:
        if ev.n == 2:
            raise ProviderError
        await anyio.sleep(ev.n)
        return Other(n=ev.n)

    @catch_error(for_steps=["work"])
    async def rescue(self, ev: StepFailedEvent) -> Other | Part | None:
        await anyio.sleep(10)
        return self.substitute

    @step
    async def finish(self, ev: Other) -> Part:
        return Part(n=ev.n * 10)

    @step
    async def join(self, evs: list[Part]) -> StopEvent:
        return StopEvent(result=[ev.n for ev in evs])


@pytest.mark.parametrize(
    ("substitute", "joined"),
    [(Other(n=5), [10, 30, 50]), (Part(n=5), [10, 30, 5]), (None, [10, 30])],
    ids=["in the middle", "at the join", "nothing"],
)
async def test_f2_x4_a_recovered_branch_goes_on(substitute: Any, joined: list[int]) -> None:
    began = anyio.current_time()
    assert await ended_well(Batch(substitute).run()) == joined
    assert anyio.current_time() - began == 10


async def test_f2_x4_every_branch_may_come_to_nothing() -> None:
    class Empty(Batch):
        @step
        async def work(self, ev: Item) -> Other:
            raise ProviderError

    assert await ended_well(Empty(None).run()) == []


class Page(Event):
    n: int


class Bound(Event):
    pages: list[int]


class Nested(Workflow):
    """Two chapters of two pages each; what the test says fails."""

    def __init__(self, *failing: str) -> None:
        super().__init__()
        self.failing = failing

    def _maybe(self, name: str) -> None:
        if name in self.failing:
            raise ProviderError(name)

    @step
    async def begin(self, ev: StartEvent) -> list[Item]:
        return [Item(n=1), Item(n=2)]

    @step
    async def chapter(self, ev: Item) -> list[Page]:
        self._maybe(f"chapter {ev.n}")
        return [Page(n=ev.n * 10 + k) for k in (1, 2)]

    @step
    async def page(self, ev: Page) -> Part:
        self._maybe(f"page {ev.n}")
        return Part(n=ev.n)

    @step
    async def bind(self, evs: list[Part]) -> Bound:
        numbers = [ev.n for ev in evs]
        self._maybe(f"bind {numbers}")
        return Bound(pages=numbers)

    @step
    async def publish(self, evs: list[Bound]) -> StopEvent:
        self._maybe("publish")
        return StopEvent(result=sorted(ev.pages for ev in evs))

    @catch_error(for_steps=["page"])
    async def rescue_page(self, ev: StepFailedEvent) -> Part:
        return Part(n=0)

    @catch_error(for_steps=["chapter", "bind"])
    async def rescue_chapter(self, ev: StepFailedEvent) -> Bound:
        return Bound(pages=[-1])

    @catch_error
    async def rescue(self, ev: StepFailedEvent) -> StopEvent:
        assert isinstance(ev.input_event, list)
        return StopEvent(result=(ev.step_name, len(ev.input_event)))


@pytest.mark.parametrize(
    ("failing", "result"),
    [
        ([], [[11, 12], [21, 22]]),
        (["page 11"], [[12, 0], [21, 22]]),
        (["page 21", "page 22"], [[0, 0], [11, 12]]),
        (["chapter 1"], [[-1], [21, 22]]),
        (["bind [11, 12]"], [[-1], [21, 22]]),
        (["page 11", "bind [12, 0]", "chapter 2"], [[-1], [-1]]),
        (["publish"], ("publish", 2)),
    ],
    ids=["none", "a page", "pages", "a chapter", "an inner join", "several", "the outer join"],
)
async def test_f3_x4_each_level_of_nested_batches_recovers(failing: list[str], result: Any) -> None:
    assert await ended_well(Nested(*failing).run()) == result


async def test_f3_x4_a_handler_may_open_a_batch_in_the_place_of_the_failed_step() -> None:
    class Reopens(Nested):
        @catch_error(for_steps=["chapter"])
        async def rescue_chapter(self, ev: StepFailedEvent) -> list[Page]:
            return [Page(n=7), Page(n=8), Page(n=9)]

    result = await ended_well(Reopens("chapter 1").run())
    assert result == [[7, 8, 9], [21, 22]]


async def test_f2_x4_a_failed_branch_without_a_handler_still_fails_the_run() -> None:
    raised = await failed(Rounds({1}, {1}, {1}).run(), "work", ProviderError)
    assert raised.args == (1,)


class FirstOnly(Workflow):
    """Joins the first part that arrives and cancels the other branches."""

    @step
    async def begin(self, ev: StartEvent) -> list[Item]:
        return [Item(n=1), Item(n=2), Item(n=3)]

    @step
    async def work(self, ev: Item) -> Part:
        if ev.n == 1:
            raise ProviderError
        try:
            await anyio.sleep(ev.n)
        except anyio.get_cancelled_exc_class():
            raise ProviderError from None
        return Part(n=ev.n)

    @catch_error(for_steps=["work"])
    async def rescue(self, ctx: Context, ev: StepFailedEvent) -> Part:
        ctx.write_event_to_stream(Note(text=ev.input_event))
        try:
            await anyio.sleep(1000)
        finally:
            ctx.write_event_to_stream(Note(text="tidied"))
        return Part()

    @step
    async def join(self, evs: Annotated[list[Part], Collect(Take(1, cancel=True))]) -> Other:
        return Other(n=evs[0].n)

    @step
    async def end(self, ev: Other) -> StopEvent:
        await anyio.sleep(5)
        return StopEvent(result=ev.n)


async def test_f4_x4_cancelled_branches_are_neither_recovered_nor_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    handler = FirstOnly().run()
    events, last = await check_ending(handler)
    assert texts(events) == [Item(n=1), "tidied"]
    assert [r.message for r in caplog.records if "dropped step work failed" in r.message]
    assert last["result"] == 2
    assert handler.statistics().steps["rescue"].done == 1
