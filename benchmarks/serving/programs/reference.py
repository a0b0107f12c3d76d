"""The server of llama-index-workflows, with the same workflows."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from typing import Any

from llama_agents.server import SqliteWorkflowStore, WorkflowServer
from told import OPTIONS, listening
from workflows import Context, Workflow, step
from workflows.events import (
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
)


class Order(StartEvent):
    number: int


class Ready(InputRequiredEvent):
    number: int


class Go(HumanResponseEvent):
    events: int
    delay: float


class Answer(HumanResponseEvent):
    number: int


class Token(Event):
    number: int
    text: str


class Trivial(Workflow):
    """A run of one step."""

    @step
    async def only(self, ev: Order) -> StopEvent:
        return StopEvent(result=ev.number)


class Writing(Workflow):
    """Write events when told to."""

    @step
    async def begin(self, ev: Order) -> Ready:
        return Ready(number=ev.number)

    @step
    async def write(self, ctx: Context, ev: Go) -> StopEvent:
        for number in range(ev.events):
            ctx.write_event_to_stream(Token(number=number, text="a token"))
            await asyncio.sleep(ev.delay)
        return StopEvent(result=ev.events)


class Asking(Workflow):
    """Wait for an answer."""

    @step
    async def ask(self, ctx: Context, ev: Order) -> StopEvent:
        question = Ready(number=ev.number)
        answer = await ctx.wait_for_event(Answer, waiter_event=question, timeout=None)
        return StopEvent(result=answer.number)


async def main() -> None:
    asyncio.get_running_loop().set_task_factory(_task_that_lasts)
    database, idle_after = OPTIONS.get("database"), OPTIONS.get("idle_after")
    server = WorkflowServer(
        workflow_store=None if database is None else SqliteWorkflowStore(database),
        idle_timeout=3600.0 if idle_after is None else idle_after,
    )
    server.add_workflow("trivial", Trivial(timeout=None))
    server.add_workflow("writing", Writing(timeout=None))
    server.add_workflow("asking", Asking(timeout=None), additional_events=[Answer])
    port = _free_port()
    serving = asyncio.create_task(
        server.serve("127.0.0.1", port, {"log_level": "warning", "access_log": False})
    )
    while not _listens(port):  # noqa: ASYNC110 - nobody is told
        await asyncio.sleep(0.01)
    listening(f"http://127.0.0.1:{port}/")
    await serving


_runs: set[asyncio.Task[Any]] = set()


def _task_that_lasts(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any
) -> asyncio.Task[Any]:
    """Return a task; that of a run is kept until it is done.

    Nothing else refers to a run that waits, except weakly, so that a garbage collection ends it: the server
    then still answers that an event has been sent to it, and nothing happens.
    """
    task = asyncio.Task(coroutine, loop=loop, **options)
    if "run_workflow" in coroutine.__qualname__:
        _runs.add(task)
        task.add_done_callback(_runs.discard)
    return task


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    asyncio.run(main())
