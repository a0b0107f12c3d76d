"""The client: connections that ask, and readers that check that they get every event once, in order.

It speaks just enough HTTP, by hand, so that a thousand readers fit beside the server on a small machine.
"""

from __future__ import annotations

import asyncio
import json
import re
from types import TracebackType
from typing import Any, Self

from ..comparing import FailedError
from .wires import Asked

_NUMBER = re.compile(rb'"number": ?(\d+)')


class Connection:
    """A connection that asks one thing after the other."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(*self._address)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.close()

    async def ask(self, asked: Asked) -> Any:
        """Return the JSON of an answer.

        Raises:
            FailedError: The server refuses.
        """
        self._writer.write(asked.encoded())
        head = await self._reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        body = await self._reader.readexactly(size)
        if b"\r\nconnection: close" in head.lower():  # hypercorn says so after a thousand requests
            self._writer.close()
            self._reader, self._writer = await asyncio.open_connection(*self._address)
        status = int(head.split(b" ", 2)[1])
        if status >= 300:
            raise FailedError(f"{asked.target}: {status} {body[:200].decode(errors='replace')}")
        return json.loads(body)


class Follower(asyncio.Protocol):
    """Reads the events of a run.

    Attributes:
        numbers: The numbers of the events that have one, in the order in which they came.
        begun: Done when the first event is there.
        ended: Done when nothing follows.
    """

    def __init__(self, asked: Asked) -> None:
        loop = asyncio.get_running_loop()
        self._asked = asked
        self._unread = b""  # of the response as it is sent
        self._text = b""  # of the event stream
        self._chunked: bool | None = None  # not known before the head has come
        self.numbers: list[int] = []
        self.begun: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()

    @classmethod
    async def follow(cls, address: tuple[str, int], asked: Asked) -> Self:
        """Ask for a stream on a connection of its own, and return its reader at once."""
        loop = asyncio.get_running_loop()
        _, follower = await loop.create_connection(lambda: cls(asked), *address)
        return follower

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._asked.encoded())

    def data_received(self, data: bytes) -> None:
        self._unread += data
        if self._chunked is None:
            head, found, rest = self._unread.partition(b"\r\n\r\n")
            if not found:
                return
            if head.split(b" ", 2)[1] not in (b"200", b"201"):
                self._fail(f"{self._asked.target}: {self._unread[:200].decode(errors='replace')}")
                return
            self._chunked = b"transfer-encoding: chunked" in head.lower()
            self._unread = rest
        if self._chunked:
            self._unchunk()
        else:
            self._take(self._unread)
            self._unread = b""

    def _unchunk(self) -> None:
        text, place = [], 0
        while (end := self._unread.find(b"\r\n", place)) >= 0:
            size = int(self._unread[place:end], 16)
            if len(self._unread) < end + 2 + size + 2:
                break
            text.append(self._unread[end + 2 : end + 2 + size])
            place = end + 2 + size + 2
            if not size:
                self._end()
        self._unread = self._unread[place:]
        self._take(b"".join(text))

    def _take(self, text: bytes) -> None:
        *frames, self._text = (self._text + text).split(b"\n\n")
        for frame in frames:
            if frame.startswith(b"id:"):
                if not self.begun.done():
                    self.begun.set_result(None)
                if b'"Token"' in frame and (found := _NUMBER.search(frame)):
                    self.numbers.append(int(found[1]))

    def _fail(self, why: str) -> None:
        for future in (self.begun, self.ended):
            if not future.done():
                future.set_exception(FailedError(why))
                future.exception()  # one of them suffices
        self._transport.close()

    def _end(self) -> None:
        if not self.begun.done():
            self._fail(f"{self._asked.target}: a stream without an event")
        elif not self.ended.done():
            self.ended.set_result(None)
        self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()

    def check(self, events: int) -> None:
        """Raise `FailedError` unless every event came once, in order."""
        if self.numbers != list(range(events)):
            raise FailedError(
                f"a reader got {len(self.numbers)} events of {events}, or not in order"
            )

    def leave(self) -> None:
        self._transport.close()
