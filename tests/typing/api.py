# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""What type checkers make of the public names: checked by mypy and pyright, never executed.

A comment that ignores an error is an assertion too: both report one that is not needed.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, TypeVar, assert_type

import attrs
from cattrs import Converter

from anyio_workflows import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StepFailedEvent,
    StopEvent,
    Workflow,
    WorkflowFailedEvent,
    WorkflowHandler,
    WorkflowTimedOutEvent,
    catch_error,
    step,
)
from anyio_workflows.checkpoint import run_with_checkpoints
from anyio_workflows.collect import All, Collect, Take
from anyio_workflows.errors import WorkflowStalledError
from anyio_workflows.events import StepState, StepStateChanged, WorkflowIdleEvent
from anyio_workflows.handler import OpenWait
from anyio_workflows.resource import Resource, ResourceConfig
from anyio_workflows.retry_policy import (
    RetryInfo,
    RetryPolicy,
    retry_always,
    retry_never,
    retry_policy,
    stop_never,
    wait_fixed,
    wait_random,
)
from anyio_workflows.state import DictState
from anyio_workflows.wire import from_data, json_schema, to_data

T = TypeVar("T")


class Found(Event):
    url: str
    rank: int = 0
    tags: list[str] = attrs.field(factory=list[str])


class Ranked(Found):
    score: float


class Basket(Event):
    items: list[str]
    keys: dict[str, int]
    values: int
    get: str = "x"


class Box(Event, Generic[T]):
    content: T


class Private(Event):
    _tok: str


class Renamed(Event):
    number: int = attrs.field(alias="n")


class TopicStart(StartEvent):
    topic: str


class JokeEvent(StopEvent):
    joke: str


# --- Events: keywords and their types ---------------------------------------------------------


def constructors() -> None:
    assert_type(Found(url="u"), Found)
    Found(url="u", rank=1, tags=["t"])
    Ranked(url="u", score=1)
    Private(_tok="t")
    Renamed(n=1)
    Found()  # type: ignore[call-arg]
    Found(url=5)  # type: ignore[arg-type]
    Found(url="u", rnak=1)  # type: ignore[call-arg]
    Found("u")  # type: ignore[call-arg]
    Ranked(url="u")  # type: ignore[call-arg]


def frozen(ev: Found) -> None:
    ev.url = "v"  # type: ignore[misc]


def fields(ev: Ranked, basket: Basket) -> None:
    assert_type(ev.url, str)
    assert_type(ev.tags, list[str])
    assert_type(ev.score, float)
    assert_type(basket.items, list[str])
    assert_type(basket.keys, dict[str, int])
    assert_type(basket.values, int)
    assert_type(basket.get, str)
    Basket(items=[], keys={}, values=1)
    print(ev.nope)  # type: ignore[attr-defined]


def generics() -> None:
    assert_type(Box(content=1), Box[int])
    assert_type(Box[str](content="x").content, str)


def copies(ev: Ranked) -> None:
    assert_type(ev.replace(url="v"), Ranked)


def mapping(ev: Ranked, start: StartEvent) -> None:
    assert_type(ev["url"], Any)
    assert_type(start["topic"], Any)
    assert_type("url" in ev, bool)
    assert_type(list(ev), list[str])
    assert_type(len(ev), int)
    as_dict: dict[str, Any] = dict(ev)
    print(as_dict, ev.get("url", "none"), ev.keys(), ev.values(), ev.items())


def events_on_the_wire(ev: Found, data: object) -> None:
    assert_type(to_data(ev, tagged=True), dict[str, Any])
    assert_type(from_data(data, Found), Found)
    known: list[type[Found]] = [Found, Ranked]
    assert_type(from_data(data, known), Found)
    either: Found | Basket = from_data(data, Found | Basket)
    assert_type(json_schema(Found), dict[str, Any])
    print(either)


