"""The jobs as workflows."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import attrs
from anyio.lowlevel import checkpoint

from anyio_workflows import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowHandler,
    step,
)
from anyio_workflows.retry_policy import retry_policy
from anyio_workflows.runtime import Runtime

from .gates import Gate

TIMEOUT = 600.0


class CountDown(StartEvent):
    left: int


class Turn(Event):
    left: int


class Ping(Event):
    left: int


class Pong(Event):
    left: int


class Progress(Event):
    number: int


class Group(Event):
    first: int
    size: int


class Item(Event):
    number: int


class Scored(Event):
    score: int


class GroupScored(Event):
    score: int


class Question(InputRequiredEvent):
    number: int


class Answer(HumanResponseEvent):
    number: int


@attrs.define
class Count:
    turns: int = 0


class WaitAt(StartEvent):
    gate: Gate


class Loop(Workflow[None]):
    """A step that starts itself again until the count is down."""

    @step
    async def begin(self, ev: CountDown) -> Turn:
        return Turn(left=ev.left)

    @step
    async def turn(self, ev: Turn) -> Turn | StopEvent:
        if ev.left:
            return Turn(left=ev.left - 1)
        return StopEvent()


class RetryingLoop(Workflow[None]):
    """A loop whose step would be retried if it failed."""

    @step
    async def begin(self, ev: CountDown) -> Turn:
        return Turn(left=ev.left)

    @step(retry_policy=retry_policy())
    async def turn(self, ev: Turn) -> Turn | StopEvent:
        return Turn(left=ev.left - 1) if ev.left else StopEvent()


class CountingLoop(Workflow[None]):
    """A loop that writes typed state in each turn."""

    @step
    async def begin(self, ev: CountDown) -> Turn:
        return Turn(left=ev.left)

    @step
    async def turn(self, ctx: Context[Count], ev: Turn) -> Turn | StopEvent:
        async with ctx.store.edit_state() as state:
            state.turns += 1
        return Turn(left=ev.left - 1) if ev.left else StopEvent()


class PingPong(Workflow[None]):
    """Two steps that start each other until the count is down."""

    @step
    async def begin(self, ev: CountDown) -> Ping:
        return Ping(left=ev.left)

    @step
    async def ping(self, ev: Ping) -> Pong | StopEvent:
        return Pong(left=ev.left - 1) if ev.left else StopEvent()

    @step
    async def pong(self, ev: Pong) -> Ping | StopEvent:
        return Ping(left=ev.left - 1) if ev.left else StopEvent()


class Queue(Workflow[None]):
    """A step that sends many events before the first of them is handled."""

    @step
    async def fill(self, ctx: Context, ev: CountDown) -> Item | None:
        for number in reversed(range(ev.left)):
            ctx.send_event(Item(number=number))
        return None

    @step(num_workers=1)
    async def take(self, ev: Item) -> StopEvent | None:
        return None if ev.number else StopEvent()


class SavedQueue(Workflow[int]):
    """A step that sends many events and writes a snapshot of the run."""

    @step
    async def fill(self, ctx: Context, ev: CountDown) -> Item | StopEvent:
        for number in range(ev.left):
            ctx.send_event(Item(number=number))
        return StopEvent(result=len(json.dumps(ctx.to_dict())))

    @step(num_workers=1)
    async def take(self, ev: Item) -> None: ...


class Stream(Workflow[None]):
    """One step that writes many events and never waits."""

    @step
    async def write(self, ctx: Context, ev: CountDown) -> StopEvent:
        for number in range(ev.left):
            ctx.write_event_to_stream(Progress(number=number))
        return StopEvent()


class LiveStream(Workflow[None]):
    """One step that yields to other tasks after each event it writes."""

    @step
    async def write(self, ctx: Context, ev: CountDown) -> StopEvent:
        for number in range(ev.left):
            ctx.write_event_to_stream(Progress(number=number))
            await checkpoint()
        return StopEvent()


class Trivial(Workflow[int]):
    """One step that passes its input on."""

    @step
    async def only(self, ev: CountDown) -> StopEvent:
        return StopEvent(result=ev.left)


class Waiting(Workflow[None]):
    """One step that waits at a gate."""

    @step
    async def wait(self, ev: WaitAt) -> StopEvent:
        await ev.gate.wait()
        return StopEvent()


class FanOut(Workflow[int]):
    """A list of items, a step for each, and a join."""

    @step
    async def split(self, ev: CountDown) -> list[Item]:
        return [Item(number=number) for number in range(ev.left)]

    @step(num_workers=4)
    async def score(self, ev: Item) -> Scored:
        return Scored(score=ev.number)

    @step
    async def join(self, events: list[Scored]) -> StopEvent:
        return StopEvent(result=sum(event.score for event in events))


class SleepyFanOut(FanOut):
    """The same with a hundred workers that really wait."""

    @step(num_workers=100)
    async def score(self, ev: Item) -> Scored:
        await anyio.sleep(0.001)
        return Scored(score=ev.number)


class NestedFanOut(Workflow[int]):
    """A list of groups, each a list of ten items; a join for each group, and one for all."""

    @step
    async def split(self, ev: CountDown) -> list[Group]:
        return [Group(first=first, size=10) for first in range(0, ev.left, 10)]

    @step(num_workers=4)
    async def split_group(self, ev: Group) -> list[Item]:
        return [Item(number=ev.first + number) for number in range(ev.size)]

    @step(num_workers=4)
    async def score(self, ev: Item) -> Scored:
        return Scored(score=ev.number)

    @step(num_workers=4)
    async def join_group(self, events: list[Scored]) -> GroupScored:
        return GroupScored(score=sum(event.score for event in events))

    @step
    async def join(self, events: list[GroupScored]) -> StopEvent:
        return StopEvent(result=sum(event.score for event in events))


class Questions(Workflow[int]):
    """A list of items, each of which asks a question and waits for its answer."""

    @step
    async def split(self, ev: CountDown) -> list[Item]:
        return [Item(number=number) for number in range(ev.left)]

    @step(num_workers=4)
    async def ask(self, ctx: Context, ev: Item) -> Scored:
        answer = await ctx.wait_for_event(
            Answer,
            waiter_event=Question(number=ev.number),
            waiter_id=str(ev.number),
            requirements={"number": ev.number},
        )
        return Scored(score=answer.number)

    @step
    async def join(self, events: list[Scored]) -> StopEvent:
        return StopEvent(result=sum(event.score for event in events))


async def loop(steps: int) -> None:
    await Loop(timeout=TIMEOUT).run(left=steps)


async def retrying_loop(steps: int) -> None:
    await RetryingLoop(timeout=TIMEOUT).run(left=steps)


async def counting_loop(steps: int) -> None:
    await CountingLoop(timeout=TIMEOUT).run(left=steps)


async def ping_pong(steps: int) -> None:
    await PingPong(timeout=TIMEOUT).run(left=steps)


async def queue(items: int) -> None:
    await Queue(timeout=TIMEOUT).run(left=items)


async def snapshot(items: int) -> None:
    assert await SavedQueue(timeout=TIMEOUT).run(left=items) > items


async def stream(events: int) -> None:
    await _count_streamed(Stream(timeout=TIMEOUT), events)


async def live_stream(events: int) -> None:
    await _count_streamed(LiveStream(timeout=TIMEOUT), events)


async def _count_streamed(workflow: Workflow[None], events: int) -> None:
    seen = 0
    async for event in workflow.run(left=events).stream_events():
        if isinstance(event, Progress):
            seen += 1
    assert seen == events


async def trivial(runs: int) -> None:
    workflow = Trivial(timeout=TIMEOUT)
    for number in range(runs):
        assert await workflow.run(left=number) == number


async def fan_out(items: int) -> None:
    assert await FanOut(timeout=TIMEOUT).run(left=items) == sum(range(items))


shared_fan_out = fan_out  # a join is a step


async def sleepy_fan_out(items: int) -> None:
    assert await SleepyFanOut(timeout=TIMEOUT).run(left=items) == sum(range(items))


async def nested_fan_out(items: int) -> None:
    assert await NestedFanOut(timeout=TIMEOUT).run(left=items) == sum(range(items))


async def questions(items: int) -> None:
    handler = Questions(timeout=TIMEOUT).run(left=items)
    asked: list[int] = []
    async for event in handler.stream_events():
        if isinstance(event, Question):
            asked.append(event.number)
            if len(asked) == items:
                for number in asked:
                    await handler.send_event(Answer(number=number))
    assert await handler == sum(range(items))


class WaitingRuns:
    """Many runs that have started and wait at a gate, until the block is left."""

    def __init__(self, runs: int) -> None:
        self._gate = Gate(runs)
        self._handlers: list[WorkflowHandler[None]] = []

    async def __aenter__(self) -> None:
        workflow = Waiting(timeout=TIMEOUT)
        self._handlers = [workflow.run(gate=self._gate) for _ in range(self._gate.expected)]
        await self._gate.crowded.wait()

    async def __aexit__(self, *_: object) -> None:
        self._gate.open()
        for handler in self._handlers:
            await handler


@asynccontextmanager
async def kept_waiting_runs(runs: int) -> AsyncIterator[None]:
    """Have a runtime keep such runs in memory, until the block is left."""
    gate = Gate(runs)
    workflows = [Waiting(timeout=TIMEOUT)]
    async with Runtime(workflows=workflows, max_runs=runs, keep_ended=runs) as runtime:
        started = [await runtime.start(Waiting, gate=gate) for _ in range(runs)]
        await gate.crowded.wait()
        yield
        gate.open()
        for run in started:
            await run


async def concurrent_runs(runs: int) -> None:
    async with WaitingRuns(runs):
        pass
