"""`@catch_error`: a step takes over where another has failed for good (X4)."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import anyio
import pytest

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
    catch_error,
    step,
)
from anyio_workflows.collect import Collect, Take
from anyio_workflows.errors import (
    WorkflowRuntimeError,
    WorkflowStalledError,
    WorkflowValidationError,
)
from anyio_workflows.events import StepFailedEvent, UnhandledEvent, WorkflowIdleEvent
from anyio_workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed

from .running import Note, check_ending, hog, texts

pytestmark = pytest.mark.anyio


class Boom(Exception):
    """What steps raise."""


class Item(Event):
    n: int = 0


class Other(Event):
    n: int = 0


class Part(Event):
    n: int = 0


class Question(InputRequiredEvent):
    pass


class Answer(HumanResponseEvent):
    pass


Act = Callable[..., Awaitable[Any]]


def line(work: Act, rescue: Act, *, budget: int = 1, **options: Any) -> Workflow:
    """Make a workflow of a step `work` and a handler `rescue` that do what the test gives."""

    class Line(Workflow):
        @step(**options)
        async def work(self, ctx: Context, ev: StartEvent | Item) -> Item | Part | StopEvent:
            return await work(ctx, ev)

        @catch_error(for_steps=["work"], max_recoveries=budget)
        async def rescue(
            self, ctx: Context, ev: StepFailedEvent
        ) -> Item | Other | list[Part] | Question | StopEvent | None:
            return await rescue(ctx, ev)

        @step(num_workers=1)
        async def take(self, ev: Other | Part | Answer) -> Other | StopEvent:
            return StopEvent(result=ev)

    return Line(timeout=None, skip_graph_checks=["reachability"])


async def fail(ctx: Context, ev: Event) -> StopEvent:
    """A step that always fails."""
    raise Boom("broken")


async def tell(ctx: Context, ev: StepFailedEvent) -> StopEvent:
    """A handler that ends the run with what it was given."""
    return StopEvent(result=ev)


async def ended_well(handler: WorkflowHandler[Any]) -> Any:
    """Return the result of a run that must succeed."""
    _, last = await check_ending(handler)
    assert type(last) is StopEvent
    return last.result


async def failed(handler: WorkflowHandler[Any], step_name: str, error: type[BaseException]) -> Any:
    """Return what a run failed with, that must fail in the given step."""
    _, last = await check_ending(handler)
    assert isinstance(last, WorkflowFailedEvent)
    assert last.step_name == step_name
    assert type(last.exception) is error
    return last.exception


# --- Who takes a failure ------------------------------------------------------------------------


class Covered(Workflow):
    """Two steps have a handler of their own, the others share one, which is written first."""

    def __init__(self, failing: str = "") -> None:
        super().__init__()
        self.failing = failing

    def _maybe(self, name: str) -> None:
        if name == self.failing:
            raise Boom

    @catch_error
    async def others(self, ev: StepFailedEvent) -> StopEvent:
        return StopEvent(result=("others", ev.step_name))

    @catch_error(for_steps=["a", "b"])
    async def scoped(self, ev: StepFailedEvent) -> StopEvent:
        return StopEvent(result=("scoped", ev.step_name))

    @step
    async def begin(self, ev: StartEvent) -> Item:
        self._maybe("begin")
        return Item()

    @step
    async def a(self, ev: Item) -> Other:
        self._maybe("a")
        return Other()

    @step
    async def b(self, ev: Other) -> Part:
        self._maybe("b")
        return Part()

    @step
    async def c(self, ev: Part) -> StopEvent:
        self._maybe("c")
        return StopEvent()


@pytest.mark.parametrize(
    ("failing", "handler"),
    [("begin", "others"), ("a", "scoped"), ("b", "scoped"), ("c", "others")],
)
async def test_x4_scoped_handlers_come_before_the_wildcard(failing: str, handler: str) -> None:
    assert await ended_well(Covered(failing).run()) == (handler, failing)


async def test_x4_a_run_without_failures_starts_no_handler() -> None:
    run = Covered().run()
    assert await ended_well(run) is None
    steps = run.statistics().steps
    assert (steps["others"].done, steps["scoped"].done) == (0, 0)


async def test_x4_a_step_that_no_handler_names_fails_the_run() -> None:
    class Partly(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Item:
            return Item()

        @step
        async def work(self, ev: Item) -> StopEvent:
            raise error

        @catch_error(for_steps=["begin"])
        async def rescue(self, ev: StepFailedEvent) -> StopEvent:
            raise AssertionError("started for a step that it does not name")

    error = Boom()
    assert await failed(Partly().run(), "work", Boom) is error


# --- What it is told ----------------------------------------------------------------------------


async def test_x4_the_failure_is_told_in_full() -> None:
    async def work(ctx: Context, ev: StartEvent | Item) -> Any:
        if isinstance(ev, StartEvent):
            return item
        await anyio.sleep(2)
        raise error

    item, error = Item(n=4), Boom("broken")
    before = datetime.now(UTC)
    told = await ended_well(line(work, tell).run())
    assert type(told) is StepFailedEvent
    assert told.step_name == "work"
    assert told.input_event is item
    assert told.exception is error
    assert (told.attempts, told.elapsed_seconds) == (1, 2)
    assert told.failed_at.utcoffset() == timedelta(0)
    assert before <= told.failed_at <= datetime.now(UTC)


async def test_x4_retries_come_first_then_recovery_once() -> None:
    async def work(ctx: Context, ev: Event) -> Any:
        await anyio.sleep(1)
        errors.append(Boom(len(errors)))
        raise errors[-1]

    async def rescue(ctx: Context, ev: StepFailedEvent) -> StopEvent:
        assert len(errors) == 3
        return StopEvent(result=ev)

    errors: list[Boom] = []
    policy = retry_policy(wait=wait_fixed(3), stop=stop_after_attempt(3))
    run = line(work, rescue, retry_policy=policy).run()
    told = await ended_well(run)
    assert told.exception is errors[2]
    assert (told.attempts, told.elapsed_seconds) == (3, 9)
    assert run.statistics().steps["rescue"].done == 1


async def test_x4_a_retry_that_succeeds_costs_no_recovery() -> None:
    async def work(ctx: Context, ev: Event) -> Any:
        calls.append(ctx.retry_info().retry_number)
        if len(calls) == 1:
            raise Boom
        return StopEvent(result=calls)

    async def rescue(ctx: Context, ev: StepFailedEvent) -> StopEvent:
        raise AssertionError("nothing failed for good")

    calls: list[int] = []
    assert await ended_well(line(work, rescue, retry_policy=retry_policy()).run()) == [0, 1]


async def test_x4_queueing_is_no_part_of_the_elapsed_time() -> None:
    async def work(ctx: Context, ev: StartEvent | Item) -> Any:
        if isinstance(ev, StartEvent):
            ctx.send_event(Item())
            await anyio.sleep(10)
            return Item()
        raise Boom

    told = await ended_well(line(work, tell, num_workers=1).run())
    assert told.elapsed_seconds == 0


async def test_x4_failures_of_joins_and_sets_tell_all_their_events() -> None:
    class Gathers(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(n=1), Item(n=2)]

        @step
        async def join(self, evs: list[Item]) -> Other:
            raise Boom

        @step
        async def pair(self, one: Other, two: Part) -> StopEvent:
            raise Boom

        @catch_error(for_steps=["join"])
        async def rescue_join(self, ctx: Context, ev: StepFailedEvent) -> Other:
            told.append(ev.input_event)
            ctx.send_event(Part(n=4))
            return Other(n=3)

        @catch_error(for_steps=["pair"])
        async def rescue_pair(self, ev: StepFailedEvent) -> StopEvent:
            told.append(ev.input_event)
            return StopEvent()

    told: list[Any] = []
    await ended_well(Gathers(skip_graph_checks=["reachability"]).run())
    assert told == [[Item(n=1), Item(n=2)], (Other(n=3), Part(n=4))]


# --- What can be recovered ------------------------------------------------------------------------


async def test_x4_r4_a_wrong_return_value_can_be_recovered() -> None:
    async def work(ctx: Context, ev: Event) -> Any:
        return {"n": 1}

    told = await ended_well(line(work, tell, retry_policy=retry_policy()).run())
    assert type(told.exception) is WorkflowRuntimeError
    assert str(told.exception).startswith("step work returned {'n': 1} (dict)")
    assert told.attempts == 1


async def test_x4_t8_a_stray_cancellation_can_be_recovered() -> None:
    async def work(ctx: Context, ev: Event) -> Any:
        with anyio.CancelScope() as scope:
            scope.cancel()
            try:
                await anyio.sleep(1)
            except anyio.get_cancelled_exc_class() as exc:
                stray = exc
        raise stray

    told = await ended_well(line(work, tell).run())
    assert type(told.exception) is WorkflowRuntimeError
    assert isinstance(told.exception.__cause__, anyio.get_cancelled_exc_class())


async def test_x4_r8_a_step_that_took_too_long_can_be_recovered() -> None:
    async def work(ctx: Context, ev: Event) -> Any:
        await anyio.sleep(100)

    told = await ended_well(line(work, tell, timeout=5).run())
    assert type(told.exception) is TimeoutError
    assert told.elapsed_seconds == 5


async def test_x4_a_group_that_a_step_raised_is_told_unchanged() -> None:
    async def work(ctx: Context, ev: Event) -> Any:
        raise group

    group = ExceptionGroup("two", [Boom(1), Boom(2)])
    assert (await ended_well(line(work, tell).run())).exception is group


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
async def test_x4_t8_other_base_exceptions_are_never_recovered(error: type[BaseException]) -> None:
    async def work(ctx: Context, ev: Event) -> Any:
        raise error

    run = line(work, tell).run()
    await failed(run, "work", error)
    assert run.statistics().steps["rescue"].done == 0


class BadPolicy:
    """Raises what it is made with, or answers it."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def next(self, elapsed_time: float, attempts: int, error: Exception, /) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("answer", "error"), [(LookupError("policy"), LookupError), (-1, WorkflowRuntimeError)]
)
async def test_x4_a_failing_policy_is_never_recovered(answer: Any, error: Any) -> None:
    run = line(fail, tell, retry_policy=BadPolicy(answer)).run()
    raised = await failed(run, "work", error)
    assert type(raised.__cause__) is Boom
    assert run.statistics().steps["rescue"].done == 0


