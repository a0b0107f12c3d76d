"""Readers of the runs of a runtime: any number of them, each with a cursor of its own (L rules)."""

from __future__ import annotations

import gc
import logging
import random
import tracemalloc
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyio_workflows import Context, Event, Runtime, StopEvent
from anyio_workflows.events import StepStateChanged, WorkflowIdleEvent
from anyio_workflows.instrument import EventRecord
from anyio_workflows.runtime import Gap, RunHandle

from .running import texts
from .samples import Answer, Asks, FanOut, Loop, Note, Numbers, OneStep, Question

pytestmark = pytest.mark.anyio


def writes(number: int, pause: int = 0) -> OneStep:
    """Return a workflow that writes so many notes, and lets others run after each `pause` of them."""

    async def act(ctx: Context) -> None:
        for n in range(1, number + 1):
            ctx.write_event_to_stream(Note(text=n))
            if pause and n % pause == 0:
                await checkpoint()

    return OneStep(act)


async def read(run: RunHandle[Any], after: int = 0, internal: bool = False) -> list[Any]:
    return [record async for record in run.records(after, internal)]


async def test_l1_events_are_numbered_from_1_and_the_terminal_event_is_the_last() -> None:
    async with Runtime(workflows=[writes(5)]) as runtime:
        run = await runtime.start(OneStep)
        found = await read(run)
        assert [record.seq for record in found] == [1, 2, 3, 4, 5, 6]
        assert texts([record.event for record in found]) == [1, 2, 3, 4, 5]
        assert isinstance(found[-1].event, StopEvent)
        times = [record.time for record in found]
        assert times == sorted(times)
        assert abs(times[0] - run.info.created.timestamp()) < 3600


@pytest.mark.parametrize("after", range(7))
async def test_l2_a_cursor_gives_all_that_follows_early_or_late(after: int) -> None:
    async with Runtime(workflows=[writes(5, pause=2)]) as runtime:
        run = await runtime.start(OneStep)
        await anyio.sleep(1)
        late = await read(run, after)
        assert [record.seq for record in late] == list(range(after + 1, 7))
        assert [event async for event in run.stream_events(after)] == [one.event for one in late]


async def test_s1_readers_get_the_very_objects_that_were_written() -> None:
    note = Note(text=[1])

    async def act(ctx: Context) -> None:
        ctx.write_event_to_stream(note)

    async with Runtime(workflows=[OneStep(act)]) as runtime:
        run = await runtime.start(OneStep)
        for _ in range(2):
            first = await anext(run.stream_events())
            assert first is note


async def test_l2_a_thousand_readers_each_get_everything() -> None:
    found: list[list[int]] = []

    async def follow(run: RunHandle[Any]) -> None:
        found.append([record.seq async for record in run.records()])

    async with Runtime(workflows=[writes(100, pause=7)]) as runtime:
        run = await runtime.start(OneStep)
        async with anyio.create_task_group() as group:
            for _ in range(1000):
                group.start_soon(follow, run)
        assert found == [list(range(1, 102))] * 1000
        gc.collect()
        assert run.statistics().log.readers == 0


@pytest.mark.parametrize("seed", range(5))
async def test_l2_readers_that_are_cancelled_at_random_lose_and_repeat_nothing(seed: int) -> None:
    rng = random.Random(seed)

    async def act(ctx: Context) -> None:
        for n in range(1, 200):
            ctx.write_event_to_stream(Note(text=n))
            if rng.random() < 0.5:
                await anyio.sleep(rng.choice([0, 0, 0.1, 1]))

    async def follow(run: RunHandle[Any], found: list[int]) -> None:
        """Read with one iterator, or with a new one at the cursor, whenever the last read was cancelled."""
        reader = run.records()
        while True:
            with anyio.move_on_after(rng.choice([0, 0, 0.05, 0.5, 3])):
                async for record in reader:
                    assert isinstance(record, EventRecord)
                    found.append(record.seq)
                    if rng.random() < 0.1:
                        break
                else:
                    return
            if rng.random() < 0.5:
                reader = run.records(reader.cursor)

    async with Runtime(workflows=[OneStep(act)]) as runtime:
        run = await runtime.start(OneStep)
        found: list[list[int]] = [[] for _ in range(20)]
        async with anyio.create_task_group() as group:
            for each in found:
                group.start_soon(follow, run, each)
        assert found == [list(range(1, 201))] * 20


