"""Steps with one parameter per event, which start for each full set (F4)."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from anyio_workflows import Context, StartEvent, StopEvent, Workflow, step
from anyio_workflows.errors import WorkflowStalledError, WorkflowValidationError

from .running import numbers, read_all, texts, unhandled
from .samples import Done, Item, Note, Numbers, Other, Part

pytestmark = pytest.mark.anyio


class Better(Done):
    pass


class Pairs(Workflow):
    """Pairs of an item and another."""

    @step
    async def begin(self, ctx: Context, ev: Numbers) -> Item | Other | None:
        for n in ev.items:
            ctx.send_event(Item(n=n) if n > 0 else Other(n=n))
        return None

    @step
    async def pair(self, ctx: Context, a: Item, b: Other) -> None:
        ctx.write_event_to_stream(Note(text=(a.n, b.n)))

    @step
    async def last(self, ev: Done) -> StopEvent:
        return StopEvent()


async def pairs(workflow: type[Workflow], items: list[int]) -> tuple[list[Any], Any]:
    options: Any = {"skip_graph_checks": ["reachability", "terminal_event", "dead_end"]}
    handler = workflow(**options).run(items=items)
    handler.stream_events(expose_internal=True)
    events = []
    with anyio.move_on_after(1):
        async for event in handler.stream_events():
            events.append(event)
    await handler.send_event(Done())
    await handler
    return texts(events), events


async def test_f4_full_sets_fire_in_arrival_order_and_the_surplus_is_kept() -> None:
    found, _ = await pairs(Pairs, [1, 2, -1, 3, -2, -3, -4])
    assert found == [(1, -1), (2, -2), (3, -3)]


async def test_f4_what_an_incomplete_set_lacks_is_told() -> None:
    handler = Incomplete().run()
    with pytest.raises(WorkflowStalledError) as caught:
        await handler
    assert caught.value.missing == (("pair", "b"),)


class Incomplete(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Item | Other:
        return Item()

    @step
    async def pair(self, a: Item, b: Other) -> StopEvent:
        return StopEvent()


class Doubles(Pairs):
    @step
    async def pair(self, ctx: Context, a: Item, b: Item, c: Other) -> None:
        ctx.write_event_to_stream(Note(text=(a.n, b.n, c.n)))


async def test_f4_parameters_of_one_type_fill_in_arrival_order() -> None:
    found, _ = await pairs(Doubles, [1, -1, 2, 3, -2, 4, 5])
    assert found == [(1, 2, -1), (3, 4, -2)]


def test_f4_parameters_that_share_only_some_types_are_refused() -> None:
    with pytest.raises(WorkflowValidationError, match="'a' and 'b' share some types"):

        class Overlapping(Workflow):
            @step
            async def pair(self, a: Item | Other, b: Other) -> StopEvent: ...

    with pytest.raises(WorkflowValidationError, match="'a' and 'b' share some types"):

        class Related(Workflow):
            @step(accept_event_subclasses=True)
            async def pair(self, a: Done, b: Better) -> StopEvent: ...


class BranchPairs(Workflow):
    """Both halves of a pair come from one branch, at different times."""

    @step
    async def split(self, ev: Numbers) -> list[Part]:
        return [Part(n=n) for n in ev.items]

    @step(num_workers=100)
    async def left(self, ev: Part) -> Item:
        await anyio.sleep(ev.n)
        return Item(n=ev.n)

    @step(num_workers=100)
    async def right(self, ev: Part) -> Other | None:
        await anyio.sleep(10 - ev.n)
        return Other(n=ev.n) if ev.n != 4 else None

    @step
    async def pair(self, a: Item, b: Other) -> Done:
        assert a.n == b.n, "events of different branches were paired"
        return Done(n=a.n)

    @step
    async def join(self, events: list[Done]) -> StopEvent:
        return StopEvent(result=numbers(events))


async def test_f4_inside_a_batch_events_of_one_branch_are_paired() -> None:
    assert await BranchPairs().run(items=[1, 8, 3, 5, 4]) == [5, 3, 8, 1]


class Outside(BranchPairs):
    """Sent events pair among themselves, also if a branch sends them."""

    @step(num_workers=100)
    async def right(self, ctx: Context, ev: Part) -> Other | None:
        ctx.send_event(Other(n=-ev.n))
        ctx.send_event(Item(n=-ev.n))
        await anyio.sleep(20 + ev.n)
        return Other(n=ev.n)


async def test_f4_sent_events_pair_outside_the_branches() -> None:
    handler = Outside().run(items=[1, 2])
    events = await read_all(handler)
    assert await handler == [1, 2]
    assert unhandled(events) == ["Done", "Done"], "the pairs of sent events"
