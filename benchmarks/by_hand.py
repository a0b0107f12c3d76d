"""The same jobs as an expert writes them with AnyIO alone.

All of them: events are frozen attrs classes; a run is one task group in `fail_after`; work travels
through memory object streams without a limit, so `send_nowait` does and nobody waits to send;
streams are closed by `with`. There are no step functions: the workers contain the steps' code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import attrs
from anyio import (
    EndOfStream,
    WouldBlock,
    create_memory_object_stream,
    create_task_group,
    fail_after,
)
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

TIMEOUT = 600.0


@attrs.frozen(kw_only=True)
class CountDown:
    left: int


@attrs.frozen(kw_only=True)
class Turn:
    left: int


@attrs.frozen(kw_only=True)
class Ping:
    left: int


@attrs.frozen(kw_only=True)
class Pong:
    left: int


@attrs.frozen(kw_only=True)
class Progress:
    number: int


@attrs.frozen(kw_only=True)
class Done:
    result: int | None = None


@attrs.frozen(kw_only=True)
class Item:
    number: int


@attrs.frozen(kw_only=True)
class Scored:
    score: int


@attrs.frozen(kw_only=True)
class GroupScored:
    score: int


@attrs.frozen(kw_only=True)
class Answer:
    number: int


@attrs.define(kw_only=True)
class Group:
    first: int
    size: int
    scored: list[Scored] = attrs.Factory(list)


async def loop(steps: int) -> None:
    """A worker that reads its own stream.

    `async for` over the stream is the worker everybody writes; it stays fair to other tasks with no
    thought given, for the price of a checkpoint per item. Closing the sending end ends it, which is
    cheaper than cancelling.
    """
    send, receive = create_memory_object_stream[Turn](math.inf)

    async def work() -> None:
        async for turn in receive:
            if turn.left:
                send.send_nowait(Turn(left=turn.left - 1))
            else:
                send.close()

    with fail_after(TIMEOUT), send, receive:
        async with create_task_group() as group:
            group.start_soon(work)
            send.send_nowait(Turn(left=steps))


async def tuned_loop(steps: int) -> None:
    """The same for whoever counts microseconds: take what is there, and rest every 32 items."""
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


async def ping_pong(steps: int) -> None:
    """Two workers with a stream each.

    Each is parked in `receive()` when its item comes, so `receive_nowait` could not help: every turn
    is a switch of tasks.
    """
    to_ping, pings = create_memory_object_stream[Ping](math.inf)
    to_pong, pongs = create_memory_object_stream[Pong](math.inf)

    def stop() -> None:
        to_ping.close()
        to_pong.close()

    async def ping() -> None:
        async for event in pings:
            if event.left:
                to_pong.send_nowait(Pong(left=event.left - 1))
            else:
                stop()

    async def pong() -> None:
        async for event in pongs:
            if event.left:
                to_ping.send_nowait(Ping(left=event.left - 1))
            else:
                stop()

    with fail_after(TIMEOUT), to_ping, pings, to_pong, pongs:
        async with create_task_group() as group:
            group.start_soon(ping)
            group.start_soon(pong)
            to_ping.send_nowait(Ping(left=steps))


async def stream(events: int) -> None:
    """A producer task and `async for`, the pattern of AnyIO's own documentation."""

    async def produce(send: MemoryObjectSendStream[Progress | Done]) -> None:
        with send:
            for number in range(events):
                send.send_nowait(Progress(number=number))
            send.send_nowait(Done())

    await _count_streamed(produce, events)


async def live_stream(events: int) -> None:
    """The same with a producer that lets others run after each event."""

    async def produce(send: MemoryObjectSendStream[Progress | Done]) -> None:
        with send:
            for number in range(events):
                send.send_nowait(Progress(number=number))
                await checkpoint()
            send.send_nowait(Done())

    await _count_streamed(produce, events)


Producer = Callable[[MemoryObjectSendStream[Progress | Done]], Coroutine[Any, Any, None]]


async def _count_streamed(produce: Producer, events: int) -> None:
    send, receive = create_memory_object_stream[Progress | Done](math.inf)
    seen = 0
    with fail_after(TIMEOUT), send, receive:
        async with create_task_group() as group:
            group.start_soon(produce, send)
            async for event in receive:
                if isinstance(event, Progress):
                    seen += 1
    assert seen == events