async def test_l3_a_reader_that_is_late_is_told_what_it_missed_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Runtime(workflows=[writes(100)], log_events=10) as runtime:
        run = await runtime.start(OneStep, "r")
        early = run.records()
        await run
        found = [record async for record in early]
        assert found[0] == Gap(first=1, last=91, reason="trimmed")
        assert [record.seq for record in found[1:]] == list(range(92, 102))
        assert (await read(run, 50))[0] == Gap(first=51, last=91)
        assert not [record for record in await read(run, 91) if isinstance(record, Gap)]
        with caplog.at_level(logging.WARNING):
            events = run.stream_events(90)
            assert texts([event async for event in events]) == list(range(92, 101))
            assert events.cursor == 101
        assert caplog.messages == [
            "run r of one_step: events 91 to 91 had left the memory before they were read"
        ]
        counts = run.statistics().log
        assert (counts.first, counts.last, counts.kept, counts.trimmed) == (92, 101, 10, 91)


async def test_l3_the_bytes_of_a_log_are_bounded_too() -> None:
    async def act(ctx: Context) -> None:
        for _ in range(100):
            ctx.write_event_to_stream(Note(text="x" * 1000))

    async with Runtime(workflows=[OneStep(act)], log_bytes=20_000) as runtime:
        run = await runtime.start(OneStep)
        await run
        counts = run.statistics().log
        assert counts.bytes <= 20_000
        assert 10 <= counts.kept <= 20
        assert isinstance((await read(run))[0], Gap)


async def test_l4_a_reader_that_does_not_read_costs_no_memory() -> None:
    async with Runtime(workflows=[writes(20_000)], log_events=100) as runtime:
        await (await runtime.start(OneStep))  # what is made on first use must not count
        run = await runtime.start(OneStep)
        readers = [run.records() for _ in range(100)]
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            await run
            gc.collect()
            after = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert after - before < 100_000  # 20 000 events take 20 times as much
        assert [type(await anext(reader)) for reader in readers] == [Gap] * 100


async def test_s4_internal_events_on_request_have_the_number_of_the_event_before() -> None:
    async with Runtime(workflows=[Asks()]) as runtime:
        run = await runtime.start(Asks)
        plain = run.records()
        reader = run.records(internal=True)
        await anyio.sleep(1)
        await run.send_event(Answer(text="yes"))
        assert await run == "yes"
        found = [(record.seq, type(record.event)) async for record in reader]
        assert found[0] == (0, StepStateChanged)
        assert (1, WorkflowIdleEvent) in found
        assert found[-1] == (2, StopEvent)
        public = [(1, Question), (2, StopEvent)]
        assert [one for one in found if one in public] == public
        assert [(record.seq, type(record.event)) async for record in plain] == public
        assert run.info.last_seq == 2
        states = [one async for one in run.stream_events(internal=True)]
        assert len(states) == len(found)


async def test_s4_nobody_pays_for_internal_events_that_nobody_asked_for() -> None:
    async with Runtime(workflows=[FanOut()]) as runtime:
        run = await runtime.start(FanOut, start_event=Numbers(items=[1, 2, 3]))
        await anyio.sleep(1.5)
        early = [event async for event in run.stream_events(internal=True)]
        states = [event for event in early if isinstance(event, StepStateChanged)]
        assert {event.name for event in states} == {"work", "join"}  # 'split' was over before
        again = await runtime.start(FanOut, start_event=Numbers(items=[1]))
        await again
        assert not [
            event
            async for event in again.stream_events(internal=True)
            if isinstance(event, StepStateChanged)
        ]


async def test_readers_continue_while_their_run_is_removed() -> None:
    async with Runtime(workflows=[Loop()]) as runtime:
        run = await runtime.start(Loop, rounds=5)
        reader = run.stream_events()
        await run
        assert isinstance(await anext(reader), Note)
        await runtime.delete(run.id)
        assert len([event async for event in reader]) == 5


async def test_a_reader_is_closed_and_dropped_without_effect_on_others() -> None:
    async with Runtime(workflows=[Asks()]) as runtime:
        run = await runtime.start(Asks)
        first, second = run.stream_events(), run.stream_events()
        assert isinstance(await anext(first), Question)
        await first.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(first)
        del first
        await run.send_event(Answer(text="yes"))
        kinds: list[type[Event]] = [type(event) async for event in second]
        assert kinds == [Question, StopEvent]
        with pytest.raises(StopAsyncIteration):
            await anext(second)
