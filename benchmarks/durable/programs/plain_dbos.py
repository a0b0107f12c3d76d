"""The jobs as workflows of DBOS: async ones, as its documentation recommends for asyncio."""

from __future__ import annotations

import asyncio
import time
from functools import partial

import measured
from dbos import DBOS, SetWorkflowID
from measured import Countdown, Course, Job, Measurement

course: Course
resumed: asyncio.Queue[float]
waiting: Countdown
finished: Countdown | None = None
fan_clock = measured.Clock()


@DBOS.step()
async def turn(left: int) -> int:
    return left - 1


@DBOS.workflow()
async def loop(left: int) -> None:
    await course.arrive()
    while left:
        left = await turn(left)


@DBOS.workflow()
async def trivial(number: int) -> int:
    return await turn(number)


@DBOS.workflow()
async def asking(number: int) -> int:
    waiting.come()
    answer: int = await DBOS.recv_async("answer", timeout_seconds=600)
    resumed.put_nowait(time.perf_counter())
    return answer


@DBOS.step()
async def hang(left: int) -> int:
    if finished is None:
        waiting.come()
        await asyncio.Event().wait()
    return left - 1


@DBOS.workflow()
async def interrupted(left: int) -> None:
    left = await turn(left)
    await hang(left)
    assert finished is not None
    finished.come()


@DBOS.workflow()
async def fan(items: int) -> int:
    fan_clock.begin()
    return sum(await asyncio.gather(*(turn(number) for number in range(items))))


def launch(job: Job) -> None:
    database = job["database"]
    DBOS(
        config={
            "name": "benchmark",
            "system_database_url": f"sqlite:///{database}" if is_file(database) else database,
            "application_version": "1",
            "log_level": "ERROR",
        }
    )
    DBOS.launch()


def is_file(database: str) -> bool:
    return database.startswith("/")


async def steps(job: Job) -> Measurement:
    launch(job)
    await race(1, 10)  # warms up
    await race(job["runs"], job["steps"])
    course.clock.end()
    return course.each()


async def race(runs: int, steps: int) -> None:
    global course
    course = Course(runs, steps, asyncio.Event)
    begin = (DBOS.start_workflow_async(loop, steps - 1) for _ in range(runs))
    for handle in await asyncio.gather(*begin):
        await handle.get_result()


async def start(job: Job) -> Measurement:
    launch(job)
    starts, ends = [], []
    for number in range(job["runs"]):
        begun = time.perf_counter()
        handle = await DBOS.start_workflow_async(trivial, number)
        starts.append(time.perf_counter() - begun)
        await handle.get_result()
        ends.append(time.perf_counter() - begun)
    clock = measured.Clock()
    clock.begin()
    begin = (DBOS.start_workflow_async(trivial, number) for number in range(job["together"]))
    handles = await asyncio.gather(*begin)
    clock.end()
    for handle in handles:
        await handle.get_result()
    return {
        "start": measured.median(starts),
        "end": measured.median(ends),
        "together": clock.seconds / job["together"],
    }


async def ask(runs: int) -> list[str]:
    """Start runs, and return their ids when all wait."""
    global waiting, resumed
    resumed = asyncio.Queue()
    all_wait = asyncio.Event()
    waiting = Countdown(runs, all_wait.set)
    names = []
    for number in range(runs):
        with SetWorkflowID(f"run-{time.monotonic_ns()}"):
            handle = await DBOS.start_workflow_async(asking, number)
        names.append(handle.workflow_id)
    await all_wait.wait()
    return names


async def answers(job: Job) -> Measurement:
    launch(job)
    names = await ask(job["runs"])
    await asyncio.sleep(1)  # the last of them are about to wait
    waits = []
    for name in names:
        begun = time.perf_counter()
        await DBOS.send_async(name, 1, "answer")
        waits.append(await resumed.get() - begun)
    return {"seconds": measured.median(waits)}


async def wait(job: Job) -> Measurement:
    launch(job)
    await ask(10)
    await asyncio.sleep(1)
    disk, memory = size(job), measured.memory()
    await ask(job["runs"])
    await asyncio.sleep(2)
    grown = measured.memory() - memory
    return {"memory": grown / job["runs"], "disk": (size(job) - disk) / job["runs"]}


def size(job: Job) -> int:
    """Return the size of the database in bytes."""
    if is_file(job["database"]):
        return measured.sqlite_size(job["database"])
    import psycopg

    with psycopg.connect(job["database"].replace("+psycopg", ""), autocommit=True) as database:
        database.execute("checkpoint")
        [found] = database.execute("select pg_database_size(current_database())").fetchone() or [0]
        return int(found)


async def interrupt(job: Job) -> Measurement:
    global waiting
    all_wait = asyncio.Event()
    waiting = Countdown(job["runs"], all_wait.set)
    launch(job)
    for number in range(job["runs"]):
        with SetWorkflowID(f"run-{number}"):
            await DBOS.start_workflow_async(interrupted, 2)
    await all_wait.wait()
    measured.wait_to_be_killed()


async def recover(job: Job) -> Measurement:
    global finished
    done = asyncio.Event()
    announce = partial(asyncio.get_running_loop().call_soon_threadsafe, done.set)
    finished = Countdown(job["runs"], announce)
    clock = measured.Clock()
    clock.begin()
    launch(job)
    await done.wait()
    clock.end()
    return clock.each(job["runs"])


async def fan_out(job: Job) -> Measurement:
    launch(job)
    for items in (10, job["items"]):  # the first warms up
        handle = await DBOS.start_workflow_async(fan, items)
        await handle.get_result()
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
