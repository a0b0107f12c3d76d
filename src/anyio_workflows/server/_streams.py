"""The response that follows a run; and all requests that are open for long: limited in number, and ended together."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import anyio
import attrs
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint
from starlette.types import Message, Receive, Scope, Send

from .._documents import describe_gap
from ..errors import ContextSerdeError, StoreError, UnknownRunError, WorkflowRuntimeError
from ..events import InternalDispatchEvent
from ..instrument import EventRecord
from ..runtime import Gap, LogReader, RunHandle
from ..runtime._store import PARKED
from ._frames import Encoder, StreamFormat
from ._problems import RETRY_LATER, ProblemError

logger = logging.getLogger(__name__)

_SECONDS_TO_CANCEL = 1.0
"""So long a request whose client has left waits for the cancellation of its run to begin, at most."""

_PACE = 0.01
"""Seconds between two writes of events to a stream, at least, and"""

_PACE_FOR_EACH = 1e-4
"""so many for each reader, if that is more in all."""


@attrs.define(eq=False)
class Streams:
    """What is open for long: streams and requests that wait. Limited in number, kept alive by one clock, ended together.

    Attributes:
        heartbeat: Seconds after which something is sent on each stream, at the latest.
        max_readers: How many requests may read events at once, and
        max_readers_per_run: how many those of one run.
        stopping: Whether all have been told to end.
        readers: How many requests read events now.
        events_sent: How many events they all were sent so far.
    """

    heartbeat: float
    max_readers: int
    max_readers_per_run: int
    stopping: bool = attrs.field(default=False, init=False)
    readers: int = attrs.field(default=0, init=False)
    events_sent: int = attrs.field(default=0, init=False)

    _of_run: Counter[str] = attrs.field(factory=Counter, init=False)
    _streams: set[EventStream] = attrs.field(factory=set, init=False)
    _waits: set[anyio.CancelScope] = attrs.field(factory=set, init=False)
    _no_readers: anyio.Event | None = attrs.field(default=None, init=False)
    """Set when the last reader has ended; there while that is waited for."""

    _tasks: TaskGroup | None = attrs.field(default=None, init=False)
    """The clock, and what notices that clients leave."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve requests in this block; at its end, cut off what is still open."""
        self.stopping = False
        with ungrouped():
            async with anyio.create_task_group() as self._tasks:
                self._tasks.start_soon(self._beat)
                try:
                    yield
                finally:
                    self.stopping = True
                    for scope in self._waits:
                        scope.cancel()
                    for stream in self._streams:
                        stream.cut()
                    self._tasks.cancel_scope.cancel()

    async def _beat(self) -> None:
        """Have each stream on which nothing was sent lately send something: proxies cut connections that are silent.

        This is one clock for all of them, as a timer for each would cost more than what they send.
        """
        while True:
            await anyio.sleep(self.heartbeat / 2)
            for stream in self._streams:
                if stream.silent:
                    stream.feed.reader.interrupt()
                stream.silent = True

    # --- Readers --------------------------------------------------------------------------------------

    def check_room(self, run_id: str | None = None) -> None:
        """Refuse another reader if there are too many. Nothing may be awaited until it is counted.

        Raises:
            ProblemError: That says so.
        """
        if self.readers >= self.max_readers:
            what = f"{self.readers} requests read events"
        elif run_id is not None and self._of_run[run_id] >= self.max_readers_per_run:
            what = f"{self._of_run[run_id]} requests read the events of run {run_id}"
        else:
            return
        raise ProblemError(429, f"{what}, and no more are allowed; come back later", RETRY_LATER)

    @contextmanager
    def reading(self, run_id: str) -> Iterator[None]:
        """Count a request that reads events while this block runs."""
        self.readers += 1
        self._of_run[run_id] += 1
        try:
            yield
        finally:
            self.readers -= 1
            self._of_run[run_id] -= 1
            if not self._of_run[run_id]:
                del self._of_run[run_id]
            if not self.readers and self._no_readers is not None:
                self._no_readers.set()

    @contextmanager
    def streaming(self, stream: EventStream) -> Iterator[None]:
        """Keep a stream alive while this block runs, and end it with the others."""
        with self.reading(stream.feed.run.id):
            self._streams.add(stream)
            try:
                yield
            finally:
                self._streams.discard(stream)

    # --- Waiting --------------------------------------------------------------------------------------

    @contextmanager
    def waiting(self, seconds: float, receive: Receive) -> Iterator[None]:
        """Have this block take so long at most: less if the client leaves, or the server stops."""
        with anyio.move_on_after(seconds) as scope, self.watching(receive, scope.cancel):
            self._waits.add(scope)
            try:
                yield
            finally:
                self._waits.discard(scope)

    @contextmanager
    def watching(self, receive: Receive, on_gone: Callable[[], None]) -> Iterator[None]:
        """Call a function if the client leaves while this block runs: nothing else tells while nothing is written."""
        over = anyio.CancelScope()

        async def watch() -> None:
            with over:
                while (await receive())["type"] != "http.disconnect":
                    pass
                if not over.cancel_called:  # servers say the same after the end of a response
                    on_gone()

        assert self._tasks is not None
        self._tasks.start_soon(watch)
        try:
            yield
        finally:
            over.cancel()

    @property
    def pace(self) -> float:
        """Seconds between two writes of events to a stream, at least: what comes in between is sent at once.

        A write takes 20 to 60 µs of processor time for each reader, however many events are in it. With a thousand
        readers, a person would see events later without this, not earlier.
        """
        return max(_PACE, self.readers * _PACE_FOR_EACH)

    # --- Ending ---------------------------------------------------------------------------------------

    async def stop(self, grace: float) -> None:
        """End all waits, and all streams between two events, within `grace` seconds.

        After that, streams are open only whose clients do not read: the server has to cut their connections.
        """
        self.stopping = True
        for scope in self._waits:
            scope.cancel()
        for stream in self._streams:
            stream.feed.reader.interrupt()
        if self.readers:
            self._no_readers = anyio.Event()
            with anyio.move_on_after(grace):
                await self._no_readers.wait()


