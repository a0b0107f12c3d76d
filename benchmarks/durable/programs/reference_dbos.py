"""The jobs as workflows of llama-index-workflows that its DBOS plugin runs."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

import measured
from dbos import DBOS
from llama_agents.dbos import DBOSRuntime
from measured import Countdown, Course, Job, Measurement
from workflows import Context, Workflow, step
from workflows.events import (
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
)

course: Course
waiting: Countdown
finished: Countdown | None = None
resumed: asyncio.Queue[float] = asyncio.Queue()
fan_clock = measured.Clock()


class CountDown(StartEvent):
    left: int


class Turn(Event):
    left: int


class Question(InputRequiredEvent):
    number: int


class Answer(HumanResponseEvent):
    number: int


class Item(Event):
    number: int


class Scored(Event):
    score: int


class Loop(Workflow):
    @step
    async def begin(self, ev: CountDown) -> Turn:
        await course.arrive()
        return Turn(left=ev.left)

    @step
    async def turn(self, ev: Turn) -> Turn | StopEvent:
        return Turn(left=ev.left - 1) if ev.left else StopEvent()


class Trivial(Workflow):
    @step
    async def only(self, ev: CountDown) -> StopEvent:
        return StopEvent(result=ev.left)


class Asking(Workflow):
    @step
    async def ask(self, ctx: Context, ev: CountDown) -> StopEvent:
        answer = await ctx.wait_for_event(
            Answer,
            waiter_event=Question(number=ev.left),
            waiter_id="question",
            requirements={"number": ev.left},
            timeout=None,
        )
        resumed.put_nowait(time.perf_counter())
        return StopEvent(result=answer.number)


class Interrupted(Workflow):
    @step
    async def begin(self, ev: CountDown) -> Turn:
        return Turn(left=ev.left - 1)

    @step
    async def hang(self, ev: Turn) -> StopEvent:
        if finished is None:
            waiting.come()
            await asyncio.Event().wait()
        else:
            finished.come()
        return StopEvent()


class FanOut(Workflow):
    @step
    async def split(self, ev: CountDown) -> list[Item]:
        fan_clock.begin()
        return [Item(number=number) for number in range(ev.left)]

    @step(num_workers=4)
    async def score(self, ev: Item) -> Scored:
        return Scored(score=ev.number)

    @step
    async def join(self, events: list[Scored]) -> StopEvent:
        return StopEvent(result=sum(event.score for event in events))


async def launch(job: Job, workflow_class: type[Workflow]) -> Workflow:
    DBOS(
        config={
            "name": "benchmark",
            "system_database_url": job["database"],
            "application_version": "1",
            "log_level": "ERROR",
        }
    )
    runtime = DBOSRuntime()
    workflow = workflow_class(timeout=None, runtime=runtime)
    await runtime.launch()
    return workflow


async def steps(job: Job) -> Measurement:
    workflow = await launch(job, Loop)
    await race(workflow, 1, 10)  # warms up
    await race(workflow, job["runs"], job["steps"])
    course.clock.end()
    return course.each()


async def race(workflow: Workflow, runs: int, steps: int) -> None:
    global course
    course = Course(runs, steps, asyncio.Event)
    for handler in [workflow.run(left=steps - 2) for _ in range(runs)]:
        await handler


async def start(job: Job) -> Measurement:
    workflow = await launch(job, Trivial)
    ends = []
    for number in range(job["runs"]):
        begun = time.perf_counter()
        await workflow.run(left=number)
        ends.append(time.perf_counter() - begun)
    return {"end": measured.median(ends)}  # `run` returns before anything is kept


async def ask(workflow: Workflow, runs: int) -> list[Any]:
    """Start runs, and return their handlers when all wait."""
    handlers = [workflow.run(left=number) for number in range(runs)]
    for handler in handlers:
        async for event in handler.stream_events():
            if isinstance(event, Question):
                break
    return handlers


async def answers(job: Job) -> Measurement:
    handlers = await ask(await launch(job, Asking), job["runs"])
    waits = []
    for number, handler in enumerate(handlers):
        begun = time.perf_counter()
        await handler.send_event(Answer(number=number))
        waits.append(await resumed.get() - begun)
    return {"seconds": measured.median(waits)}


async def wait(job: Job) -> Measurement:
    workflow = await launch(job, Asking)
    kept = await ask(workflow, 10)
    disk, memory = size(job), measured.memory()
    kept += await ask(workflow, job["runs"])
    grown = measured.memory() - memory
    return {"memory": grown / job["runs"], "disk": (size(job) - disk) / job["runs"]}


def size(job: Job) -> int:
    """Return the size of the database in bytes."""
    import psycopg

    with psycopg.connect(job["database"].replace("+psycopg", ""), autocommit=True) as database:
        database.execute("checkpoint")
        [found] = database.execute("select pg_database_size(current_database())").fetchone() or [0]
        return int(found)


async def interrupt(job: Job) -> Measurement:
    global waiting
    all_wait = asyncio.Event()
    waiting = Countdown(job["runs"], all_wait.set)
    workflow = await launch(job, Interrupted)
    handlers = [workflow.run(left=2) for _ in range(job["runs"])]
    await all_wait.wait()
    measured.wait_to_be_killed(handlers)


async def recover(job: Job) -> Measurement:
    global finished
    done = asyncio.Event()
    announce = partial(asyncio.get_running_loop().call_soon_threadsafe, done.set)
    finished = Countdown(job["runs"], announce)
    clock = measured.Clock()
    clock.begin()
    await launch(job, Interrupted)
    await done.wait()
    clock.end()
    return clock.each(job["runs"])


async def fan_out(job: Job) -> Measurement:
    workflow = await launch(job, FanOut)
    for items in (10, job["items"]):  # the first warms up
        assert await workflow.run(left=items) == sum(range(items))
    fan_clock.end()
    return fan_clock.each(job["items"])


JOBS = {
    "steps": steps,
    "start": start,
    "answers": answers,
    "wait": wait,
    "interrupt": interrupt,
    "recover": recover,
    "fan_out": fan_out,
}

if __name__ == "__main__":
    measured.main(JOBS, lambda job: asyncio.run(job()))
