"""Writing at the pace of the reader: `ctx.drain()` (S6)."""

from __future__ import annotations

import gc
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from anyio_workflows import (
    Context,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledEvent,
    WorkflowHandler,
    WorkflowTimedOutEvent,
    step,
)
from anyio_workflows.errors import ContextStateError, WorkflowRuntimeError
from anyio_workflows.events import InternalDispatchEvent

from .running import check_ending, read, texts
from .samples import Done, Note, OneStep

pytestmark = pytest.mark.anyio


def write(ctx: Context, count: int = 1) -> None:
    for n in range(count):
        ctx.write_event_to_stream(Note(text=n))


def drains_after(written: int, limit: int = 0, **kwargs: Any) -> WorkflowHandler[Any]:
    """Start a run that writes so many events, drains, and returns when that was over."""

    async def act(ctx: Context) -> float:
        write(ctx, written)
        await ctx.drain(limit)
        return anyio.current_time()

    return OneStep(act, **kwargs).run()


@pytest.mark.parametrize("limit", [0, 1, 3, 10])
async def test_s6_the_writer_keeps_the_pace_of_the_reader(limit: int) -> None:
    async def act(ctx: Context) -> int:
        most = 0
        for n in range(20):
            ctx.write_event_to_stream(Note(text=n))
            await ctx.drain(limit)
            most = max(most, handler.statistics().unread_events)
        return most

    handler = OneStep(act).run()
    began = anyio.current_time()
    async for event in handler.stream_events():
        if isinstance(event, Note):
            await anyio.sleep(1)
    assert await handler == limit
    assert anyio.current_time() - began == 20


@pytest.mark.parametrize(("limit", "seconds"), [(0, 5), (1, 4), (4, 1), (5, 0), (9, 0)])
async def test_s6_waits_until_no_more_are_unread(limit: int, seconds: float) -> None:
    began = anyio.current_time()

    async def slow_reader() -> None:
        async for _ in handler.stream_events():
            await anyio.sleep(1)

    async def act(ctx: Context) -> float:
        write(ctx)
        await anyio.sleep(0.5)  # the reader has taken the first, and is busy with it
        write(ctx, 5)
        await ctx.drain(limit)
        return anyio.current_time() - began

    handler = OneStep(act).run()
    async with anyio.create_task_group() as group:
        group.start_soon(slow_reader)
    assert await handler == (seconds or 0.5)


async def test_s6_without_a_reader_it_returns_and_lets_others_run() -> None:
    async def act(ctx: Context) -> int:
        for _ in range(100):
            write(ctx)
            await ctx.drain()
        return turns

    async def others() -> None:
        nonlocal turns
        while True:
            await checkpoint()
            turns += 1

    turns = 0
    began = anyio.current_time()
    async with anyio.create_task_group() as group:
        group.start_soon(others)
        assert await OneStep(act).run() >= 90
        group.cancel_scope.cancel()
    assert anyio.current_time() == began


async def test_s6_nothing_unread_is_a_checkpoint_too() -> None:
    async def act(ctx: Context) -> bool:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await ctx.drain(7)
        return scope.cancelled_caught

    assert await OneStep(act).run()


async def test_s6_an_iterator_that_has_not_begun_is_no_reader() -> None:
    handler = drains_after(3)
    stream = handler.stream_events()
    assert await handler == anyio.current_time()
    assert len([event async for event in stream]) == 4


async def drop_by_break(handler: WorkflowHandler[Any]) -> None:
    async for _ in handler.stream_events():
        await anyio.sleep(10)
        break


async def drop_by_error(handler: WorkflowHandler[Any]) -> None:
    with suppress(ZeroDivisionError):
        async for _ in handler.stream_events():
            await anyio.sleep(10)
            raise ZeroDivisionError


async def drop_by_cancellation(handler: WorkflowHandler[Any]) -> None:
    with anyio.move_on_after(10):
        async for _ in handler.stream_events():
            await anyio.sleep_forever()


async def close_it(handler: WorkflowHandler[Any]) -> None:
    stream = handler.stream_events()
    await anext(stream)
    await anyio.sleep(10)
    await stream.aclose()
    await handler


async def delete_it(handler: WorkflowHandler[Any]) -> None:
    stream = handler.stream_events()
    await anext(stream)
    await anyio.sleep(10)
    del stream
    await handler


async def collect_it_in_a_thread(handler: WorkflowHandler[Any]) -> None:
    circle: list[Any] = [handler.stream_events()]
    circle.append(circle)
    await anext(circle[0])
    await anyio.sleep(10)
    del circle
    await anyio.to_thread.run_sync(gc.collect)
    await handler


