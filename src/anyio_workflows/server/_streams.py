"""The response that follows a run, and all those that are open."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import anyio
import attrs
from starlette.types import Receive, Scope, Send

from ..errors import WorkflowError
from ..events import InternalDispatchEvent
from ..instrument import EventRecord
from ..runtime import Gap, LogReader, RunHandle
from ._frames import control_frame, dumps, gap_data, json_of, sse_frame
from ._problems import ProblemError

StreamFormat = Literal["sse", "ndjson"]

_MEDIA = {"sse": b"text/event-stream; charset=utf-8", "ndjson": b"application/x-ndjson"}


@attrs.define(eq=False)
class Streams:
    """The streams that are open: limited in number, kept alive by one clock, and ended together.

    Attributes:
        heartbeat: Seconds after which a comment is sent on each.
        max_readers: How many there may be, and
        max_readers_per_run: how many of one run.
        stopping: Whether they have been told to end.
    """

    heartbeat: float
    max_readers: int
    max_readers_per_run: int
    stopping: bool = False
    _open: set[EventStreamResponse] = attrs.field(factory=set)
    _of_run: Counter[str] = attrs.field(factory=Counter)
    _all_ended: anyio.Event | None = None

    def check_room(self, run_id: str) -> None:
        """Refuse another reader if there are too many."""
        if len(self._open) >= self.max_readers or self._of_run[run_id] >= self.max_readers_per_run:
            raise ProblemError(
                429, "there are too many readers; come back later", {"retry-after": "5"}
            )

    def enter(self, stream: EventStreamResponse) -> None:
        """Count a stream that begins."""
        self._open.add(stream)
        self._of_run[stream.run.id] += 1

    def leave(self, stream: EventStreamResponse) -> None:
        """Forget a stream that has ended."""
        self._open.discard(stream)
        self._of_run[stream.run.id] -= 1
        if not self._of_run[stream.run.id]:
            del self._of_run[stream.run.id]
        if not self._open and self._all_ended is not None:
            self._all_ended.set()

    def __len__(self) -> int:
        return len(self._open)

    async def beat(self) -> None:
        """Have all streams send a comment now and then: proxies cut connections that are silent."""
        while True:
            await anyio.sleep(self.heartbeat)
            self._interrupt()

    async def stop(self, grace: float) -> None:
        """End all streams between two events, and cut off those that still write after `grace` seconds."""
        self.stopping = True
        self._interrupt()
        if self._open:
            self._all_ended = anyio.Event()
            with anyio.move_on_after(grace):
                await self._all_ended.wait()
        for stream in list(self._open):
            stream.cut()

    def _interrupt(self) -> None:
        for stream in self._open:
            stream.reader.interrupt()


class EventStreamResponse:
    """Sends what a reader of a run returns, until the run ends, the client is gone, or the server stops.

    It is an ASGI application of its own: it writes batches of frames that are encoded once for all readers,
    and has no async generator, which trio would leave half-way.
    """

    def __init__(
        self,
        streams: Streams,
        run: RunHandle[Any],
        reader: LogReader,
        format_: StreamFormat,
        types: frozenset[str] | None,
        headers: dict[str, str],
        status: int = 200,
        on_disconnect: Callable[[], Any] | None = None,
    ) -> None:
        self.streams, self.run, self.reader = streams, run, reader
        self.format, self.types, self.status_code = format_, types, status
        self.on_disconnect = on_disconnect
        self._headers = headers
        self._scope = anyio.CancelScope()

    def cut(self) -> None:
        """End it wherever it is."""
        self._scope.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        headers = [
            (b"content-type", _MEDIA[self.format]),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
            *((name.encode(), value.encode()) for name, value in self._headers.items()),
        ]
        if scope.get("http_version", "1.1").startswith("1"):
            # Some servers wait for idle connections when they stop.
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        self.streams.enter(self)
        try:
            with self._scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(self._watch, receive, group.cancel_scope)
                    await self._write(send)
                    group.cancel_scope.cancel()
        finally:
            self.streams.leave(self)
            await self.reader.aclose()

    async def _watch(self, receive: Receive, scope: anyio.CancelScope) -> None:
        """Notice that the client has gone: nobody else tells while nothing is written."""
        while (await receive())["type"] != "http.disconnect":
            pass
        scope.cancel()
        if self.on_disconnect is not None:
            with anyio.CancelScope(shield=True):
                await self.on_disconnect()

    async def _write(self, send: Send) -> None:
        sse = self.format == "sse"
        if sse:  # when to come back: not all at the same moment
            await self._send(send, b"retry: %d\n\n" % (500 + secrets.randbelow(1501)))
        while not self.streams.stopping:
            try:
                found = await self.reader.batch()
            except WorkflowError:  # it is parked, or the runtime was left
                break
            if found:
                body = b"".join([self._part(one) for one in found])
            elif self.reader.ended:
                break
            else:
                body = b":\n\n" if sse else b"\n"
            if body:
                await self._send(send, body)
        await self._send(send, self._end(), more=False)

    async def _send(self, send: Send, body: bytes, more: bool = True) -> None:
        await send({"type": "http.response.body", "body": body, "more_body": more})

    def _part(self, one: EventRecord | Gap) -> bytes:
        """Return the frame or line of one item."""
        sse = self.format == "sse"
        if isinstance(one, Gap):
            data = gap_data(one)
            return control_frame("gap", data) if sse else dumps({"gap": data}) + b"\n"
        if self.types is not None and not is_of(type(one.event), self.types):
            return b""
        frame = frame_of(self.reader, one)
        return frame if sse else json_of(frame) + b"\n"

    def _end(self) -> bytes:
        """Return what says that nothing follows; nothing if there is more to come back for."""
        if self.streams.stopping and not self.reader.ended:
            return b""
        info = self.run.info
        data = {"status": info.status, "last": info.last_seq}
        return control_frame("end", data) if self.format == "sse" else dumps({"end": data}) + b"\n"


def frame_of(reader: LogReader, record: EventRecord) -> bytes:
    """Return the frame of an event, which is encoded once for all readers."""
    if isinstance(record.event, InternalDispatchEvent):
        return sse_frame(record)
    return reader.encoded(record, sse_frame)


def is_of(cls: type, names: frozenset[str]) -> bool:
    """Return whether an event class, or one that it is derived from, has one of the names."""
    return any(base.__name__ in names for base in cls.__mro__)
