"""Events for a reader: a producer task and `async for`, the pattern of AnyIO's documentation."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine
from typing import Any

from anyio import create_memory_object_stream, create_task_group, fail_after
from anyio.lowlevel import checkpoint
from anyio.streams.memory import MemoryObjectSendStream

from .events import Done, Progress

TIMEOUT = 600.0

Producer = Callable[[MemoryObjectSendStream[Progress | Done]], Coroutine[Any, Any, None]]


async def stream(events: int) -> None:
    """A producer that never waits."""

    async def produce(send: MemoryObjectSendStream[Progress | Done]) -> None:
        with send:
            for number in range(events):
                send.send_nowait(Progress(number=number))
            send.send_nowait(Done())

    await _count_streamed(produce, events)


async def live_stream(events: int) -> None:
    """A producer that yields to other tasks after each event, like one that forwards tokens.

    The reader is parked in `receive()` when its event comes, so `receive_nowait` could not help.
    """

    async def produce(send: MemoryObjectSendStream[Progress | Done]) -> None:
        with send:
            for number in range(events):
                send.send_nowait(Progress(number=number))
                await checkpoint()
            send.send_nowait(Done())

    await _count_streamed(produce, events)


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