def open_events(start: StartEvent, topic: TopicStart) -> None:
    assert_type(start.anything, Any)
    assert_type(topic.topic, str)
    assert_type(StartEvent(topic="tea", count=3), StartEvent)
    assert_type(InputRequiredEvent(prompt="?"), InputRequiredEvent)
    assert_type(HumanResponseEvent(response="!"), HumanResponseEvent)
    assert_type(StopEvent(result=3, why="so").result, Any)
    assert_type(StopEvent(), StopEvent)
    assert_type(StopEvent("done"), StopEvent)
    assert_type(StopEvent("done", why="so"), StopEvent)
    assert_type(TopicStart(topic="tea"), TopicStart)
    assert_type(JokeEvent(joke="ha").joke, str)


def terminal_events(timed_out: WorkflowTimedOutEvent, failed: WorkflowFailedEvent) -> None:
    assert_type(timed_out.timeout, float)
    assert_type(timed_out.active_steps, list[str])
    assert_type(failed.exception, BaseException)
    assert_type(failed.attempts, int | None)


# --- Steps and workflows ----------------------------------------------------------------------


class Plain(Workflow):
    @step
    async def one(self, ctx: Context, ev: StartEvent) -> Found | None:
        ctx.write_event_to_stream(Found(url=ev.url))
        ctx.write_event_to_stream(None)
        ctx.write_event_to_stream("text")  # type: ignore[arg-type]
        assert_type(ctx.send_event(Found(url="u"), step="two"), tuple[str, ...])
        assert_type(await ctx.running_steps(), list[str])
        assert_type(ctx.is_running, bool)
        assert_type(Context.get_step_context(), Context[Any])
        return Found(url="u")

    @step(num_workers=2, skip_graph_checks=["dead_end"], accept_event_subclasses=True)
    async def two(self, ev: Found) -> StopEvent:
        return StopEvent(result=ev.rank)


class FanOut(Workflow):
    @step
    async def split(self, ev: StartEvent) -> list[Found]:
        return [Found(url="a"), Ranked(url="b", score=1)]

    @step(timeout=2.5, num_workers=8)
    def rank(self, ev: Found) -> Ranked | None:
        return Ranked(url=ev.url, score=1.0)

    @step
    async def first_two(self, evs: Annotated[list[Ranked], Collect(Take(2))]) -> Basket:
        assert_type(evs, list[Ranked])
        return Basket(items=[ev.url for ev in evs], keys={}, values=len(evs))

    @step
    async def whole(self, evs: list[Ranked]) -> None:
        assert_type(evs[0].score, float)

    @step
    async def pair(self, ctx: Context, one: Basket, other: Found) -> StopEvent:
        return StopEvent(result=(one.items, other.url))


def policies() -> None:
    assert_type(Collect(Take(2, cancel=True)), Collect)
    Collect(All())
    Collect()
    Collect(2)  # type: ignore[arg-type]
    Take("2")  # type: ignore[arg-type]
    Take(2, True)  # type: ignore[call-arg]


class Waits(Workflow):
    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        answer = await ctx.wait_for_event(
            HumanResponseEvent,
            waiter_event=InputRequiredEvent(prompt="?"),
            waiter_id="q",
            requirements={"user": "me"},
            timeout=None,
        )
        assert_type(answer, HumanResponseEvent)
        assert_type(await ctx.wait_for_event(Ranked), Ranked)
        await ctx.wait_for_event("Ranked")  # type: ignore[arg-type]
        await ctx.wait_for_event(int)  # type: ignore[type-var]
        return StopEvent()

    @step
    async def collect(self, ctx: Context, ev: Found | Basket) -> StopEvent | None:
        found = ctx.collect_events(ev, [Found, Basket], buffer_id="b")
        assert_type(found, list[Event] | None)
        ctx.collect_events(ev, (Found, Found))
        ctx.collect_events(ev, Found)  # type: ignore[arg-type]
        return None if found is None else StopEvent(result=found)

    @step
    async def relay(self, ctx: Context, ev: Ranked) -> StopEvent:
        assert_type(await ctx.relay_events(Joke().run(topic="tea")), JokeEvent)
        assert_type(await ctx.relay_events(Plain().run()), Any)
        await ctx.relay_events(Joke())  # type: ignore[arg-type]
        return StopEvent()


