"""The events of a run on a server, over as many connections as that takes."""

from __future__ import annotations

import json
from collections import deque
from typing import Any, Self

import attrs
from anyio.lowlevel import checkpoint

from ..errors import WorkflowError, WorkflowRuntimeError, WorkflowServerError
from ..runtime import Gap, RunStatus
from ._http import Backoff, Http, OpenStream, RequestError, is_hopeless, is_temporary, understanding
from ._records import KnownTypes, RemoteRecord
from ._sse import ServerSentEvent

_READS_PER_CHECKPOINT = 64
"""A reader that always finds a record lets others run this often."""


@attrs.define(eq=False, repr=False)
class RemoteEvents:
    """Yields the events of a run, from a cursor on: `async for record in run.events()`.

    It yields a `RemoteRecord` for each event, once and in order, and a `Gap(first, last, reason)` in the place of events that
    the server no longer has; it ends after the last event. When the connection breaks, it is made again, and
    continues with the cursor. A break of the connection, or the end of the server, is therefore not seen, unless
    it lasts for longer than `give_up_after`.

    It can be left at any moment, by `break`, deadline or cancellation, and continued later; it needs no closing. One
    that was left keeps its connection for as long as it exists; then that is closed by the next request of the
    client, or at its end. A wait that is cancelled closes the connection at once, and the next one opens another.

    Attributes:
        cursor: The number of the last event that it has yielded, or was told to be gone: give it as `after=` to
            continue from here, with another iterator or another program.
        status: How the run stood at the end of the iteration; `None` before that, or if the end had already
            been read when this one began.
    """

    _http: Http
    _path: str
    _known: KnownTypes
    _query: dict[str, Any]
    _backoff: Backoff
    cursor: int
    status: RunStatus | None = None

    _stream: OpenStream | None = None
    """The connection, from the first read on; `None` between two."""

    _ready: deque[ServerSentEvent] = attrs.field(factory=deque)
    """What has come and was not yielded. The cursor has not moved over it yet."""

    _reads_left: int = _READS_PER_CHECKPOINT
    _ended: bool = False
    _reading: bool = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RemoteRecord | Gap:
        """Return the next event, or a `Gap` in its place; wait until there is one.

        Raises:
            StopAsyncIteration: After the last event; also if the run is parked (`status`).
            WorkflowServerError: If the server refuses: the token is wrong, there is no such run (any more), or `after`
                is above its last event.
            ServerUnreachableError: If there is no connection for `give_up_after` seconds. The next call tries
                again.
            WorkflowRuntimeError: If another task is reading, or the client is closed.
        """
        if self._reading:
            raise WorkflowRuntimeError(
                "another task waits for an event of this iterator; call run.events() again for one of its own"
            )
        self._reading = True
        try:
            while True:
                if self._reads_left <= 0:
                    await checkpoint()
                    self._reads_left = _READS_PER_CHECKPOINT
                # An item is taken and the cursor moved in one go, after the last `await`: wherever this is
                # cancelled, nothing is lost or repeated.
                while self._ready:
                    if (item := self._take(self._ready.popleft())) is not None:
                        self._reads_left -= 1
                        return item
                if self._ended:
                    await self._close()
                    raise StopAsyncIteration
                await self._receive()
                self._reads_left = _READS_PER_CHECKPOINT
        finally:
            self._reading = False

    async def aclose(self) -> None:
        """End reading, and close the connection. A task that waits for an event is told that there is none."""
        self._ended = True
        self._ready.clear()
        await self._close()

    def _take(self, event: ServerSentEvent) -> RemoteRecord | Gap | None:
        """Return what a frame says and move the cursor; `None` if there is nothing to yield in it."""
        with understanding(f"GET {self._path}"):
            data = json.loads(event.data)
            if event.type == "message":
                record = self._known.read_record(data)
                if record.internal:
                    return record
                if record.seq > self.cursor:
                    self.cursor = record.seq
                    return record
            elif event.type == "gap":
                gap = Gap(data["first"], data["last"], data["reason"])
                self.cursor = gap.last
                return gap
            elif event.type == "end":
                self.status = data["status"]
                self._ended = True
                self._ready.clear()
        return None  # events of other types are for clients of another version

    async def _receive(self) -> None:
        """Wait for what comes next, over a new connection if there is none; or for the next attempt at one."""
        try:
            if self._stream is None:
                await self._open()
                return
            found = await self._stream.read()
        except RequestError as exc:
            failure: WorkflowError = self._http.failure_of(f"GET {self._path}", exc)
            if is_hopeless(exc):
                await self._close()
                raise failure from exc
        except WorkflowServerError as exc:
            if not is_temporary(exc):
                raise
            failure = exc
        except BaseException:
            await self._close()  # a read that is cancelled ends the connection in any case
            raise
        else:
            if found is not None:
                self._ready.extend(found)
                if found:
                    self._backoff.succeeded()
                return
            failure = self._http.failure_of(f"GET {self._path}", None)
        if self._stream is not None:
            if self._stream.is_steady:  # it was a good one, though nothing happened in the run
                self._backoff.succeeded()
            if self._stream.parser.retry is not None:
                self._backoff.first = self._stream.parser.retry / 1000
        await self._close()
        if not self._ended:
            await self._http.check_open()
            await self._backoff.wait(failure)

    async def _open(self) -> None:
        query = {**self._query, "after": self.cursor}
        self._stream = await self._http.open_stream(self._path, query)
        if self._stream is None:
            self._ended = True

    async def _close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await self._http.close_streams(stream)

    def __del__(self) -> None:
        if self._stream is not None:
            self._http.drop_stream(self._stream)

    def __repr__(self) -> str:
        state = "ended" if self._ended else "open" if self._stream is not None else "not connected"
        return f"<RemoteEvents of {self._http.url}{self._path}: after event {self.cursor}, {state}>"
