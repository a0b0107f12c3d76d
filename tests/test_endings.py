"""Every shape of workflow ends as promised, whatever happens to it (T1-T8, S1-S3, R2).

ENDINGS_EXAMPLES sets how many scenarios are run for each shape and backend.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any

import anyio
import pytest

from anyio_workflows import (
    Context,
    Event,
    StartEvent,
    StepFailedEvent,
    StopEvent,
    Workflow,
    catch_error,
    step,
)
from anyio_workflows.collect import Collect, Take
from anyio_workflows.resource import Resource
from anyio_workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed
from anyio_workflows.testing import (
    End,
    Moment,
    Scenario,
    cancel_everywhere,
    check_termination,
    replay,
)

from .conftest import BACKENDS
from .samples import Answer, Item, Next, Other, Part, Question

EXAMPLES = int(os.environ.get("ENDINGS_EXAMPLES", "60"))


class Limited(Workflow):
    """Lets the checker set the limits."""

    def __init__(self, timeout: float = 100.0, cleanup_timeout: float = 5.0) -> None:
        super().__init__(timeout=timeout, cleanup_timeout=cleanup_timeout)


class Loop(Limited):
    @step
    async def begin(self, ev: StartEvent) -> Item:
        return Item(n=4)

    @step
    async def turn(self, ctx: Context, ev: Item) -> Item | StopEvent:
        ctx.write_event_to_stream(ev)
        if ev.n % 2:
            await anyio.sleep(1)
        return Item(n=ev.n - 1) if ev.n else StopEvent(result="done")


class Batches(Limited):
    """Two levels of batches, fewer workers than branches."""

    @step
    async def begin(self, ev: StartEvent) -> list[Next]:
        return [Next(n=n) for n in range(2)]

    @step
    async def open(self, ev: Next) -> list[Item]:
        return [Item(n=n) for n in range(3)]

    @step(num_workers=2)
    async def work(self, ctx: Context, ev: Item) -> Part | None:
        await anyio.sleep(ev.n)
        ctx.write_event_to_stream(ev)
        return Part(n=ev.n) if ev.n else None

    @step
    async def close(self, evs: list[Part]) -> Other:
        return Other(n=len(evs))

    @step
    async def end(self, evs: list[Other]) -> StopEvent:
        return StopEvent(result=[ev.n for ev in evs])


class Race(Limited):
    """The first one cancels the rest, which takes its time."""

    @step
    async def begin(self, ev: StartEvent) -> list[Item]:
        return [Item(n=n) for n in range(3)]

    @step
    async def work(self, ev: Item) -> Part:
        try:
            await anyio.sleep(1 + ev.n)
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.5)
            raise
        return Part(n=ev.n)

    @step
    async def end(self, evs: Annotated[list[Part], Collect(Take(1, cancel=True))]) -> StopEvent:
        return StopEvent(result=len(evs))


class Pairs(Limited):
    """A set, a collector, and events that are sent."""

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Item | Part:
        ctx.send_event(Item(n=1))
        ctx.send_event(Part(n=1))
        return Item(n=2)

    @step
    async def work(self, ctx: Context, ev: Item) -> Other | None:
        both = ctx.collect_events(ev, [Item, Item])
        await anyio.sleep(1)
        return None if both is None else Other(n=2)

    @step
    async def end(self, part: Part, other: Other) -> StopEvent:
        return StopEvent(result=part.n + other.n)


class Asks(Limited):
    """Waits for people, one worker for all of them."""

    @step
    async def begin(self, ev: StartEvent) -> list[Item]:
        return [Item(n=n) for n in range(2)]

    @step(num_workers=1)
    async def ask(self, ctx: Context, ev: Item) -> Part:
        question = Question(n=ev.n)
        answer = await ctx.wait_for_event(Answer, question, requirements={"n": ev.n}, timeout=None)
        return Part(n=answer.n)

    @step
    async def end(self, evs: list[Part]) -> StopEvent:
        return StopEvent(result=sorted(ev.n for ev in evs))


def reply(event: Event) -> Event | None:
    return Answer(n=event.n) if isinstance(event, Question) else None


class Flaky(Limited):
    """Fails, is tried again, and is recovered."""

    @step
    async def begin(self, ev: StartEvent) -> list[Item]:
        return [Item(n=n) for n in range(3)]

    @step(num_workers=1, retry_policy=retry_policy(wait=wait_fixed(1), stop=stop_after_attempt(2)))
    async def work(self, ctx: Context, ev: Item) -> Part:
        if ev.n == 1 or (ev.n == 2 and not ctx.retry_info().retry_number):
            raise ValueError(ev.n)
        return Part(n=ev.n)

    @catch_error(for_steps=["work"], max_recoveries=5)
    async def recover(self, ev: StepFailedEvent) -> Part:
        return Part(n=-1)

    @step
    async def end(self, evs: list[Part]) -> StopEvent:
        return StopEvent(result=sorted(ev.n for ev in evs))


async def held() -> AsyncIterator[str]:
    with anyio.CancelScope():
        yield "it"
        await anyio.sleep(0.5)


def brief() -> Iterator[str]:
    yield "it"


class Supplied(Limited):
    """Holds resources, edits a state, and bounds its attempts."""

    @step
    async def begin(self, ev: StartEvent) -> list[Item]:
        return [Item(n=n) for n in range(3)]

    @step(timeout=50)
    async def work(
        self,
        ctx: Context,
        ev: Item,
        lasting: Annotated[str, Resource(held)],
        short: Annotated[str, Resource(brief, cache=False)],
    ) -> Part:
        async with ctx.store.edit_state() as state:
            await anyio.sleep(0.5)
            state.sum = state.get("sum", 0) + ev.n
        return Part(n=ev.n)

    @step
    async def end(self, ctx: Context, evs: list[Part]) -> StopEvent:
        return StopEvent(result=await ctx.store.get("sum"))


class Child(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(Item(n=1))
        await anyio.sleep(1)
        return StopEvent(result="child")


class Parent(Limited):
    """Starts a run, relays its events, and leaves another one behind."""

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
        Child(timeout=None).run()
        return StopEvent(result=await ctx.relay_events(Child(timeout=None).run()))


SHAPES: dict[Callable[..., Any], dict[str, Any]] = {
    Loop: {},
    Batches: {},
    Race: {},
    Pairs: {},
    Asks: {"answer": reply},
    Flaky: {},
    Supplied: {},
    Parent: {},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_every_shape_ends_as_promised(shape: Callable[..., Any], backend: str) -> None:
    check_termination(shape, backends=[backend], max_examples=EXAMPLES, **SHAPES[shape])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_every_shape_can_be_cancelled_at_every_checkpoint(
    shape: Callable[..., Any], backend: str
) -> None:
    places = cancel_everywhere(shape, backends=[backend], **SHAPES[shape])
    assert places > 10


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("checkpoints", range(1, 8))
def test_t4_no_step_begins_once_the_end_was_decided_while_its_resources_were_made(
    backend: str, checkpoints: int
) -> None:
    scenario = Scenario(end=End("cancel", at=Moment(checkpoints=checkpoints)))
    replay(Supplied, scenario, backend=backend)
