"""The client and the server over real sockets, through a proxy that cuts connections at random bytes."""

from __future__ import annotations

import gc
import random
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

pytest.importorskip("httpx2")
pytest.importorskip("starlette")
pytest.importorskip("orjson")
pytest.importorskip("uvicorn")
pytest.importorskip("hypercorn")

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
from anyio_workflows.client import (
    RemoteRecord,
    RemoteRun,
    RemoteRunError,
    ServerUnreachableError,
    WorkflowClient,
    WorkflowServerError,
)
from anyio_workflows.server import WorkflowServer

from .proxies import cutting
from .running import PATIENCE, on_each_backend

TEXTS = [
    "",
    "x",
    "two\nlines\r\nand\rmore",
    "日本語 😀",
    "\u2028",
    "data: no\n\nid: 7\n\n",
    "y" * 3000,
]


class Write(StartEvent):
    number: int
    seed: int = 0


class Said(Event):
    n: int
    text: str


class Go(HumanResponseEvent):
    on: bool


class Writer(Workflow[int]):
    @step
    async def write(self, ctx: Context, ev: Write) -> StopEvent:
        dice = random.Random(ev.seed)
        for n in range(1, ev.number + 1):
            ctx.write_event_to_stream(Said(n=n, text=dice.choice(TEXTS)))
            if dice.random() < 0.2:
                await anyio.sleep(dice.choice([0, 0.001, 0.01]))
        return StopEvent(result=ev.number)


class Asker(Workflow[bool]):
    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        answer = await ctx.wait_for_event(Go, InputRequiredEvent(text="On?"), timeout=None)
        return StopEvent(result=answer.on)


@asynccontextmanager
async def served(port: int = 0, **options: Any) -> AsyncIterator[str]:
    """Give the address of a server of the two workflows."""
    server = WorkflowServer(**options)
    server.add_workflow("writer", Writer())
    server.add_workflow("asker", Asker(timeout=None))
    async with anyio.create_task_group() as group:

        async def serve(*, task_status: Any) -> None:
            await server.serve(port=port, task_status=task_status)

        yield await group.start(serve)
        group.cancel_scope.cancel()


def run(backend: str, main: Callable[[], Awaitable[None]]) -> None:
    """Run a test in real time, but not for ever."""

    async def bounded() -> None:
        with anyio.fail_after(PATIENCE):
            await main()

    anyio.run(bounded, backend=backend)


def patient(url: str, **options: Any) -> WorkflowClient:
    """Return a client that never gives up, and is quick to try again."""
    return WorkflowClient(url, types=[Said], give_up_after=None, longest_delay=0.01, **options)


# --- Cut at any byte --------------------------------------------------------------------------------------


@on_each_backend
@pytest.mark.parametrize("seed", range(4))
def test_each_event_comes_once_and_in_order_whatever_is_cut(backend: str, seed: int):
    async def read(client: WorkflowClient, run_id: str) -> None:
        events = client.run(run_id).events()
        number = 0
        async for record in events:
            number += 1
            assert isinstance(record, RemoteRecord)
            assert record.seq == number
            if record.seq <= 200:
                assert isinstance(record.event, Said)
                assert record.event.n == number
                assert record.event.text in TEXTS
        assert number == 201
        assert events.cursor == 201

    async def main() -> None:
        async with served() as url, WorkflowClient(url) as direct:
            run_id = (await direct.start("writer", Write(number=200, seed=seed))).id
            async with cutting(url, seed, 20_000) as (cut_url, proxy), patient(cut_url) as client:
                async with anyio.create_task_group() as group:
                    for _ in range(3):
                        group.start_soon(read, client, run_id)
                assert await client.run(run_id).result() == 200
                assert proxy.cuts >= 3

    run(backend, main)


@on_each_backend
@pytest.mark.parametrize("seed", range(2))
def test_readers_that_leave_and_come_back_miss_nothing(backend: str, seed: int):
    async def main() -> None:
        dice = random.Random(seed)
        async with (
            served() as url,
            cutting(url, seed, 20_000) as (cut_url, _),
            patient(cut_url) as client,
        ):
            run_ = await client.start("writer", Write(number=150, seed=seed))
            seen: list[int] = []
            events = run_.events()
            while len(seen) < 151:
                with anyio.move_on_after(dice.choice([0.002, 0.02, 0.2])):
                    async for record in events:
                        assert isinstance(record, RemoteRecord)
                        seen.append(record.seq)
                        if dice.random() < 0.05:
                            break
                if dice.random() < 0.3:  # as a browser that was closed would
                    events = run_.events(after=events.cursor)
            assert seen == list(range(1, 152))

    run(backend, main)


