"""How a server is measured: what it is asked, and what of its processor time that took."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Awaitable, Callable, Iterable
from time import perf_counter
from typing import Any

from ..comparing import FailedError, Measurement
from .client import Connection, Follower
from .servers import Server

Sizes = dict[str, Any]


async def request(server: Server, sizes: Sizes) -> Measurement:
    """Requests that are answered with next to nothing: what everything else takes, too."""

    async def ask(connection: Connection, number: int) -> None:
        await connection.ask(server.wire.health)

    await ask_all(server, range(100), ask, sizes["clients"])  # warms up
    cpu = server.begin()
    await ask_all(server, range(sizes["requests"]), ask, sizes["clients"])
    return {"cpu": (server.cpu() - cpu) / sizes["requests"]}


async def result(server: Server, sizes: Sizes) -> Measurement:
    """Runs of one step, from the request to the answer with the result."""

    async def run(connection: Connection, number: int) -> None:
        answer = await connection.ask(server.wire.result("trivial", number))
        if server.wire.value_of(answer) != number:
            raise FailedError(f"not the result of run {number}: {answer}")

    clients, runs = sizes["clients"], sizes["runs"]
    await ask_all(server, range(5 * clients), run, clients)  # warms up
    cpu, begun = server.begin(), perf_counter()
    await ask_all(server, range(runs), run, clients)
    return {"cpu": (server.cpu() - cpu) / runs, "seconds": (perf_counter() - begun) / runs}


async def stream(server: Server, sizes: Sizes) -> Measurement:
    """Events, from being written to the connections of all readers, who were there before the first."""
    readers, events = sizes["readers"], sizes["events"]
    await write(server, 1, min(readers, 5), 5, 0.0)  # warms up
    return await write(server, 1, readers, events, sizes["delay"])


async def write(
    server: Server, runs: int, readers: int, events: int, delay: float
) -> dict[str, Any]:
    """Have runs write events to so many readers each, and check that all got everything.

    Returns:
        What each delivered event cost, and `delivered`, how many there were.
    """
    started = await start_all(server, "writing", runs)
    followers = [one for run in started for one in await follow(server, run, readers)]
    async with Connection(server.address) as connection:
        cpu, begun = server.begin(), perf_counter()
        for run in started:
            told = {"events": events, "delay": delay}
            await connection.ask(server.wire.send(run, "Go", told))
        for follower in followers:
            await follower.ended
        cpu, seconds = server.cpu() - cpu, perf_counter() - begun
    for follower in followers:
        follower.check(events)
    delivered = runs * readers * events
    return {
        "cpu": cpu / delivered,
        "seconds": seconds / delivered,
        "delivered": delivered,
        "lag": seconds - delay * events,
    }


async def follow(server: Server, run: str, readers: int) -> list[Follower]:
    """Return readers of a run, each of which has its first event."""
    followers: list[Follower] = []
    while len(followers) < readers:
        connecting = [
            Follower.follow(server.address, server.wire.events(run))
            for _ in range(min(100, readers - len(followers)))
        ]
        some = await asyncio.gather(*connecting)
        for follower in some:
            await follower.begun
        followers += some
    return followers


async def first_event(server: Server, sizes: Sizes) -> Measurement:
    """One run after the other, from the first request until the first of its events is there."""
    wire = server.wire
    seconds, runs = [], sizes["runs"]
    cpu = 0.0
    for number in range(-5, runs):  # the first warm up
        if number == 0:
            cpu = server.begin()
        begun = perf_counter()
        if wire.stream is not None:
            asked = wire.stream("writing", number)
        else:
            async with Connection(server.address) as connection:
                started = await connection.ask(wire.start("writing", number))
            asked = wire.events(wire.id_of(started))
        follower = await Follower.follow(server.address, asked)
        await follower.begun
        if number >= 0:
            seconds.append(perf_counter() - begun)
        follower.leave()
    return {
        "seconds": statistics.median(seconds),
        "cpu": (server.cpu() - cpu) / runs,
        "requests": 1 if wire.stream is not None else 2,
    }


async def idle(server: Server, sizes: Sizes) -> Measurement:
    """Runs that wait for an answer, once they are all there, or are released from memory."""
    await start_all(
        server, "asking", sizes["runs"] // 3
    )  # what they leave free in the heap is used again
    await asyncio.sleep(sizes["settle"])
    before = server.memory()
    await start_all(server, "asking", sizes["runs"])
    await asyncio.sleep(sizes["settle"])
    return {"memory": (server.memory() - before) / sizes["runs"]}


async def listing(server: Server, sizes: Sizes) -> Measurement:
    """A page of the list of runs that have ended."""

    async def run(connection: Connection, number: int) -> None:
        await connection.ask(server.wire.result("trivial", number))

    await ask_all(server, range(sizes["runs"]), run, 20)
    seconds = []
    asked = server.wire.page(sizes["limit"])
    async with Connection(server.address) as connection:
        await connection.ask(asked)
        cpu = server.begin()
        for _ in range(sizes["times"]):
            begun = perf_counter()
            await connection.ask(asked)
            seconds.append(perf_counter() - begun)
        cpu = (server.cpu() - cpu) / sizes["times"]
    return {"seconds": statistics.median(seconds), "cpu": cpu}


async def start_all(server: Server, name: str, runs: int) -> list[str]:
    """Start runs with the numbers from 0 on, and return their ids in that order."""
    ids: dict[int, str] = {}

    async def start(connection: Connection, number: int) -> None:
        answer = await connection.ask(server.wire.start(name, number))
        ids[number] = server.wire.id_of(answer)

    await ask_all(server, range(runs), start, 20)
    return [ids[number] for number in range(runs)]


async def ask_all(
    server: Server,
    numbers: Iterable[int],
    ask: Callable[[Connection, int], Awaitable[None]],
    clients: int,
) -> None:
    """Ask something for each number, over so many connections, each of which asks one thing after the other."""
    waiting = iter(numbers)

    async def client() -> None:
        async with Connection(server.address) as connection:
            for number in waiting:
                await ask(connection, number)

    await asyncio.gather(*(client() for _ in range(clients)))


JOBS: dict[str, Callable[[Server, Sizes], Awaitable[Measurement]]] = {
    "request": request,
    "result": result,
    "stream": stream,
    "first": first_event,
    "idle": idle,
    "list": listing,
}