def internal_events(changed: StepStateChanged, stalled: WorkflowStalledError) -> None:
    assert_type(changed.step_state, StepState)
    assert_type(changed.output_event_name, str | None)
    assert_type(WorkflowIdleEvent(), WorkflowIdleEvent)
    assert_type(stalled.last_acts, dict[str, str])
    assert_type(stalled.missing, tuple[tuple[str, str], ...])


class Joke(Workflow[JokeEvent]):
    @step()
    async def tell(self, ev: TopicStart) -> JokeEvent:
        return JokeEvent(joke=ev.topic)


@step(workflow=Plain)
async def free(ev: Ranked) -> StopEvent:
    return StopEvent(result=ev.score)


@step
async def unbound(ev: Ranked) -> StopEvent:
    return StopEvent()


async def signatures(plain: Plain, joke: Joke, ctx: Context) -> None:
    assert_type(await plain.one(ctx, StartEvent()), Found | None)
    assert_type(await plain.two(Found(url="u")), StopEvent)
    assert_type(await joke.tell(TopicStart(topic="tea")), JokeEvent)
    assert_type(await free(Ranked(url="u", score=1.0)), StopEvent)
    await plain.two("u")  # type: ignore[arg-type]
    assert_type(FanOut().rank(Found(url="u")), Ranked | None)
    assert_type(await FanOut().split(StartEvent()), list[Found])
    Plain.add_step(unbound)


def wrong_arguments() -> None:
    Plain(timeout="5")  # type: ignore[arg-type]
    Plain(skip_graph_checks=["dead_ends"])  # type: ignore[list-item]
    Plain(timeout=None, verbose=True, workflow_name="tea", cleanup_timeout=1)
    Plain(num_concurrent_runs=2, stall_check=False)
    Plain(slow_step_warning=None)
    Plain(slow_step_warning="0.5")  # type: ignore[arg-type]
    Plain(converter=Converter())
    Plain(converter="json")  # type: ignore[arg-type]
    Plain(num_concurrent_runs="2")  # type: ignore[arg-type]
    Plain(stall_check="no")  # type: ignore[arg-type]
    step(timeout="2")  # type: ignore[call-overload]
    step(workers=2)  # type: ignore[call-overload]
    step(workflow=int)  # type: ignore[arg-type]


# --- Running ----------------------------------------------------------------------------------


async def results(plain: Plain, joke: Joke) -> None:
    assert_type(joke.run(topic="tea"), WorkflowHandler[JokeEvent])
    assert_type(await joke.run(start_event=TopicStart(topic="tea"), run_id="1"), JokeEvent)
    assert_type((await joke.run(topic="tea")).joke, str)
    assert_type(await plain.run(url="u"), Any)
    assert_type(await Joke(timeout=None).run(topic="tea"), JokeEvent)
    joke.run(start_event=Found(url="u"))  # type: ignore[arg-type]


async def handlers(joke: Joke) -> None:
    async with joke.run(topic="tea") as handler:
        assert_type(handler, WorkflowHandler[JokeEvent])
        async for ev in handler.stream_events(expose_internal=True):
            assert_type(ev, Event)
            if isinstance(ev, Found):
                assert_type(ev.url, str)
        assert_type(await handler.send_event(Found(url="u"), step="two"), tuple[str, ...])
        for wait in handler.open_waits():
            assert_type(wait, OpenWait)
            assert_type(wait.question, Event | None)
            assert_type(await handler.send_event(Found(url="u"), wait=wait.id), tuple[str, ...])
        assert_type(handler.ctx.open_waits(), list[OpenWait])
        handler.ctx.retry_failed()
        await handler.cancel_run(timeout=1)
        assert_type(await handler.stop_event_result(), StopEvent)
        assert_type(handler.get_stop_event(), StopEvent | None)
        assert_type(handler.is_done(), bool)
        assert_type(handler.done() and handler.cancelled(), bool)
        assert_type(handler.exception(), BaseException | None)
        assert_type(handler.result(), JokeEvent)
        assert_type(handler.run_id, str)
        assert_type(handler.ctx, Context[Any])
        assert_type(handler.statistics().unread_events, int)
        assert_type(await handler, JokeEvent)
    assert_type(await anext(handler.stream_events()), Event)


