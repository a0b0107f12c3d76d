"""A proxy that cuts connections, at bytes that a seed decides."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import anyio
import attrs
from anyio.abc import SocketAttribute, SocketStream

_BROKEN = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError)


@attrs.define(eq=False)
class CuttingProxy:
    """Passes on what comes, and cuts each connection after so many bytes.

    Attributes:
        most: Bytes that pass in one direction of a connection, at most; a random number up to that.
        requests_too: Whether the requests are cut as well, or only the answers.
        cuts: How many connections were cut.
        connections: How many were made.
    """

    host: str
    port: int
    random: random.Random
    most: int
    requests_too: bool = False
    cuts: int = 0
    connections: int = 0

    async def serve(self, client: SocketStream) -> None:
        """Pass on what comes over one connection."""
        self.connections += 1
        async with client:
            try:
                server = await anyio.connect_tcp(self.host, self.port)
            except OSError:
                return  # and the client finds the connection closed
            _send_at_once(client)
            _send_at_once(server)
            async with server, anyio.create_task_group() as group:
                up = self._budget() if self.requests_too else None
                group.start_soon(self._pass_on, client, server, up, group.cancel_scope)
                await self._pass_on(server, client, self._budget(), group.cancel_scope)

    def _budget(self) -> int:
        # Often short, and sometimes long enough for all.
        return self.random.randrange(1, self.random.choice([400, 2000, self.most]))

    async def _pass_on(
        self,
        source: SocketStream,
        sink: SocketStream,
        budget: int | None,
        connection: anyio.CancelScope,
    ) -> None:
        try:
            while budget is None or budget > 0:
                chunk = await source.receive(self.random.choice([5, 100, 65536, 65536]))
                chunk = chunk if budget is None else chunk[:budget]
                await sink.send(chunk)
                budget = None if budget is None else budget - len(chunk)
            self.cuts += 1
            if self.random.random() < 0.5:
                _reset_when_closed(sink)
        except _BROKEN:
            pass
        connection.cancel()


def _send_at_once(stream: SocketStream) -> None:
    """Have small pieces not wait for each other."""
    raw: socket.socket = stream.extra(SocketAttribute.raw_socket)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _reset_when_closed(stream: SocketStream) -> None:
    """Have the other side see a broken connection, not an ordinary end."""
    raw: socket.socket = stream.extra(SocketAttribute.raw_socket)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@asynccontextmanager
async def cutting(
    url: str, seed: int, most: int, *, requests_too: bool = False
) -> AsyncIterator[tuple[str, CuttingProxy]]:
    """Give the address of a proxy in front of a server, and the proxy."""
    address = urlsplit(url)
    assert address.hostname is not None
    assert address.port is not None
    proxy = CuttingProxy(address.hostname, address.port, random.Random(seed), most, requests_too)
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, proxy.serve)
        yield f"http://127.0.0.1:{port}", proxy
        group.cancel_scope.cancel()
