# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""What type checkers make of the public names: checked by mypy and pyright, never executed.

A comment that ignores an error is an assertion too: both report one that is not needed.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar, assert_type

import attrs

from anyio_workflows import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowFailedEvent,
    WorkflowHandler,
    WorkflowTimedOutEvent,
    step,
)

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


def open_events(start: StartEvent, topic: TopicStart) -> None:
    assert_type(start.anything, Any)
    assert_type(topic.topic, str)
    assert_type(StartEvent(topic="tea", count=3), StartEvent)
    assert_type(InputRequiredEvent(prompt="?"), InputRequiredEvent)
    assert_type(HumanResponseEvent(response="!"), HumanResponseEvent)
    assert_type(StopEvent(result=3, why="so").result, Any)
    assert_type(StopEvent(), StopEvent)
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
        ctx.send_event(Found(url="u"), step="two")
        assert_type(await ctx.running_steps(), list[str])
        assert_type(ctx.is_running, bool)
        assert_type(Context.get_step_context(), Context)
        return Found(url="u")

    @step(num_workers=2, skip_graph_checks=["dead_end"], accept_event_subclasses=True)
    async def two(self, ev: Found) -> StopEvent:
        return StopEvent(result=ev.rank)


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
    Plain.add_step(unbound)


def wrong_arguments() -> None:
    Plain(timeout="5")  # type: ignore[arg-type]
    Plain(skip_graph_checks=["dead_ends"])  # type: ignore[list-item]
    Plain(timeout=None, verbose=True, workflow_name="tea", cleanup_timeout=1)
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
        await handler.send_event(Found(url="u"), step="two")
        await handler.cancel_run(timeout=1)
        assert_type(await handler.stop_event_result(), StopEvent)
        assert_type(handler.get_stop_event(), StopEvent | None)
        assert_type(handler.is_done(), bool)
        assert_type(handler.run_id, str)
        assert_type(handler.ctx, Context)
        assert_type(handler.statistics().unread_events, int)
        assert_type(await handler, JokeEvent)
    assert_type(await anext(handler.stream_events()), Event)


def about(joke: Joke) -> None:
    assert_type(joke.workflow_name, str)
    assert_type(joke.events, list[type[Event]])
    assert_type(joke.start_event_class, type[Event])
    assert_type(joke.stop_event_class, type[Event])
    assert_type(list(joke.graph.steps), list[str])
    joke.validate()


class Undecided(Workflow[T]):
    """A workflow that leaves its result open."""


async def open_result(workflow: Undecided[int]) -> None:
    assert_type(await workflow.run(), int)


class PlainStart(StartEvent):
    """Declares nothing, so it is open."""


def open_subclasses(start: PlainStart) -> None:
    assert_type(start.anything, Any)
