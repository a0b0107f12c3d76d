"""The workers of runs that are kept: they wait for commits, and execute steps as all workers do (rules D1, O7)."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any

import anyio
import pytest

from anyio_workflows import Event, Runtime, StartEvent, StopEvent, Workflow, step
from anyio_workflows.runtime import MemoryStore

from .running import on_asyncio

pytestmark = pytest.mark.anyio

COLOR = ContextVar("COLOR", default="white")


class Turn(Event):
    left: int


class Chain(Workflow[list[Any]]):
    """Calls a function in each of its ten steps, and ends with what that returned."""

    seen: list[Any]

    @step
    async def begin(self, ev: StartEvent) -> Turn:
        self.seen = [await self.act()]
        return Turn(left=8)

    @step
    async def turn(self, ev: Turn) -> Turn | StopEvent:
        self.seen.append(await self.act())
        return Turn(left=ev.left - 1) if ev.left else StopEvent(result=self.seen)

    async def act(self) -> Any:
        return anyio.get_current_task().id


async def result_of(workflow: Workflow[Any]) -> Any:
    async with Runtime(MemoryStore(), workflows=[workflow]) as runtime:
        with anyio.fail_after(60):
            return await (await runtime.start(type(workflow)))


async def test_d1_the_steps_of_a_chain_are_executed_by_one_worker() -> None:
    tasks = await result_of(Chain())
    assert len(tasks) == 10
    assert len(set(tasks)) == 1  # to begin a task for each would take 30 us


async def test_o7_no_step_sees_the_context_variables_of_the_one_before() -> None:
    class Paints(Chain):
        async def act(self) -> str:
            color = COLOR.get()
            COLOR.set("red")
            return color

    assert await result_of(Paints()) == ["white"] * 10


@on_asyncio
async def test_o3_a_worker_that_is_cancelled_while_it_waits_is_replaced() -> None:
    class Cancels(Chain):
        async def act(self) -> int:
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_soon(task.cancel)
            return id(task)

    assert len(await result_of(Cancels())) == 10


class Item(Event):
    n: int


class Met(Event):
    n: int


class Spreads(Workflow[int]):
    """Ends when four of its steps have run at the same time, after they were one step."""

    def __init__(self) -> None:
        super().__init__()
        self.running, self.all_here = 0, anyio.Event()

    @step
    async def begin(self, ev: StartEvent) -> Turn:
        return Turn(left=0)

    @step
    async def spread(self, ev: Turn) -> list[Item]:
        return [Item(n=n) for n in range(4)]

    @step(num_workers=4)
    async def meet(self, ev: Item) -> Met:
        self.running += 1
        if self.running == 4:
            self.all_here.set()
        await self.all_here.wait()
        return Met(n=ev.n)

    @step
    async def join(self, events: list[Met]) -> StopEvent:
        return StopEvent(result=sum(event.n for event in events))


async def test_d1_what_was_committed_together_runs_at_the_same_time() -> None:
    assert await result_of(Spreads()) == 6