LEAVING = [
    drop_by_break,
    drop_by_error,
    drop_by_cancellation,
    close_it,
    delete_it,
    collect_it_in_a_thread,
]


@pytest.mark.parametrize("leave", LEAVING, ids=lambda leave: leave.__name__)
async def test_s6_ends_when_the_reader_leaves(leave: Callable[..., Awaitable[None]]) -> None:
    began = anyio.current_time()
    handler = drains_after(3, timeout=100)
    await leave(handler)
    assert await handler - began == 10


async def test_s6_an_iterator_that_is_kept_is_a_slow_reader() -> None:
    handler = drains_after(3, timeout=100)
    began = anyio.current_time()
    stream = handler.stream_events()
    async for _ in stream:
        break
    await anyio.sleep(10)
    async for _ in stream:
        pass
    assert await handler - began == 10


async def test_s6_a_cancelled_read_does_not_count_until_it_is_repeated() -> None:
    async def act(ctx: Context) -> list[float]:
        begun = anyio.current_time()
        write(ctx)
        await anyio.sleep(5)
        times = []
        for _ in range(2):
            write(ctx, 2)
            await ctx.drain()
            times.append(anyio.current_time() - begun)
            await anyio.sleep(5)
        return times

    handler = OneStep(act).run()
    stream = handler.stream_events()
    await anext(stream)
    with anyio.move_on_after(2):
        await anext(stream)
    await anyio.sleep(5.5)  # nobody reads at 5 s
    await anext(stream)  # somebody does from 7.5 s on
    await anyio.sleep(10)
    async for _ in stream:
        pass
    assert await handler == [5, 17.5]


async def test_s6_a_read_with_a_deadline_that_has_an_event_goes_on_counting() -> None:
    handler = drains_after(3)
    stream = handler.stream_events()
    while not handler.is_done():
        with anyio.move_on_after(1):
            event = await anext(stream)
            await anyio.sleep(0.5)
    assert isinstance(event, Note)
    assert handler.statistics().unread_events == 1


async def test_s6_one_reader_leaves_and_another_stays() -> None:
    began = anyio.current_time()
    handler = drains_after(4)
    one, two = handler.stream_events(), handler.stream_events()
    await anext(one)
    await anext(two)
    await anyio.sleep(1)
    await one.aclose()
    await anyio.sleep(1)
    await anext(two)
    await anyio.sleep(1)
    await anext(two)
    assert await handler - began == 3


