"""The load test: as much of everything as a server should bear, with every number checked."""

from __future__ import annotations

import resource
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

import attrs

from ..comparing import FailedError, Measurement
from .client import Connection
from .jobs import ask_all, start_all, write
from .servers import Server
from .wires import Asked

SPARE_FILES = 200
"""How many files the processes have open besides the connections."""


@attrs.frozen
class Load:
    """How much there is.

    Attributes:
        readers: How many readers one run has at once.
        runs: How many runs there are at once, each with five readers.
        waiting: How many runs wait for an answer at once.
        events: How many events each run writes.
    """

    readers: int
    runs: int
    waiting: int
    events: int


FULL, QUICK = Load(1000, 200, 10_000, 100), Load(50, 10, 100, 20)


def allow_files() -> int:
    """Raise the limit of open files to what is allowed, for this process and for its servers, and return it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def fitting(load: Load, files: int) -> Load:
    """Return a load that fits into so many open files."""
    room = files - SPARE_FILES
    return attrs.evolve(load, readers=min(load.readers, room), runs=min(load.runs, room // 5))


async def many_readers(server: Server, load: Load) -> Measurement:
    return await write(server, 1, load.readers, load.events, 0.0)


async def many_runs(server: Server, load: Load) -> Measurement:
    return await write(server, load.runs, 5, load.events, 0.0)


async def many_waiting(server: Server, load: Load) -> Measurement:
    """Have runs wait at once; then answer each through its open question, and read its result."""
    runs = await start_all(server, "asking", load.waiting)
    memory = server.memory()

    async def answer(connection: Connection, number: int) -> None:
        path = f"/v1/runs/{runs[number]}"
        [question] = (await connection.ask(Asked("GET", f"{path}/questions")))["questions"]
        if question["question"]["data"] != {"number": number}:
            raise FailedError(f"run {number} asks {question}")
        data = {"data": {"number": number}}
        await connection.ask(Asked("POST", f"{path}/questions/{question['id']}", data))

    async def read(connection: Connection, number: int) -> None:
        found = await connection.ask(Asked("GET", f"/v1/runs/{runs[number]}?wait=60"))
        if (found["status"], found["result"]) != ("completed", number):
            raise FailedError(f"run {number} has ended like this: {found}")

    await ask_all(server, range(load.waiting), answer, 20)
    await ask_all(server, range(load.waiting), read, 20)
    return {"delivered": load.waiting, "waiting": memory}


LOADS: dict[str, tuple[Callable[[Server, Load], Awaitable[Measurement]], str]] = {
    "many-readers": (many_readers, "{readers:,} readers of one run, {events:,} events"),
    "many-runs": (many_runs, "{runs:,} runs at once, 5 readers each, {events:,} events"),
    "many-waiting": (many_waiting, "{waiting:,} runs that wait, then all answered"),
}


async def bear(name: str, server: Server, load: Load) -> Measurement:
    """Put a load on a server, and return what it used.

    Returns:
        `seconds` and `cpu` of everything, from the first request to the last answer; `before`, `peak` and
        `after`, its memory in bytes; `delivered`, how many events or results were checked.

    Raises:
        FailedError: An event or a result is missing, wrong, or not in order.
    """
    before, cpu, begun = server.memory(), server.begin(), perf_counter()
    done: dict[str, Any] = dict(await LOADS[name][0](server, load))
    return {
        **done,
        "cpu": server.cpu() - cpu,
        "seconds": perf_counter() - begun,
        "before": before,
        "after": server.memory(),
        "peak": server.peak(),
    }
