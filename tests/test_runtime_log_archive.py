"""A log whose older events are in a database (L3, D3)."""

from __future__ import annotations

import gc
from typing import Any

import anyio
import pytest

from anyio_workflows.errors import WorkflowRuntimeError
from anyio_workflows.events import WorkflowIdleEvent
from anyio_workflows.instrument import EventRecord
from anyio_workflows.runtime._log import EventLog, LogReader

from .logs import Database, fill, read_to_end, shown, task_group
from .samples import Note

pytestmark = pytest.mark.anyio


def archived(events: int, max_events: int = 5, **database: Any) -> tuple[EventLog, Database]:
    """Return a log with so many events, all of them in a database too."""
    where = Database(**database)
    log = EventLog(max_events=max_events, archive=where.read)
    where.fill(log, events)
    return log, where


@pytest.mark.parametrize("after", [0, 3, 700, 994, 995, 999, 1000])
async def test_l3_there_is_no_gap_with_a_database(after: int):
    log, database = archived(1000)
    log.close()
    assert await read_to_end(log.reader(after)) == list(range(after + 1, 1001))
    if after >= 995:
        assert not database.calls  # all of it is in memory


async def test_l3_the_events_of_a_run_that_was_brought_back_are_in_the_database():
    database = Database(last=20)
    log = EventLog(last=20, archive=database.read)
    reader = log.reader(17)
    assert shown([await anext(reader) for _ in range(3)]) == [18, 19, 20]
    database.fill(log, 2)
    log.close()
    assert await read_to_end(reader) == [21, 22]


async def test_l3_a_database_is_read_by_pages():
    log, database = archived(1000)
    log.close()
    await read_to_end(log.reader())
    assert len(database.calls) < 12
    assert max(limit for _, limit in database.calls) < 500


async def test_l3_a_reader_keeps_nothing_of_what_it_has_read():
    log, _ = archived(100)
    reader = log.reader()
    for _ in range(96):
        await anext(reader)
    gc.collect()
    assert sum(type(thing) is Note for thing in gc.get_objects()) == 5


async def test_l3_events_may_leave_the_memory_while_a_reader_waits_for_the_database():
    log, database = archived(10, delay=5)
    reader = log.reader()
    found: list[Any] = []

    async def read() -> None:
        found.extend(await read_to_end(reader))

    async with task_group() as tg:
        tg.start_soon(read)
        for _ in range(20):
            await anyio.sleep(2)
            database.fill(log, 10)
        log.close()
    assert found == list(range(1, 211))


async def test_l3_an_answer_may_overlap_the_memory_and_what_is_not_appended_yet():
    log, database = archived(8, max_events=5)
    database.last = 12  # committed, and about to be appended
    reader = log.reader()
    assert shown([await anext(reader) for _ in range(8)]) == list(range(1, 9))
    with anyio.move_on_after(1) as scope:
        await anext(reader)
    assert scope.cancelled_caught
    fill(log, 4)
    log.close()
    assert await read_to_end(reader) == [9, 10, 11, 12]


async def test_l3_events_that_are_in_the_answer_may_have_come_into_memory_and_left_it():
    log, database = archived(8, max_events=2)
    database.last = 20
    reader = log.reader()
    assert shown([await anext(reader) for _ in range(3)]) == [1, 2, 3]
    fill(log, 12)
    log.close()
    assert await read_to_end(reader) == list(range(4, 21))


async def test_l2_a_reader_that_is_cancelled_in_the_database_loses_nothing():
    log, database = archived(300, delay=5)
    log.close()
    reader, found = log.reader(), []
    for seconds in (1, 4.99, 5, 6, 1, 20, 100):
        with anyio.move_on_after(seconds):
            async for item in reader:
                found.append(item)
        assert shown(found) == list(range(1, reader.cursor + 1))
    assert reader.cursor == 300
    assert len(database.calls) > 4


async def test_d3_an_event_that_the_database_lacks_is_an_error_and_no_gap():
    log, database = archived(50)
    reader = log.reader(after=20)
    database.last = 20
    for _ in range(2):
        with pytest.raises(WorkflowRuntimeError, match=r"event 21 of this run, .* is missing"):
            await anext(reader)
    database.last = 50
    assert shown(await reader.batch(max_records=3)) == [21, 22, 23]


@pytest.mark.parametrize("numbers", [[22, 23], [21, 23], [20, 21], [21, 21]])
async def test_d3_what_does_not_follow_the_cursor_is_an_error(numbers: list[int]):
    async def read(after: int, limit: int) -> list[EventRecord]:
        return [EventRecord(number, 0.0, WorkflowIdleEvent()) for number in numbers]

    log = EventLog(last=50, archive=read)
    with pytest.raises(WorkflowRuntimeError, match="event 21 of this run"):
        await anext(log.reader(20))


async def test_d3_the_error_of_a_database_is_raised_by_the_read_and_loses_nothing():
    log, database = archived(50)
    failing = [OSError("no route to host"), None]

    async def read(after: int, limit: int) -> list[EventRecord]:
        if (error := failing.pop(0) if failing else None) is not None:
            raise error
        return await database.read(after, limit)

    log.archive = read
    log.close()
    reader = log.reader()
    with pytest.raises(OSError, match="no route"):
        await anext(reader)
    assert await read_to_end(reader) == list(range(1, 51))


async def test_d3_a_cursor_from_another_process_may_be_ahead_of_this_one():
    log, database = archived(3)
    database.last = 5
    reader = log.reader(after=5)
    assert log.statistics().max_lag == 0
    found: list[Any] = []

    async def read() -> None:
        found.extend(await read_to_end(reader))

    async with task_group() as tg:
        tg.start_soon(read)
        for _ in range(5):
            await anyio.sleep(1)
            assert found == []
            fill(log, 1)
        log.close()
    assert found == [6, 7, 8]
    assert len(database.calls) == 1


async def test_l2_a_cursor_that_is_nowhere_is_refused_by_the_first_read():
    log, _ = archived(3)
    for read in (LogReader.__anext__, LogReader.batch):
        with pytest.raises(WorkflowRuntimeError, match=r"number 3 so far, .* read event 4"):
            await read(log.reader(after=4))


async def test_d3_an_event_may_be_kept_and_appended_while_its_cursor_is_checked():
    async def read(after: int, limit: int) -> list[EventRecord]:
        fill(log, 3)
        log.close()
        return []

    log = EventLog(archive=read)
    assert await read_to_end(log.reader(after=2)) == [3]


async def test_l5_internal_events_stand_between_those_of_the_database():
    database, idle = Database(), WorkflowIdleEvent()
    log = EventLog(max_events=3, archive=database.read)
    database.fill(log, 4)
    log.append_internal(idle, 4.0)
    database.fill(log, 6)
    log.close()
    expected = [1, 2, 3, 4, idle, 5, 6, 7, 8, 9, 10]
    assert await read_to_end(log.reader(internal=True)) == expected
    assert await read_to_end(log.reader(4, internal=True)) == expected[4:]
    assert await read_to_end(log.reader(5, internal=True)) == expected[6:]
