"""The jobs in which tuning gains anything, optimised to the last microsecond.

Like the others, but a worker takes what is available without asking the event loop, and yields every
32 or 64 items so that others can run; a run has no cancel scope that it could do without.
"""

from __future__ import annotations

import math

import anyio
from anyio import (
    EndOfStream,
    WouldBlock,
    create_memory_object_stream,
    create_task_group,
    fail_after,
)
from anyio.lowlevel import checkpoint
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from .events import CountDown, Done, Item, Progress, Scored, Turn

TIMEOUT = 600.0
WORKERS = 4


async def loop(steps: int) -> None:
    """A worker that reads what it has sent itself."""
    send, receive = create_memory_object_stream[Turn](math.inf)

    async def work() -> None:
        taken = 0
        while True:
            taken += 1
            if taken % 32 == 0:
                await checkpoint()
            try:
                turn = receive.receive_nowait()
            except WouldBlock:
                turn = await receive.receive()
            if not turn.left:
                return
            send.send_nowait(Turn(left=turn.left - 1))

    with fail_after(TIMEOUT), send, receive:
        async with create_task_group() as group:
            group.start_soon(work)
            send.send_nowait(Turn(left=steps))


async def stream(events: int) -> None:
    """A producer task that never waits, and a reader that takes what is available."""

    async def produce(send: MemoryObjectSendStream[Progress | Done]) -> None:
        for number in range(events):
            send.send_nowait(Progress(number=number))
        send.send_nowait(Done())

    async def consume(receive: MemoryObjectReceiveStream[Progress | Done]) -> int:
        seen = 0
        while True:
            try:
                event = receive.receive_nowait()
            except WouldBlock:
                event = await receive.receive()
            if isinstance(event, Done):
                return seen
            seen += 1
            if seen % 64 == 0:
                await checkpoint()

    send, receive = create_memory_object_stream[Progress | Done](math.inf)
    with fail_after(TIMEOUT), send, receive:
        async with create_task_group() as group:
            group.start_soon(produce, send)
            assert await consume(receive) == events


async def trivial(runs: int) -> None:
    """The task group's own scope has the deadline, which saves a scope."""

    async def work(event: CountDown, publish: MemoryObjectSendStream[Done]) -> None:
        publish.send_nowait(Done(result=event.left))

    async def run(number: int) -> int | None:
        publish, published = create_memory_object_stream[Done](math.inf)
        with publish, published:
            async with create_task_group() as group:
                group.cancel_scope.deadline = anyio.current_time() + TIMEOUT
                group.start_soon(work, CountDown(left=number), publish)
            return published.receive_nowait().result

    for number in range(runs):
        assert await run(number) == number


async def fan_out(items: int) -> None:
    """Four workers that read one stream and add to one list."""
    send, receive = create_memory_object_stream[Item](math.inf)
    scored: list[Scored] = []

    async def work() -> None:
        taken = 0
        while True:
            try:
                item = receive.receive_nowait()
            except EndOfStream:
                return
            scored.append(Scored(score=item.number))
            taken += 1
            if taken % 32 == 0:
                await checkpoint()

    with fail_after(TIMEOUT), receive:
        async with create_task_group() as group:
            with send:
                for number in range(items):
                    send.send_nowait(Item(number=number))
            for _ in range(WORKERS):
                group.start_soon(work)
    assert sum(event.score for event in scored) == sum(range(items))


async def queue(items: int) -> None:
    """One worker, which takes its first item when everything has been queued."""
    send, receive = create_memory_object_stream[Item](math.inf)

    async def work() -> None:
        taken = 0
        while receive.receive_nowait().number:
            taken += 1
            if taken % 32 == 0:
                await checkpoint()

    with fail_after(TIMEOUT), receive:
        async with create_task_group() as group:
            with send:
                for number in reversed(range(items)):
                    send.send_nowait(Item(number=number))
            group.start_soon(work)