async def tuned_stream(events: int) -> None:
    """`stream` for whoever counts microseconds: take what is there, and rest every 64 items."""

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
    """A worker with an inbox, and a public stream for what it publishes.

    Nobody waits for the result itself: it is in the stream when the task group has been left.
    """

    async def run(number: int) -> int | None:
        to_worker, inbox = create_memory_object_stream[CountDown](math.inf)
        publish, published = create_memory_object_stream[Done](math.inf)

        async def work() -> None:
            async for event in inbox:
                publish.send_nowait(Done(result=event.left))
                to_worker.close()

        with fail_after(TIMEOUT), to_worker, inbox, publish, published:
            async with create_task_group() as group:
                group.start_soon(work)
                to_worker.send_nowait(CountDown(left=number))
            return published.receive_nowait().result

    for number in range(runs):
        assert await run(number) == number


async def tuned_trivial(runs: int) -> None:
    """The same without an inbox: the start event is the worker's argument."""

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


WORKERS = 4


async def fan_out(items: int) -> None:
    """Four workers that read one stream and add to one list; the group is left when it is empty."""
    await _fan_out(items, live=False)


async def live_fan_out(items: int) -> None:
    """The same, where each item lets others run."""
    await _fan_out(items, live=True)


async def _fan_out(items: int, *, live: bool) -> None:
    send, receive = create_memory_object_stream[Item](math.inf)
    scored: list[Scored] = []

    async def work() -> None:
        async for item in receive:
            if live:
                await checkpoint()
            scored.append(Scored(score=item.number))

    with fail_after(TIMEOUT), receive:
        async with create_task_group() as group:
            with send:
                for number in range(items):
                    send.send_nowait(Item(number=number))
            for _ in range(WORKERS):
                group.start_soon(work)
    assert sum(event.score for event in scored) == sum(range(items))


async def tuned_fan_out(items: int) -> None:
    """`fan_out` for whoever counts microseconds: take what is there, and rest every 32 items."""
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


async def nested_fan_out(items: int) -> None:
    """A stream and four workers for the groups, and the same for the items of all groups.

    Whoever scores the last item of a group joins it; whoever joins the last group closes the streams.
    """
    to_split, groups = create_memory_object_stream[Group](math.inf)
    to_score, scoring = create_memory_object_stream[tuple[Group, Item]](math.inf)
    joined: list[GroupScored] = []

    async def split() -> None:
        async for group in groups:
            for number in range(group.size):
                to_score.send_nowait((group, Item(number=group.first + number)))

    async def score() -> None:
        async for group, item in scoring:
            group.scored.append(Scored(score=item.number))
            if len(group.scored) == group.size:
                joined.append(GroupScored(score=sum(event.score for event in group.scored)))
                if len(joined) * group.size == items:
                    to_score.close()

    with fail_after(TIMEOUT), groups, scoring, to_score:
        async with create_task_group() as tasks:
            with to_split:
                for first in range(0, items, 10):
                    to_split.send_nowait(Group(first=first, size=10))
            for _ in range(WORKERS):
                tasks.start_soon(split)
                tasks.start_soon(score)
    assert sum(event.score for event in joined) == sum(range(items))


async def answered(items: int) -> None:
    """A task for each item, which waits for its answer; a dict tells who waits for what."""
    waiting: dict[int, tuple[anyio.Event, list[Answer]]] = {}
    scored: list[Scored] = []

    async def ask(item: Item) -> None:
        signal = anyio.Event()
        answers: list[Answer] = []
        waiting[item.number] = signal, answers
        with fail_after(2000):
            await signal.wait()
        scored.append(Scored(score=answers[0].number))

    with fail_after(TIMEOUT):
        async with create_task_group() as group:
            for number in range(items):
                group.start_soon(ask, Item(number=number))
            await anyio.wait_all_tasks_blocked()
            for number in range(items):
                await checkpoint()
                signal, answers = waiting.pop(number)
                answers.append(Answer(number=number))
                signal.set()
    assert sum(event.score for event in scored) == sum(range(items))


async def wait_in_run(gate: anyio.Event) -> None:
    """One run: a task group, a public stream, and a worker that waits."""
    publish, published = create_memory_object_stream[Done](math.inf)

    async def work() -> None:
        await gate.wait()
        publish.send_nowait(Done())

    with fail_after(TIMEOUT), publish, published:
        async with create_task_group() as group:
            group.start_soon(work)


class IdleRuns:
    """Many runs that have started and wait, until the block is left.

    They are children of one outer task group: that is AnyIO's way of having tasks in the background.
    """

    def __init__(self, runs: int) -> None:
        self._runs = runs
        self._gate = anyio.Event()
        self._outer: TaskGroup = create_task_group()

    async def __aenter__(self) -> None:
        await self._outer.__aenter__()
        for _ in range(self._runs):
            self._outer.start_soon(wait_in_run, self._gate)

    async def __aexit__(self, *_: object) -> None:
        self._gate.set()
        await self._outer.__aexit__(None, None, None)
