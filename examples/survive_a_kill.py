"""A hundred slow items, and a process that may be killed at any moment.

    python survive_a_kill.py            # kill it, with Ctrl-C or kill -9, and start it again
    python survive_a_kill.py --items 20 --backend trio --file job.json --log done.log

Each finished item is a line of the log, with the process that did it. The snapshot in the file says
what is done and what is left, so the next process continues where the last one was killed. It needs
`pip install ".[trio]"` in the checkout.
"""

from __future__ import annotations

import argparse
import os
import random

import anyio

from anyio_workflows import Context, Event, StartEvent, StopEvent, Workflow, step
from anyio_workflows.checkpoint import run_with_checkpoints


class Job(StartEvent):
    items: int
    log: str


class Item(Event):
    number: int
    log: str


class Done(Event):
    number: int


class Progress(Event):
    """For the stream: how much is done."""

    text: str


class Batch(Workflow):
    @step
    async def begin(self, ev: Job) -> list[Item]:
        return [Item(number=number, log=ev.log) for number in range(ev.items)]

    @step(num_workers=10)
    async def work(self, ctx: Context, ev: Item) -> Done:
        await anyio.sleep(random.uniform(0.05, 0.15))  # a slow provider
        line = f"{ev.number} {os.getpid()}\n"
        async with await anyio.open_file(ev.log, "a") as log:
            await log.write(line)
        async with ctx.store.edit_state() as state:
            state.done = state.get("done", 0) + 1
        ctx.write_event_to_stream(Progress(text=f"item {ev.number} is done"))
        return Done(number=ev.number)

    @step
    async def end(self, ctx: Context, ev: list[Done]) -> StopEvent:
        return StopEvent(result=sorted(done.number for done in ev))


async def main(items: int, file: str, log: str) -> None:
    if await anyio.Path(file).exists():
        print(f"continuing from {file}")
    result = await run_with_checkpoints(
        Batch(timeout=None),
        file,
        every=0.1,
        on_event=lambda ev: print(ev.text, flush=True) if isinstance(ev, Progress) else None,
        items=items,
        log=log,
    )
    print(f"{len(result)} items are done")
    await anyio.Path(file).unlink()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--file", default="survive_a_kill.json")
    parser.add_argument("--log", default="survive_a_kill.log")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    asked = parser.parse_args()
    anyio.run(main, asked.items, asked.file, asked.log, backend=asked.backend)