# --- What a handler does ---------------------------------------------------------------------------


async def test_x4_another_event_goes_on_in_the_place_of_what_failed() -> None:
    async def rescue(ctx: Context, ev: StepFailedEvent) -> Event:
        ctx.write_event_to_stream(Note(text="recovered"))
        return Other(n=7)

    events, last = await check_ending(line(fail, rescue).run())
    assert texts(events) == ["recovered"]
    assert last["result"] == Other(n=7)


async def test_x4_a_list_goes_to_the_steps_that_take_its_events() -> None:
    async def rescue(ctx: Context, ev: StepFailedEvent) -> list[Part]:
        return [Part(n=1), Part(n=2)]

    assert await ended_well(line(fail, rescue).run()) == Part(n=1)


async def test_x4_none_can_stall_the_run() -> None:
    class Silent(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            raise Boom

        @catch_error
        async def rescue(self, ev: StepFailedEvent) -> None:
            return None

    error = await failed(Silent().run(), "rescue", WorkflowStalledError)
    assert error.last_acts == {"work": "failed with Boom", "rescue": "returned None"}


async def test_x4_none_leaves_a_run_idle_that_takes_events_from_outside() -> None:
    async def rescue(ctx: Context, ev: StepFailedEvent) -> None:
        return None

    handler = line(fail, rescue).run()
    async for event in handler.stream_events(expose_internal=True):
        if isinstance(event, WorkflowIdleEvent):
            assert handler.statistics().steps["rescue"].done == 1
            await handler.send_event(Answer())
    assert await handler == Answer()


async def test_x4_a_question_goes_to_the_stream_and_the_answer_goes_on() -> None:
    async def rescue(ctx: Context, ev: StepFailedEvent) -> Event:
        return Question()

    handler = line(fail, rescue).run()
    await anyio.sleep(1)
    assert not handler.is_done()
    await handler.send_event(Answer())
    events, _ = await check_ending(handler)
    assert events == [Question(), StopEvent(result=Answer())]


async def test_x4_a_handler_may_wait_like_any_step() -> None:
    async def rescue(ctx: Context, ev: StepFailedEvent) -> StopEvent:
        return StopEvent(result=await ctx.wait_for_event(Answer, Question()))

    handler = line(fail, rescue).run()
    await anyio.sleep(1)
    assert handler.statistics().steps["rescue"].waiting == 1
    await handler.send_event(Answer())
    assert await ended_well(handler) == Answer()


@pytest.mark.parametrize("again", [False, True], ids=["its own error", "the error it was given"])
async def test_x4_what_a_handler_raises_fails_the_run(again: bool) -> None:
    class Rethrows(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Item:
            return Item()

        @step
        async def work(self, ev: Item) -> StopEvent:
            raise first

        @catch_error(for_steps=["work"])
        async def rescue(self, ev: StepFailedEvent) -> StopEvent:
            raise ev.exception if again else second

        @catch_error
        async def others(self, ev: StepFailedEvent) -> StopEvent:
            raise AssertionError("a handler is no step to be recovered")

    first, second = Boom("first"), Boom("second")
    raised = await failed(Rethrows().run(), "rescue", Boom)
    assert raised is (first if again else second)


async def test_x4_r4_a_handler_must_return_what_it_declares() -> None:
    async def rescue(ctx: Context, ev: StepFailedEvent) -> Any:
        return "fine"

    raised = await failed(line(fail, rescue).run(), "rescue", WorkflowRuntimeError)
    assert str(raised) == (
        "step rescue returned 'fine' (str), but declares "
        "Item | Other | Question | StopEvent | list[Part] | None; return one of those"
    )


async def test_r5_sync_steps_and_sync_handlers() -> None:
    class Threads(Workflow):
        @step
        def work(self, ev: StartEvent) -> StopEvent:
            raise Boom

        @catch_error
        def rescue(self, ctx: Context, ev: StepFailedEvent) -> StopEvent:
            ctx.write_event_to_stream(Note(text=ev.step_name))
            return StopEvent(result=type(ev.exception))

    events, last = await check_ending(Threads(timeout=None).run())
    assert texts(events) == ["work"]
    assert last["result"] is Boom


# --- Budgets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 2, 5])
async def test_x4_a_loop_that_returns_to_the_failing_step_ends(budget: int) -> None:
    async def work(ctx: Context, ev: Event) -> Any:
        errors.append(Boom(len(errors)))
        raise errors[-1]

    async def rescue(ctx: Context, ev: StepFailedEvent) -> Event:
        assert len(errors) <= budget
        return Item()

    errors: list[Boom] = []
    run = line(work, rescue, budget=budget).run()
    assert await failed(run, "work", Boom) is errors[budget]
    assert run.statistics().steps["rescue"].done == budget


async def test_x4_success_on_the_way_does_not_fill_the_budget_up() -> None:
    async def work(ctx: Context, ev: StartEvent | Item) -> Any:
        calls.append(ev)
        if len(calls) == 2:
            return Item(n=2)
        raise Boom

    async def rescue(ctx: Context, ev: StepFailedEvent) -> Event:
        assert len(calls) == 1
        return Item(n=1)

    calls: list[Event] = []
    await failed(line(work, rescue).run(), "work", Boom)
    assert calls[1:] == [Item(n=1), Item(n=2)]


async def test_x4_each_handler_has_a_budget_of_its_own() -> None:
    class Two(Workflow):
        @step
        async def one(self, ev: StartEvent) -> Item:
            raise Boom

        @step
        async def two(self, ev: Item) -> StopEvent:
            raise Boom

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
            raise Boom

        @step
        async def two(self, ev: Item) -> StopEvent:
            raise Boom

        @catch_error
        async def rescue(self, ev: StepFailedEvent) -> Item | StopEvent:
            return Item()

    await failed(Shared().run(), "two", Boom)


async def test_x4_two_lines_have_budgets_of_their_own() -> None:
    class Lines(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(n=1), Item(n=2)]

        @step
        async def work(self, ev: Item) -> Part:
            raise Boom

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
            raise Boom(ev.n)
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
    raised = await failed(Rounds(*rounds).run(), "work", Boom)
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
        raise Boom(ev.n)

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
    raised = await failed(workflow.run(), "work", Boom)
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
            raise Boom(ev.n)

        @catch_error(for_steps=["work"])
        async def rescue(self, ev: StepFailedEvent) -> None: ...

        @step
        async def join(self, evs: list[Part]) -> Other | StopEvent:
            return Other() if len(rounds) < 10 else StopEvent()

    rounds: list[Event] = []
    raised = await failed(Loop().run(), "work", Boom)
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
            raise Boom(len(rounds))

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
    raised = await failed(Collects(skip_graph_checks=["reachability"]).run(), "work", Boom)
    assert raised.args == (2,)


async def test_x4_what_a_step_sends_belongs_to_its_line() -> None:
    async def work(ctx: Context, ev: Event) -> Any:
        errors.append(Boom())
        raise errors[-1]

    async def rescue(ctx: Context, ev: StepFailedEvent) -> None:
        assert len(errors) == 1
        ctx.send_event(Item())

    errors: list[Boom] = []
    assert await failed(line(work, rescue).run(), "work", Boom) is errors[1]


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
            raise Boom
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
            raise Boom

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
            raise Boom(name)

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
    raised = await failed(Rounds({1}, {1}, {1}).run(), "work", Boom)
    assert raised.args == (1,)


class FirstOnly(Workflow):
    """Joins the first part that arrives and cancels the other branches."""

    @step
    async def begin(self, ev: StartEvent) -> list[Item]:
        return [Item(n=1), Item(n=2), Item(n=3)]

    @step
    async def work(self, ev: Item) -> Part:
        if ev.n == 1:
            raise Boom
        try:
            await anyio.sleep(ev.n)
        except anyio.get_cancelled_exc_class():
            raise Boom from None
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


# --- After the decision -----------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["cancel", "deadline", "stop"])
async def test_x2_recovery_never_begins_when_the_run_ends(ending: str) -> None:
    class Ends(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            try:
                await anyio.sleep(1000)
            except anyio.get_cancelled_exc_class():
                raise Boom from None
            return StopEvent()

        @step
        async def other(self, ev: StartEvent) -> StopEvent:
            await anyio.sleep(1 if ending == "stop" else 1000)
            return StopEvent()

        @catch_error
        async def rescue(self, ev: StepFailedEvent) -> StopEvent:
            raise AssertionError("began after the decision")

    handler = Ends(timeout=10).run()
    await anyio.sleep(5)
    if ending == "cancel":
        await handler.cancel_run()
    _, last = await check_ending(handler)
    kinds = {
        "cancel": WorkflowCancelledEvent,
        "deadline": WorkflowTimedOutEvent,
        "stop": StopEvent,
    }
    assert type(last) is kinds[ending]
    assert handler.statistics().steps["rescue"].done == 0


async def test_x2_recovery_never_begins_after_a_stop_event_was_sent() -> None:
    async def work(ctx: Context, ev: Event) -> Any:
        ctx.send_event(StopEvent(result="sent"))
        raise Boom

    handler = line(work, tell).run()
    assert await ended_well(handler) == "sent"
    assert handler.statistics().steps["rescue"].queued == 0


async def test_x2_recovery_never_begins_after_a_deadline_that_nobody_has_noticed() -> None:
    class Hogs(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            hog(20)
            raise Boom

        @catch_error
        async def rescue(self, ev: StepFailedEvent) -> StopEvent:
            raise AssertionError("began after the deadline")

    _, last = await check_ending(Hogs(timeout=10).run())
    assert last == WorkflowTimedOutEvent(timeout=10, active_steps=["work"])


async def test_x2_a_handler_that_is_queued_at_the_end_never_starts() -> None:
    class Queue(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent | None:
            for n in range(6):
                ctx.send_event(Item(n=n))
            await anyio.sleep(1)
            return StopEvent()

        @step(num_workers=6)
        async def fails(self, ev: Item) -> None:
            raise Boom

        @catch_error
        async def rescue(self, ev: StepFailedEvent) -> None:
            started.append(ev)
            await anyio.sleep(10)

    started: list[Event] = []
    handler = Queue(skip_graph_checks=["reachability"]).run()
    await anyio.sleep(0.5)
    assert handler.statistics().steps["rescue"].queued == 2
    await ended_well(handler)
    assert len(started) == 4


async def test_t6_a_handler_at_work_is_cancelled_with_the_run() -> None:
    async def rescue(ctx: Context, ev: StepFailedEvent) -> None:
        try:
            await anyio.sleep(1000)
        finally:
            ctx.write_event_to_stream(Note(text="tidied"))

    handler = line(fail, rescue).run()
    await anyio.sleep(1)
    await handler.cancel_run()
    events, last = await check_ending(handler)
    assert texts(events) == ["tidied"]
    assert type(last) is WorkflowCancelledEvent


# --- Events of this kind that nobody's failure made ---------------------------------------------------


@pytest.mark.parametrize("how", ["send", "return", "from outside"])
async def test_x4_a_failure_event_of_ones_own_starts_nothing(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Makes(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StepFailedEvent | StopEvent | None:
            if how == "send":
                ctx.send_event(made)
            return made if how == "return" else None

        @step
        async def end(self, ev: Answer) -> StopEvent:
            return StopEvent()

        @catch_error
        async def rescue(self, ev: StepFailedEvent) -> StopEvent:
            raise AssertionError("nothing has failed")

    made = StepFailedEvent(
        step_name="work",
        input_event=StartEvent(),
        exception=Boom(),
        attempts=1,
        elapsed_seconds=0,
        failed_at=datetime.now(UTC),
    )
    caplog.set_level(logging.WARNING, "anyio_workflows")
    handler = Makes(skip_graph_checks=["terminal_event"]).run()
    stream = handler.stream_events(expose_internal=True)
    await anyio.sleep(1)
    if how == "from outside":
        await handler.send_event(made)
    await handler.send_event(Answer())
    unhandled = [event async for event in stream if isinstance(event, UnhandledEvent)]
    assert [event.event_type for event in unhandled] == ["StepFailedEvent"]
    assert handler.statistics().steps["rescue"].done == 0
    assert "no step accepts StepFailedEvent" in caplog.text


# --- Where handlers come from -------------------------------------------------------------------------


class Base(Workflow):
    @step
    async def work(self, ev: StartEvent) -> StopEvent:
        raise Boom

    @catch_error
    async def rescue(self, ev: StepFailedEvent) -> StopEvent:
        return StopEvent(result="base")


async def test_x4_handlers_are_inherited() -> None:
    class Derived(Base):
        pass

    assert await ended_well(Derived().run()) == "base"


async def test_x4_an_overriding_handler_takes_the_place_of_the_inherited_one() -> None:
    class Derived(Base):
        @catch_error(for_steps=["work"])
        async def rescue(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent(result="derived")

    assert await ended_well(Derived().run()) == "derived"


async def test_x4_a_handler_overridden_by_something_else_is_gone() -> None:
    class Derived(Base):
        rescue = None  # type: ignore[assignment]

    await failed(Derived().run(), "work", Boom)


async def test_x4_free_functions_can_be_handlers() -> None:
    class Open(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            raise Boom

    @catch_error(for_steps=["work"])
    async def rescue(ev: StepFailedEvent) -> StopEvent:
        return StopEvent(result="free")

    await failed(Open().run(), "work", Boom)
    Open.add_step(rescue)
    assert await ended_well(Open().run()) == "free"


async def test_x4_static_methods_can_be_handlers() -> None:
    class Static(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            raise Boom

        @catch_error
        @staticmethod
        async def rescue(ev: StepFailedEvent) -> StopEvent:
            return StopEvent(result="static")

    assert await ended_well(Static().run()) == "static"


# --- Static faults ------------------------------------------------------------------------------------


def catcher(gives: Any = StopEvent, **options: Any) -> Any:
    async def probe(self: Any, ev: Any) -> Any: ...

    probe.__annotations__ = {"ev": StepFailedEvent, "return": gives}
    return catch_error(**options)(probe)


def node(takes: Any, gives: Any, **options: Any) -> Any:
    async def probe(self: Any, ev: Any) -> Any: ...

    probe.__annotations__ = {"ev": takes, "return": gives}
    return step(**options)(probe)


def faults(**steps: Any) -> list[str]:
    """Return the faults of the graph of a workflow with these steps, `work` besides."""
    cls = type("Flow", (Workflow,), {"work": node(StartEvent, StopEvent), **steps})
    try:
        cls().validate()
    except WorkflowValidationError as exc:
        return list(exc.faults)
    return []


def test_v1_unknown_names_get_the_nearest_one():
    assert faults(rescue=catcher(for_steps=["worc"])) == [
        "step rescue: for_steps names 'worc', which is no step; did you mean 'work'?"
    ]
    assert faults(rescue=catcher(for_steps=["work", "42"])) == [
        "step rescue: for_steps names '42', which is no step; known: rescue, work"
    ]


def test_v1_two_handlers_for_one_step():
    assert faults(a=catcher(for_steps=["work"]), b=catcher(for_steps=["work"])) == [
        "steps a and b both take the failures of step work; name different steps in their for_steps"
    ]


def test_v1_two_wildcards():
    assert faults(a=catcher(), b=catcher()) == [
        "steps a and b both take the failures of all other steps; name different steps in their "
        "for_steps"
    ]


@pytest.mark.parametrize("covered", ["rescue", "other"])
def test_v1_handlers_cover_no_handlers(covered: str):
    steps = {"rescue": catcher(for_steps=["work", covered])}
    if covered == "other":
        steps["other"] = catcher()
        steps["work"] = node(StartEvent, Item)
        steps["next"] = node(Item, StopEvent)
    assert faults(**steps) == [
        f"step rescue: for_steps names '{covered}', a @catch_error step itself; what such a step "
        "raises fails the run"
    ]


def test_v1_a_name_given_twice_counts_once():
    assert faults(rescue=catcher(for_steps=["work", "work"])) == []


@pytest.mark.parametrize("names", ["work", [], [1], ["work", None], 7, b"work"])
def test_v1_for_steps_is_a_list_of_names(names: Any):
    with pytest.raises(WorkflowValidationError) as caught:
        catcher(for_steps=names)
    assert str(caught.value) == (
        f"step probe: for_steps must be a list of names of steps, or None, not {names!r}"
    )


@pytest.mark.parametrize("number", [0, -1, 1.0, "2", True, None])
def test_v1_max_recoveries_is_a_positive_int(number: Any):
    with pytest.raises(WorkflowValidationError) as caught:
        catcher(max_recoveries=number)
    assert str(caught.value) == (
        f"step probe: max_recoveries must be a positive int, not {number!r}"
    )


@pytest.mark.parametrize("takes", [Item, StepFailedEvent | Item, list[StepFailedEvent], Event])
def test_v1_a_handler_takes_a_failure_and_nothing_else(takes: Any):
    async def rescue(self: Any, ev: Any) -> StopEvent: ...

    rescue.__annotations__["ev"] = takes
    with pytest.raises(WorkflowValidationError) as caught:
        type("Flow", (Workflow,), {"rescue": catch_error(rescue)})
    assert str(caught.value) == (
        "Flow: step rescue: a step marked with @catch_error takes one StepFailedEvent, and nothing "
        "else"
    )


@pytest.mark.parametrize("takes", [StepFailedEvent, StepFailedEvent | Item, list[StepFailedEvent]])
def test_v1_a_plain_step_takes_no_failures(takes: Any):
    with pytest.raises(WorkflowValidationError) as caught:
        type("Flow", (Workflow,), {"rescue": node(takes, StopEvent)})
    assert str(caught.value) == (
        "Flow: step rescue: it takes StepFailedEvent; mark it with @catch_error instead of @step"
    )


def test_v1_catch_error_goes_on_a_function():
    with pytest.raises(WorkflowValidationError) as caught:
        catch_error(type("Rescue", (), {}))
    assert str(caught.value) == "step Rescue: @catch_error goes on a function, not on a type"


# --- The other checks of the graph --------------------------------------------------------------------


def test_v1_what_a_handler_returns_is_reached_and_produced():
    assert faults(rescue=catcher(Item), next=node(Item, StopEvent)) == []


def test_v1_what_a_handler_returns_must_be_accepted():
    assert faults(rescue=catcher(Item | StopEvent)) == [
        "step rescue returns Item, which no step accepts; add a step for it, or write it to the "
        "stream instead of returning it"
    ]


def test_v1_a_handler_can_be_a_dead_end():
    assert faults(rescue=catcher(Item), loop=node(Item, Item)) == [
        f"step {name} is a dead end: nothing that follows from Item ends the run; let a step after "
        "it return StopEvent"
        for name in ("rescue", "loop")
    ]


def test_v1_a_wildcard_that_nothing_is_left_for_is_no_fault():
    assert faults(rescue=catcher(for_steps=["work"]), others=catcher()) == []


def test_v1_a_handler_of_steps_that_cannot_be_reached_cannot_be_reached_either():
    steps = {"a": node(Item, Item | StopEvent), "rescue": catcher(for_steps=["a"])}
    assert faults(**steps) == [
        "step a cannot be reached from the start event; return Item from a step that can"
    ]


def test_v1_a_handler_may_be_the_only_step_that_stops():
    assert faults(work=node(StartEvent, None), rescue=catcher()) == []


def test_v1_a_loop_that_only_a_failure_ends_is_no_dead_end():
    steps = {"work": node(StartEvent, Item), "poll": node(Item, Item)}
    assert faults(**steps, rescue=catcher(for_steps=["poll"])) == []


def test_v1_t9_handlers_take_no_events_from_outside():
    cls = type("Flow", (Workflow,), {"work": node(StartEvent, StopEvent), "rescue": catcher()})
    assert cls().graph.takes_outside_events is False


def test_v1_no_step_produces_a_failure():
    assert faults(work=node(StartEvent, StepFailedEvent | StopEvent), rescue=catcher()) == [
        "step work returns StepFailedEvent, which no step accepts; add a step for it, or write it "
        "to the stream instead of returning it"
    ]


def test_f2_the_way_to_a_join_may_lead_through_handlers_alone():
    steps = {
        "work": node(StartEvent, list[Item]),
        "part": node(Item, None),
        "join": node(list[Part], StopEvent),
        "rescue": catcher(Part, for_steps=["part"]),
    }
    assert faults(**steps) == []
    steps["rescue"] = catcher(Part, for_steps=["work"])
    assert faults(**steps) == [
        "step join joins a list of Part, but no list leads to it; let a step before it return a "
        "list of events"
    ]


def test_f2_a_handler_can_open_the_batch_of_a_join():
    steps = {"rescue": catcher(list[Part]), "join": node(list[Part], StopEvent)}
    cls = type("Flow", (Workflow,), {"work": node(StartEvent, StopEvent), **steps})
    graph = cls().graph
    assert faults(**steps) == []
    assert [spec.name for spec in graph.joins_of(graph.steps["rescue"])] == ["join"]
