"""The numbered events of one run, for any number of readers (L1-L5)."""

# Numbers are positions. The log keeps the newest records in a list, so a reader needs no more than a cursor,
# the number of the last record that it has returned: what follows is found by subtraction, and a reader that
# does not read costs nothing. Internal events are kept in a list of their own: they have no numbers, and
# asking for them takes no room from the events that everybody sees.
#
# A reader takes a record and moves its cursor in one go, after the last `await`: wherever it is cancelled,
# nothing is lost or repeated.

from __future__ import annotations

import weakref
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Sequence
from operator import attrgetter
from typing import Literal

import anyio
import attrs
from anyio.lowlevel import checkpoint

from .._engine.stream import ReadByAsyncFor
from .._messages import short_repr
from ..errors import WorkflowError, WorkflowRuntimeError
from ..events import Event
from ..instrument import EventRecord
from ._sizes import estimate_size

_READS_PER_CHECKPOINT = 64
"""A reader that always finds a record lets others run this often."""

_PAGE = 128
"""How many records a reader asks the archive for, and holds, at most."""

Archive = Callable[[int, int], Awaitable[Sequence[EventRecord]]]
"""Reads older records: `await archive(after, limit)` returns those above `after`, in order, at most `limit`."""

Encode = Callable[[EventRecord], bytes]

_number_of = attrgetter("seq")


@attrs.frozen
class Gap:
    """Events that a reader will never get.

    Attributes:
        first: The number of the first one.
        last: The number of the last one; reading continues behind it.
        reason: `"trimmed"`: they left the memory before this reader came to them, and are kept nowhere else.
    """

    first: int
    last: int
    reason: Literal["trimmed"] = "trimmed"


@attrs.frozen
class LogStatistics:
    """How a log stands. Internal events count in `bytes` only.

    Attributes:
        first: The number of the oldest event in memory; `last + 1` if there is none.
        last: The number of the newest event; 0 if there has been none.
        kept: How many events are in memory.
        bytes: What is in memory takes about so many bytes, encodings and internal events included.
        trimmed: How many events have left the memory.
        readers: How many readers have not reached the end, and were not closed or dropped.
        max_lag: How many events the slowest of these has still to read; 0 if there is none.
    """

    first: int
    last: int
    kept: int
    bytes: int
    trimmed: int
    readers: int
    max_lag: int


@attrs.define(eq=False, repr=False)
class _Newest:
    """The newest records of a sequence, as many as there is room for; the very newest one is always there.

    Attributes:
        max_count: At most so many are kept, and
        max_bytes: as many as take so many bytes, by their `sizes`.
        first: The position of the oldest one that is kept; positions rise by 1 and are never used twice.
        end: The position that the next one gets.
        bytes: The sum of the sizes of those that are kept.
    """

    max_count: int
    max_bytes: int
    first: int
    end: int = attrs.field(init=False)
    bytes: int = 0

    _records: list[EventRecord | None] = attrs.field(factory=list)
    """From position `_base` on; `None` below `first`. Trimming deletes these by half the list, so that it
    takes constant time on average; a deque takes linear time to find what is in its middle."""

    _sizes: list[int] = attrs.field(factory=list)
    """The size of each, in parallel."""

    _base: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.end = self._base = self.first

    def append(self, record: EventRecord, size: int) -> None:
        """Append a record, and let go of the oldest ones for which there is no room any more."""
        self._records.append(record)
        self._sizes.append(size)
        self.bytes += size
        self.end += 1
        if self.bytes > self.max_bytes or self.end - self.first > self.max_count:
            self._trim()

    def enlarge(self, position: int, size: int) -> None:
        """Note that a record that is kept takes more room than before."""
        self._sizes[position - self._base] += size
        self.bytes += size
        if self.bytes > self.max_bytes:
            self._trim()

    def _trim(self) -> None:
        newest = self.end - 1
        while self.first < newest and (
            self.bytes > self.max_bytes or self.end - self.first > self.max_count
        ):
            index = self.first - self._base
            self.bytes -= self._sizes[index]
            self._records[index] = None
            self.first += 1
        trimmed = self.first - self._base
        if trimmed > len(self._records) // 2:
            del self._records[:trimmed]
            del self._sizes[:trimmed]
            self._base = self.first

    def __getitem__(self, position: int) -> EventRecord:
        """Return the record at a position from `first` to `end - 1`."""
        return self._records[position - self._base]  # type: ignore[return-value]

    def size_at(self, position: int) -> int:
        """Return the size of the record at a position from `first` to `end - 1`."""
        return self._sizes[position - self._base]

    def find(self, number: int) -> int:
        """Return the position of the oldest record with this number or a higher one."""
        low = self.first - self._base
        return self._base + bisect_left(self._records, number, low, key=_number_of)