@attrs.define(eq=False)
class Feed:
    """What one request reads of a run: the events that follow its cursor, of the types that it asked for.

    Attributes:
        run: The run.
        reader: Has the cursor.
        encoder: Encodes the events.
        types: The names of the classes that are read, with those derived from them; `None` for all.
        parked: Whether all was read of a run that is parked: nothing follows until a person has mended it.
    """

    run: RunHandle[Any]
    reader: LogReader
    encoder: Encoder
    types: frozenset[str] | None = None
    parked: bool = attrs.field(default=False, init=False)

    @property
    def ended(self) -> bool:
        """Whether nothing follows."""
        return self.reader.ended or self.parked

    async def batch(
        self, wait: bool = True, max_records: int = 256, max_bytes: int = 64 * 1024
    ) -> list[EventRecord | Gap]:
        """Return what comes next, as `LogReader.batch()` does; those that were not asked for included.

        Raises:
            WorkflowError: As `LogReader.batch()`, unless the run is parked.
        """
        try:
            return await self.reader.batch(max_records, max_bytes, wait)
        except WorkflowRuntimeError:
            if self.run.info.status not in PARKED:
                raise
            self.parked = True
            return []

    def frame(self, record: EventRecord) -> bytes | None:
        """Return an event as a frame, encoded once for all readers; `None` if it was not asked for."""
        cls = type(record.event)
        if self.types is not None and not any(base.__name__ in self.types for base in cls.__mro__):
            return None
        if issubclass(cls, InternalDispatchEvent):  # the log remembers encodings by number
            return self.encoder.encode(record)
        return self.reader.encoded(record, self.encoder.encode)

    def end(self) -> dict[str, Any] | None:
        """Return what is said at the end; `None` if there is more to come back for, or the run was removed."""
        if not self.ended:
            return None
        try:
            info = self.run.info
        except UnknownRunError:
            return None
        return {"status": info.status, "last": info.last_seq}