async def test_s6_several_at_once_each_with_its_limit() -> None:
    class Several(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> list[Note]:
            write(ctx, 7)
            return [Note(text=limit) for limit in (5, 0, 3, 3, 1)]

        @step(num_workers=5)
        async def drain(self, ctx: Context, ev: Note) -> Done:
            await ctx.drain(ev.text)
            times.append((ev.text, anyio.current_time() - began))
            return Done()

        @step
        async def join(self, events: list[Done]) -> StopEvent:
            return StopEvent()

    times: list[tuple[int, float]] = []
    began = anyio.current_time()
    handler = Several().run()
    async for _ in handler.stream_events():
        await anyio.sleep(1)
    assert sorted(times) == [(0, 6), (1, 5), (3, 3), (3, 3), (5, 1)]


async def test_s6_a_drain_that_is_given_up_leaves_the_others_alone() -> None:
    async def act(ctx: Context) -> float:
        write(ctx, 4)
        with anyio.move_on_after(1) as scope:
            await ctx.drain(2)
        assert scope.cancelled_caught
        await ctx.drain(1)
        return anyio.current_time() - began

    began = anyio.current_time()
    handler = OneStep(act).run()
    async for _ in handler.stream_events():
        await anyio.sleep(10)
    assert await handler == 20


async def test_s6_writers_that_drain_starve_nobody() -> None:
    class Two(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> list[Note]:
            return [Note(text="one"), Note(text="two")]

        @step
        async def work(self, ctx: Context, ev: Note) -> Done:
            for n in range(50):
                ctx.write_event_to_stream(Note(text=(ev.text, n)))
                await ctx.drain()
            return Done()

        @step
        async def join(self, events: list[Done]) -> StopEvent:
            return StopEvent()

    events = await read(Two().run())
    first_half = [who for who, _ in texts(events)[:50]]
    counts = sorted(first_half.count(who) for who in set(first_half))
    assert len(counts) == 2
    assert counts[0] >= 15


@pytest.mark.parametrize("ending", ["cancel", "timeout", "stop"])
async def test_s6_ends_with_the_run(ending: str) -> None:
    async def outside() -> None:
        await anyio.sleep(0.5)
        await handler.ctx.drain()
        ended.append(anyio.current_time() - began)

    began = anyio.current_time()
    ended: list[float] = []
    handler = drains_after(3, timeout=5 if ending == "timeout" else 100)
    stream = handler.stream_events()
    await anext(stream)
    async with anyio.create_task_group() as group:
        group.start_soon(outside)
        await anyio.sleep(5)
        if ending == "cancel":
            await handler.cancel_run()
        elif ending == "stop":
            await handler.send_event(StopEvent(result="enough"))
    assert ended == [5]
    await stream.aclose()
    _, last = await check_ending(handler)
    ways = {"cancel": WorkflowCancelledEvent, "timeout": WorkflowTimedOutEvent, "stop": StopEvent}
    assert type(last) is ways[ending]
    await handler.ctx.drain()  # nothing comes any more


async def test_s6_from_the_thread_of_a_sync_step() -> None:
    class Threads(Workflow):
        @step
        def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            unread = []
            for _ in range(5):
                write(ctx)
                anyio.from_thread.run(ctx.drain, 1)
                unread.append(handler.statistics().unread_events)
            with pytest.raises(WorkflowRuntimeError, match="limit must be an int"):
                anyio.from_thread.run(ctx.drain, -1)
            return StopEvent(result=max(unread))

    handler = Threads().run()
    seen = 0
    async for _ in handler.stream_events():
        seen += 1
        await checkpoint()
    assert seen == 6
    assert await handler <= 1


async def test_s6_an_abandoned_thread_gets_away() -> None:
    class Threads(Workflow):
        @step
        def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            try:
                write(ctx, 2)
                while True:
                    anyio.from_thread.run(ctx.drain)
            finally:
                gone.set()

    gone = threading.Event()
    handler = Threads().run()
    stream = handler.stream_events()
    await anext(stream)
    await handler.cancel_run()
    assert await anyio.to_thread.run_sync(gone.wait, 60)


async def test_s6_internal_events_count_where_somebody_asked_for_them() -> None:
    async def act(ctx: Context) -> int:
        await anyio.sleep(1)
        write(ctx)
        await ctx.drain()
        return handler.statistics().unread_events

    handler = OneStep(act).run()
    seen = []
    async for event in handler.stream_events(expose_internal=True):
        seen.append(isinstance(event, InternalDispatchEvent))
        await checkpoint()
    assert await handler == 0
    assert any(seen)


async def test_s6_a_reader_that_skips_internal_events_reads_them_too() -> None:
    async def act(ctx: Context) -> int:
        write(ctx)
        await ctx.drain()
        return handler.statistics().unread_events

    handler = OneStep(act).run()
    handler.stream_events(expose_internal=True)
    events = await read(handler)
    assert [type(event) for event in events] == [Note, StopEvent]
    assert await handler == 0


@pytest.mark.parametrize("limit", [-1, 1.0, "1", None, True], ids=repr)
async def test_s6_the_limit_is_checked(limit: Any) -> None:
    async def act(ctx: Context) -> None:
        await ctx.drain(limit)

    with pytest.raises(
        WorkflowRuntimeError, match=rf"limit must be an int, 0 or more, not {limit!r}"
    ):
        await OneStep(act).run()


async def test_s6_needs_a_run_and_its_loop() -> None:
    with pytest.raises(ContextStateError, match="no run yet"):
        await Context(OneStep(None)).drain()  # type: ignore[arg-type]
    end = anyio.Event()
    handler = OneStep(lambda ctx: end.wait()).run()

    def elsewhere() -> None:
        async def drain() -> None:
            with pytest.raises(WorkflowRuntimeError, match="in the event loop of its run"):
                await handler.ctx.drain()

        anyio.run(drain)

    await anyio.to_thread.run_sync(elsewhere)
    end.set()
    await handler


async def test_s6_the_context_of_a_step_that_was_given_up_is_refused() -> None:
    class TooLong(Workflow):
        @step(timeout=1)
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            contexts.append(ctx)
            await anyio.sleep(10)
            return StopEvent()

    contexts: list[Context] = []
    with pytest.raises(TimeoutError):
        await TooLong().run()
    with pytest.raises(WorkflowRuntimeError, match="has ended"):
        await contexts[0].drain()