@attrs.define(eq=False, repr=False)
class EventLog:
    """The events of one run: written by one, who never waits, and followed by any number of readers.

    It is used in one event loop; a log that is closed can be read in any.

    Args:
        max_events: How many events are kept in memory, at most; and how many internal ones.
        max_bytes: How many bytes they may take together; and the internal ones. The newest event is kept
            in any case.
        last: The number of the newest event when the log begins: that of a run that was brought back.
        archive: Reads events that are not in memory from where the run is kept. It has to have every event
            that has been appended.

    Attributes:
        closed: Whether nothing follows, because the terminal event has been appended, or because of `lost`.
        lost: Why the rest is not to be had here, if it is closed without the terminal event.
    """

    max_events: int = 10_000
    max_bytes: int = 8 * 2**20
    _last_before: int = attrs.field(default=0, alias="last")
    archive: Archive | None = None

    closed: bool = attrs.field(default=False, init=False)
    lost: WorkflowError | None = attrs.field(default=None, init=False)

    _records: _Newest = attrs.field(init=False)
    """The public events, at the positions that are their numbers."""

    _internal: _Newest | None = attrs.field(default=None, init=False)
    """The internal events; each has the number of the public event before it. `None` until there is one."""

    _wakeup: anyio.Event | None = attrs.field(default=None, init=False)
    """Where all parked readers wait, from the first of them until the next event."""

    _encodings: dict[int, bytes] = attrs.field(factory=dict, init=False)
    """By number, of records in memory; made by `_encode`."""

    _encode: Encode | None = attrs.field(default=None, init=False)

    _readers: dict[weakref.ref[LogReader], None] = attrs.field(factory=dict, init=False)
    """The readers that have not reached the end, and were not closed or dropped."""

    def __attrs_post_init__(self) -> None:
        self._records = _Newest(self.max_events, self.max_bytes, self._last_before + 1)

    @property
    def last(self) -> int:
        """The number of the newest event."""
        return self._records.end - 1

    # --- Writing ------------------------------------------------------------------------------------

    def append(self, record: EventRecord, size: int | None = None) -> None:
        """Append an event; never waits.

        Args:
            record: The event, with the number that follows that of the one before.
            size: How many bytes it takes, about: the length of its JSON will do. By default it is estimated.
        """
        records = self._records
        assert record.seq == records.end, (
            f"event {record.seq} cannot follow event {records.end - 1}"
        )
        assert not self.closed, f"event {record.seq} cannot follow the terminal event"
        first = records.first
        records.append(record, estimate_size(record.event) if size is None else size)
        if self._encodings:
            self._forget_encodings(first)
        if self._wakeup is not None:
            self._wake()

    def append_internal(self, event: Event, time: float) -> None:
        """Append an event about the run itself, which has no number: it comes after event `last`.

        Only readers that ask for internal events get it, and no archive has it.
        """
        assert not self.closed, "an internal event cannot follow the terminal event"
        if self._internal is None:
            self._internal = _Newest(self.max_events, self.max_bytes, 0)
        self._internal.append(EventRecord(self.last, time, event), estimate_size(event))
        if self._wakeup is not None:
            self._wake()

    def wake_readers(self) -> None:
        """Have all parked readers look again, though nothing was appended."""
        if self._wakeup is not None:
            self._wake()

    def close(self, lost: WorkflowError | None = None) -> None:
        """Note that nothing follows.

        Args:
            lost: Why readers here will not get the rest, if the event that was appended last is not the
                terminal one; they raise it.
        """
        self.closed, self.lost = True, lost
        if self._wakeup is not None:
            self._wake()

    def reopen(self) -> None:
        """Continue after the terminal event: a run that failed is retried. The numbers continue.

        Readers that have not been told of the end follow.
        """
        self.closed, self.lost = False, None

    def _wake(self) -> None:
        """Wake all parked readers: at most once between two turns, as none is parked after that."""
        assert self._wakeup is not None
        self._wakeup.set()
        self._wakeup = None

    async def _park(self) -> None:
        """Wait for what is appended next, or for the end."""
        if self._wakeup is None:
            self._wakeup = anyio.Event()
        await self._wakeup.wait()

    # --- Reading ------------------------------------------------------------------------------------

    def reader(self, after: int = 0, internal: bool = False) -> LogReader:
        """Return a reader of all events that follow a cursor.

        Args:
            after: The number of the last event that has been seen; 0 for all events.
            internal: Whether to read internal events too. Those that came right after event `after` are
                read, whether or not they have been seen: a cursor does not tell.

        Raises:
            WorkflowRuntimeError: If `after` is no int, negative, or above the number of the newest event. With
                an archive, the last of these is only known, and raised, by the first read.
        """
        if type(after) is not int or after < 0:
            raise WorkflowRuntimeError(
                "a cursor is the number of the last event that was read, or 0 to read from the start, "
                f"not {short_repr(after)}"
            )
        if after > self.last and self.archive is None:
            self._refuse(after)
        next_internal = 0 if self._internal is None else self._internal.find(after)
        reader = LogReader(self, after, internal, next_internal)
        reader._unchecked = after > self.last
        self._readers[weakref.ref(reader, self._readers.pop)] = None
        return reader

    def encoded(self, record: EventRecord, encode: Encode) -> bytes:
        """Return an event in the form in which it is sent; encoded once for all readers, while it is in memory.

        Args:
            record: A public event of this log.
            encode: Makes that form. Only what the first one that is given makes is remembered: use the same
                function (not another lambda each time) for all events of a log.
        """
        if self._encode is None:
            self._encode = encode
        if encode != self._encode or not self._keeps(record):
            return encode(record)
        encoding = self._encodings.get(record.seq)
        if encoding is None:
            encoding = encode(record)
            if self._keeps(record):  # else it has left the memory meanwhile
                self._encodings[record.seq] = encoding
                first = self._records.first
                self._records.enlarge(record.seq, len(encoding))
                self._forget_encodings(first)
        return encoding

    def statistics(self) -> LogStatistics:
        """Return how the log stands."""
        records, last = self._records, self.last
        readers = [reader for ref in list(self._readers) if (reader := ref()) is not None]
        return LogStatistics(
            first=records.first,
            last=last,
            kept=records.end - records.first,
            bytes=records.bytes + (0 if self._internal is None else self._internal.bytes),
            trimmed=records.first - self._last_before - 1,
            readers=len(readers),
            max_lag=max([0, *(last - reader.cursor for reader in readers)]),
        )

    def _keeps(self, record: EventRecord) -> bool:
        """Return whether a record is one of the public ones in memory."""
        records = self._records
        return records.first <= record.seq < records.end and records[record.seq] is record

    def _size_of(self, item: EventRecord | Gap) -> int:
        """Return about how many bytes an item takes that a reader has returned."""
        if isinstance(item, Gap):
            return 0
        if not self._keeps(item):
            return estimate_size(item.event)
        encoding = self._encodings.get(item.seq)
        return self._records.size_at(item.seq) if encoding is None else len(encoding)

    def _forget_encodings(self, first: int) -> None:
        """Drop the encodings of what has been trimmed since `first` was the oldest record."""
        for number in range(first, self._records.first):
            self._encodings.pop(number, None)

    def _refuse(self, after: int) -> None:
        raise WorkflowRuntimeError(
            f"the last event of this run has the number {self.last} so far, so nobody can have read "
            f"event {after}: is the cursor that of another run?"
        )