@on_each_backend
@pytest.mark.parametrize("seed", range(2))
def test_a_start_that_is_cut_anywhere_starts_one_run(backend: str, seed: int):
    async def main() -> None:
        async with served() as url, WorkflowClient(url) as direct:
            async with cutting(url, seed, 3000, requests_too=True) as (cut_url, proxy):
                async with patient(cut_url) as client:
                    started = [(await client.start("asker")).id for _ in range(15)]
                assert proxy.cuts >= 5
            assert len(set(started)) == 15
            listed = [info.id for info in (await direct.runs(limit=500)).runs]
            assert sorted(listed) == sorted(started)

    run(backend, main)


@on_each_backend
@pytest.mark.parametrize("seed", range(2))
def test_an_answer_that_is_cut_is_taken_once_or_said_to_be_unknown(backend: str, seed: int):
    async def answer(client: WorkflowClient, run_id: str) -> bool:
        """Answer as a program would that can be told what is known; return whether it had to ask."""
        run_ = client.run(run_id)
        asked = False
        while True:
            questions = await run_.questions()
            if not questions:
                return asked
            try:
                taken_by = await run_.answer(questions[0], on=True)
            except ServerUnreachableError:
                asked = True
            else:
                assert taken_by == ("ask",)
                return asked

    async def main() -> None:
        asked = 0
        async with (
            served() as url,
            WorkflowClient(url) as direct,
            cutting(url, seed, 3000, requests_too=True) as (cut_url, _),
            patient(cut_url) as client,
        ):
            for _ in range(12):
                run_ = await direct.start("asker")
                await anext(run_.events())
                asked += await answer(client, run_.id)
                assert await run_.result() is True
        assert asked > 0

    run(backend, main)


# --- Left ------------------------------------------------------------------------------------------------


@on_each_backend
def test_the_server_is_rid_of_readers_that_left(backend: str):
    async def main() -> None:
        async with served() as url, WorkflowClient(url) as client:
            run_ = await client.start("asker")
            kept = [run_.events() for _ in range(3)]
            for events in kept:
                async for _ in events:
                    break
            assert await readers_of(run_, 3)
            del events
            kept.pop()
            gc.collect()
            assert await readers_of(run_, 2)
            with anyio.move_on_after(0.01):
                await anext(kept[0])
            assert await readers_of(run_, 1)
            async with WorkflowClient(url) as other:
                await anext(other.run(run_.id).events())
            await kept[1].aclose()
            assert await readers_of(run_, 0)

    run(backend, main)


async def readers_of(run_: RemoteRun, number: int) -> bool:
    """Wait until a run has so many readers."""
    while True:
        log = (await run_.info()).log
        assert log is not None
        if log.readers == number:
            return True
        await anyio.sleep(0.01)


# --- Servers that go, and come back -----------------------------------------------------------------------


SERVER = """
import sys
import anyio
from anyio_workflows import Context, Event, HumanResponseEvent, InputRequiredEvent, Runtime, StartEvent, StopEvent, Workflow, step
from anyio_workflows.server import WorkflowServer

class Tick(Event):
    n: int

class Go(HumanResponseEvent):
    on: bool

class Ticker(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Tick:
        return Tick(n=1)

    @step
    async def tick(self, ctx: Context, ev: Tick) -> Tick | StopEvent:
        await anyio.sleep(0.01)
        ctx.write_event_to_stream(ev)
        if ev.n == 40:
            answer = await ctx.wait_for_event(Go, InputRequiredEvent(text="On?"), timeout=None)
            return StopEvent(result=answer.on)
        return Tick(n=ev.n + 1)

async def main():
    runtime = Runtime(sys.argv[1] or None, workflows={"ticker": Ticker(timeout=None)})
    await WorkflowServer(runtime).serve(port=int(sys.argv[2]))

anyio.run(main, backend=sys.argv[3])
"""


