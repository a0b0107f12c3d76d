"""A program that serves two workflows until a signal comes: `python -m tests.served OPTIONS`, which are JSON."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import anyio

from anyio_workflows import Context, Event, Runtime, StartEvent, StopEvent, Workflow, step
from anyio_workflows.server import WorkflowServer


class Begin(StartEvent):
    to: int
    pause: float = 0.0
    padding: int = 0


class Next(Event):
    n: int


class Counted(Event):
    n: int
    padding: str


class Answer(Event):
    text: str


class Count(Workflow[int]):
    """Count, an event for each number."""

    @step
    async def begin(self, ctx: Context, ev: Begin) -> Next:
        await ctx.store.set("begin", {"to": ev.to, "pause": ev.pause, "padding": ev.padding})
        return Next(n=1)

    @step
    async def count(self, ctx: Context, ev: Next) -> Next | StopEvent:
        begin = await ctx.store.get("begin")
        if ev.n > begin["to"]:
            return StopEvent(result=begin["to"])
        ctx.write_event_to_stream(Counted(n=ev.n, padding="x" * begin["padding"]))
        await anyio.sleep(begin["pause"])
        return Next(n=ev.n + 1)


class Ask(Workflow[str]):
    """Wait for an answer."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        answer = await ctx.wait_for_event(Answer, timeout=None)
        return StopEvent(result=answer.text)


def refuse(request: Any, action: Any) -> str:
    """Fail for one path."""
    if action.run_id == "fault":
        raise ValueError("a fault in the program")
    return "somebody"


async def main(options: dict[str, Any]) -> None:
    workflows = [Count(timeout=None), Ask(timeout=None)]
    server = WorkflowServer(
        Runtime(options.get("database"), workflows=workflows),
        heartbeat=options.get("heartbeat", 15.0),
        authorize=refuse if options.get("authorize") else None,
    )
    async with anyio.create_task_group() as group:
        url = await group.start(start, server)
        print(url, flush=True)
    print("ended", flush=True)


async def start(server: WorkflowServer, *, task_status: Any) -> None:
    await server.serve(port=0, task_status=task_status)


if __name__ == "__main__":
    # In development mode asyncio logs what takes longer than 0.1 s: on a slow machine anything does.
    logging.getLogger("asyncio").addFilter(
        lambda record: not record.getMessage().startswith("Executing ")
    )
    given = json.loads(sys.argv[1])
    anyio.run(
        main,
        given,
        backend=given["backend"],
        backend_options={"use_uvloop": True} if given.get("uvloop") else {},
    )