@attrs.define(eq=False, repr=False)
class LogReader(ReadByAsyncFor):
    """Returns the events of a run that follow a cursor, in order, each once: `async for record in reader`.

    It ends after the terminal event, and stays ended. It may be left, cancelled and continued at any moment,
    and needs no closing.

    Attributes:
        cursor: The number of the last event that it has returned, or was told to be gone: a reader that
            begins there continues where this one stopped.
        missed_internal: How many internal events it asked for left the memory before it came to them.
        ended: Whether nothing follows: it has returned the terminal event, or was closed.
    """

    _log: EventLog
    cursor: int
    _internal: bool

    _next_internal: int
    """The position of the next internal event."""

    missed_internal: int = 0

    _page: Sequence[EventRecord] = ()
    """What it has read from the archive. Some may have been returned, and others not be appended yet."""

    _reads_left: int = _READS_PER_CHECKPOINT
    """It may return so many records until it lets others run."""

    _unchecked: bool = False
    """Whether the cursor it began with may be above all events of the run."""

    ended: bool = False

    _interrupted: bool = False
    """Whether `batch()` is not to wait for an event."""

    async def __anext__(self) -> EventRecord | Gap:
        """Return the next event, or a `Gap` in its place; wait until there is one.

        Raises:
            StopAsyncIteration: After the terminal event.
            WorkflowRuntimeError: If the cursor is not one of this run, or the archive lacks an event.
        """
        while True:
            if self._reads_left > 0:
                self._reads_left -= 1
                if (found := self._take()) is not None:
                    return found
            if not await self._wait():
                raise StopAsyncIteration

    async def batch(
        self, max_records: int = 256, max_bytes: int = 64 * 1024, wait: bool = True
    ) -> list[EventRecord | Gap]:
        """Return what is there: at least one event, waiting for it; an empty list at the end, or if interrupted.

        Args:
            max_records: At most so many.
            max_bytes: The one that reaches this size in all is the last one.
            wait: Whether to wait until there is an event. If not, the list is empty where there is none yet.

        Raises:
            WorkflowRuntimeError: As for a single event.
        """
        found: list[EventRecord | Gap] = []
        while not found:
            if self._reads_left > 0:
                size = 0
                while (one := self._take()) is not None:
                    found.append(one)
                    size += self._log._size_of(one)
                    if len(found) >= max_records or size >= max_bytes:
                        break
                self._reads_left -= len(found)
            if not found and not await self._wait(wait and not self._interrupted):
                break
        self._interrupted = False
        return found

    def interrupt(self) -> None:
        """Have `batch()`, this one or the next, not wait for an event: it is time for something else.

        It takes no cancellation, and so no cancel scope around each `batch()`; nothing is lost.
        """
        self._interrupted = True
        self._log.wake_readers()

    def encoded(self, record: EventRecord, encode: Encode) -> bytes:
        """Return an event in the form in which it is sent, encoded once for all readers while it is in memory.

        Args:
            record: A public event that this reader has returned.
            encode: Makes that form. Only what the first one that is given makes is remembered: use the same
                function (not another lambda each time) for all events of a run.
        """
        return self._log.encoded(record, encode)

    async def aclose(self) -> None:
        """End reading. What others read is not affected."""
        self._end()

    def _take(self) -> EventRecord | Gap | None:
        """Return what comes next and move on; `None` if that has to be waited for."""
        if self.ended:
            return None
        log = self._log
        if self._internal and (event := self._take_internal()) is not None:
            return event
        number = self.cursor + 1
        records = log._records
        if number >= records.end:
            return None
        if number >= records.first:
            self.cursor = number
            self._page = ()
            return records[number]
        if log.archive is None:
            self.cursor = records.first - 1
            return Gap(number, self.cursor)
        if self._page:
            index = number - self._page[0].seq
            if index < len(self._page):
                self.cursor = number
                return self._page[index]
        return None

    def _take_internal(self) -> EventRecord | None:
        events = self._log._internal
        if events is None:
            return None
        if self._next_internal < events.first:
            self.missed_internal += events.first - self._next_internal
            self._next_internal = events.first
        if self._next_internal == events.end:
            return None
        event = events[self._next_internal]
        if event.seq > self.cursor:
            return None  # the public events before it come first
        self._next_internal += 1
        return event

    async def _wait(self, for_events: bool = True) -> bool:
        """Wait until `_take()`, which found nothing or was not asked, may find something.

        `False` at the end; and if that takes an event that is not there yet, and it is not to wait `for_events`.

        A reader is cancelled here, or in the archive, and nowhere else.
        """
        log = self._log
        if self.ended:
            return False
        if self._reads_left <= 0:
            await checkpoint()
        elif self.cursor < log.last:
            return await self._turn_page()
        elif self._unchecked:
            return await self._check_cursor()
        elif log.lost is not None:
            raise log.lost.with_traceback(None)
        elif log.closed:
            self._end()
            return False
        elif not for_events:
            return False
        else:
            await log._park()
        self._reads_left = _READS_PER_CHECKPOINT
        return True

    async def _turn_page(self) -> bool:
        """Read what follows the cursor, which is not in memory, from the archive."""
        archive, after = self._log.archive, self.cursor
        assert archive is not None
        page = await archive(after, _PAGE)
        numbers = [record.seq for record in page]
        if not numbers or numbers != list(range(after + 1, after + 1 + len(numbers))):
            raise WorkflowRuntimeError(
                f"event {after + 1} of this run, which is not in memory, is missing where the run is kept: "
                f"instead, what was read after event {after} has the numbers {short_repr(numbers)}"
            )
        self._page = page
        return True

    async def _check_cursor(self) -> bool:
        """Refuse a cursor above the newest event, unless the archive has it: then it will soon be appended."""
        archive, cursor = self._log.archive, self.cursor
        assert archive is not None
        if not await archive(cursor - 1, 1) and cursor > self._log.last:
            self._log._refuse(cursor)
        self._unchecked = False
        return True

    def _end(self) -> None:
        self.ended = True
        self._page = ()
        self._log._readers.pop(weakref.ref(self), None)