@attrs.define(eq=False)
class EventStream:
    """A response: what follows in a run, until the run ends, the client leaves, or the server stops.

    It is an ASGI application of its own: it writes batches of frames that are encoded once for all readers,
    and has no async generator, which trio would leave half-way.

    Attributes:
        streams: What it belongs to.
        feed: What it sends.
        format: The form in which it sends that.
        first: What has been read already.
        status_code: The status of HTTP.
        headers: Further headers.
        cancels_run: Whether the run is cancelled if the client leaves before the end.
        silent: Whether nothing was sent since the clock last ticked.
    """

    streams: Streams
    feed: Feed
    format: StreamFormat
    first: Sequence[EventRecord | Gap] = ()
    status_code: int = 200
    headers: Mapping[str, str] = attrs.field(factory=dict)
    cancels_run: bool = False
    silent: bool = attrs.field(default=False, init=False)
    _client_left: bool = attrs.field(default=False, init=False)
    _scope: anyio.CancelScope = attrs.field(factory=anyio.CancelScope, init=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        start = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self._headers(scope),
        }
        try:
            if scope["method"] == "HEAD":
                await send(start)
                await send({"type": "http.response.body"})
                return
            with self.streams.streaming(self):
                with self._scope:
                    with self.streams.watching(receive, self._leave):
                        await self._send(send, start)
                        await self._write(send)
                    # Not watched: servers tell of a disconnect, too, when the response ends. Hypercorn does it before
                    # it closes the connection, which would stay open if this was cancelled.
                    last = {"type": "http.response.body", "body": self._end()}
                    await self._send(send, last)
                if self._client_left and self.cancels_run:
                    await self._cancel_run()
        finally:
            await self.feed.reader.aclose()

    def cut(self) -> None:
        """End it wherever it is."""
        self._scope.cancel()

    def _leave(self) -> None:
        self._client_left = True
        self._scope.cancel()

    async def _send(self, send: Send, message: Message) -> None:
        try:
            await send(message)
        except OSError:  # since version 2.4 of ASGI this says, too, that the client has left
            self._leave()
            await checkpoint()  # is cancelled

    def _headers(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        headers = [
            (b"content-type", self.format.media_type.encode()),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
            *((name.encode(), value.encode()) for name, value in self.headers.items()),
        ]
        if scope["http_version"].startswith("1"):
            # Some servers wait for idle connections when they stop. HTTP/2 has no such header.
            headers.append((b"connection", b"close"))
        return headers

    async def _write(self, send: Send) -> None:
        """Send all that follows."""

        async def send_part(body: bytes) -> None:
            self.silent = False
            part = {"type": "http.response.body", "body": body, "more_body": True}
            await self._send(send, part)

        await send_part(self.format.start() + self._encoded(self.first))
        due = anyio.current_time()
        try:
            while not self.streams.stopping:
                found = await self.feed.batch()
                if found:
                    if (early := due - anyio.current_time()) > 0:
                        await anyio.sleep(early)
                        found += await self.feed.batch(wait=False)
                    if body := self._encoded(found):
                        await send_part(body)
                        due = anyio.current_time() + self.streams.pace
                elif self.feed.ended:
                    break
                elif self.silent:
                    await send_part(self._heartbeat())
        except (UnknownRunError, WorkflowRuntimeError):
            pass  # the run was removed, or its runtime is being left: who comes back will be told
        except (StoreError, ContextSerdeError) as error:
            logger.warning("A stream of the events of run %s ends: %s", self.feed.run.id, error)

    def _encoded(self, found: Sequence[EventRecord | Gap]) -> bytes:
        parts = []
        for one in found:
            if isinstance(one, Gap):
                parts.append(self.format.control("gap", describe_gap(one)))
            elif (frame := self.feed.frame(one)) is not None:
                parts.append(self.format.event(frame))
                self.streams.events_sent += 1
        return b"".join(parts)

    def _heartbeat(self) -> bytes:
        """Return what keeps the connection alive. It tells how far events were read that were not asked for."""
        if self.feed.types is None:
            return self.format.heartbeat
        return self.format.cursor(self.feed.reader.cursor)

    def _end(self) -> bytes:
        """Return what says that nothing follows; nothing if there is more to come back for."""
        facts = self.feed.end()
        if facts is None:
            return b""
        end = self.format.control("end", facts)
        # Who did not ask for the last event would come back, and be told the same, for ever.
        return end if self.feed.types is None else self._heartbeat() + end

    async def _cancel_run(self) -> None:
        with (
            anyio.move_on_after(_SECONDS_TO_CANCEL, shield=True),
            suppress(UnknownRunError, WorkflowRuntimeError),
        ):
            await self.feed.run.cancel()


@contextmanager
def ungrouped() -> Iterator[None]:
    """Raise a single error as it is: no caller expects a group because of the tasks in here."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if isinstance(error, BaseExceptionGroup):
            raise
        raise error from error.__cause__
