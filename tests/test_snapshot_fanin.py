"""Snapshots of batches, event sets and collect buffers (rules P3, F1-F6)."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

import anyio
import pytest

from anyio_workflows import (
    Context,
    StartEvent,
    StepFailedEvent,
    StopEvent,
    Workflow,
    catch_error,
    step,
)
from anyio_workflows.collect import Collect, Take

from .running import read_all, unhandled
from .samples import Done, Item, Mail, Numbers, Other, Part
from .snapshotting import Fan, Parcel, pending_steps, resume, snapshot_at, through_json

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("seconds", [0, 5, 15, 25, 35, 45, 55, 65, 75])
@pytest.mark.parametrize("items", [[1, 2, 3], [0, 3], [1, 1]])
async def test_p3_open_and_nested_batches(seconds: float, items: list[int]) -> None:
    done: list[Any] = []
    handler = Fan(done).run(items=items)
    await anyio.sleep(seconds)
    if handler.is_done():
        assert through_json(handler.ctx.to_dict())["work"] is None
    else:
        data = await snapshot_at(0, handler)
        assert await resume(Fan(done), data) == [n * n for n in items]
    parts = [("work", n) for n in items for _ in range(n)]
    opened = [("open", n) for n in items]
    closed = [("inner", n) for n in items]
    assert Counter(done) == Counter(["split", *opened, *parts, *closed, "outer"])


async def test_p3_an_empty_batch_inside_another() -> None:
    handler = Fan(done := []).run(items=[0, 1])
    data = await snapshot_at(5, handler)
    assert await resume(Fan(done), data) == [0, 1]
    assert done.count(("inner", 0)) == 1


class Race(Workflow[Any]):
    """The first two of its items that are there win; `linger` makes the others slow to go."""

    linger = 0.0
    cancel = True

    def __init__(self, done: list[Any], **config: Any) -> None:
        super().__init__(**{"timeout": None, **config})
        self.done = done

    @step
    async def split(self, ev: Numbers) -> list[Item]:
        return [Item(n=n) for n in ev.items]

    @step(num_workers=3)
    async def work(self, ev: Item) -> Done:
        try:
            await anyio.sleep(10 * ev.n)
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await anyio.sleep(self.linger)
            raise
        self.done.append(ev.n)
        return Done(n=ev.n)

    @step
    async def first(self, events: Annotated[list[Done], Collect(Take(2, cancel=True))]) -> Other:
        await anyio.sleep(10)
        self.done.append("first")
        return Other(n=sum(event.n for event in events))

    @step
    async def every(self, events: list[Done]) -> Part:
        self.done.append(f"every {len(events)}")
        return Part(n=len(events))

    @step
    async def both(self, a: Other, b: Part) -> StopEvent:
        return StopEvent(result=(a.n, b.n))


@pytest.mark.parametrize("linger", [0, 2, 6, 30])
@pytest.mark.parametrize("seconds", [5, 15, 21, 25, 29])
async def test_p3_a_batch_that_is_cancelled_while_work_is_going(
    linger: float, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Race, "linger", linger)
    done: list[Any] = []
    handler = Race(done).run(items=[3, 1, 2, 4, 5])
    await anyio.sleep(seconds)
    data = through_json(handler.ctx.to_dict())
    finished = [*done]
    await handler.cancel_run()
    del done[:]
    assert await resume(Race(done), data) == (3, 2)
    assert Counter([*finished, *done]) == Counter([1, 2, "first", "every 2"])


async def test_p3_f4_joins_inside_a_cancelled_batch_do_not_fire_after_a_restore() -> None:
    class Nested(Workflow[Any]):
        @step
        async def split(self, ev: Numbers) -> list[Item]:
            return [Item(n=n) for n in ev.items]

        @step
        async def open(self, ev: Item) -> list[Part]:
            return [Part(n=ev.n)]

        @step
        async def work(self, ev: Part) -> Other:
            try:
                await anyio.sleep(10 * ev.n)
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(5)
            return Other(n=ev.n)

        @step
        async def inner(self, events: list[Other]) -> Done:
            joined.append([event.n for event in events])
            return Done()

        @step
        async def outer(
            self, events: Annotated[list[Done], Collect(Take(1, cancel=True))]
        ) -> StopEvent:
            await anyio.sleep(10)
            return StopEvent(result=len(events))

    joined: list[list[int]] = []
    data = await snapshot_at(17, Nested().run(items=[1, 2]))
    assert pending_steps(data) == [("outer", 1)]
    assert await resume(Nested(), data) == 1
    assert joined == [[1]]


async def test_p3_take_without_cancelling() -> None:
    class Early(Workflow[Any]):
        @step
        async def split(self, ev: Numbers) -> list[Item]:
            return [Item(n=n) for n in ev.items]

        @step
        async def work(self, ev: Item) -> Done:
            await anyio.sleep(10 * ev.n)
            done.append(ev.n)
            return Done(n=ev.n)

        @step
        async def early(self, events: Annotated[list[Done], Collect(Take(1))]) -> None:
            done.append(f"early {events[0].n}")

        @step
        async def late(self, events: list[Done]) -> StopEvent:
            return StopEvent(result=[event.n for event in events])

    done: list[Any] = []
    data = await snapshot_at(15, Early().run(items=[1, 2, 3]))
    assert await resume(Early(), data) == [1, 2, 3]
    assert done == [1, "early 1", 2, 3]


@pytest.mark.parametrize("cancel", [False, True])
async def test_p3_f4_a_join_that_has_fired_stays_so_after_a_restore(cancel: bool) -> None:
    class Early(Workflow[Any]):
        @step
        async def split(self, ev: Numbers) -> list[Item]:
            return [Item(n=n) for n in ev.items]

        @step
        async def work(self, ev: Item) -> Done:
            with anyio.CancelScope(shield=cancel):
                await anyio.sleep(10 * ev.n)
            return Done(n=ev.n)

        @step
        async def early(
            self, events: Annotated[list[Done], Collect(Take(1, cancel=cancel))]
        ) -> Other:
            return Other(n=events[0].n)

        @step
        async def end(self, ev: Other) -> StopEvent:
            await anyio.sleep(30)
            return StopEvent(result=ev.n)

    data = await snapshot_at(15, Early().run(items=[1, 2, 3]))
    for _ in range(2):
        handler = resume(Early(), data)
        assert unhandled(await read_all(handler)) == [], "what comes after the join is dropped"
        assert await handler == 1
        data = await snapshot_at(5, resume(Early(), data))


class Sets(Workflow[Any]):
    """Pairs what comes from outside; what is negative goes to the second parameter."""

    @step
    async def begin(self, ev: StartEvent) -> None: ...

    @step
    async def pair(self, a: Mail, b: Parcel) -> StopEvent | None:
        return StopEvent(result=(a.n, b.n)) if b.n == 3 else None


async def test_p3_sets_outside_of_branches_keep_their_surplus_in_order() -> None:
    handler = Sets().run()
    await anyio.sleep(1)
    for n in (1, 2, 3, 4):
        await handler.send_event(Mail(n=n))
    await handler.send_event(Parcel(n=1))
    data = await snapshot_at(1, handler)
    assert [
        [kept["event"]["value"]["n"] for kept in queue]
        for queue in data["work"]["sets"][0]["queues"]
    ] == [[2, 3, 4], []]
    again = resume(Sets(), data)
    await again.send_event(Parcel(n=2))
    await again.send_event(Parcel(n=3))
    assert await again == (3, 3)


class BranchSets(Workflow[Any]):
    """Both halves of a pair come from one branch, at different times."""

    @step
    async def split(self, ev: Numbers) -> list[Part]:
        return [Part(n=n) for n in ev.items]

    @step
    async def left(self, ev: Part) -> Item:
        await anyio.sleep(ev.n)
        return Item(n=ev.n)

    @step
    async def right(self, ev: Part) -> Other:
        await anyio.sleep(10 - ev.n)
        return Other(n=ev.n)

    @step
    async def pair(self, a: Item, b: Other) -> Done:
        assert a.n == b.n, "events of different branches were paired"
        return Done(n=a.n)

    @step
    async def join(self, events: list[Done]) -> StopEvent:
        return StopEvent(result=sorted(event.n for event in events))


@pytest.mark.parametrize("seconds", [0, 2.5, 4.5, 7.5])
async def test_p3_sets_inside_branches(seconds: float) -> None:
    data = await snapshot_at(seconds, BranchSets().run(items=[1, 8, 3]))
    assert await resume(BranchSets(), data) == [1, 3, 8]


class Pairs(Workflow[Any]):
    """Collects two items at a time, then works on them for ten seconds."""

    def __init__(self, done: list[Any], **config: Any) -> None:
        super().__init__(**{"timeout": None, **config})
        self.done = done

    @step
    async def begin(self, ev: StartEvent) -> None: ...

    @step(num_workers=8)
    async def work(self, ctx: Context, ev: Mail) -> StopEvent | None:
        found = ctx.collect_events(ev, [Mail, Mail], buffer_id=f"{ev.n % 2}")
        if found is None:
            return None
        await anyio.sleep(10)
        self.done.append([event.n for event in found if isinstance(event, Mail)])
        return StopEvent(result=self.done) if len(self.done) == 3 else None


async def test_p3_f6_collect_buffers_and_what_an_execution_took_from_them() -> None:
    handler = Pairs([]).run()
    await anyio.sleep(1)
    for n in (1, 2, 3, 5):
        await handler.send_event(Mail(n=n))
    data = await snapshot_at(5, handler)
    again = resume(Pairs([]), data)
    await again.send_event(Mail(n=4))
    await again.send_event(Mail(n=7))
    assert sorted(await again) == [[1, 3], [2, 4], [5, 7]]


async def test_p3_f6_surplus_in_a_collect_buffer() -> None:
    class Uneven(Workflow[Any]):
        @step
        async def begin(self, ev: StartEvent) -> None: ...

        @step
        async def work(self, ctx: Context, ev: Mail | Parcel) -> StopEvent | None:
            found = ctx.collect_events(ev, [Mail, Parcel])
            return StopEvent(result=[dict(event) for event in found]) if found else None

    handler = Uneven().run()
    await anyio.sleep(1)
    for n in (1, 2, 3):
        await handler.send_event(Mail(n=n))
    data = await snapshot_at(1, handler)
    again = resume(Uneven(), data)
    await again.send_event(Parcel(n=9))
    assert await again == [{"n": 1}, {"n": 9}]


async def test_p3_a_failed_join_is_recovered_with_the_events_of_its_batch() -> None:
    class Failing(Workflow[Any]):
        @step
        async def split(self, ev: Numbers) -> list[Item]:
            return [Item(n=n) for n in ev.items]

        @step
        async def join(self, events: list[Item]) -> StopEvent:
            raise ValueError("no")

        @catch_error
        async def recover(self, ev: StepFailedEvent) -> StopEvent:
            await anyio.sleep(10)
            return StopEvent(result=ev.input_event)

    data = await snapshot_at(5, Failing().run(items=[1, 2]))
    assert pending_steps(data) == [("recover", 1)]
    assert await resume(Failing(), data) == [Item(n=1), Item(n=2)]
