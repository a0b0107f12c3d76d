"""Work that is spread over workers and joined.

Workers read one stream. If the join is a stage of its own, like a join step, they send to a second
stream that the joining task reads; otherwise they append to one list, and the task group ends when
the stream is empty. Either way, nothing needs to be counted.
"""

from __future__ import annotations

import math

import anyio
from anyio import create_memory_object_stream, create_task_group, fail_after
from anyio.streams.memory import MemoryObjectSendStream

from .events import Group, GroupScored, Item, Scored

TIMEOUT = 600.0
WORKERS = 4
MANY_WORKERS = 100


async def fan_out(items: int) -> None:
    """Four workers that never wait for anything but items, and a task that joins their results."""
    send, receive = create_memory_object_stream[Item](math.inf)
    to_join, scored = create_memory_object_stream[Scored](math.inf)

    async def work(to_join: MemoryObjectSendStream[Scored]) -> None:
        with to_join:
            async for item in receive:
                to_join.send_nowait(Scored(score=item.number))

    with fail_after(TIMEOUT), receive, scored:
        async with create_task_group() as group:
            with send:
                for number in range(items):
                    send.send_nowait(Item(number=number))
            with to_join:
                for _ in range(WORKERS):
                    group.start_soon(work, to_join.clone())
            total = 0
            async for event in scored:
                total += event.score
    assert total == sum(range(items))


async def shared_fan_out(items: int) -> None:
    """The same with a join that is not a stage of its own: the workers append to one list."""
    send, receive = create_memory_object_stream[Item](math.inf)
    scored: list[Scored] = []

    async def work() -> None:
        async for item in receive:
            scored.append(Scored(score=item.number))

    with fail_after(TIMEOUT), receive:
        async with create_task_group() as group:
            with send:
                for number in range(items):
                    send.send_nowait(Item(number=number))
            for _ in range(WORKERS):
                group.start_soon(work)
    assert sum(event.score for event in scored) == sum(range(items))


async def sleepy_fan_out(items: int) -> None:
    """A hundred workers that really wait; cheaper than a task for each item and a limiter."""
    send, receive = create_memory_object_stream[Item](math.inf)
    scored: list[Scored] = []

    async def work() -> None:
        async for item in receive:
            await anyio.sleep(0.001)
            scored.append(Scored(score=item.number))

    with fail_after(TIMEOUT), receive:
        async with create_task_group() as group:
            with send:
                for number in range(items):
                    send.send_nowait(Item(number=number))
            for _ in range(MANY_WORKERS):
                group.start_soon(work)
    assert sum(event.score for event in scored) == sum(range(items))


async def nested_fan_out(items: int) -> None:
    """A stream and four workers for the groups, and the same for the items of all groups.

    The worker that scores the last item of a group joins it, and after the last group closes the streams.
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
