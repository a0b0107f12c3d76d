"""The public stream of a run, and its reader.

The writer never waits. The reader takes events with `receive_nowait` and waits, when there is none,
on a signal: a task parked in `receive()` would lose the event it was just handed if it is
cancelled natively at that moment.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Any, Self

import anyio
import attrs
from anyio.lowlevel import checkpoint
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from .._backend import LoopHandle, Signal
from ..errors import WorkflowRuntimeError
from ..events import Event, InternalDispatchEvent, StopEvent

_READS_PER_CHECKPOINT = 64
"""A reader that always finds an event lets others run this often."""

Ends = tuple[MemoryObjectSendStream[Event], MemoryObjectReceiveStream[Event]]


@attrs.define(eq=False, repr=False)
class EventStream:
    """What one run publishes: one send/receive pair with one cursor.

    The pair is made when the first event is written: a run that writes none saves 6 us and 1.4 KB.

    Attributes:
        closed: Whether the terminal event has been written; nothing is written after it.
        consumed: Whether the terminal event has been read; nothing is left then.
        unread: Number of events that have been written and not read.
        read: Number of events that have been read; `read + unread` have been written.
        acknowledged: How many of these their reader has acknowledged; `None` if it never does.
        internal_wanted: Whether internal events are written (S4).
    """

    _loop: LoopHandle
    closed: bool = False
    consumed: bool = False
    unread: int = 0
    read: int = 0
    acknowledged: int | None = None
    internal_wanted: bool = False

    _ends: Ends | None = None
    """The pair, from the first event until the stream is closed."""

    _rest: deque[Event] = attrs.field(init=False)
    """What was unread when the stream was closed, and the terminal event; not there before."""

    _wakeup: Signal | None = None
    """Set by the next write; there is one exactly while a reader waits."""

    _next_checkpoint: int = _READS_PER_CHECKPOINT
    """At this number of read events the reader lets other tasks run, though more are there."""

    _readers: dict[int, None] = attrs.field(factory=dict)
    """The iterations that have begun, and are not exhausted, closed or dropped (S6). As keys, as in other places:
    an empty set takes 0.2 KB."""

    _drains: dict[anyio.Event, int] = attrs.field(factory=dict)
    """The writers that wait in `drain()`, each with its limit."""

    _drain_limit: int = -1
    """The highest of their limits, so that a read compares one number; -1 if there is none."""

    def write(self, event: Event) -> None:
        """Append an event; never waits (S1)."""
        if self._ends is None:
            self._ends = anyio.create_memory_object_stream(math.inf)
        self._ends[0].send_nowait(event)
        self.unread += 1
        if self._wakeup is not None:
            self._wakeup.set()

    def close(self, terminal: StopEvent) -> None:
        """Append the terminal event and end the stream.

        What has not been read moves to a plain deque, so that the memory stream can be closed here
        and now: the reader may come later, in another loop, or never.
        """
        self._rest = deque()
        if self._ends is not None:
            send, receive = self._ends
            send.close()
            with suppress(anyio.EndOfStream):
                while True:
                    self._rest.append(receive.receive_nowait())
            receive.close()
            self._ends = None
        self._rest.append(terminal)
        self.unread += 1
        self.closed = True
        if self._wakeup is not None:
            self._wakeup.set()
        if self._drains:
            self._end_drains()

    @property
    def written(self) -> int:
        """Number of events that have been written."""
        return self.read + self.unread

    @property
    def delivered(self) -> int:
        """Number of events that count as read: what an acknowledging reader has acknowledged (W4)."""
        return self.read if self.acknowledged is None else self.acknowledged

    @property
    def reader_waiting(self) -> bool:
        """Whether a reader is waiting for the next event."""
        return self._wakeup is not None

    def take(self) -> Event | None:
        """Take the next event; `None` if the reader is to `wait()` first.

        Raises:
            WorkflowRuntimeError: If another reader is waiting, everything has been read, or the
                caller is in another event loop than the run.
        """
        if not self.closed and not self._loop.is_here():
            raise WorkflowRuntimeError(
                "the stream of a run that has not ended can only be read in the event loop and "
                "thread where the run was started"
            )
        if self.consumed:
            raise WorkflowRuntimeError("All the streamed events have already been consumed.")
        if self._wakeup is not None:
            self._refuse_second_reader()
        unread = self.unread
        if not unread:
            return None
        if self.read >= self._next_checkpoint:
            self._next_checkpoint = self.read + _READS_PER_CHECKPOINT
            return None
        self.unread = unread = unread - 1
        self.read += 1
        if unread <= self._drain_limit:
            self._end_drains()
        if self._ends is not None:
            return self._ends[1].receive_nowait()
        event = self._rest.popleft()
        self.consumed = isinstance(event, StopEvent)
        return event

    async def wait(self) -> None:
        """Let other tasks run, and wait until there is an event. Only here is a reader cancelled.

        A step that streams tokens writes one whenever other tasks let it run: then there is no need
        to park, which takes 8 us for each instead of 12.
        """
        await checkpoint()
        if self._wakeup is not None:
            self._refuse_second_reader()
        if self.unread:
            return
        self._wakeup = self._loop.new_signal()
        try:
            await self._wakeup.wait()
        finally:
            self._wakeup = None

    # --- Writing at the reader's pace (S6) ------------------------------------------------------

    def begin_reading(self, reader: int) -> None:
        """Note that an iteration reads; `reader` identifies it."""
        self._readers[reader] = None

    def end_reading(self, reader: int) -> None:
        """Note that an iteration was left or dropped: called in any thread, by the garbage collector too."""
        self._readers.pop(reader, None)
        if self._drains:
            self._loop.call_soon(self._end_drains)

    async def drain(
        self, limit: int, while_allowed: Callable[[], AbstractContextManager[None]]
    ) -> None:
        """Let other tasks run, and wait until at most `limit` events are unread, or nothing reads.

        `while_allowed()` bounds the wait.
        """
        await checkpoint()
        if self.closed or self.unread <= limit or not self._readers:
            return
        signal = anyio.Event()
        self._drains[signal] = limit
        self._drain_limit = max(limit, self._drain_limit)
        try:
            if self._readers:  # else the last one was lost just now, in another thread
                with while_allowed():
                    await signal.wait()
        finally:
            self._drains.pop(signal, None)

    def _end_drains(self) -> None:
        """End the drains whose condition holds, and note the limit of those that remain."""
        for signal, limit in list(self._drains.items()):
            if self.closed or self.unread <= limit or not self._readers:
                del self._drains[signal]
                signal.set()
        self._drain_limit = max(self._drains.values(), default=-1)

    def _refuse_second_reader(self) -> None:
        raise WorkflowRuntimeError(
            "another iteration of this run's stream is waiting for an event; a stream has one "
            "reader: read it once and forward the events"
        )


@attrs.define(eq=False, repr=False)
class LoggedStream:
    """The stream of a run whose events a log keeps: nothing reads it, so they are only counted.

    What has been written counts as read: whatever a reader of the log has not seen is in the log (W4).

    Attributes:
        written: Number of events that have been written.
        consumed: Whether the terminal event has been written.
        internal_wanted: Whether internal events are written, to the log (S4).
    """

    written: int = 0
    consumed: bool = False
    internal_wanted: bool = False

    def write(self, event: Event) -> None:
        """Count an event."""
        self.written += 1

    def close(self, terminal: StopEvent) -> None:
        """Count the terminal event and end the stream."""
        self.written += 1
        self.consumed = True

    @property
    def delivered(self) -> int:
        """Number of events that count as read."""
        return self.written

    async def drain(
        self, limit: int, while_allowed: Callable[[], AbstractContextManager[None]]
    ) -> None:
        """Let other tasks run: nothing is unread."""
        await checkpoint()


class ReadByAsyncFor:
    """What is read with `async for`, and says so if it is used in another way."""

    __slots__ = ()

    if not TYPE_CHECKING:

        def __await__(self) -> Any:
            raise TypeError("a stream of events is not awaited; read it with 'async for'")

        # Called by 'for ev in stream', too. With `__iter__`, libraries that send bodies would take the
        # stream for an ordinary iterable.
        def __getitem__(self, index: object) -> Any:
            raise TypeError("a stream of events is read with 'async for', not with 'for'")

    def __aiter__(self) -> Self:
        return self


@attrs.define(eq=False)
class EventIterator(ReadByAsyncFor):
    """Iterates over everything in a run's stream that has not been read yet.

    It can be left at any moment, by `break`, deadline or cancellation: the next iteration continues
    with the next event. It needs no closing.
    """

    _stream: EventStream
    _expose_internal: bool
    _owner: object
    """The handler: it must live as long as its stream is read."""
    _begun: bool = False
    _exhausted: bool = False
    _reading: bool = False

    async def __anext__(self) -> Event:
        """Return the next event.

        Raises:
            StopAsyncIteration: After the terminal event.
            WorkflowRuntimeError: If the stream had been read to its end before this iteration
                began, if another one is waiting for an event, or outside the run's event loop.
        """
        if self._exhausted or (self._begun and self._stream.consumed):
            self._exhausted = True
            raise StopAsyncIteration
        if not self._reading:
            self._reading = True
            self._begun = not self._stream.consumed
            self._stream.begin_reading(id(self))
        try:
            while True:
                while (event := self._stream.take()) is None:
                    await self._stream.wait()
                if self._expose_internal or not isinstance(event, InternalDispatchEvent):
                    self._exhausted = self._stream.consumed
                    return event
        except BaseException:
            self._end_reading()
            raise

    def acknowledge(self) -> None:
        """Note that all events read so far have reached their destination.

        A reader that forwards events calls it once before the first event, and then whenever it has
        forwarded one. A snapshot counts a question as read when it was acknowledged (W4); without
        such a reader, when it was read.
        """
        self._stream.acknowledged = self._stream.read

    async def aclose(self) -> None:
        """End this iteration; the stream is not affected."""
        self._exhausted = True
        self._end_reading()

    def _end_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._stream.end_reading(id(self))

    def __del__(self) -> None:
        self._end_reading()
