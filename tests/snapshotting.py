"""What the tests of snapshots share: taking one, and going on from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import anyio

from anyio_workflows import Context, HumanResponseEvent, StopEvent, Workflow, WorkflowHandler, step

from .samples import Done, Item, Numbers, Other, Part


class Parcel(HumanResponseEvent):
    """Comes from outside, and is paired with mail."""

    n: int = 0


def through_json(data: dict[str, Any]) -> dict[str, Any]:
    """Return what a file would give back."""
    found = json.loads(json.dumps(data, allow_nan=False))
    assert found == data
    return found


def resume(workflow: Workflow[Any], data: Any, types: Sequence[type] = ()) -> WorkflowHandler[Any]:
    return workflow.run(ctx=Context.from_dict(workflow, data, types))


async def snapshot_at(
    seconds: float, handler: WorkflowHandler[Any], types: Sequence[type] = ()
) -> dict[str, Any]:
    """Return the snapshot of a run after some virtual seconds, and end the run."""
    await anyio.sleep(seconds)
    data = through_json(handler.ctx.to_dict(types))
    await handler.cancel_run()
    return data


def pending_steps(data: dict[str, Any]) -> list[tuple[str, int]]:
    """Return the steps and attempts of the work in a snapshot."""
    return [(work["step"], work["attempt"]) for work in data["work"]["work"]]


class Fan(Workflow[list[int]]):
    """Nested batches: item n takes 10 * n seconds, and has n parts that take 10 seconds each."""

    def __init__(self, done: list[Any], **config: Any) -> None:
        super().__init__(**{"timeout": None, **config})
        self.done = done

    @step
    async def split(self, ev: Numbers) -> list[Item]:
        self.done.append("split")
        return [Item(n=n) for n in ev.items]

    @step
    async def open(self, ev: Item) -> list[Part]:
        if ev.n:  # else it is never in progress when a snapshot is taken
            await anyio.sleep(10 * ev.n)
        self.done.append(("open", ev.n))
        return [Part(n=ev.n)] * ev.n

    @step(num_workers=1)
    async def work(self, ev: Part) -> Other:
        await anyio.sleep(10)
        self.done.append(("work", ev.n))
        return Other(n=ev.n)

    @step
    async def inner(self, events: list[Other]) -> Done:
        self.done.append(("inner", len(events)))
        return Done(n=sum(event.n for event in events))

    @step
    async def outer(self, events: list[Done]) -> StopEvent:
        self.done.append("outer")
        return StopEvent(result=sorted(event.n for event in events))
