"""Work that makes more work, and work that piles up."""

from __future__ import annotations

import math

from anyio import create_memory_object_stream, create_task_group, fail_after

from .events import Item, Ping, Pong, Turn

TIMEOUT = 600.0


async def loop(steps: int) -> None:
    """A worker that reads what it has sent itself.

    Closing the sending end ends it, which is cheaper than cancelling.
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


async def queue(items: int) -> None:
    """One worker, which takes its first item when everything has been queued."""
    send, receive = create_memory_object_stream[Item](math.inf)
    last = None

    async def work() -> None:
        nonlocal last
        async for item in receive:
            last = item.number

    with fail_after(TIMEOUT), receive:
        async with create_task_group() as group:
            with send:
                for number in reversed(range(items)):
                    send.send_nowait(Item(number=number))
            group.start_soon(work)
    assert last == 0