def about(joke: Joke) -> None:
    assert_type(joke.workflow_name, str)
    assert_type(joke.events, list[type[Event]])
    assert_type(joke.start_event_class, type[Event])
    assert_type(joke.stop_event_class, type[Event])
    assert_type(list(joke.graph.steps), list[str])
    assert_type(joke.validate(validate_resources=True), bool)
    Joke(runtime=None)  # type: ignore[call-arg]


class Undecided(Workflow[T]):
    """A workflow that leaves its result open."""


async def open_result(workflow: Undecided[int]) -> None:
    assert_type(await workflow.run(), int)


class PlainStart(StartEvent):
    """Declares nothing, so it is open."""


def open_subclasses(start: PlainStart) -> None:
    assert_type(start.anything, Any)


class Bearable:
    """A retry policy of one's own."""

    def next(self, elapsed_time: float, attempts: int, error: Exception) -> float | None:
        return None if attempts > 3 or elapsed_time > 60 else 0.5


class Careful(Workflow):
    @step(retry_policy=Bearable())
    async def fetch(self, ctx: Context, ev: StartEvent) -> Found:
        assert_type(ctx.retry_info(), RetryInfo)
        assert_type(ctx.retry_info().last_exception, Exception | None)
        return Found(url="u")

    @step(retry_policy=retry_policy(retry_always(), wait_fixed(1) + wait_random(0, 1)))
    async def read(self, ev: Found) -> StopEvent:
        return StopEvent()

    @catch_error(for_steps=["fetch"], max_recoveries=2)
    async def rescue(self, ev: StepFailedEvent) -> Found:
        assert_type(ev.exception, Exception)
        assert_type(ev.attempts, int)
        return Found(url=ev.step_name)

    @catch_error
    async def give_up(self, ev: StepFailedEvent) -> StopEvent:
        return StopEvent(result=ev.exception)


policy: RetryPolicy = Bearable()
retry_policy(retry_always() | retry_never, stop=stop_never)
retry_policy(retry_always & retry_never(), stop=stop_never())
step(retry_policy=3)  # type: ignore[call-overload]


# --- State, snapshots, resources --------------------------------------------------------------


@attrs.define
class Count:
    n: int = 0


async def make_client() -> str:
    return "client"


class Counts(Workflow):
    @step
    async def count(
        self,
        ctx: Context[Count],
        ev: StartEvent,
        client: Annotated[str, Resource(make_client)],
        pool: Annotated[str, Resource(make_client, scope="workflow")],
        limits: Annotated[Count, ResourceConfig("limits.toml", path_selector="limits")],
    ) -> StopEvent:
        async with ctx.store.edit_state() as state:
            assert_type(state, Count)
        assert_type(await ctx.store.get_state(), Count)
        assert_type(client, str)
        await ctx.store.set_state(Found(url="u"))  # type: ignore[arg-type]
        return StopEvent()

    @step
    async def untyped(self, ctx: Context, ev: Found) -> None:
        state = await ctx.store.get_state()
        assert_type(state, DictState)
        await ctx.store.set("a.b", 1)


async def outlives(workflow: Counts) -> None:
    ctx = Context(workflow)
    handler = workflow.run(ctx)
    data = handler.ctx.to_dict()
    assert_type(data, dict[str, Any])
    again = Context.from_dict(workflow, data, types=[Count])
    assert_type(again.has_work_left, bool)
    again.discard_work()
    workflow.run(ctx=again, start_event=StartEvent())
    async with workflow as entered:
        assert_type(entered, Counts)
    assert_type(await run_with_checkpoints(Joke(), "job.json", topic="tea"), JokeEvent)
