"""The jobs as workflows of this library: without a runtime, with one in memory, or kept in SQLite."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import measured
from measured import JOB, Countdown, Course, Job, Measurement

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

course: Course
waiting: Countdown
finished: Countdown | None = None
resumed: list[float] = []
resumes = anyio.Event()
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


class Loop(Workflow[None]):
    @step
    async def begin(self, ev: CountDown) -> Turn:
        await course.arrive()
        return Turn(left=ev.left)

    @step
    async def turn(self, ev: Turn) -> Turn | StopEvent:
        return Turn(left=ev.left - 1) if ev.left else StopEvent()


class Trivial(Workflow[int]):
    @step
    async def only(self, ev: CountDown) -> StopEvent:
        return StopEvent(result=ev.left)


class Asking(Workflow[int]):
    @step
    async def ask(self, ctx: Context, ev: CountDown) -> StopEvent:
        waiting.come()
        answer = await ctx.wait_for_event(
            Answer,
            waiter_event=Question(number=ev.left),
            requirements={"number": ev.left},
            timeout=None,
        )
        resumed.append(time.perf_counter())
        resumes.set()
        return StopEvent(result=answer.number)


class Interrupted(Workflow[None]):
    @step
    async def begin(self, ev: CountDown) -> Turn:
        return Turn(left=ev.left - 1)

    @step
    async def hang(self, ev: Turn) -> StopEvent:
        if finished is None:
            waiting.come()
            await anyio.sleep_forever()
        else:
            finished.come()
        return StopEvent()


class FanOut(Workflow[int]):
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


class Unkept:
    """Starts runs in memory, as `Runtime` starts those that are kept."""

    def __init__(self, workflows: list[Workflow[Any]]) -> None:
        self._workflows = {type(workflow): workflow for workflow in workflows}

    async def start(self, workflow_class: type[Workflow[Any]], **fields: Any) -> Any:
        return self._workflows[workflow_class].run(**fields)


@asynccontextmanager
async def opened(job: Job) -> AsyncIterator[Any]:
    """Open what starts runs, which keeps them in memory, in a file, or not at all."""
    classes = (Loop, Trivial, Asking, Interrupted, FanOut)
    workflows = [workflow_class(timeout=None) for workflow_class in classes]
    options = {"workflows": workflows, "max_runs": 100_000}
    if job["kept"] == "no":
        yield Unkept(workflows)
    elif job["kept"] == "in memory":
        async with Runtime(**options) as runtime:
            yield runtime
    else:
        address = f"sqlite:///{job['database']}"
        options |= {"durability": job["kept"], "idle_after": job.get("idle_after")}
        async with Runtime(address, **options) as runtime:
            yield runtime


async def start_all(
    runtime: Any, workflow_class: type[Workflow[Any]], fields: Iterable[Mapping[str, Any]]
) -> list[Any]:
    """Start runs at once, and return them in the order of their fields."""
    runs: dict[int, Any] = {}

    async def start_one(number: int, given: Mapping[str, Any]) -> None:
        runs[number] = await runtime.start(workflow_class, **given)

    async with anyio.create_task_group() as group:
        for number, given in enumerate(fields):
            group.start_soon(start_one, number, given)
    return [runs[number] for number in sorted(runs)]


async def steps(job: Job) -> Measurement:
    async with opened(job) as runtime:
        await race(runtime, 1, 10)  # warms up
        await race(runtime, job["runs"], job["steps"])
        if job["kept"] != "eventual":
            course.clock.end()
    if job["kept"] == "eventual":  # leaving the runtime has written the last of it
        course.clock.end()
    return course.each()


async def race(runtime: Any, runs: int, steps: int) -> None:
    global course
    course = Course(runs, steps, anyio.Event)
    for run in await start_all(runtime, Loop, [{"left": steps - 2}] * runs):
        await run


async def start(job: Job) -> Measurement:
    starts, ends = [], []
    async with opened(job) as runtime:
        for number in range(job["runs"]):
            begun = time.perf_counter()
            run = await runtime.start(Trivial, left=number)
            starts.append(time.perf_counter() - begun)
            await run
            ends.append(time.perf_counter() - begun)
        clock = measured.Clock()
        clock.begin()
        runs = await start_all(runtime, Trivial, [{"left": 1}] * job["together"])
        clock.end()
        for run in runs:
            await run
    return {
        "start": measured.median(starts),
        "end": measured.median(ends),
        "together": clock.seconds / job["together"],
    }


async def ask(runtime: Any, runs: int) -> list[Any]:
    """Start runs, and return them when all wait."""
    global waiting
    all_wait = anyio.Event()
    waiting = Countdown(runs, all_wait.set)
    started = await start_all(runtime, Asking, ({"left": number} for number in range(runs)))
    await all_wait.wait()
    for run in started:
        async for event in run.stream_events():
            if isinstance(event, Question):
                break
    return started


async def fall_asleep(runtime: Any) -> None:
    """Wait until all runs are released from memory."""
    while runtime.statistics().in_progress:  # noqa: ASYNC110 - nobody is told of it
        await anyio.sleep(0.1)
    await anyio.sleep(3)  # they are on their way


async def answers(job: Job) -> Measurement:
    global resumes
    waits = []
    async with opened(job) as runtime:
        runs = await ask(runtime, job["runs"])
        if job.get("idle_after"):
            await fall_asleep(runtime)
        for number, run in enumerate(runs):
            resumes = anyio.Event()
            begun = time.perf_counter()
            await run.send_event(Answer(number=number))
            await resumes.wait()
            waits.append(resumed.pop() - begun)
            assert await run == number
    return {"seconds": measured.median(waits)}


async def wait(job: Job) -> Measurement:
    database = job["database"]
    async with opened(job) as runtime:
        kept = await ask(runtime, 10)
        if job.get("idle_after"):
            await ask(runtime, 1000)  # what they leave free in the heap does not count below
            await fall_asleep(runtime)
        disk = measured.sqlite_size(database) if database else 0
        memory = measured.memory()
        for _ in range(job["runs"] // 1000 or 1):
            asked = await ask(runtime, min(1000, job["runs"]))
            if job.get("idle_after"):
                await fall_asleep(runtime)
            else:
                kept += asked
        asked.clear()
        grown = measured.memory() - memory
        measurement = {"memory": grown / job["runs"]}
        if database:
            measurement["disk"] = (measured.sqlite_size(database) - disk) / job["runs"]
        measured.report(measurement)  # to answer all of them takes longer than to measure them


async def interrupt(job: Job) -> Measurement:
    global waiting
    all_wait = anyio.Event()
    waiting = Countdown(job["runs"], all_wait.set)
    async with opened(job) as runtime:
        runs = await start_all(runtime, Interrupted, [{"left": 2}] * job["runs"])
        await all_wait.wait()
        await anyio.sleep(1)  # with "eventual", the last of them are about to be written
        measured.wait_to_be_killed(runs)
    raise AssertionError


async def recover(job: Job) -> Measurement:
    global finished
    done = anyio.Event()
    finished = Countdown(job["runs"], done.set)
    clock = measured.Clock()
    clock.begin()
    async with opened(job):
        await done.wait()
        clock.end()
    return clock.each(job["runs"])


async def fan_out(job: Job) -> Measurement:
    async with opened(job) as runtime:
        for items in (10, job["items"]):  # the first warms up
            run = await runtime.start(FanOut, left=items)
            assert await run == sum(range(items))
        if job["kept"] != "eventual":
            fan_clock.end()
    if job["kept"] == "eventual":
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
    measured.main(JOBS, lambda job: anyio.run(job, backend=JOB["backend"]))
