"""What the tests of logs share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
