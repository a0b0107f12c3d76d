"""Many readers, runs and questions at once, over sockets: every number comes once, in order (H2).

`python -m benchmarks.serving --load` does the same with a thousand readers and ten thousand questions.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

import anyio
import pytest
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

pytest.importorskip("starlette")
pytest.importorskip("orjson")
pytest.importorskip("uvicorn")
pytest.importorskip("hypercorn")
pytest.importorskip("httpx2")

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
from anyio_workflows.client import RemoteRun, WorkflowClient
from anyio_workflows.server import WorkflowServer, _serving

from .running import on_each_backend

PATIENCE = 300.0
EVENTS = 50


class Numbered(StartEvent):
    number: int


class Ready(InputRequiredEvent):
    number: int


class Go(HumanResponseEvent):
    number: int


class Counted(Event):
    number: int


class Counting(Workflow[int]):
    """Count when told to."""

    @step
    async def begin(self, ev: Numbered) -> Ready:
        return Ready(number=ev.number)

    @step
    async def count(self, ctx: Context, ev: Go) -> StopEvent:
        for number in range(EVENTS):
            ctx.write_event_to_stream(Counted(number=number))
            await checkpoint()
        return StopEvent(result=ev.number)


class Asking(Workflow[int]):
    @step
    async def ask(self, ctx: Context, ev: Numbered) -> StopEvent:
        told = await ctx.wait_for_event(Go, Ready(number=ev.number), timeout=None)
        return StopEvent(result=told.number)


def with_client(backend: str, main: Callable[[WorkflowClient], Awaitable[None]]) -> None:
    """Run something that has a client of a server."""

    async def run() -> None:
        server = WorkflowServer()
        server.add_workflow("counting", Counting(timeout=None))
        server.add_workflow("asking", Asking(timeout=None))
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                url = await group.start(
                    lambda *, task_status: server.serve(port=0, task_status=task_status)
                )
                async with WorkflowClient(url, types=[Ready, Go, Counted]) as client:
                    await main(client)
                group.cancel_scope.cancel()

    anyio.run(run, backend=backend)


async def start_runs(client: WorkflowClient, name: str, runs: int) -> list[RemoteRun]:
    return [await client.start(name, {"number": number}) for number in range(runs)]


class Audience:
    """Readers of runs, who have all seen the first event once `follow()` returns."""

    def __init__(self) -> None:
        self.seen: list[list[Event]] = []
        self._missing = 0
        self._all_there = anyio.Event()

    async def follow(self, group: TaskGroup, runs: list[RemoteRun], readers: int) -> None:
        self._missing = len(runs) * readers
        for run in runs:
            for _ in range(readers):
                self.seen.append([])
                group.start_soon(self._read, run, self.seen[-1])
        await self._all_there.wait()

    async def _read(self, run: RemoteRun, seen: list[Event]) -> None:
        async for record in run.events():
            seen.append(record.event)
            assert record.seq == len(seen)
            if record.seq == 1:
                self._missing -= 1
                if not self._missing:
                    self._all_there.set()


@on_each_backend
@pytest.mark.parametrize(("runs", "readers"), [(1, 60), (12, 5)])
def test_every_reader_gets_every_event_once_and_in_order(backend: str, runs: int, readers: int):
    async def main(client: WorkflowClient) -> None:
        started = await start_runs(client, "counting", runs)
        audience = Audience()
        async with anyio.create_task_group() as group:
            await audience.follow(group, started, readers)
            for number, run in enumerate(started):
                await run.send("Go", number=number)
        assert len(audience.seen) == runs * readers
        counted = [Counted(number=number) for number in range(EVENTS)]
        for place, seen in enumerate(audience.seen):
            number = place // readers
            assert seen == [Ready(number=number), *counted, StopEvent(result=number)]

    with_client(backend, main)


@on_each_backend
def test_every_run_that_waits_gets_its_own_answer(backend: str):
    async def main(client: WorkflowClient) -> None:
        runs = await start_runs(client, "asking", 100)

        async def answer(number: int) -> None:
            async for record in runs[number].events():
                assert record.event == Ready(number=number)
                break
            [question] = await runs[number].questions()
            assert await runs[number].answer(question, Go(number=number)) == ("ask",)

        for first in range(0, 100, 20):
            async with anyio.create_task_group() as group:
                for number in range(first, first + 20):
                    group.start_soon(answer, number)
        assert [await run.result() for run in runs] == list(range(100))
        assert {info.status for info in (await client.runs(limit=200)).runs} == {"completed"}

    with_client(backend, main)


@pytest.mark.anyio
async def test_no_body_waits_for_the_acknowledgement_of_its_head():
    with (
        await _serving._bind("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as connection,
    ):
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