@contextmanager
def unused_port() -> Iterator[int]:
    """Give a port at which nobody listens; it is free when the block ends."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def popen(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


@attrs.define
class ServerProcess:
    """A server in a process of its own, at a port that stays the same."""

    command: list[str]
    url: str
    process: subprocess.Popen[bytes]
    restarts: int = 0

    async def restart(self, end: signal.Signals) -> None:
        """End it with a signal, and start it again."""
        self.process.send_signal(end)
        await anyio.to_thread.run_sync(self.process.wait)
        self.process = popen(self.command)
        self.restarts += 1


@asynccontextmanager
async def serving(backend: str, database: str = "") -> AsyncIterator[ServerProcess]:
    """Give a server of the ticker."""
    with unused_port() as port:
        pass
    command = [sys.executable, "-c", SERVER, database, str(port), backend]
    server = ServerProcess(command, f"http://127.0.0.1:{port}", popen(command))
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()


@on_each_backend
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM], ids=lambda end: end.name)
def test_a_server_that_ends_and_comes_back_is_not_noticed(
    backend: str, end: signal.Signals, tmp_path: Path
):
    """The runs are in a database; the client started its run, and follows it, before and after."""

    async def main() -> None:
        database = f"sqlite:///{tmp_path}/runs.db"
        async with serving(backend, database) as server, patient(server.url) as client:
            run_ = await client.start("ticker")
            numbers: list[int] = []
            ticks: list[int] = []
            async for record in run_.events():
                assert isinstance(record, RemoteRecord)
                numbers.append(record.seq)
                if record.type == "Tick":
                    ticks.append(record.document["data"]["n"])
                    if ticks[-1] >= (10, 25, 99)[server.restarts]:
                        await server.restart(end)
                if record.type == "InputRequiredEvent":
                    [question] = await run_.questions()
                    await run_.answer(question, on=True)
            assert numbers == list(range(1, len(numbers) + 1))
            assert sorted(set(ticks)) == list(range(1, 41))  # a step that was killed writes again
            assert await run_.result() is True
            assert server.restarts == 2

    run(backend, main)


@on_each_backend
def test_a_run_in_memory_is_gone_with_its_server(backend: str):
    async def main() -> None:
        async with serving(backend) as server, patient(server.url) as client:
            run_ = await client.start("ticker")
            events = run_.events()
            await anext(events)
            await server.restart(signal.SIGKILL)
            with pytest.raises(WorkflowServerError, match="404 Not Found: there is no run"):
                async for _ in events:
                    pass

    run(backend, main)


# --- Refusals ---------------------------------------------------------------------------------------------


@on_each_backend
def test_a_server_that_is_not_there_is_named_and_given_up(backend: str):
    async def main() -> None:
        with unused_port() as port:
            await check_nobody_there(f"http://127.0.0.1:{port}")

    run(backend, main)


async def check_nobody_there(url: str) -> None:
    async with WorkflowClient(url, give_up_after=0.2, longest_delay=0.05) as client:
        for call in (client.workflows, lambda: client.start("writer"), client.run("a").info):
            with pytest.raises(ServerUnreachableError, match="is the server running") as caught:
                await call()
            assert caught.value.url == url
        with pytest.raises(ServerUnreachableError):
            await anext(client.run("a").events())


@on_each_backend
def test_the_refusals_of_a_real_server(backend: str):
    async def main() -> None:
        async with served(token="s3cret") as url:
            for token in (None, "wrong"):
                async with WorkflowClient(url, token) as client:
                    with pytest.raises(
                        WorkflowServerError, match=r"401 Unauthorized: .* token"
                    ) as caught:
                        await client.runs()
                    assert caught.value.status == 401
                    with pytest.raises(WorkflowServerError, match=r"401 Unauthorized: .* token"):
                        await anext(client.run("a").events())
            async with WorkflowClient(url, "s3cret", types=[Said]) as client:
                await check_refusals(client)

    run(backend, main)


async def check_refusals(client: WorkflowClient) -> None:
    async def refused(call: Awaitable[Any]) -> WorkflowServerError:
        with pytest.raises(WorkflowServerError) as caught:
            await call
        return caught.value

    unknown = client.run("order-17")
    for call in (
        unknown.info(),
        unknown.result(),
        unknown.questions(),
        unknown.cancel(),
        unknown.retry(),
        unknown.delete(),
        unknown.send("Go", on=True),
        unknown.answer("1", on=True),
        anext(unknown.events()),
    ):
        assert (await refused(call)).status == 404
    error = await refused(client.start("writr"))
    assert (error.status, "writer" in error.detail) == (404, True)
    error = await refused(client.start("writer", {"number": "3"}))
    assert (error.status, error.path) == (422, "$.input.number")
    assert "$.input.number" in str(error)
    run_ = await client.start("asker")
    await anext(run_.events())
    [question] = await run_.questions()
    error = await refused(run_.answer(question, on="yes"))
    assert (error.status, error.path) == (422, "$.data.on")
    assert (await refused(run_.retry())).status == 409
    assert (await refused(run_.delete())).status == 409
    assert (await refused(run_.send("Gone", on=True))).status == 422
    assert (await refused(anext(run_.events(after=99)))).status == 400
    assert (await run_.answer(question, on=False)) == ("ask",)
    assert await run_.result() is False
    assert (await refused(run_.answer(question, on=True))).status == 409
    assert (await refused(run_.send("StartEvent"))).status == 409
    cancelled = await client.start("asker")
    await cancelled.cancel()
    with pytest.raises(RemoteRunError, match="was cancelled"):
        await cancelled.result()
