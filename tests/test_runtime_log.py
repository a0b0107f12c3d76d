"""The numbered log of a run, and its readers (L rules)."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyio_workflows.errors import WorkflowRuntimeError
from anyio_workflows.events import WorkflowIdleEvent
from anyio_workflows.instrument import EventRecord
from anyio_workflows.runtime._log import EventLog, Gap, LogReader, LogStatistics

from .logs import fill, read_to_end, record, shown, task_group
from .running import on_asyncio
from .samples import Note

pytestmark = pytest.mark.anyio


# --- L1: numbers ----------------------------------------------------------------------------------


async def test_l1_numbers_rise_by_one_and_the_terminal_event_is_the_last():
    log = EventLog()
    assert log.last == 0
    fill(log, 3)
    assert log.last == 3
    for wrong in (3, 5, 0):
        with pytest.raises(AssertionError, match=f"event {wrong} cannot follow event 3"):
            log.append(record(wrong))
    log.close()
    with pytest.raises(AssertionError, match="terminal"):
        log.append(record(4))
    with pytest.raises(AssertionError, match="terminal"):
        log.append_internal(WorkflowIdleEvent(), 4.0)
    assert await read_to_end(log.reader()) == [1, 2, 3]


async def test_l1_a_run_that_was_brought_back_continues_its_numbers():
    log = EventLog(last=7)
    assert log.last == 7
    fill(log, 2)
    log.close()
    assert await read_to_end(log.reader(7)) == [8, 9]
    assert await read_to_end(log.reader(3)) == [(4, 7), 8, 9]


async def test_l1_a_log_that_is_opened_again_continues_its_numbers():
    log = EventLog()
    fill(log, 2)
    log.close()
    told_of_the_end, behind = log.reader(), log.reader(1)
    assert await read_to_end(told_of_the_end) == [1, 2]
    log.reopen()
    fill(log, 2)
    log.close()
    assert await read_to_end(told_of_the_end) == []  # an iterator that has ended stays so
    assert await read_to_end(behind) == [2, 3, 4]
    assert await read_to_end(log.reader(2)) == [3, 4]


async def test_the_readers_of_a_log_whose_rest_is_elsewhere_are_told_after_what_is_here():
    async def read() -> None:
        with pytest.raises(WorkflowRuntimeError, match="elsewhere"):
            await anext(parked)

    log = EventLog()
    fill(log, 2)
    parked, behind = log.reader(2), log.reader()
    async with task_group() as tg:
        tg.start_soon(read)
        await anyio.sleep(1)
        log.close(WorkflowRuntimeError("elsewhere"))
    assert shown([await anext(behind), await anext(behind)]) == [1, 2]
    for _ in range(2):
        with pytest.raises(WorkflowRuntimeError, match="elsewhere") as caught:
            await anext(behind)
        assert len(caught.traceback) < 6  # it does not grow
    log.reopen()
    with anyio.move_on_after(1) as scope:
        await anext(behind)
    assert scope.cancelled_caught
    fill(log, 1)
    log.close()
    assert await read_to_end(behind) == [3]


# --- L2: cursors ----------------------------------------------------------------------------------


async def test_l2_each_reader_gets_what_follows_its_cursor():
    log = EventLog()
    fill(log, 5)
    log.close()
    for after in range(6):
        reader = log.reader(after)
        assert reader.cursor == after
        assert await read_to_end(reader) == list(range(after + 1, 6))
        assert reader.cursor == 5


async def test_l2_a_reader_gets_the_very_event_that_was_written():
    log = EventLog()
    written = record(1)
    log.append(written)
    assert await anext(log.reader()) is written


async def test_l2_a_reader_waits_for_events_and_for_the_end():
    log = EventLog()
    found: list[Any] = []

    async def read() -> None:
        async for item in log.reader():
            found.append(item)
        found.append("end")

    async with task_group() as tg:
        tg.start_soon(read)
        for number in (1, 2, 3):
            await anyio.sleep(1)
            fill(log, 1)
            await anyio.sleep(1)
            assert shown(found) == list(range(1, number + 1))
        log.close()
    assert found.pop() == "end"


async def test_l2_the_cursor_of_a_reader_that_was_left_continues():
    log = EventLog()
    fill(log, 5)
    log.close()
    reader = log.reader()
    async for item in reader:
        if item == record(2):
            break
    assert reader.cursor == 2
    assert await read_to_end(log.reader(reader.cursor)) == [3, 4, 5]
    assert await read_to_end(reader) == [3, 4, 5]


@pytest.mark.parametrize("wrong", [-1, True, 1.0, "1", None, [0] * 1000])
async def test_l2_what_is_no_cursor_is_refused(wrong: Any):
    with pytest.raises(WorkflowRuntimeError, match="a cursor is the number of the last event") as e:
        EventLog().reader(wrong)
    assert len(str(e.value)) < 300


async def test_l2_a_cursor_above_the_newest_event_is_refused():
    log = EventLog()
    fill(log, 3)
    log.reader(3)
    with pytest.raises(WorkflowRuntimeError, match=r"number 3 so far, .* read event 4"):
        log.reader(4)


# --- L3: bounded memory ---------------------------------------------------------------------------


async def test_l3_a_reader_is_told_what_was_trimmed_and_continues_behind_it():
    log = EventLog(max_events=3)
    fill(log, 2)
    reader = log.reader()
    assert shown([await anext(reader)]) == [1]
    fill(log, 5)
    log.close()
    gap = await anext(reader)
    assert gap == Gap(2, 4, "trimmed")
    assert reader.cursor == 4
    assert await read_to_end(reader) == [5, 6, 7]
    assert await read_to_end(log.reader(4)) == [5, 6, 7]


async def test_l3_events_are_trimmed_by_their_bytes_but_the_newest_one_stays():
    log = EventLog(max_bytes=1000)
    fill(log, 3, size=400)
    assert log.statistics() == LogStatistics(2, 3, 2, 800, 1, 0, 0)
    fill(log, 1, size=200)
    assert log.statistics().kept == 3
    fill(log, 1, size=10_000)
    assert log.statistics() == LogStatistics(5, 5, 1, 10_000, 4, 0, 0)
    fill(log, 1, size=1)
    log.close()
    assert await read_to_end(log.reader()) == [(1, 5), 6]


async def test_l3_memory_is_bounded_under_many_events():
    log = EventLog(max_events=100)
    for number in range(1, 100_001):
        log.append(record(number))
    gc.collect()
    assert sum(type(thing) is Note for thing in gc.get_objects()) <= 101
    assert log.statistics().kept == 100
    assert log.statistics().trimmed == 99_900
    log.close()
    assert await read_to_end(log.reader(99_990)) == list(range(99_991, 100_001))


# --- L5: internal events --------------------------------------------------------------------------


async def test_l5_internal_events_are_for_those_who_ask_and_change_no_number():
    log = EventLog()
    idle = WorkflowIdleEvent()
    log.append_internal(idle, 0.0)
    fill(log, 2)
    log.append_internal(idle, 2.0)
    log.append_internal(idle, 2.0)
    fill(log, 1)
    log.close()
    assert await read_to_end(log.reader()) == [1, 2, 3]
    assert await read_to_end(log.reader(internal=True)) == [idle, 1, 2, idle, idle, 3]
    assert await read_to_end(log.reader(2, internal=True)) == [idle, idle, 3]
    assert await read_to_end(log.reader(3, internal=True)) == []
    async for item in log.reader(1, internal=True):
        assert item.seq == (2 if item.event is idle or item.event.text == 2 else 3)


async def test_l5_internal_events_take_no_room_from_public_ones():
    log = EventLog(max_events=3)
    fill(log, 3)
    for _ in range(10):
        log.append_internal(WorkflowIdleEvent(), 3.0)
    log.close()
    reader = log.reader(internal=True)
    assert await read_to_end(reader) == [1, 2, 3, *[WorkflowIdleEvent()] * 3]
    assert reader.missed_internal == 0
    assert log.statistics().trimmed == 0


async def test_l5_a_reader_of_internal_events_is_woken_by_them():
    async def read() -> None:
        assert shown([await anext(log.reader(internal=True))]) == [WorkflowIdleEvent()]

    log = EventLog()
    async with task_group() as tg:
        tg.start_soon(read)
        await anyio.sleep(1)
        log.append_internal(WorkflowIdleEvent(), 1.0)


async def test_l5_internal_events_that_left_the_memory_are_counted():
    log = EventLog(max_events=3)
    reader = log.reader(internal=True)
    for _ in range(10):
        log.append_internal(WorkflowIdleEvent(), 0.0)
    assert len(await reader.batch()) == 3
    assert reader.missed_internal == 7
    log.append_internal(WorkflowIdleEvent(), 0.0)
    await reader.aclose()
    assert await reader.batch() == []
    assert reader.missed_internal == 7


def test_a_reader_that_was_dropped_is_not_counted():
    log = EventLog()
    fill(log, 5)
    readers: list[LogReader] = [log.reader(after) for after in (1, 4, 3)]
    assert (log.statistics().readers, log.statistics().max_lag) == (3, 4)
    del readers[0]
    gc.collect()
    assert (log.statistics().readers, log.statistics().max_lag) == (2, 2)


# --- Batches ----------------------------------------------------------------------------------------


async def test_l2_a_batch_has_what_is_there():
    log = EventLog()
    reader = log.reader()
    fill(log, 5)
    assert shown(await reader.batch()) == [1, 2, 3, 4, 5]
    with anyio.move_on_after(1) as scope:
        await reader.batch()
    assert scope.cancelled_caught
    fill(log, 600)
    assert len(await reader.batch()) == 256
    assert len(await reader.batch(max_records=1000)) == 344
    log.close()
    assert await reader.batch() == []
    assert await reader.batch() == []


async def test_l2_a_batch_is_limited_in_number_and_bytes_but_never_empty_before_the_end():
    log = EventLog()
    fill(log, 5, size=100)
    reader = log.reader()
    assert shown(await reader.batch(max_records=2)) == [1, 2]
    assert shown(await reader.batch(max_bytes=101)) == [3, 4]
    assert shown(await reader.batch(max_bytes=1)) == [5]
    fill(log, 2, size=10**6)
    assert shown(await reader.batch()) == [6]


async def test_l3_a_batch_begins_with_the_gap():
    log = EventLog(max_events=2)
    fill(log, 5)
    assert shown(await log.reader().batch()) == [(1, 3), 4, 5]


async def test_a_reader_that_was_closed_has_ended():
    log = EventLog()
    fill(log, 3)
    reader, other = log.reader(), log.reader()
    await reader.aclose()
    assert await anext(reader, None) is None
    assert await reader.batch() == []
    assert log.statistics().readers == 1
    assert shown(await other.batch()) == [1, 2, 3]


async def test_a_reader_at_the_end_is_not_counted():
    log = EventLog()
    fill(log, 3)
    log.close()
    reader = log.reader()
    assert log.statistics().readers == 1
    assert await read_to_end(reader) == [1, 2, 3]
    assert log.statistics().readers == 0


# --- L4: any number of readers ----------------------------------------------------------------------


class CountedEvent:
    """An `anyio.Event` that counts how many there are, and how often one woke a task."""

    made = woken = 0

    def __init__(self) -> None:
        CountedEvent.made += 1
        self.event = REAL_EVENT()

    def set(self) -> None:
        self.event.set()

    async def wait(self) -> None:
        await self.event.wait()
        CountedEvent.woken += 1


REAL_EVENT = anyio.Event


async def test_l4_a_thousand_readers_are_woken_by_one_event_once_between_two_turns(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(CountedEvent, "made", 0)
    monkeypatch.setattr(CountedEvent, "woken", 0)
    log = EventLog()
    found: list[list[Any]] = []

    async def read(reader: LogReader) -> None:
        found.append(await read_to_end(reader))

    monkeypatch.setattr(anyio, "Event", CountedEvent)
    async with task_group() as tg:
        for _ in range(1000):
            tg.start_soon(read, log.reader())
        for _ in range(5):
            await anyio.sleep(1)
            fill(log, 20)
        assert log.statistics().max_lag == 100 - 80
        await anyio.sleep(1)
        assert log.statistics().max_lag == 0
        log.close()
    assert found == [list(range(1, 101))] * 1000
    assert CountedEvent.made == 6
    assert CountedEvent.woken == 6 * 1000


async def test_l4_an_event_is_encoded_once_for_all_its_readers():
    def encode(item: EventRecord) -> bytes:
        encoded.append(item.seq)
        return b"%d" % item.seq

    encoded: list[int] = []
    log = EventLog()
    fill(log, 3)
    log.append_internal(WorkflowIdleEvent(), 3.0)
    log.close()
    for _ in range(5):
        async for item in log.reader():
            assert isinstance(item, EventRecord)
            assert log.encoded(item, encode) == b"%d" % item.seq
    assert encoded == [1, 2, 3]
    *_, last = [item async for item in log.reader()]
    assert isinstance(last, EventRecord)
    assert log.encoded(last, lambda item: b"another form") == b"another form"
    assert log.encoded(last, encode) == b"3"
    *_, internal = [item async for item in log.reader(internal=True)]
    assert isinstance(internal, EventRecord)
    assert log.encoded(internal, encode) == b"3"  # made anew: it has the number of another event
    assert encoded == [1, 2, 3, 3]


async def test_l4_what_fails_to_be_encoded_is_tried_again():
    log = EventLog()
    fill(log, 1)
    item = await anext(log.reader())
    assert isinstance(item, EventRecord)
    answers: list[Any] = [ValueError("no"), b"yes"]

    def encode(item: EventRecord) -> bytes:
        answer: Any = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return bytes(answer)

    with pytest.raises(ValueError, match="no"):
        log.encoded(item, encode)
    assert log.encoded(item, encode) == b"yes"
    assert log.encoded(item, encode) == b"yes"


async def test_l3_encodings_count_and_are_trimmed_with_their_events():
    def encode(item: EventRecord) -> bytes:
        return b"x" * 190

    log = EventLog(max_bytes=1000)
    fill(log, 5, size=100)
    items = [item for item in await log.reader().batch() if isinstance(item, EventRecord)]
    for item in items:
        log.encoded(item, encode)
    # The third encoding takes the room of the first event and its own, and the fifth that of the second.
    assert log.statistics() == LogStatistics(3, 5, 3, 3 * 290, 2, 0, 0)


async def test_l2_a_batch_is_measured_by_the_encodings_of_its_events():
    def encode(item: EventRecord) -> bytes:
        return b"x" * 100

    log = EventLog()
    fill(log, 5, size=1)
    for item in await log.reader().batch():
        assert isinstance(item, EventRecord)
        log.encoded(item, encode)
    assert shown(await log.reader().batch(max_bytes=101)) == [1, 2]


async def test_l4_an_event_may_leave_the_memory_while_it_is_encoded():
    def encode(item: EventRecord) -> bytes:
        fill(log, 5)
        return b"x"

    log = EventLog(max_events=3)
    fill(log, 1)
    item = await anext(log.reader())
    assert isinstance(item, EventRecord)
    assert log.encoded(item, encode) == b"x"
    assert log.statistics() == LogStatistics(4, 6, 3, 300, 3, 0, 0)


@pytest.mark.parametrize("limits", [{"max_events": 5}, {"max_bytes": 5000}])
async def test_l3_encodings_are_let_go_of_with_their_events(limits: dict[str, int]):
    def encode(item: EventRecord) -> bytes:
        return b"%d" % item.seq * 1000

    log = EventLog(**limits)
    reader = log.reader()
    tracemalloc.start()
    try:
        for _ in range(500):
            fill(log, 1, size=1)
            item = await anext(reader)
            assert isinstance(item, EventRecord)
            log.encoded(item, encode)
        del item
        assert tracemalloc.get_traced_memory()[0] < 200_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("begun", [False, True])
async def test_l4_a_reader_that_does_not_read_costs_no_memory(begun: bool):
    def grow() -> int:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        fill(log, 20_000)
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before

    log = EventLog(max_events=100)
    fill(log, 1000)
    readers = [log.reader() for _ in range(50)]
    if begun:
        for reader in readers:
            await anext(reader)
    tracemalloc.start()
    try:
        grown = grow()
    finally:
        tracemalloc.stop()
    assert grown < 100_000  # the events that are kept, in other objects
    assert log.statistics().max_lag > 20_000


async def test_r6_a_reader_that_always_finds_an_event_lets_others_run():
    async def count_turns() -> None:
        nonlocal turns
        while True:
            await checkpoint()
            turns += 1

    turns = 0
    log = EventLog()
    fill(log, 2000)
    log.close()
    async with task_group() as tg:
        tg.start_soon(count_turns)
        await checkpoint()
        for read_one in (True, False):
            turns = 0
            reader = log.reader()
            while await (anext(reader, None) if read_one else reader.batch(max_records=10)):
                pass
            assert turns >= 20
        tg.cancel_scope.cancel()


# --- L2: native cancellation ------------------------------------------------------------------------


@on_asyncio
@pytest.mark.parametrize("append_first", [True, False])
@pytest.mark.parametrize("batches", [True, False])
async def test_l2_a_native_cancellation_in_the_turn_of_an_event_loses_nothing(
    append_first: bool, batches: bool
):
    async def follow() -> None:
        while items := await reader.batch() if batches else [await anext(reader)]:
            found.extend(items)

    found: list[Any] = []
    log = EventLog()
    reader = log.reader()
    for turns in range(8):
        task = asyncio.create_task(follow())
        await anyio.sleep(1)
        acts: list[Callable[[], object]] = [lambda: fill(log, 1), task.cancel]
        for act in acts if append_first else reversed(acts):
            act()
            for _ in range(turns):
                await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert shown(found) == list(range(1, reader.cursor + 1))
    log.close()
    assert shown(found) + await read_to_end(reader) == list(range(1, 9))


async def test_l2_a_cancellation_in_the_turn_of_an_event_loses_nothing():
    async def follow() -> None:
        async for item in reader:
            found.append(item)

    found: list[Any] = []
    log = EventLog()
    reader = log.reader()
    for turns in range(8):
        async with task_group() as tg:
            tg.start_soon(follow)
            await anyio.sleep(1)
            fill(log, 1)
            for _ in range(turns):
                await checkpoint()
            tg.cancel_scope.cancel()
        assert shown(found) == list(range(1, reader.cursor + 1))
    log.close()
    assert shown(found) + await read_to_end(reader) == list(range(1, 9))
