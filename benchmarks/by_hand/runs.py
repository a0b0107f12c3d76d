"""Many small runs, one after the other or at the same time."""

from __future__ import annotations

import math

from anyio import create_memory_object_stream, create_task_group, fail_after
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectSendStream

from ..gates import Gate
from .events import CountDown, Done

TIMEOUT = 600.0


async def trivial(runs: int) -> None:
    """A worker that gets its start event as an argument, and a public stream for its events.

    One event needs no inbox, and no task waits for the result: it is in the stream when the task
    group has ended.
    """

    async def work(event: CountDown, publish: MemoryObjectSendStream[Done]) -> None:
        publish.send_nowait(Done(result=event.left))

    async def run(number: int) -> int | None:
        publish, published = create_memory_object_stream[Done](math.inf)
        with fail_after(TIMEOUT), publish, published:
            async with create_task_group() as group:
                group.start_soon(work, CountDown(left=number), publish)
            return published.receive_nowait().result

    for number in range(runs):
        assert await run(number) == number


async def concurrent_runs(runs: int) -> None:
    """Runs that have all started before the first of them ends."""
    async with WaitingRuns(runs):
        pass


class WaitingRuns:
    """Many runs that have started and wait at a gate, until the block is left.

    They are children of one outer task group, which is how AnyIO has tasks in the background.
    """

    def __init__(self, runs: int) -> None:
        self._gate = Gate(runs)
        self._outer: TaskGroup = create_task_group()

    async def __aenter__(self) -> None:
        await self._outer.__aenter__()
        for _ in range(self._gate.expected):
            self._outer.start_soon(_wait_in_run, self._gate)
        await self._gate.crowded.wait()

    async def __aexit__(self, *_: object) -> None:
        self._gate.open()
        await self._outer.__aexit__(None, None, None)


async def _wait_in_run(gate: Gate) -> None:
    """One run: a task group, a public stream, and a worker that waits."""
    publish, published = create_memory_object_stream[Done](math.inf)

    async def work() -> None:
        await gate.wait()
        publish.send_nowait(Done())

    with fail_after(TIMEOUT), publish, published:
        async with create_task_group() as group:
            group.start_soon(work)
        assert published.receive_nowait().result is None
