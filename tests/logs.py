"""What the tests of logs share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import attrs
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from anyio_workflows import Event
from anyio_workflows.instrument import EventRecord
from anyio_workflows.runtime._log import EventLog, Gap, LogReader

from .samples import Note


def record(number: int, event: Event | None = None) -> EventRecord:
    """Return event `number` of a run; a note that says its number unless another one is given."""
    return EventRecord(number, float(number), Note(text=number) if event is None else event)


def fill(log: EventLog, number: int, size: int | None = 100) -> None:
    """Append so many events."""
    for _ in range(number):
        log.append(record(log.last + 1), size)


def shown(items: Sequence[EventRecord | Gap]) -> list[Any]:
    """Return the numbers of events, `(first, last)` for gaps, and the class of internal events."""
    found: list[Any] = []
    for item in items:
        if isinstance(item, Gap):
            found.append((item.first, item.last))
        elif isinstance(item.event, Note):
            assert item == record(item.seq)
            found.append(item.seq)
        else:
            found.append(item.event)
    return found


async def read_to_end(reader: LogReader) -> list[Any]:
    """Return everything that a reader finds in a log that is closed, as `shown()` does."""
    return shown([item async for item in reader])


@asynccontextmanager
async def task_group() -> AsyncIterator[TaskGroup]:
    """A task group that fails when its tasks wait for ever."""
    with anyio.fail_after(10_000):
        async with anyio.create_task_group() as tg:
            yield tg


@attrs.define(eq=False)
class Database:
    """Where a run is kept: an archive for its log.

    Attributes:
        last: The events up to this one are kept.
        delay: How many virtual seconds it takes to read; 0 for one turn of the event loop.
        longest: At most so many events are read at once.
        calls: What it was asked for.
    """

    last: int = 0
    delay: float = 0
    longest: int = 1000
    calls: list[tuple[int, int]] = attrs.field(factory=list)

    async def read(self, after: int, limit: int) -> list[EventRecord]:
        self.calls.append((after, limit))
        if self.delay:
            await anyio.sleep(self.delay)
        else:
            await checkpoint()
        end = min(self.last, after + min(limit, self.longest))
        return [record(number) for number in range(after + 1, end + 1)]

    def fill(self, log: EventLog, number: int, size: int | None = 100) -> None:
        """Keep so many events, and append them to the log."""
        self.last += number
        fill(log, number, size)
