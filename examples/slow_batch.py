"""A batch of slow items that survives kill -9, with its progress on the terminal.

    python slow_batch.py                 # kill it at any moment, with Ctrl-C or kill -9
    python slow_batch.py                 # the same command again: no finished item is done again

The run is kept in an SQLite database beside this file. Four items are in progress at a time, every fifth one fails at first
and is retried, and a join collects the results. An item counts as done when that is on the disk, and is printed afterwards;
those that were in progress when the process died start over. Once the batch is finished, the command prints its
result again; `--batch 2` starts another one.

It needs `pip install ".[trio]"` in the checkout, and no account, key or server.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

import anyio

from anyio_workflows import Context, Event, StartEvent, StopEvent, Workflow, step
from anyio_workflows.retry_policy import (
    retry_if_exception_type,
    retry_policy,
    stop_after_attempt,
    wait_fixed,
)
from anyio_workflows.runtime import RunHandle, Runtime


class Batch(StartEvent):
    items: int
    seconds: float


class Item(Event):
    number: int
    seconds: float


class Done(Event):
    number: int
    words: int


class ItemDone(Event):
    """For the public stream: an item is done."""

    number: int


class SlowBatch(Workflow[int]):
    @step
    async def begin(self, ev: Batch) -> list[Item]:
        return [Item(number=number, seconds=ev.seconds) for number in range(1, ev.items + 1)]

    @step(
        num_workers=4,
        timeout=60,  # of each attempt
        retry_policy=retry_policy(
            retry=retry_if_exception_type(ConnectionError),
            wait=wait_fixed(0.2),
            stop=stop_after_attempt(5),
        ),
    )
    async def work(self, ctx: Context, ev: Item) -> Done:
        await anyio.sleep(ev.seconds * random.uniform(0.5, 1.5))  # a slow provider
        if ev.number % 5 == 0 and ctx.retry_info().retry_number == 0:
            raise ConnectionError("the provider is overloaded")
        # Nothing is awaited from here to the end of the step, so the event is committed together with that end.
        ctx.write_event_to_stream(ItemDone(number=ev.number))
        return Done(number=ev.number, words=100 + ev.number)

    @step
    async def add(self, evs: list[Done]) -> StopEvent:
        return StopEvent(result=sum(done.words for done in evs))


async def main(database: str, batch: str, items: int, seconds: float) -> None:
    async with Runtime(database, workflows=[SlowBatch(timeout=None)]) as runtime:
        run = await runtime.start(
            SlowBatch, run_id=batch, metadata={"items": items}, items=items, seconds=seconds
        )
        items = run.info.metadata["items"]  # those of the first start, which counts
        cursor = run.info.last_seq
        done = await count_done(run, cursor)
        print(f"{batch}: {done} of {items} items were done before", flush=True)
        async for record in run.records(after=cursor):
            if isinstance(record.event, ItemDone):
                done += 1
                print(
                    f"item {record.event.number} is done: {progress(run, done, items)}", flush=True
                )
        print(f"{await run} words", flush=True)


async def count_done(run: RunHandle[int], cursor: int) -> int:
    """Return how many items were done when the log had `cursor` events: by earlier processes."""
    done = 0
    if cursor:
        async for record in run.records():
            done += isinstance(record.event, ItemDone)
            if record.seq == cursor:
                break
    return done


def progress(run: RunHandle[int], done: int, items: int) -> str:
    """Say how far the batch is."""
    work = run.statistics().steps.get(
        "work"
    )  # only the process that executes a run knows its steps
    now = f", {work.running} running, {work.delayed} to be retried" if work else ""
    return f"{done} of {items}{now}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", default="1", help="default: %(default)s")
    parser.add_argument("--items", type=int, default=40, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each; default: %(default)s")
    parser.add_argument("--file", type=Path, default=Path(__file__).with_suffix(".db"))
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    asked = parser.parse_args()
    url = f"sqlite:///{asked.file.absolute()}"
    name = f"batch-{asked.batch}"
    print(f"runs are kept in {asked.file}", flush=True)
    try:
        anyio.run(main, url, name, asked.items, asked.seconds, backend=asked.backend)
    except KeyboardInterrupt:
        sys.exit("stopped; the same command continues from here")
