"""The log of a run against a plain list, and readers that are cancelled at any moment (L1-L5)."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import anyio
import attrs
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_workflows.events import WorkflowIdleEvent
from anyio_workflows.instrument import EventRecord
from anyio_workflows.runtime._log import EventLog, Gap, LogReader, LogStatistics
from anyio_workflows.runtime._sizes import estimate_size

from .logs import Database, record, task_group
from .running import on_each_backend, run_virtually

IDLE = WorkflowIdleEvent()
IDLE_SIZE = estimate_size(IDLE)
ENCODING = b"x" * 70


# --- A plain list ---------------------------------------------------------------------------------


@attrs.define(eq=False)
class NaiveItem:
    """Event `number`; or the internal one that was written at `time`, after that event."""

    number: int
    time: float
    size: int
    internal: bool = False
    encoded: bool = False

    def is_shown_as(self, item: object) -> bool:
        return (
            isinstance(item, EventRecord)
            and (item.seq, item.time) == (self.number, self.time)
            and (item.event is IDLE) == self.internal
        )


@attrs.define(eq=False)
class NaiveReader:
    real: LogReader
    internal: bool
    cursor: int
    next_internal: float
    ended: bool = False
    last_record: EventRecord | None = None


class NaiveLog:
    """What the log has to do, found by looking through everything each time."""

    def __init__(self, max_events: int, max_bytes: int, last: int, archived: bool) -> None:
        self.max_events, self.max_bytes, self.archived = max_events, max_bytes, archived
        self.begin = self.last = last
        self.time = 0
        self.closed = False
        self.records: list[NaiveItem] = []
        self.internal: list[NaiveItem] = []
        self.readers: list[NaiveReader] = []

    @property
    def first(self) -> int:
        return self.records[0].number if self.records else self.last + 1

    def trim(self, kept: list[NaiveItem]) -> None:
        while len(kept) > 1 and (
            len(kept) > self.max_events or sum(item.size for item in kept) > self.max_bytes
        ):
            kept.pop(0)

    def next_of(self, reader: NaiveReader) -> NaiveItem | Gap | None:
        """Return what the reader has to return next, and note that it has."""
        if reader.ended:
            return None
        for item in self.internal if reader.internal else ():
            if item.time >= reader.next_internal and item.number <= reader.cursor:
                reader.next_internal = item.time + 1
                return item
        number = reader.cursor + 1
        if number > self.last:
            return None
        if number < self.first and not self.archived:
            reader.cursor = self.first - 1
            return Gap(number, reader.cursor)
        reader.cursor = number
        for item in self.records:
            if item.number == number:
                return item
        return NaiveItem(number, number, estimate_size(record(number).event))

    def statistics(self) -> LogStatistics:
        reading = [reader for reader in self.readers if not reader.ended]
        return LogStatistics(
            first=self.first,
            last=self.last,
            kept=len(self.records),
            bytes=sum(item.size for item in self.records + self.internal),
            trimmed=self.first - self.begin - 1,
            readers=len(reading),
            max_lag=max((self.last - reader.cursor for reader in reading), default=0),
        )


def size_of(item: NaiveItem | Gap) -> int:
    """Return what an item of a batch counts."""
    if isinstance(item, Gap):
        return 0
    return len(ENCODING) if item.encoded else item.size


class Pair:
    """A log and a naive one, to which the same is done."""

    def __init__(self, max_events: int, max_bytes: int, last: int, archived: bool) -> None:
        self.database = Database(last)
        archive = self.database.read if archived else None
        self.real = EventLog(max_events, max_bytes, last, archive)
        self.naive = NaiveLog(max_events, max_bytes, last, archived)
        self.times_encoded = 0

    async def append(self, sizes: list[int]) -> None:
        for size in () if self.naive.closed else sizes:
            self.naive.last += 1
            self.naive.records.append(NaiveItem(self.naive.last, self.naive.last, size))
            self.naive.trim(self.naive.records)
            self.database.fill(self.real, 1, size)

    async def append_internal(self) -> None:
        if not self.naive.closed:
            self.naive.time += 1
            item = NaiveItem(self.naive.last, self.naive.time, IDLE_SIZE, internal=True)
            self.naive.internal.append(item)
            self.naive.trim(self.naive.internal)
            self.real.append_internal(IDLE, self.naive.time)

    async def close_or_reopen(self) -> None:
        if self.naive.closed:
            self.real.reopen()
        else:
            self.real.close()
        self.naive.closed = not self.naive.closed

    async def open(self, where: int, internal: bool) -> None:
        after = where % (self.naive.last + 1)
        later = [item.time for item in self.naive.internal if item.number >= after]
        real = self.real.reader(after, internal)
        next_internal = min(later, default=self.naive.time + 1)
        self.naive.readers.append(NaiveReader(real, internal, after, next_internal))

    def reader(self, which: int) -> NaiveReader | None:
        readers = self.naive.readers
        return readers[which % len(readers)] if readers else None

    async def drop(self, which: int) -> None:
        if reader := self.reader(which):
            self.naive.readers.remove(reader)
            del reader
            await checkpoint()  # until then, the exception of a cancellation holds its frames
            gc.collect()

    async def read(self, which: int, times: int) -> None:
        if reader := self.reader(which):
            for _ in range(times):
                found: Any = []
                with anyio.move_on_after(1):
                    found = await anext(reader.real, "the end")
                self.compare(reader, found, self.naive.next_of(reader))

    async def read_batch(self, which: int, most: int, max_bytes: int) -> None:
        if (reader := self.reader(which)) is None:
            return
        batch: list[Any] = []
        with anyio.move_on_after(1):
            batch = await reader.real.batch(most, max_bytes) or ["the end"]
        if batch in ([], ["the end"]):
            self.compare(reader, batch and batch[0], self.naive.next_of(reader))
            return
        cursor, size = reader.real.cursor, 0
        for found in batch:
            assert size < max_bytes
            expected = self.naive.next_of(reader)
            assert expected is not None
            self.compare(reader, found, expected, moved=False)
            size += size_of(expected)
        assert reader.cursor == cursor
        assert len(batch) <= most
        if len(batch) < most and size < max_bytes and not self.naive.archived:
            assert self.naive.next_of(reader) is None  # that was all

    def compare(
        self, reader: NaiveReader, found: Any, expected: NaiveItem | Gap | None, moved: bool = True
    ) -> None:
        if expected is None:
            reader.ended = reader.ended or self.naive.closed
            assert found == ("the end" if reader.ended else [])
        elif isinstance(expected, Gap):
            assert found == expected
        else:
            assert expected.is_shown_as(found)
            reader.last_record = found
        assert reader.real.cursor == reader.cursor or not moved

    async def encode(self, which: int) -> None:
        if (reader := self.reader(which)) is None or (shown := reader.last_record) is None:
            return
        before = self.times_encoded
        assert self.real.encoded(shown, self.count_encoding) == ENCODING
        for item in self.naive.records:
            if item.is_shown_as(shown):
                assert self.times_encoded - before == (not item.encoded)
                if not item.encoded:
                    item.encoded = True
                    item.size += len(ENCODING)
                    self.naive.trim(self.naive.records)
                break
        else:
            assert self.times_encoded == before + 1

    def count_encoding(self, record: EventRecord) -> bytes:
        self.times_encoded += 1
        return ENCODING


INDEX = st.integers(0, 50)
ACTS = st.one_of(
    st.tuples(st.just(Pair.append), st.lists(st.integers(1, 400), min_size=1, max_size=8)),
    st.tuples(st.just(Pair.append), st.lists(st.just(1), min_size=60, max_size=150)),
    st.tuples(st.just(Pair.append_internal)),
    st.tuples(st.just(Pair.close_or_reopen)),
    st.tuples(st.just(Pair.open), INDEX, st.booleans()),
    st.tuples(st.just(Pair.drop), INDEX),
    st.tuples(st.just(Pair.read), INDEX, st.sampled_from([1, 2, 3, 100])),
    st.tuples(st.just(Pair.read_batch), INDEX, st.integers(1, 10), st.integers(1, 1000)),
    st.tuples(st.just(Pair.read_batch), INDEX, st.just(1000), st.just(10**6)),
    st.tuples(st.just(Pair.encode), INDEX),
)


@on_each_backend
@settings(max_examples=150)
@given(
    limits=st.tuples(st.sampled_from([1, 2, 5, 100]), st.sampled_from([1, 1000, 10**6])),
    last=st.sampled_from([0, 0, 3]),
    archived=st.booleans(),
    acts=st.lists(ACTS, max_size=60),
)
def test_the_log_does_what_a_plain_list_does(
    backend: str, limits: tuple[int, int], last: int, archived: bool, acts: list[Any]
):
    async def main() -> None:
        pair = Pair(*limits, last, archived)
        for act, *arguments in acts:
            await act(pair, *arguments)
            assert pair.real.statistics() == pair.naive.statistics()

    run_virtually(backend, main)


# --- Readers that are cancelled at any moment -------------------------------------------------------


class Follower:
    """Reads a log in tasks that are cancelled, one after the other, and notes what they returned.

    Args:
        log: The log.
        batches: Whether it reads batches.
        anew: Whether each task reads with a reader of its own, from the cursor of the one before.
    """

    def __init__(self, log: EventLog, batches: bool, anew: bool) -> None:
        self.log, self.batches, self.anew = log, batches, anew
        self.found: list[int] = []
        self.reader = log.reader()
        self.cancel: Callable[[], object] = bool
        self.idle = True
        self.at_end = False

    async def follow(self) -> None:
        """Read until cancelled, or to the end."""
        if self.anew:
            self.reader = self.log.reader(self.reader.cursor)
        while not self.at_end:
            if self.batches:
                items = await self.reader.batch(max_records=5)
            else:
                one = await anext(self.reader, None)
                items = [] if one is None else [one]
            self.note(items)

    def note(self, items: list[EventRecord | Gap]) -> None:
        self.at_end = not items
        for item in items:
            if isinstance(item, Gap):
                self.found.extend(range(-item.first, -item.last - 1, -1))
            else:
                assert item == record(item.seq)
                self.found.append(item.seq)

    def start(self, tg: TaskGroup, native: bool) -> None:
        """Start a task that reads, unless there is one."""
        if not self.idle:
            return
        self.idle = False
        if native:
            task = asyncio.ensure_future(self.follow())
            task.add_done_callback(self.note_end)  # its body may never run
            self.cancel = task.cancel
        else:
            scope = anyio.CancelScope()
            self.cancel = scope.cancel
            tg.start_soon(self.follow_in, scope)

    async def follow_in(self, scope: anyio.CancelScope) -> None:
        with scope:
            await self.follow()
        self.note_end()

    def note_end(self, _: object = None) -> None:
        self.idle = True


FOLLOWERS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=4)
STEPS = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 6)),
    st.tuples(st.just("append"), st.just(150)),
    st.tuples(st.just("turns"), st.integers(1, 4)),
    st.tuples(st.just("sleep"), st.integers(1, 3)),
    st.tuples(st.sampled_from(["start", "start natively", "cancel"]), st.integers(0, 3)),
)


@on_each_backend
@settings(max_examples=200)
@given(
    followers=FOLLOWERS,
    max_events=st.sampled_from([1, 10, 10_000]),
    archived=st.sampled_from([None, (0, 1), (0, 1000), (1, 7)]),
    steps=st.lists(STEPS, max_size=50),
)
def test_l2_readers_that_are_cancelled_lose_and_repeat_nothing(
    backend: str,
    followers: list[tuple[bool, bool]],
    max_events: int,
    archived: tuple[int, int] | None,
    steps: list[tuple[str, int]],
):
    async def main() -> None:
        database = Database()
        if archived is not None:
            database.delay, database.longest = archived
        log = EventLog(max_events, archive=None if archived is None else database.read)
        all_of_them = [Follower(log, *kind) for kind in followers]
        async with task_group() as tg:
            for act, number in steps:
                follower = all_of_them[number % len(all_of_them)]
                if act == "append":
                    database.fill(log, number)
                elif act == "turns":
                    for _ in range(number):
                        await checkpoint()
                elif act == "sleep":
                    await anyio.sleep(number)
                elif act == "cancel":
                    follower.cancel()
                else:
                    follower.start(tg, backend == "asyncio" and act == "start natively")
            log.close()
            for follower in all_of_them:
                while not follower.at_end:
                    follower.start(tg, native=False)
                    await anyio.sleep(1)
        for follower in all_of_them:
            assert [abs(number) for number in follower.found] == list(range(1, log.last + 1))
            if archived is not None or log.last <= max_events:
                assert min(follower.found, default=0) >= 0  # no gap

    run_virtually(backend, main)
