"""The numbered log of a run, and its readers (L rules)."""

from __future__ import annotations

import gc
from typing import Any

import anyio
import pytest

from anyio_workflows.errors import WorkflowRuntimeError
from anyio_workflows.events import WorkflowIdleEvent
from anyio_workflows.runtime._log import EventLog, Gap, LogReader, LogStatistics

from .logs import fill, read_to_end, record, shown
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

    async with anyio.create_task_group() as tg:
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


def test_a_reader_that_was_dropped_is_not_counted():
    log = EventLog()
    fill(log, 5)
    readers: list[LogReader] = [log.reader(after) for after in (1, 4, 3)]
    assert (log.statistics().readers, log.statistics().max_lag) == (3, 4)
    del readers[0]
    gc.collect()
    assert (log.statistics().readers, log.statistics().max_lag) == (2, 2)
