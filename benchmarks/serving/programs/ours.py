"""Our server: uvicorn on asyncio, hypercorn on trio."""

from __future__ import annotations

import anyio
from told import OPTIONS, listening

from anyio_workflows import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from anyio_workflows.runtime import Runtime
from anyio_workflows.server import WorkflowServer


class Order(StartEvent):
    number: int


class Ready(InputRequiredEvent):
    number: int


class Go(HumanResponseEvent):
    events: int
    delay: float


class Answer(HumanResponseEvent):
    number: int


class Token(Event):
    number: int
    text: str


class Trivial(Workflow[int]):
    """A run of one step."""

    @step
    async def only(self, ev: Order) -> StopEvent:
        return StopEvent(result=ev.number)


class Writing(Workflow[int]):
    """Write events when told to."""

    @step
    async def begin(self, ev: Order) -> Ready:
        return Ready(number=ev.number)

    @step
    async def write(self, ctx: Context, ev: Go) -> StopEvent:
        for number in range(ev.events):
            ctx.write_event_to_stream(Token(number=number, text="a token"))
            await anyio.sleep(ev.delay)
        return StopEvent(result=ev.events)


class Asking(Workflow[int]):
    """Wait for an answer."""

    @step
    async def ask(self, ctx: Context, ev: Order) -> StopEvent:
        answer = await ctx.wait_for_event(Answer, Ready(number=ev.number), timeout=None)
        return StopEvent(result=answer.number)


async def main() -> None:
    runtime = Runtime(
        OPTIONS.get("database"),
        workflows=[Trivial(timeout=None), Writing(timeout=None), Asking(timeout=None)],
        max_runs=20_000,
        keep_ended=20_000,
        idle_after=OPTIONS.get("idle_after"),
    )
    async with anyio.create_task_group() as group:
        listening(await group.start(WorkflowServer(runtime).serve, "127.0.0.1", 0))


if __name__ == "__main__":
    anyio.run(main, backend=OPTIONS["backend"])
